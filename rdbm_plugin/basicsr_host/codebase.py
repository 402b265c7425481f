"""Recognises the kind of BasicSR in a code base, and makes the small changes that let it find the plugin. Needs torch.

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
    SAFE: 'BasicSR with registries and a safe YAML loader; --install-into writes a module that loads the plugin and '
          'makes the loader accept the first line of our option files',
    SCANS: 'a fork from before BasicSR had registries; --install-into writes modules that its scans find, and option '
           'files for its training loop',
    PLUGIN: 'a package that uses an installed BasicSR; the first line of our option files is enough to load the plugin'}
"""Kind -> its description, and how the plugin gets loaded."""
_OTHERS = {
    'neosr': ('neosr/archs', 'results folders, experiments/results/NAME, work with "rdbm compare"'),
    'traiNNer-redux': ('traiNNer/archs', 'results folders, results/NAME, work with "rdbm compare"'),
    'MMagic': ('mmagic/registry.py', 'restored pictures, as SET/IMAGE.png, work with "rdbm compare", and "python -m '
                                     'rdbm_plugin.mmengine" trains with the same mmengine')}
KINDS.update({name: f'{name}, which has no BasicSR in it, so the plugin does not run there; its {works}'
              for name, (_, works) in _OTHERS.items()})
_MENDED = '  # mended by "rdbm doctor --fix"'
# The mark is a comment, which may not follow a backslash.
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
"""Kind -> file to write -> its imports. A code base still works after the plugin is uninstalled."""
_PACKAGE = 'basicsr/__init__.py'


class Codebase(NamedTuple):
    """A folder that contains a folder basicsr, or a training script that imports an installed BasicSR."""

    root: Path
    kind: str
    """One of KINDS."""
    package: bool = True
    """Whether basicsr/ has an __init__.py; otherwise a basicsr installed by pip hides it."""
    outdated: Sequence[Path] = ()
    """Files that import what torchvision 0.17 has removed."""
    script: str = 'basicsr/train.py'
    """The training script, relative to the folder."""
    flag: str = '-opt'
    """The script's argument that takes the option file."""
    stages: bool = False
    """Whether the script requires the stages of progressive training."""
    pinned: str | None = None
    """The BasicSR that a package requires, as in 'basicsr==1.3.4.9'."""
    unfinished: bool = False
    """Whether basicsr/version.py is missing, which is written when the code base is installed."""

    def how_to_train(self, file: str) -> str:
        """Return the shell command that trains with an option file."""
        return f'cd {self.root} && PYTHONPATH=. python {self.script} {self.flag} {file}'


class Change(NamedTuple):
    """A file to write or, if the content is None, to remove."""

    path: Path
    content: str | None

    def show(self) -> str:
        """Return the change as a unified diff or, for a removal, the name of the file."""
        if self.content is None:
            return f'remove {self.path}\n'
        before = _text(self.path) if self.path.exists() else ''
        return ''.join(difflib.unified_diff(before.splitlines(keepends=True), self.content.splitlines(keepends=True),
                                            str(self.path) if before else '/dev/null', str(self.path)))

    def make(self) -> None:
        """Write or remove the file; raise OptionError if that fails."""
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
    """Return the folder whose basicsr Python would import; nothing is imported."""
    folders = list(getattr(find_spec('basicsr'), 'submodule_search_locations', None) or ())
    return Path(folders[0]).resolve().parent if folders else None


def look_at(root: str | Path) -> Codebase:
    """Recognise the kind of BasicSR in ``root``; raise OptionError if it is unknown or there is none."""
    root = Path(root).expanduser().resolve()
    basicsr = root / 'basicsr'
    try:
        for name, (mark, _) in _OTHERS.items():
            if (root / mark).exists():
                return Codebase(root, name)
        scripts = [path for path in (basicsr / 'train.py', root / 'train.py', *sorted(root.glob('*/train.py')))
                   if path.is_file() and _IMPORT.search(_text(path))]
        if not (basicsr.is_dir() or scripts):
            raise OptionError(f'{root}: found no folder basicsr in it, and no training script that imports an '
                              'installed BasicSR; expected the top folder of a BasicSR code base.')
        script, text = (scripts[0], _text(scripts[0])) if scripts else (basicsr / 'train.py', '')
        of_script: dict[str, Any] = {'script': script.relative_to(root).as_posix(),
                                     'stages': 'mini_batch_sizes' in text,
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
    files = (root / name for name in ('requirements.txt', 'pyproject.toml', 'setup.cfg', 'setup.py'))
    found = (_REQUIREMENT.search(_text(file)) for file in files if file.is_file())
    return next((match[0].replace(' ', '') for match in found if match), None)


def _kind(basicsr: Path) -> str:
    if (basicsr / 'archs').is_dir() and (basicsr / 'utils/registry.py').is_file():
        files = [basicsr / 'utils' / name for name in ('options.py', 'misc.py')]
        code = ' '.join(ast.unparse(ast.parse(file.read_bytes())) for file in files if file.is_file())
        # FullLoader counts as safe: it resolves a name only if its module is already imported.
        return SAFE if re.search(r'\b(C?(Safe|Full)Loader|(safe|full)_load)\b', code) else REGISTRIES
    if (basicsr / 'models/archs').is_dir() and (basicsr / 'models/base_model.py').is_file():
        return SCANS
    raise OptionError(f'{basicsr}: found neither BasicSR with registries (archs/ and utils/registry.py) nor an older '
                      'fork (models/archs/ and models/base_model.py); the plugin cannot be installed there.')


def installation(codebase: Codebase) -> list[Change]:
    """Return the changes that let a code base find the plugin, except those that it already has.

    Existing option files stay as they are if they were edited or come from elsewhere. Raises OptionError if a module
    to write exists and is not what rdbm doctor wrote.
    """
    files = _files(codebase.kind)
    if not codebase.package:
        files[_PACKAGE] = '# Without this file Python prefers a basicsr installed by pip.\n'
    changes = []
    for name, content in files.items():
        path, content = codebase.root / name, _signed(content)
        if path.exists() and not _is_ours(path):
            if path.suffix != '.yml':
                raise OptionError(f'{path}: exists, and was not written by rdbm doctor, or edited since; move it away.')
        elif not path.exists() or _text(path) != content:
            changes.append(Change(path, content))
    return changes


def _files(kind: str) -> dict[str, str]:
    """Return the files that a kind of code base needs: name -> content."""
    files = {name: _MODULE.format(lines='\n    '.join(f'{line}  # noqa: F401' for line in lines))
             for name, lines in _MODULES.get(kind, {}).items()}
    options = Path(__file__).with_name('fork_options').glob('*.yml') if kind == SCANS else ()
    return {**files, **{f'options/{file.name}': _text(file) for file in sorted(options)}}


def mending(codebase: Codebase) -> list[Change]:
    """Return the edits of the import that torchvision 0.17 and later rejects; a comment marks the line for --undo."""
    return [Change(path, _REMOVED.sub(rf'\1\2{_MENDED}', _text(path))) for path in codebase.outdated]


def undoing(codebase: Codebase) -> list[Change]:
    """Return the changes that revert :func:`installation` and :func:`mending`; edited option files stay.

    Raises OptionError if a module was edited.
    """
    changes = []
    for path in (codebase.root / name for name in (*_files(SAFE), *_files(SCANS), _PACKAGE)):
        if path.is_file() and _is_ours(path):
            changes.append(Change(path, None))
        elif path.is_file() and path.suffix != '.yml' and _text(path).startswith(_MARK):
            raise OptionError(f'{path}: was changed since rdbm doctor wrote it; move it away.')
    texts = {path: _text(path) for path in _python_files(codebase.root / 'basicsr')}
    return [*changes, *(Change(path, _REPLACED.sub(r'\1_tensor\2', text)) for path, text in texts.items()
                        if _REPLACED.search(text))]


def _python_files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob('*.py')) if path.is_file()]


def _text(path: Path) -> str:
    # Line ends, and bytes that are not UTF-8, must survive reading and writing.
    return path.read_bytes().decode('utf-8', 'surrogateescape')


def _signed(text: str) -> str:
    return f"{_MARK}{hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()}\n{text}"


def _is_ours(path: Path) -> bool:
    text = _text(path)
    return text == _signed(text.partition('\n')[2])
