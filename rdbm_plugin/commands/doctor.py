"""``rdbm doctor``: checks an option file, its data and the installation before any time is spent on training."""
from __future__ import annotations

import json
import platform
import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from rdbm_plugin.data.inspection import Finding, inspect_data
from rdbm_plugin.option_keys import unknown_keys
from rdbm_plugin.options import OptionError


def main() -> int:
    """Read the command line, print the report, and return 1 if there is an error in it, else 0."""
    parser = ArgumentParser(prog='rdbm doctor', description='Check an option file, its data and the installation.')
    parser.add_argument('-opt', required=True, help='option file')
    parser.add_argument('--force_yml', nargs='+', default=[], help='changes, as for rdbm train')
    parser.add_argument('--json', action='store_true', help='print the report as JSON')
    parser.add_argument('--no-images', action='store_true', help='do not look into the images')
    args = parser.parse_args()
    with redirect_stdout(sys.stderr):
        findings = list(examine(args.opt, args.force_yml, images=not args.no_images))
    failed = any(finding.level == 'error' for finding in findings)
    if args.json:
        print(json.dumps({'file': args.opt, 'ok': not failed, 'findings': [f._asdict() for f in findings]}, indent=1))
    else:
        print(report(args.opt, findings))
    return int(failed)


def report(file: str, findings: list[Finding]) -> str:
    """The findings as text, errors last."""
    order = ('ok', 'note', 'warning', 'error')
    lines = [f'{finding.level:<8} {finding.where}: {finding.message}'
             for finding in sorted(findings, key=lambda finding: order.index(finding.level))]
    errors, warnings = (sum(finding.level == level for finding in findings) for level in ('error', 'warning'))
    return '\n'.join([*lines, f'{file}: {errors} errors, {warnings} warnings'])


def examine(file: str, changes: Sequence[str] = (), images: bool = True) -> Iterator[Finding]:
    """All findings on an option file with ``KEY:KEY=VALUE`` changes made."""
    yield from check_installation()
    import rdbm_plugin.registration  # noqa: F401
    from rdbm_plugin import compat
    from rdbm_plugin.option_file import read_option_file
    from rdbm_plugin.preflight import checks
    try:
        training = 'train' in read_option_file(file, changes)
        opt = compat.read_options(file, changes, training)
    except OptionError as error:
        yield Finding('error', 'file', str(error))
        return
    yield from check_keys_of(opt)
    told = []
    try:
        for check in checks(opt):
            try:
                check()
            except OptionError as error:
                told.append(str(error))
    except OptionError as error:
        told.append(str(error))
    yield from (Finding('error', 'options', message) for message in told)
    if not told:
        yield Finding('ok', 'options', 'every block can be built')
    yield from check_loading(opt)
    if images:
        yield from inspect_data(opt['datasets'], told)


def check_installation() -> Iterator[Finding]:
    """Versions that do not fit, and a second BasicSR in the way."""
    found = {}
    for package in ('torch', 'torchvision', 'basicsr'):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    yield Finding('ok', 'installation', ', '.join(
        [f'Python {platform.python_version()}', *(f'{name} {number or "without a version"}'
                                                  for name, number in found.items())]))
    needs = [line.split(';')[0].replace(' ', '') for line in (found['torchvision'] and requires('torchvision')) or ()]
    wanted = next((need for need in needs if need.startswith('torch==')), None)
    if wanted and found['torch'] and found['torch'].split('+')[0] != wanted.removeprefix('torch=='):
        yield Finding('error', 'installation', f'torchvision {found["torchvision"]} needs {wanted}, found torch '
                                               f'{found["torch"]}; install both together from one index.')
    folders = {str(Path(entry or '.').resolve() / 'basicsr') for entry in ['.', *sys.path]
               if (Path(entry or '.') / 'basicsr').is_dir()}
    if len(folders) > 1:
        import basicsr
        yield Finding('warning', 'installation',
                      f'{len(folders)} folders named basicsr on the path: {", ".join(sorted(folders))}; in use '
                      f'is {Path(basicsr.__file__ or "?").parent}. Uninstall one, or set PYTHONPATH.')


def check_keys_of(opt: Mapping[str, Any]) -> Iterator[Finding]:
    """Keys that nobody reads, and lines that are missing."""
    ours = str(opt.get('model_type', '')).startswith('RDBM')
    for key in unknown_keys(opt):
        if not (ours and key.mistaken):
            yield Finding('warning', key.block or 'top of the file', key.message)
    mine = [str(dataset.get('type')) for dataset in opt.get('datasets', {}).values()]
    if 'plugin' not in opt and (ours or any('Universal' in name for name in mine)):
        yield Finding('error', 'top of the file',
                      'the line "plugin: !!python/name:rdbm_plugin.registration.__version__" is missing; '
                      "BasicSR's own scripts will not find the plugin.")


def check_loading(opt: Mapping[str, Any]) -> Iterator[Finding]:
    """Loader settings of the training set that hurt."""
    train = opt['datasets'].get('train')
    if not train:
        return
    if train.get('type') == 'SyntheticUniversalDataset' and train.get('tasks'):
        batch, count = train.get('batch_size_per_gpu', 0), len(train['tasks'])
        if batch % count:
            yield Finding('note', 'datasets: train', f'batch_size_per_gpu {batch} is no multiple of the {count} tasks: '
                                                     'they are balanced over batches, not within each.')
