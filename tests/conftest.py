"""Helpers: option files with changes, and the commands run as a user runs them."""
import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from unittest.mock import patch

import pytest

ROOT = Path(__file__).resolve().parent.parent

TINY = {  # the smallest run that does everything
    'num_gpu': 0, 'datasets:train:gt_size': 16, 'datasets:train:batch_size_per_gpu': 5,
    'datasets:train:num_worker_per_gpu': 0, 'network_g:variant': 'T', 'val:sampler:steps': 2,
    **{f'datasets:val_{i}:gt_size': 24 for i in range(1, 6)},
}


class WarmPython:
    """Runs commands in forks of a Python that has imported torch and BasicSR; see warm_python.py."""

    def __init__(self):
        self.server = None

    def start(self):
        self.folder = tempfile.mkdtemp(prefix='rdbm_commands_')
        self.server = subprocess.Popen([sys.executable, ROOT / 'tests/warm_python.py'], text=True, cwd=self.folder,
                                       stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment())
        atexit.register(self.stop)
        assert self.server.stdout.readline() == 'ready\n'

    def stop(self):
        self.server.stdin.close()
        self.server.wait()
        shutil.rmtree(self.folder)

    def run(self, arguments, cwd, env, path):
        if self.server is None:
            self.start()
        output = Path(self.folder, 'output')
        request = {'arguments': arguments, 'cwd': str(cwd), 'env': env, 'path': path, 'output': str(output)}
        self.server.stdin.write(json.dumps(request) + '\n')
        self.server.stdin.flush()
        status = json.loads(self.server.stdout.readline())
        return subprocess.CompletedProcess(arguments, status, output.read_text(encoding='utf-8', errors='replace'))


WARM = WarmPython()


def environment(env=None):
    """Of a process: the plugin is on its path, behind what ``env`` has there; one thread, as tests run side by side."""
    env = dict(env or {})
    paths = [*env.pop('PYTHONPATH', '').split(os.pathsep), str(ROOT), os.environ.get('PYTHONPATH')]
    return {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': os.pathsep.join(filter(None, paths)), **env}


def command(*arguments, cwd, env=None, check=True, fresh=False):
    """Run python with ``arguments``, the plugin on its path, and return the finished process with its output.

    It is a new Python if it shall be ``fresh``, if it is not ours that is run, or if it finds another BasicSR; else a
    fork of one that has imported what it needs.
    """
    arguments = [*map(str, arguments)]
    path = [entry for entry in (env or {}).get('PYTHONPATH', '').split(os.pathsep) if entry]
    ours = arguments[0].startswith(str(ROOT / 'scripts')) or arguments[:2] in (
        ['-m', 'rdbm_plugin'], ['-m', 'rdbm_plugin.mmengine'])
    other_basicsr = any(Path(folder, 'basicsr').exists() for folder in (cwd, *path))
    if ours and not (fresh or other_basicsr):
        own = {key: value for key, value in (env or {}).items() if key != 'PYTHONPATH'}
        process = WARM.run(arguments, cwd, own, path)
    else:
        process = subprocess.run([sys.executable, *arguments], cwd=cwd, text=True, stdout=subprocess.PIPE,
                                 stderr=subprocess.STDOUT, timeout=600, env=environment(env))
    if check and process.returncode != 0:
        pytest.fail(f'{arguments} ended with {process.returncode}:\n{process.stdout[-6000:]}')
    return process


LOADER = 'from yaml import CLoader as Loader'


def basicsr_folder():
    """The folder of the BasicSR that Python imports."""
    return Path(find_spec('basicsr').origin).parent


def basicsr_into(folder, loader=LOADER):
    """BasicSR 1.4.2 as from PyPI, with another YAML loader if wanted, and our option files beside it."""
    from rdbm_plugin.basicsr_host.codebase import look_at, undoing
    shutil.copytree(basicsr_folder(), folder / 'basicsr', ignore=shutil.ignore_patterns('__pycache__'))
    shutil.copytree(ROOT / 'options', folder / 'options')
    options = folder / 'basicsr/utils/options.py'
    text = options.read_text()
    assert text.count(LOADER) == 1
    options.write_text(text.replace(LOADER, loader))
    for change in undoing(look_at(folder)):
        change.make()
    return folder


def doctor(*arguments):
    """``rdbm doctor ARGUMENTS``, in this process; returns what it printed."""
    from rdbm_plugin.__main__ import main
    with redirect_stdout(StringIO()) as printed, patch.object(sys, 'argv', ['rdbm', 'doctor', *map(str, arguments)]):
        assert main() == 0
    return printed.getvalue()


@pytest.fixture(scope='session')
def prepared(tmp_path_factory):
    """A folder with datasets/universal in it, as ``scripts/prepare_universal.py --lmdb`` makes it by default."""
    folder = tmp_path_factory.mktemp('prepared')
    command(ROOT / 'scripts/prepare_universal.py', '--lmdb', cwd=folder)
    return folder


def forced(changes):
    """Arguments that force values in the option file, as BasicSR's --force_yml takes them."""
    return ['--force_yml', *(f'{key}={value}' for key, value in changes.items())] if changes else []


def suite_rows(suite):
    """Name -> block of the rows of a suite in options/suites."""
    sys.path.insert(0, str(ROOT / 'scripts'))
    from suites import read_suite, rows_of
    return rows_of(read_suite(ROOT / f'options/suites/{suite}.yml'))


def row_file(suite, name, folder):
    """A row of a suite, written as an option file of its own."""
    rows = suite_rows(suite)
    from suites import write_row
    return write_row(ROOT / f'options/suites/{suite}.yml', name, rows[name], folder)


def rdbm(name, option_file, cwd, changes=None, extra=(), check=True):
    """``rdbm NAME -opt options/OPTION_FILE`` with the smallest settings and ``changes``."""
    return command('-m', 'rdbm_plugin', *arguments(name, option_file, changes, extra), cwd=cwd, check=check)


def arguments(name, option_file, changes=None, extra=()):
    """The command line of :func:`rdbm`."""
    changes = {**(TINY if name == 'train' else {}), **(changes or {})}
    return [name, '-opt', str(ROOT / 'options' / option_file), *extra, *forced(changes)]


def training_options(changes=(), rank=0, ranks=1):
    """Options of the quickstart with changes, as RDBMModel gets them from BasicSR."""
    from rdbm_plugin.config.option_file import read_option_file
    opt = read_option_file(ROOT / 'options/train_rdbm_quickstart.yml', ['num_gpu=0', *changes], plugins=False)
    opt.update(is_train=True, dist=ranks > 1, rank=rank, world_size=ranks)
    for phase, dataset in opt['datasets'].items():
        dataset['phase'] = phase.split('_')[0]
    return opt


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Runs a command in this process, in an empty folder, and returns the one line it was refused with."""
    from rdbm_plugin.__main__ import main

    def run(*args, **kwargs):
        before = sorted(tmp_path.rglob('*'))
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, 'argv', ['rdbm', *arguments(*args, **kwargs)])
        assert main() == 2
        assert sorted(tmp_path.rglob('*')) == before, 'nothing is written before the options are good'
        error = capsys.readouterr().err.strip()
        assert error.startswith(f'rdbm {args[0]}: ')
        return error
    return run


def short(iterations, every=None):
    """Settings of a run of ``iterations`` that validates and saves ``every`` so many."""
    every = every or iterations
    return {'train:total_iter': iterations, 'train:scheduler:periods': f'[{iterations}]', 'val:val_freq': every,
            'logger:save_checkpoint_freq': every, 'logger:print_freq': 1}
