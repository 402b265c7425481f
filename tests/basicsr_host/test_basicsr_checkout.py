"""The literal commands of the README inside a checkout laid out like BasicSR's."""
import re
from importlib.metadata import version

import pytest
from conftest import TINY, basicsr_into, command, doctor, forced, short


@pytest.fixture(scope='module')
def checkout(tmp_path_factory):
    """BasicSR 1.4.2 and our option files in one folder, after ``rdbm doctor --fix``."""
    folder = basicsr_into(tmp_path_factory.mktemp('BasicSR'))
    process = command('-c', 'import basicsr', cwd=folder, env={'PYTHONPATH': str(folder)}, check=False)
    # BasicSR 1.3.4.9 has the import too, but in a module that nothing imports by itself.
    reached = (folder / 'basicsr/data/realesrgan_dataset.py').exists()
    if reached and tuple(map(int, version('torchvision').split('.')[:2])) > (0, 16):
        assert "No module named 'torchvision.transforms.functional_tensor'" in process.stdout
    doctor('--codebase', folder, '--fix')
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


def test_folders_of_basicsrs_later_versions(tmp_path):
    """BasicSR's repository lets path: experiments_root choose the folder; 1.4.2 overwrites it."""
    folder = basicsr_into(tmp_path)
    doctor('--codebase', folder, '--fix')
    file = folder / 'basicsr/utils/options.py'
    line = "experiments_root = osp.join(root_path, 'experiments', opt['name'])"
    later = line.replace('= ', "= opt['path'].get('experiments_root') or ")
    options = folder / 'options/train_rdbm_universal.yml'
    replace(file, line, later)
    replace(options, '  resume_state: ~', '  experiments_root: runs/first\n  resume_state: ~')
    command('basicsr/train.py', '-opt', options, *forced({**TINY, **short(1)}), cwd=folder,
            env={'PYTHONPATH': str(folder)})
    assert (folder / 'runs/first/models/net_g_latest.pth').is_file() and not (folder / 'experiments').exists()


def replace(file, old, new):
    text = file.read_text(encoding='utf-8')
    assert text.count(old) == 1
    file.write_text(text.replace(old, new), encoding='utf-8')
