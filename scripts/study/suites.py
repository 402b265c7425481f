"""Suite files: option files that differ from a base file in a few keys, as rows in groups.

    base: ../train_rdbm_quickstart.yml             # seen from the suite file
    changes: {train:total_iter: 3000}              # of all rows, as for --force_yml; may be left out
    rows:
      GROUP:
        NAME: {changes: {bridge:modulation: one}}  # several blocks of changes may stand in a list

A row's name is that of its experiment. With a ``base`` of its own it differs from that file instead.
"""
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from rdbm_plugin.config.option_file import make_change, parse, read_option_file
from rdbm_plugin.config.options import OptionError, check_block, check_choice

PLUGIN = 'plugin: !!python/name:rdbm_plugin.registration.__version__\n'


def read_suite(path: Path) -> dict[str, Any]:
    """The content of a suite file; raises OptionError, naming what is wrong."""
    if not path.is_file():
        raise OptionError(f'--suite: no file {str(path)!r}.')
    content = parse(path.read_bytes())
    for group in check_block(content, 'rows'):
        check_block(content['rows'], group)
    return content


def is_suite(path: str | Path) -> bool:
    """Whether a file is a suite, and no option file."""
    return Path(path).is_file() and isinstance(content := parse(Path(path).read_bytes()), dict) and 'rows' in content


def rows_of(content: Mapping[str, Any], chosen: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    """Name -> block of all rows, or of those that are named by themselves or by their group."""
    groups = content['rows']
    for each in chosen or ():
        check_choice('--rows', each, {*groups, *(name for rows in groups.values() for name in rows)})
    return {name: row for group, rows in groups.items() for name, row in rows.items()
            if not chosen or group in chosen or name in chosen}


def changes_of(*blocks: Mapping[str, Any] | Iterable[Mapping[str, Any]]) -> list[str]:
    """Blocks of changes, later ones first in rank, as --force_yml takes them."""
    merged: dict[str, Any] = {}
    for block in blocks:
        for each in [block] if isinstance(block, Mapping) else block:
            merged.update(each)
    return [f'{key}={_text(value)}' for key, value in merged.items()]


def _text(value: Any) -> str:
    return '~' if value is None else json.dumps(value) if isinstance(value, (list, dict, bool)) else str(value)


def write_row(suite: Path, name: str, row: Mapping[str, Any], folder: Path, forced: Sequence[str] = ()) -> Path:
    """Write a row of a suite as an option file of its own, and return where it is."""
    content = read_suite(suite)
    base = (suite.parent / row.get('base', content['base'])).resolve()
    changes = changes_of(content.get('changes', {}), row.get('changes', {}))
    options = read_option_file(base, [*changes, *forced], plugins=False)
    make_change(options, f'name={name}')
    del options['plugin']
    path = folder / f'{name}.yml'
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(json.loads(json.dumps(options)), sort_keys=False, allow_unicode=True)
    path.write_text(f'# Row {name} of {suite.name}.\n{PLUGIN}{text}', encoding='utf-8')
    return path


def in_process(target: str, words: Sequence[str], log: Path | None = None, threads: int = 0,
               meanwhile: Callable[[Any], None] = lambda process: None) -> int:
    """Call ``module:function`` in a process of its own, and return its exit status.

    Args:
        target: Takes its arguments from the command line and returns the status.
        words: The command line.
        log: File that its output is added to; default: that of this process.
        threads: Of torch; 0: as many as it likes.
        meanwhile: Called with the process when that has started.
    """
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context('forkserver' if 'forkserver' in methods else 'spawn')
    # Imported once, and not for every training again.
    context.set_forkserver_preload(['rdbm_plugin.commands.pipeline'])
    process = context.Process(target=_enter, args=(target, [*map(str, words)], log, threads))
    process.start()
    meanwhile(process)
    process.join()
    return process.exitcode or 0


def _enter(target: str, words: list[str], log: Path | None, threads: int) -> None:
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
    if threads:
        import torch
        torch.set_num_threads(threads)
    # Else the workers of its loaders would be started like this process, each time by a server that imports anew.
    multiprocessing.set_start_method(None, force=True)
    module, name = target.split(':')
    sys.argv = [module, *words]
    sys.exit(getattr(import_module(module), name)())
