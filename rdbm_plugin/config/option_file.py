"""Reading option files and changes to them: plain data, and no code runs but the import of the plugin they name.

BasicSR reads them with a loader that runs whatever a tag asks for, and runs ``--force_yml`` as a program.
"""
from __future__ import annotations

import ast
import re
from collections import OrderedDict
from collections.abc import Mapping, MutableMapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from rdbm_plugin.config.options import OptionError, suggest

_Base = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)
_NUMBER = re.compile(r'[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?', re.IGNORECASE)
_MOST = 100_000
"""Values that an option file may hold, with those that aliases repeat."""


class _PlainLoader(_Base):
    """Does not import what tags name."""


class _PluginLoader(_Base):
    """Imports what ``!!python/name:`` tags name, as the ``plugin:`` line does."""


def _mapping(loader: yaml.Loader, node: yaml.MappingNode) -> OrderedDict:
    pairs = loader.construct_pairs(node, deep=True)
    for place, (key, _) in enumerate(pairs):
        mark = node.value[place][0].start_mark
        if not isinstance(key, str):
            raise OptionError(f'line {mark.line + 1}: the key {key!r} is no text; write it in quotes.')
        if any(key == other for other, _ in pairs[:place]):
            raise OptionError(f'line {mark.line + 1}: the key {key!r} stands twice in one block; YAML would forget '
                              'the first one.')
    return OrderedDict(pairs)


def _named(loader: yaml.Loader, suffix: str, node: yaml.Node) -> Any:
    module, _, name = suffix.rpartition('.')
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise OptionError(f'line {node.start_mark.line + 1}: {node.tag}: {error}; is the plugin installed, or on '
                          'PYTHONPATH?') from None


for _loader in (_PlainLoader, _PluginLoader):
    _loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
_PlainLoader.add_multi_constructor('tag:yaml.org,2002:python/name:', lambda loader, suffix, node: None)
_PluginLoader.add_multi_constructor('tag:yaml.org,2002:python/name:', _named)


def read_option_file(path: str | Path, changes: Sequence[str] = (), *, plugins: bool = True,
                     needed: Sequence[str] = ('name', 'num_gpu', 'datasets', 'path')) -> dict[str, Any]:
    """The content of an option file with changes made.

    Args:
        path: The file.
        changes: ``KEY:KEY=VALUE`` each, as after ``--force_yml``.
        plugins: Whether to import what ``!!python/name:`` tags name.
        needed: Keys that must be there; by default those that BasicSR reads at once.

    Raises:
        OptionError: Naming the file and the key, line or change.
    """
    file = Path(path)
    if not file.is_file():
        raise OptionError(f'-opt: no file {str(path)!r} (looked in {file.absolute()}).')
    try:
        content = parse(file.read_bytes(), plugins)
    except OptionError as error:
        raise OptionError(f'-opt: {path}: {error}') from None
    if not isinstance(content, dict):
        raise OptionError(f'-opt: {path}: found {str(content)[:40]!r}; expected lines of "key: value".')
    for key in needed:
        if key not in content:
            raise OptionError(f'-opt: {path}: key {key!r} is missing.{suggest(key, content)}')
    for change in changes:
        make_change(content, change)
    return content


def parse(text: bytes | str, plugins: bool = False) -> Any:
    """What YAML says, as plain values; raises OptionError if that is anything else, or too much of it."""
    try:
        content = yaml.load(text, _PluginLoader if plugins else _PlainLoader)
        _count(content)
    except OptionError:
        raise
    except RecursionError:
        raise OptionError('blocks within blocks without end.') from None
    # PyYAML's constructors fail with whatever Python raises at values such as "!!timestamp x" or "!!bool maybe".
    except (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        refused = f'{error}'.replace('\n', ' ')
        hint = ' Option files may name a plugin, and hold plain values.' if 'python/' in refused else ''
        raise OptionError(f'not valid YAML: {refused}{hint}') from None
    return content


def _count(content: Any, done: int = 0) -> int:
    if done > _MOST:
        raise OptionError(f'more than {_MOST} values.')
    if isinstance(content, (dict, list, tuple, set)):
        for value in content.values() if isinstance(content, dict) else content:
            done = _count(value, done)
    return done + 1


def make_change(content: MutableMapping[str, Any], change: str) -> None:
    """Set ``KEY:KEY=VALUE`` in ``content``; all keys but the last must be there.

    Raises:
        OptionError: Naming the change and what is wrong with it.
    """
    names, equals, text = change.partition('=')
    *blocks, last = (name.strip() for name in names.split(':'))
    if not equals or not all((*blocks, last)):
        raise OptionError(f'--force_yml: found {change!r}; expected KEY:KEY=VALUE, as in train:ema_decay=0.99.')
    block: Any = content
    for place, name in enumerate(blocks):
        if not isinstance(block, MutableMapping) or name not in block:
            hint = suggest(name, map(str, block)) if isinstance(block, Mapping) else ''
            raise OptionError(f'--force_yml: {change}: the option file has no {": ".join(blocks[:place + 1])}; all '
                              f'keys but the last must stand in it.{hint}')
        block = block[name]
    if not isinstance(block, MutableMapping):
        raise OptionError(f'--force_yml: {change}: {": ".join(blocks)} is no block, but {block!r}.')
    try:
        block[last] = parse_value(text.strip())
    except OptionError as error:
        raise OptionError(f'--force_yml: {change}: {error}') from None


def parse_value(text: str) -> Any:
    """A value on the command line, as BasicSR reads it, and negative numbers, 1e-4 and unquoted lists as well.

    Raises:
        OptionError: A list, block or quoted text is not complete.
    """
    simple = {'~': None, 'none': None, 'true': True, 'false': False}
    if text.lower() in simple:
        return simple[text.lower()]
    number = text.removeprefix('!!float').strip()
    if _NUMBER.fullmatch(number) and len(number) < 100:
        whole = number.lstrip('+-').isdecimal() and not text.startswith('!!float')
        return int(number) if whole else float(number)
    if not text.startswith(('[', '{', '"', "'", '!')):
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return parse(text)
