"""The literal commands of the README inside a checkout laid out like BasicSR's."""
import re
import shutil
from importlib.metadata import distribution

import pytest
from conftest import ROOT, TINY, command, forced, short

TORCHVISION_REMOVED = 'from torchvision.transforms.functional_tensor import rgb_to_grayscale'
TORCHVISION_TODAY = 'from torchvision.transforms.functional import rgb_to_grayscale'


@pytest.fixture(scope='module')
def checkout(tmp_path_factory):
    """BasicSR's package and our option files in one folder; one line differs, which a current torchvision forces."""
    folder = tmp_path_factory.mktemp('BasicSR')
    installed = distribution('basicsr').locate_file('basicsr')
    shutil.copytree(installed, folder / 'basicsr', ignore=shutil.ignore_patterns('__pycache__'))
    shutil.copytree(ROOT / 'options', folder / 'options')
    file = folder / 'basicsr/data/degradations.py'
    text = file.read_text(encoding='utf-8')
    assert text.count(TORCHVISION_REMOVED) == 1
    file.write_text(text.replace(TORCHVISION_REMOVED, TORCHVISION_TODAY), encoding='utf-8')
    return folder


@pytest.fixture(scope='module')
def trained(checkout):
    """What ``python basicsr/train.py -opt options/train_rdbm_universal.yml`` printed."""
    arguments = ['basicsr/train.py', '-opt', 'options/train_rdbm_universal.yml', *forced({**TINY, **short(3)})]
    return command(*arguments, cwd=checkout, env={'PYTHONPATH': str(checkout)}).stdout


def test_train_py_trains_validates_and_saves(checkout, trained):
    assert [int(i) for i in re.findall(r'iter: +(\d+), lr', trained)] == [1, 2, 3]
    for line in ('Model [RDBMModel] is created.', 'Network [RDBMUNet] is created.', 'Validation average',
                 'psnr      degraded  restored', 'ssim      degraded  restored', 'End of training.'):
        assert line in trained
    run = checkout / 'experiments/train_rdbm_universal'
    assert (run / 'models/net_g_latest.pth').is_file() and (run / 'training_states/3.state').is_file()
    assert (run / 'visualization/before_after.png').is_file()


def test_test_py_restores_with_what_was_trained(checkout, trained):
    changes = {**{f'datasets:test_{i}:gt_size': 24 for i in range(1, 6)}, 'network_g:variant': 'T',
               'val:sampler:steps': 2, 'num_gpu': 0}
    process = command('basicsr/test.py', '-opt', 'options/test_rdbm_universal.yml', *forced(changes), cwd=checkout,
                      env={'PYTHONPATH': str(checkout)})
    table = process.stdout[process.stdout.index('psnr      degraded'):].splitlines()[1:7]
    assert table == trained[trained.rindex('psnr      degraded'):].splitlines()[1:7]
    results = checkout / 'results/test_rdbm_universal'
    assert len(list((results / 'visualization').rglob('*.png'))) == 11
    assert '| average | 10 |' in (results / 'table.md').read_text(encoding='utf-8')


def test_bad_options_stop_the_stock_script_too(checkout):
    changes = forced({**TINY, **short(1), 'name': 'bad', 'bridge:stationary_variance': 0})
    process = command('basicsr/train.py', '-opt', 'options/train_rdbm_universal.yml', *changes, cwd=checkout,
                      env={'PYTHONPATH': str(checkout)}, check=False)
    assert process.returncode != 0
    assert 'OptionError: bridge: stationary_variance: found 0; allowed is a number > 0' in process.stdout
