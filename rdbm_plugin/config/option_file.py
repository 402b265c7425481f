"""Reads option files and ``--force_yml`` as plain data; BasicSR would run code that they contain. Needs PyYAML.

The only code that runs is the import of the plugin that a file names.
"""
import ast
import re
from collections.abc import Mapping, MutableMapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from rdbm_plugin.config.options import OptionError, naming, suggest

_NUMBER = re.compile(r'[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?', re.IGNORECASE)
_MOST = 100_000
"""Maximum number of values in an option file; each use of an alias counts."""


class _Loader(getattr(yaml, 'CSafeLoader', yaml.SafeLoader)):
    """Rejects keys that are not text or are duplicated."""

    imports = False
    """Whether to import what ``!!python/name:`` tags name, as for the ``plugin:`` line."""

    def block(self, node: yaml.MappingNode) -> dict[str, Any]:
        found = {}
        for (key, value), (key_node, _) in zip(self.construct_pairs(node, deep=True), node.value):
            where = f'line {key_node.start_mark.line + 1}: the key {key!r}'
            if not isinstance(key, str):
                raise OptionError(f'{where} is not text; write it in quotes.')
            if key in found:
                raise OptionError(f'{where} appears twice in one block; YAML would drop the first one.')
            found[key] = value
        return found

    def named(self, suffix: str, node: yaml.Node) -> Any:
        module, _, name = suffix.rpartition('.')
        try:
            return getattr(import_module(module), name) if self.imports else None
        except (ImportError, AttributeError, ValueError) as error:
            raise OptionError(f'line {node.start_mark.line + 1}: {node.tag}: {error}; is it on PYTHONPATH?') from None


class _ImportingLoader(_Loader):
    imports = True


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _Loader.block)
_Loader.add_multi_constructor('tag:yaml.org,2002:python/name:', _Loader.named)


def read_option_file(path: str | Path, changes: Sequence[str] = (), *, plugins: bool = True,
                     needed: Sequence[str] = ('name', 'num_gpu', 'datasets', 'path')) -> dict[str, Any]:
    """Return the content of an option file with changes applied.

    Args:
        path: The file.
        changes: ``KEY:KEY=VALUE`` each, as after ``--force_yml``.
        plugins: Whether to import what ``!!python/name:`` tags name.
        needed: Required keys; by default those that BasicSR reads at once.

    Raises OptionError, which names the file and the key, line or change.
    """
    file = Path(path)
    if not file.is_file():
        raise OptionError(f'-opt: no file {str(path)!r} (looked in {file.absolute()}).')
    with naming(f'-opt: {path}'):
        content = parse(file.read_bytes(), plugins)
        if not isinstance(content, dict):
            raise OptionError(f'found {str(content)[:40]!r}; expected lines of "key: value".')
        for key in needed:
            if key not in content:
                raise OptionError(f'key {key!r} is missing.{suggest(key, content)}')
    for change in changes:
        make_change(content, change)
    return content


def parse(text: bytes | str, plugins: bool = False) -> Any:
    """Read YAML as plain values; raise OptionError if it holds anything else, or too many values."""
    try:
        content = yaml.load(text, _ImportingLoader if plugins else _Loader)
        _count(content)
    except OptionError:
        raise
    except RecursionError:
        raise OptionError('blocks are nested too deeply, or contain themselves.') from None
    # PyYAML's constructors let through whatever Python raises for values such as "!!timestamp x" or "!!bool maybe".
    except (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        refused = f'{error}'.replace('\n', ' ')
        hint = ' Option files may name a plugin, and otherwise hold plain values only.' if 'python/' in refused else ''
        raise OptionError(f'not valid YAML: {refused}{hint}') from None
    return content


def _count(content: Any, done: int = 0) -> int:
    if done > _MOST:
        raise OptionError(f'found more than {_MOST} values.')
    if isinstance(content, (dict, list, tuple, set)):
        for value in content.values() if isinstance(content, dict) else content:
            done = _count(value, done)
    return done + 1


def make_change(content: MutableMapping[str, Any], change: str) -> None:
    """Set ``KEY:KEY=VALUE`` in ``content``; raise OptionError unless all keys but the last exist."""
    names, equals, text = change.partition('=')
    *blocks, last = (name.strip() for name in names.split(':'))
    if not equals or not all((*blocks, last)):
        raise OptionError(f'--force_yml: found {change!r}; expected KEY:KEY=VALUE, as in train:ema_decay=0.99.')
    if not blocks and last not in content and last.partition('.')[0] in content:
        raise OptionError(f'--force_yml: {change}: write colons: {last.replace(".", ":")}={text}.')
    block: Any = content
    for place, name in enumerate(blocks):
        if not isinstance(block, MutableMapping) or name not in block:
            hint = suggest(name, map(str, block)) if isinstance(block, Mapping) else ''
            raise OptionError(f'--force_yml: {change}: the option file has no {": ".join(blocks[:place + 1])}; all '
                              f'keys but the last must exist there.{hint}')
        block = block[name]
    if not isinstance(block, MutableMapping):
        raise OptionError(f'--force_yml: {change}: {": ".join(blocks)}: found {block!r}; expected a block.')
    with naming(f'--force_yml: {change}'):
        block[last] = parse_value(text.strip())


def parse_value(text: str) -> Any:
    """Read a value on the command line as BasicSR does, and also negative numbers, 1e-4 and unquoted lists.

    Raises OptionError if a list, block or quoted text is incomplete.
    """
    constants = {'~': None, 'none': None, 'true': True, 'false': False}
    if text.lower() in constants:
        return constants[text.lower()]
    number = text.removeprefix('!!float').strip()
    if _NUMBER.fullmatch(number) and len(number) < 100:
        integer = number.lstrip('+-').isdecimal() and not text.startswith('!!float')
        return int(number) if integer else float(number)
    if not text.startswith(('[', '{', '"', "'", '!')):
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return parse(text)
