"""Helpers: option files with changes, and the commands run as a user runs them."""
import atexit
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, redirect_stdout
from fcntl import LOCK_EX, flock
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from socket import create_connection, socket
from unittest.mock import patch

import pytest

import rdbm_plugin.basicsr_host.compat  # noqa: F401  lets any test import BasicSR first

ROOT = Path(__file__).resolve().parent.parent

TINY = {  # the smallest run that does everything
    'num_gpu': 0, 'datasets:train:gt_size': 16, 'datasets:train:batch_size_per_gpu': 5,
    'datasets:train:num_worker_per_gpu': 0, 'network_g:variant': 'T', 'val:sampler:steps': 2,
    'logger:use_tb_logger': 'false', **{f'datasets:val_{i}:gt_size': 24 for i in range(1, 6)},
}


class WarmPython:
    """Runs commands in forks of a Python that has imported torch, or BasicSR and ours as well; see warm_python.py."""

    def __init__(self, imports):
        self.imports, self.server, self.ended, self.count = imports, None, {}, 0

    def start(self):
        self.folder = Path(tempfile.mkdtemp(prefix='rdbm_commands_'))
        self.server = subprocess.Popen([sys.executable, ROOT / 'tests/warm_python.py', self.imports], text=True,
                                       cwd=self.folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                       env=environment())
        atexit.register(self.stop)
        assert self.server.stdout.readline() == 'ready\n'

    def stop(self):
        self.server.stdin.close()
        self.server.wait()
        shutil.rmtree(self.folder)

    def answer(self, key):
        """The next answer with this key; those of processes that end meanwhile are kept."""
        while True:
            answer = json.loads(self.server.stdout.readline())
            if 'ended' in answer:
                self.ended[answer['ended']] = answer['status']
            if key in answer:
                return answer

    def launch(self, arguments, cwd, env=None, file_size=None):
        """Start a command; ``file_size``: bytes beyond which none of its files may grow."""
        if self.server is None:
            self.start()
        self.count += 1
        env = dict(env or {})
        path = [entry for entry in env.pop('PYTHONPATH', '').split(os.pathsep) if entry]
        output = self.folder / f'{self.count}.output'
        request = {'arguments': [*map(str, arguments)], 'cwd': str(cwd), 'env': {**env, 'PYTHONPATH': os.pathsep.join(
            [*path, str(ROOT)])}, 'path': path, 'output': str(output), 'file_size': file_size}
        self.server.stdin.write(json.dumps(request) + '\n')
        self.server.stdin.flush()
        return Running(self, self.answer('started')['started'], output, request['arguments'])


class Running:
    """A command that has been started; it leads a process group of its own."""

    def __init__(self, python, pid, output, arguments):
        self.python, self.pid, self.output, self.arguments = python, pid, output, arguments

    def text(self):
        return self.output.read_text(encoding='utf-8', errors='replace') if self.output.exists() else ''

    def wait(self):
        """The finished process with its output."""
        while self.pid not in self.python.ended:
            self.python.answer('ended')
        return subprocess.CompletedProcess(self.arguments, self.python.ended.pop(self.pid), self.text())


WARM, COOL = WarmPython('all'), WarmPython('torch')


def environment(env=None):
    """Of a process: the plugin is on its path, behind what ``env`` has there; one thread unless more are asked for."""
    env = dict(env or {})
    paths = [*env.pop('PYTHONPATH', '').split(os.pathsep), str(ROOT), os.environ.get('PYTHONPATH')]
    return {'OMP_NUM_THREADS': '1', **os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, paths)), **env}


def command(*arguments, cwd, env=None, check=True, fresh=False):
    """Run python with ``arguments``, the plugin on its path, and return the finished process with its output.

    It is a fork of a Python that has imported torch, BasicSR and ours, or torch alone where it shall be ``fresh``, runs
    code of a test, or finds another BasicSR. What torchrun starts are Pythons of their own.
    """
    arguments = [*map(str, arguments)]
    folders = [cwd, *(env or {}).get('PYTHONPATH', '').split(os.pathsep)]
    fresh = fresh or '-c' in arguments or any(Path(folder, 'basicsr').exists() for folder in folders if folder)
    process = (COOL if fresh else WARM).launch(arguments, cwd, env).wait()
    if check and process.returncode != 0:
        pytest.fail(f'{arguments} ended with {process.returncode}:\n{process.stdout[-6000:]}')
    return process


def two_ranks(*arguments, cwd, env=None, check=True):
    """Run two processes of one job, as torchrun starts them; returns the first one's with the output of both."""
    with socket() as found:
        found.bind(('', 0))
        port = found.getsockname()[1]
    job = {**(env or {}), 'WORLD_SIZE': '2', 'LOCAL_WORLD_SIZE': '2', 'MASTER_ADDR': 'localhost',
           'MASTER_PORT': str(port)}
    started = [WARM.launch(arguments, cwd, {**job, 'RANK': str(rank), 'LOCAL_RANK': str(rank)}) for rank in (0, 1)]
    processes = [each.wait() for each in started]
    failed = [process for process in processes if process.returncode]
    first = subprocess.CompletedProcess(arguments, failed[0].returncode if failed else 0,
                                        ''.join(process.stdout for process in processes))
    if check and failed:
        pytest.fail(f'{arguments} ended with {first.returncode}:\n{first.stdout[-6000:]}')
    return first


LOADER = 'from yaml import CLoader as Loader'


def basicsr_folder():
    """The folder of the BasicSR that Python imports."""
    return Path(find_spec('basicsr').origin).parent


def basicsr_into(folder, loader=LOADER):
    """BasicSR 1.4.2 as from PyPI, with another YAML loader if wanted, and our option files beside it."""
    from rdbm_plugin.basicsr_host.codebase import look_at, undoing
    shutil.copytree(basicsr_folder(), folder / 'basicsr', ignore=shutil.ignore_patterns('__pycache__'))
    shutil.copytree(ROOT / 'options', folder / 'options', copy_function=shutil.copyfile)
    # Folders are copied with their modes, and those of the clone may be read-only.
    for each in (folder / 'options', *filter(Path.is_dir, (folder / 'options').rglob('*'))):
        each.chmod(0o755)
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


def pytest_runtest_setup(item):
    if item.get_closest_marker('gpu'):
        import torch
        if not torch.cuda.is_available():
            pytest.skip('torch sees no GPU')


@pytest.fixture(autouse=True)
def own_random_numbers():
    """What a test draws without a seed of its own does not depend on the tests before it."""
    import numpy as np
    import torch
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


@pytest.fixture(scope='session')
def prepared(tmp_path_factory):
    """A folder with datasets/universal in it, as prepare_universal.py --lmdb makes it by default.

    And one photo of scikit-image in each part of datasets/bsds500, which options/train_rdbm_shipped.yml reads, and the
    pairs of one task in datasets/pairs.
    """
    # Processes that run tests side by side share one.
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base) / 'prepared'
    folder.mkdir(exist_ok=True)
    with (folder / 'lock').open('w') as lock:
        flock(lock, LOCK_EX)
        if not (folder / 'datasets/pairs').exists():
            prepare(folder)
    return folder


def prepare(folder):
    photo = Path(find_spec('skimage').origin).parent / 'data/coffee.png'
    for part in ('train', 'val', 'test'):
        (folder / 'datasets/bsds500' / part).mkdir(parents=True)
        shutil.copy(photo, folder / 'datasets/bsds500' / part)
    command(ROOT / 'scripts/data_preparation/prepare_universal.py', '--lmdb', cwd=folder)
    (folder / 'datasets/pairs').symlink_to('universal/derain')


@pytest.fixture(scope='module')
def browser():
    """Headless Chromium, offline."""
    binary = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
    if binary is None:
        pytest.skip('no Chromium; apt-get install chromium to test the page in it')
    playwright = pytest.importorskip('playwright.sync_api', reason='pip install playwright to test the page')
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=binary, args=['--no-sandbox'])
        yield chromium
        chromium.close()


@contextmanager
def demo(*arguments, cwd, env):
    """``rdbm demo ARGUMENTS`` while it runs; gives its address."""
    with socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    with (Path(cwd) / 'demo.log').open('w') as log:
        process = subprocess.Popen(
            [sys.executable, '-m', 'rdbm_plugin', 'demo', '--no-browser', '--port', str(port), '--device', 'cpu',
             *map(str, arguments)], cwd=cwd, env=env, stdout=log, stderr=subprocess.STDOUT)
        try:
            until = time.monotonic() + 300
            while True:
                try:
                    create_connection(('127.0.0.1', port), 1).close()
                    break
                except OSError:
                    assert process.poll() is None and time.monotonic() < until, (Path(cwd) / 'demo.log').read_text()
                    time.sleep(0.2)
            yield f'http://127.0.0.1:{port}'
        finally:
            process.kill()
            process.wait()


def forced(changes):
    """Arguments that force values in the option file, as BasicSR's --force_yml takes them."""
    return ['--force_yml', *(f'{key}={value}' for key, value in changes.items())] if changes else []


def suite_rows(suite):
    """Name -> block of the rows of a suite in options/suites."""
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
