"""The wheel and the sdist hold all that a user needs, installed without the repository."""
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from urllib.request import urlopen

import pytest
from conftest import ROOT, TINY, demo, forced, short


def quietly(*arguments, cwd, **more):
    process = subprocess.run([sys.executable, *map(str, arguments)], cwd=cwd, text=True, stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, **more)
    assert process.returncode == 0, process.stdout[-4000:]
    return process.stdout


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """Built from an sdist, as package indexes and pip do it."""
    folder = tmp_path_factory.mktemp('built')
    tracked = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    clone = folder / 'clone'
    for name in tracked or [str(path.relative_to(ROOT)) for path in ROOT.rglob('*') if path.is_file()]:
        if (ROOT / name).is_file() and not name.startswith(('tests/', 'docs/', '.')):
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            (clone / name).write_bytes((ROOT / name).read_bytes())
    quietly('-c', 'from setuptools import build_meta; build_meta.build_sdist("..")', cwd=clone)
    source = next(folder.glob('*.tar.gz'))
    with tarfile.open(source) as file:
        file.extractall(folder / 'sdist', filter='data')
    quietly('-c', f'from setuptools import build_meta; build_meta.build_wheel({str(folder)!r})',
            cwd=next((folder / 'sdist').iterdir()))
    return next(folder.glob('*.whl'))


@pytest.fixture(scope='module')
def environment(wheel, tmp_path_factory):
    """Where the wheel is installed, and nothing of the repository can be imported."""
    site = tmp_path_factory.mktemp('site')
    quietly('-m', 'pip', 'install', '-q', '--no-deps', '--no-index', '--target', site, wheel, cwd=site)
    found = {**os.environ, 'PYTHONPATH': str(site), 'OMP_NUM_THREADS': '1'}
    place = quietly('-c', 'import rdbm_plugin; print(rdbm_plugin.__file__)', cwd=site, env=found).strip()
    assert Path(place).parent == site / 'rdbm_plugin'
    return found


def test_nothing_is_left_out(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    for folder, where in (('rdbm_plugin', 'rdbm_plugin'), ('options', 'rdbm_plugin/option_files')):
        for path in (ROOT / folder).rglob('*'):
            if path.is_file() and path.suffix in ('.py', '.yml', '.pth', '.md', '.html', '.typed'):
                assert f'{where}/{path.relative_to(ROOT / folder).as_posix()}' in names
    assert not [name for name in names if name.startswith(('tests', 'scripts', 'options', 'docs'))]


def test_it_restores_and_trains_without_the_repository(environment, tmp_path):
    def rdbm(*arguments):
        return quietly('-m', 'rdbm_plugin', *arguments, cwd=tmp_path, env=environment)
    listed = rdbm('options')
    assert 'train_rdbm_universal.yml ' in listed and 'suites/family.yml' in listed
    total = sum(line.count('.yml  ') + line.count('.py  ') for line in listed.splitlines())
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine/train_rdbm_quickstart.yml').write_text('mine')
    assert f'{total - 1} of {total} files copied to mine; 1 were there already' in rdbm('options', '--copy', 'mine')
    assert (tmp_path / 'mine/train_rdbm_quickstart.yml').read_text() == 'mine'
    rdbm('options', '--copy', 'options')
    printed = rdbm('train', '-opt', 'options/train_rdbm_quickstart.yml', *forced({**TINY, **short(1)}))
    assert 'End of training.' in printed
    sample = ROOT / 'docs/samples/dark.jpg'
    assert '1 of 1 images restored' in rdbm('restore', sample, '-o', 'out', '--steps', '1', '--device', 'cpu')


def test_it_serves_the_page_without_the_repository(environment, tmp_path):
    pytest.importorskip('gradio', reason='pip install "rdbm_plugin[demo]" to test the page')
    with demo(cwd=tmp_path, env=environment) as address, urlopen(f'{address}/config', timeout=60) as answer:
        shown = {each['props'].get('label') for each in json.load(answer)['components']}
    assert {'Photo', 'Network evaluations', 'Download (shipped)'} <= shown
