"""What kind of BasicSR a code base has, and the small changes that let it find the plugin. Needs torch only.

Files are read, not run, so a code base need not be importable.
"""
import ast
import difflib
import hashlib
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from rdbm_plugin.basicsr_host.lookup import REGISTERED
from rdbm_plugin.config.atomic_write import write_atomically
from rdbm_plugin.config.options import OptionError

REGISTRIES, SAFE, SCANS, PLUGIN = 'registries', 'registries and safe YAML', 'scans', 'plugin'
KINDS = {
    REGISTRIES: 'BasicSR with registries; the first line of our option files is enough to load the plugin',
    SAFE: 'BasicSR with registries and a safe YAML loader; needs a module that loads the plugin and lets the first '
          'line of our option files pass: --install-into',
    SCANS: 'a fork from before BasicSR had registries; needs modules that its scans find, and option files for its '
           'training loop: --install-into',
    PLUGIN: 'a package on an installed BasicSR; the first line of our option files is enough to load the plugin'}
"""What each kind is, and how it finds the plugin."""
_OTHERS = {
    'neosr': ('neosr/archs', 'results folders, experiments/results/NAME, take part in "rdbm compare"'),
    'traiNNer-redux': ('traiNNer/archs', 'results folders, results/NAME, take part in "rdbm compare"'),
    'MMagic': ('mmagic/registry.py', 'restored pictures, as SET/IMAGE.png, take part in "rdbm compare", and "python -m '
                                     'rdbm_plugin.mmengine" trains on the same mmengine')}
KINDS.update({name: f'{name}, which has no BasicSR in it, so that the plugin does not run there; its {works}'
              for name, (_, works) in _OTHERS.items()})
_MENDED = '  # mended by "rdbm doctor --fix"'
# A comment may not follow a backslash.
_REMOVED = re.compile(r'^([ \t]*from torchvision\.transforms\.functional)_tensor( import [^\\\r\n]*)', re.MULTILINE)
_REPLACED = re.compile(rf'^([ \t]*from torchvision\.transforms\.functional)( import .*){_MENDED}', re.MULTILINE)
_MARK = '# Written by "rdbm doctor --install-into"; "rdbm doctor --undo" removes it. '


def _imports(registry: str) -> list[str]:
    return ['from {} import {}'.format(*entry.split(':')) for entry in REGISTERED[registry]]


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
            'basicsr/models/archs/rdbm_arch.py': _imports('ARCH'), 'basicsr/data/rdbm_dataset.py': _imports('DATASET')},
}
"""Kind -> file -> what it imports. A code base still works when the plugin is uninstalled."""
_PACKAGE = 'basicsr/__init__.py'


class Codebase(NamedTuple):
    """A folder with a folder basicsr in it, or with a training script that imports an installed BasicSR."""

    root: Path
    kind: str
    """One of KINDS."""
    package: bool = True
    """Whether basicsr/ has an __init__.py; without, a basicsr installed by pip hides it."""
    outdated: Sequence[Path] = ()
    """Files that import what torchvision 0.17 has removed."""
    script: str = 'basicsr/train.py'
    """Its training script, within the folder."""
    flag: str = '-opt'
    """The script's argument that takes the option file."""
    stages: bool = False
    """Whether the script wants the stages of progressive training."""
    pinned: str | None = None
    """The BasicSR that a plugin asks for, as pip reads it, such as 'basicsr==1.3.4.9'."""
    unfinished: bool = False
    """Whether basicsr/version.py is missing, which its installation writes."""

    def how_to_train(self, file: str) -> str:
        """The command."""
        return f'cd {self.root} && PYTHONPATH=. python {self.script} {self.flag} {file}'


class Change(NamedTuple):
    """A file that is to be written or, without content, removed."""

    path: Path
    content: str | None

    def show(self) -> str:
        """What changes: a unified diff, or the name of what is removed."""
        if self.content is None:
            return f'remove {self.path}\n'
        before = _text(self.path) if self.path.exists() else ''
        return ''.join(difflib.unified_diff(before.splitlines(keepends=True), self.content.splitlines(keepends=True),
                                            str(self.path) if before else '/dev/null', str(self.path)))

    def make(self) -> None:
        """Write or remove the file; raises OptionError if that fails."""
        try:
            if self.content is None:
                self.path.unlink()
                return
            mode = self.path.stat().st_mode if self.path.exists() else None
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, self.content.encode('utf-8', 'surrogateescape'))
            if mode is not None:
                self.path.chmod(mode)
        except OSError as error:
            raise OptionError(f'{self.path}: cannot be changed: {error.strerror}.') from None


def installed() -> Path | None:
    """The folder whose basicsr Python would import, without importing it."""
    folders = list(getattr(find_spec('basicsr'), 'submodule_search_locations', None) or ())
    return Path(folders[0]).resolve().parent if folders else None


def look_at(root: str | Path) -> Codebase:
    """Find out what kind of BasicSR lies in ``root``; raises OptionError if there is none that is known."""
    root = Path(root).expanduser().resolve()
    basicsr = root / 'basicsr'
    try:
        for name, (mark, _) in _OTHERS.items():
            if (root / mark).exists():
                return Codebase(root, name)
        scripts = [path for path in (basicsr / 'train.py', root / 'train.py', *sorted(root.glob('*/train.py')))
                   if path.is_file() and _IMPORT.search(_text(path))]
        if not (basicsr.is_dir() or scripts):
            raise OptionError(f'{root}: no folder basicsr in it, and no training script that imports an installed '
                              'BasicSR; expected the top folder of a BasicSR code base.')
        of_script: dict[str, Any] = {}
        for script in scripts[:1]:
            text = _text(script)
            of_script = {'script': script.relative_to(root).as_posix(), 'stages': 'mini_batch_sizes' in text,
                         'flag': '--opt' if _LONG.search(text) else '-opt'}
        if not basicsr.is_dir():
            return Codebase(root, PLUGIN, pinned=_pinned(root), **of_script)
        outdated = [path for path in _python_files(basicsr) if _REMOVED.search(_text(path))]
        package = root / _PACKAGE
        unfinished = package.is_file() and '.version import' in _text(package) and not (basicsr / 'version.py').exists()
        return Codebase(root, _kind(basicsr), package.is_file(), outdated, unfinished=unfinished, **of_script)
    except OptionError:
        raise
    except (OSError, SyntaxError, ValueError) as error:
        raise OptionError(f'{basicsr}: cannot be read: {error}') from None


_IMPORT = re.compile(r'^\s*(?:from|import) basicsr\b', re.MULTILINE)
_LONG = re.compile(r'add_argument\(\s*[\'"]--opt[\'"]')
_REQUIREMENT = re.compile(r'\bbasicsr\s*(?:[=<>!~]=?=?\s*[\w.*]+(?:\s*,\s*[=<>!~]=?\s*[\w.*]+)*)?', re.IGNORECASE)


def _pinned(root: Path) -> str | None:
    for name in ('requirements.txt', 'pyproject.toml', 'setup.cfg', 'setup.py'):
        found = _REQUIREMENT.search(_text(root / name)) if (root / name).is_file() else None
        if found:
            return found[0].replace(' ', '')
    return None


def _kind(basicsr: Path) -> str:
    if (basicsr / 'archs').is_dir() and (basicsr / 'utils/registry.py').is_file():
        return SAFE if _reads_yaml_safely(basicsr / 'utils') else REGISTRIES
    if (basicsr / 'models/archs').is_dir() and (basicsr / 'models/base_model.py').is_file():
        return SCANS
    raise OptionError(f'{basicsr}: neither BasicSR with registries (archs/ and utils/registry.py) nor a fork from '
                      'before (models/archs/ and models/base_model.py); the plugin does not know how to get in.')


def _reads_yaml_safely(utils: Path) -> bool:
    """Whether options are read by a loader that follows no tags of Python's."""
    code = [ast.unparse(ast.parse(path.read_bytes())) for path in (utils / 'options.py', utils / 'misc.py')
            if path.is_file()]
    # FullLoader follows a tag to what has been imported already, and to nothing else.
    return re.search(r'\b(C?(Safe|Full)Loader|(safe|full)_load)\b', ' '.join(code)) is not None


def installation(codebase: Codebase) -> list[Change]:
    """The files that let a code base find the plugin, as far as they are needed and not there already.

    An option file that is there and was changed since, or is another one, stays as it is. Raises OptionError if a
    module of the name is there that this function did not write.
    """
    files = _files(codebase.kind)
    if not codebase.package:
        files[_PACKAGE] = '# Without this file Python prefers a basicsr installed by pip.\n'
    changes = []
    for name, content in files.items():
        path, content = codebase.root / name, _signed(content)
        if path.exists() and not _is_ours(path):
            if path.suffix != '.yml':
                raise OptionError(f'{path}: exists, and was not written by rdbm doctor like this; move it away.')
        elif not path.exists() or _text(path) != content:
            changes.append(Change(path, content))
    return changes


def _files(kind: str) -> dict[str, str]:
    """What a kind of code base needs: the name of each file and its content."""
    files = {name: _MODULE.format(lines='\n    '.join(f'{line}  # noqa: F401' for line in lines))
             for name, lines in _MODULES.get(kind, {}).items()}
    options = Path(__file__).with_name('fork_options').glob('*.yml') if kind == SCANS else ()
    return {**files, **{f'options/{file.name}': _text(file) for file in sorted(options)}}


def mending(codebase: Codebase) -> list[Change]:
    """The edit of the one import that torchvision 0.17 and later refuses; a comment marks the line for --undo."""
    return [Change(path, _REMOVED.sub(rf'\1\2{_MENDED}', _text(path))) for path in codebase.outdated]


def undoing(codebase: Codebase) -> list[Change]:
    """What takes back :func:`installation` and :func:`mending`; option files that were changed since stay.

    Raises OptionError if a module was changed since.
    """
    changes = []
    for path in (codebase.root / name for name in (*_files(SAFE), *_files(SCANS), _PACKAGE)):
        if path.is_file() and _is_ours(path):
            changes.append(Change(path, None))
        elif path.is_file() and path.suffix != '.yml' and _text(path).startswith(_MARK):
            raise OptionError(f'{path}: was changed since rdbm doctor wrote it; move it away.')
    for path in _python_files(codebase.root / 'basicsr'):
        text = _text(path)
        if _REPLACED.search(text):
            changes.append(Change(path, _REPLACED.sub(r'\1_tensor\2', text)))
    return changes


def _python_files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob('*.py')) if path.is_file()]


def _text(path: Path) -> str:
    # Bytes that are no UTF-8, and line ends, must come back as they were.
    return path.read_bytes().decode('utf-8', 'surrogateescape')


def _signed(text: str) -> str:
    return f"{_MARK}{hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()}\n{text}"


def _is_ours(path: Path) -> bool:
    text = _text(path)
    return text == _signed(text.partition('\n')[2])
