"""What kind of BasicSR a code base has, and the small changes that let it find the plugin. Needs the standard library.

Files are looked at, not run: a code base need not be importable to be told about.
"""
from __future__ import annotations

import ast
import difflib
import hashlib
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from rdbm_plugin.config.atomic_write import write_atomically
from rdbm_plugin.config.options import OptionError

REGISTRIES, SAFE, SCANS = 'registries', 'registries and safe YAML', 'scans'
BACKUP = '.rdbm-backup'
_REMOVED = re.compile(r'^(\s*from torchvision\.transforms\.functional)_tensor( import )', re.MULTILINE)
_MARK = '# Written by "rdbm doctor --install-into"; "rdbm doctor --undo" removes it. '

_MODULE = '''"""What rdbm_plugin adds here."""
try:
    {lines}
except ModuleNotFoundError as error:
    if error.name != 'rdbm_plugin':
        raise
'''
_MODULES = {
    SAFE: {'basicsr/models/rdbm_plugin_model.py': ('import rdbm_plugin.registration',
                                                     'import rdbm_plugin.basicsr_host.safe_yaml')},
    SCANS: {'basicsr/models/rdbm_model.py': ('from rdbm_plugin.models.fork_model import RDBMModel',),
            'basicsr/models/archs/rdbm_arch.py': (
                'from rdbm_plugin.archs.rdbm_unet_arch import RDBMUNet',
                'from rdbm_plugin.archs.bridge_backbone_arch import BridgeBackbone',
                'from rdbm_plugin.archs.conditional_unet_arch import ConditionalUNet'),
            'basicsr/data/rdbm_dataset.py': (
                'from rdbm_plugin.data.synthetic_universal_dataset import SyntheticUniversalDataset',
                'from rdbm_plugin.data.universal_paired_dataset import UniversalPairedDataset')},
}
"""Kind -> file -> what it imports. A code base goes on working when the plugin is uninstalled."""
_PACKAGE = 'basicsr/__init__.py'


class Codebase(NamedTuple):
    """A folder with a folder basicsr in it."""

    root: Path
    kind: str
    """REGISTRIES: nothing to install. SAFE: its YAML loader refuses the line that loads the plugin. SCANS: a fork from
    before BasicSR's registries."""
    package: bool
    """Whether basicsr/ has an __init__.py; without, a basicsr installed by pip hides it."""
    outdated: list[Path]
    """Files that import what torchvision 0.17 has removed."""

    def describe(self) -> str:
        """What it is, and what lets it find the plugin, in one line."""
        return {REGISTRIES: 'BasicSR with registries; the first line of our option files loads the plugin, and nothing '
                            'has to be installed into it',
                SAFE: 'BasicSR with registries and a safe YAML loader; needs a module that loads the plugin and lets '
                      'the first line of our option files pass: --install-into',
                SCANS: 'a fork from before BasicSR had registries; needs modules that its scans find, and option files '
                       'for its training loop: --install-into'}[self.kind]


class Change(NamedTuple):
    """A file that is to be written, or removed."""

    path: Path
    content: str | None
    backup: bool = False

    def show(self) -> str:
        """What changes: a unified diff, or the name of what is removed."""
        if self.content is None:
            return f'remove {self.path}\n'
        before = _text(self.path) if self.path.exists() else ''
        return ''.join(difflib.unified_diff(before.splitlines(keepends=True), self.content.splitlines(keepends=True),
                                            str(self.path) if before else '/dev/null', str(self.path)))

    def make(self) -> None:
        """Write the file whole, or remove it.

        Raises:
            OptionError: It could not be written.
        """
        try:
            if self.content is None:
                self.path.unlink()
                return
            mode = self.path.stat().st_mode if self.path.exists() else None
            if self.backup:
                write_atomically(_backup_of(self.path), self.path.read_bytes())
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, self.content.encode('utf-8', 'surrogateescape'))
            if mode is not None:
                self.path.chmod(mode)
        except OSError as error:
            raise OptionError(f'{self.path}: cannot be changed: {error.strerror}.') from None


def installed() -> Path | None:
    """The folder whose basicsr Python would import, without importing it."""
    spec = find_spec('basicsr')
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))).resolve().parent


def look_at(root: str | Path) -> Codebase:
    """Find out what kind of BasicSR lies in ``root``.

    Raises:
        OptionError: There is none, or none that is known.
    """
    root = Path(root).expanduser().resolve()
    basicsr = root / 'basicsr'
    if not basicsr.is_dir():
        raise OptionError(f'{root}: no folder basicsr in it; expected the top folder of a BasicSR code base.')
    try:
        outdated = [path for path in sorted(basicsr.rglob('*.py')) if path.is_file() and _REMOVED.search(_text(path))]
        return Codebase(root, _kind(basicsr), (root / _PACKAGE).is_file(), outdated)
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, OptionError):
            raise
        raise OptionError(f'{basicsr}: cannot be read: {error}') from None


def _kind(basicsr: Path) -> str:
    if (basicsr / 'archs').is_dir() and (basicsr / 'utils/registry.py').is_file():
        return SAFE if _reads_yaml_safely(basicsr / 'utils') else REGISTRIES
    if (basicsr / 'models/archs').is_dir() and (basicsr / 'models/base_model.py').is_file():
        return SCANS
    raise OptionError(f'{basicsr}: neither BasicSR with registries (archs/ and utils/registry.py) nor a fork from '
                      'before (models/archs/ and models/base_model.py); the plugin does not know how to get in.')


def _text(path: Path) -> str:
    # Bytes that are no UTF-8, and line ends, must come back as they were.
    return path.read_bytes().decode('utf-8', 'surrogateescape')


def _reads_yaml_safely(utils: Path) -> bool:
    """Whether options are read by a loader that follows no tags of Python's."""
    names = set()
    for file in ('options.py', 'misc.py'):
        path = utils / file
        for node in ast.walk(ast.parse(path.read_bytes())) if path.is_file() else ():
            names |= {getattr(node, key) for key in ('name', 'id', 'attr') if isinstance(getattr(node, key, None), str)}
    # FullLoader follows a tag to what has been imported already, and to nothing else.
    return not names.isdisjoint({'SafeLoader', 'CSafeLoader', 'safe_load', 'FullLoader', 'CFullLoader', 'full_load'})


def installation(codebase: Codebase) -> list[Change]:
    """What lets a code base find the plugin; nothing where it is there already, or not needed.

    An option file that is there and was changed since, or is another one, stays as it is.

    Raises:
        OptionError: A module of the name is there, and is not one that this function wrote.
    """
    files = {name: _signed(_MODULE.format(lines='\n    '.join(f'{line}  # noqa: F401' for line in lines)))
             for name, lines in _MODULES.get(codebase.kind, {}).items()}
    if codebase.kind == SCANS:
        files.update({f'options/{file.name}': _signed(_text(file)) for file in _fork_options()})
    if not codebase.package:
        files[_PACKAGE] = _signed('# Without this file Python prefers a basicsr installed by pip.\n')
    changes = []
    for name, content in files.items():
        path = codebase.root / name
        if path.exists() and not _is_ours(path):
            if path.suffix == '.yml':
                continue
            raise OptionError(f'{path}: exists, and was not written by rdbm doctor or was changed since; move it away.')
        if not path.exists() or _text(path) != content:
            changes.append(Change(path, content))
    return changes


def _fork_options() -> list[Path]:
    return sorted(Path(__file__).with_name('fork_options').glob('*.yml'))


def mending(codebase: Codebase) -> list[Change]:
    """The edit of the one import that torchvision 0.17 and later refuses; each file keeps a backup beside it."""
    return [Change(path, _mended(_text(path)), backup=True) for path in codebase.outdated]


def undoing(codebase: Codebase) -> list[Change]:
    """What takes back :func:`installation` and :func:`mending`; option files that were changed since stay.

    Raises:
        OptionError: A module was changed since.
    """
    return [*_removals(codebase), *_restorations(codebase)]


def _removals(codebase: Codebase) -> Iterator[Change]:
    modules = [name for files in _MODULES.values() for name in files]
    for name in (*modules, _PACKAGE, *(f'options/{file.name}' for file in _fork_options())):
        path = codebase.root / name
        if not path.is_file() or not _text(path).startswith(_MARK):
            continue
        if _is_ours(path):
            yield Change(path, None)
        elif path.suffix != '.yml':
            raise OptionError(f'{path}: was changed since rdbm doctor wrote it; move it away.')


def _restorations(codebase: Codebase) -> Iterator[Change]:
    for backup in sorted((codebase.root / 'basicsr').rglob(f'*{BACKUP}')):
        path = backup.with_name(backup.name.removesuffix(BACKUP))
        # A reinstallation of BasicSR may have removed or replaced it.
        if path.is_file() and _text(path) != _text(backup):
            if _text(path) != _mended(_text(backup)):
                raise OptionError(f'{path}: was changed since rdbm doctor mended it; compare it with {backup.name} '
                                  'beside it, and remove that.')
            yield Change(path, _text(backup))
        yield Change(backup, None)


def _backup_of(path: Path) -> Path:
    return path.with_name(path.name + BACKUP)


def _mended(text: str) -> str:
    return _REMOVED.sub(r'\1\2', text)


def _signed(text: str) -> str:
    return f'{_mark(text)}\n{text}'


def _is_ours(path: Path) -> bool:
    head, _, rest = _text(path).partition('\n')
    return head == _mark(rest)


def _mark(text: str) -> str:
    return _MARK + hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()
