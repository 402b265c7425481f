"""The plugin in other people's code bases, each laid out as such ones are, driven by their own scripts."""
import re
import shutil
import sys

import pytest
import torch
import yaml
from conftest import ROOT, TINY, basicsr_into, command, doctor, forced, short
from fork import FLAGS, make_fork

from rdbm_plugin.basicsr_host import lookup
from rdbm_plugin.basicsr_host.codebase import (
    PLUGIN,
    REGISTRIES,
    SAFE,
    SCANS,
    Codebase,
    installation,
    look_at,
    mending,
    undoing,
)
from rdbm_plugin.basicsr_host.lookup import REGISTERED
from rdbm_plugin.config.options import OptionError


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob('*'))
            if path.is_file() and '__pycache__' not in path.parts}


def train(folder, name='train_rdbm_universal', **changes):
    return command('basicsr/train.py', '-opt', f'options/{name}.yml', *forced({**TINY, **short(1), **changes}),
                   cwd=folder, env={'PYTHONPATH': str(folder)}).stdout


# ------------------------------------------------------------------ a safe YAML loader

def safe_in(folder):
    basicsr_into(folder, 'from yaml import CSafeLoader as Loader')
    doctor('--codebase', folder, '--fix')
    return folder


@pytest.fixture(scope='module')
def safe(tmp_path_factory):
    return safe_in(tmp_path_factory.mktemp('safe'))


def test_safe_yaml_loader_is_told_and_trains_after_installing(safe):
    assert look_at(safe).kind == SAFE
    process = command('basicsr/train.py', '-opt', 'options/train_rdbm_universal.yml', cwd=safe,
                      env={'PYTHONPATH': str(safe)}, check=False)
    assert process.returncode and 'could not determine a constructor' in process.stdout
    before = contents(safe)
    shown = doctor('--install-into', safe, '--dry-run')
    assert contents(safe) == before and 'safe YAML loader' in shown
    assert '+    import rdbm_plugin.basicsr_host.safe_yaml' in shown
    doctor('--install-into', safe)
    assert contents(safe).keys() - before.keys() == {safe / 'basicsr/models/rdbm_plugin_model.py'}
    assert 'End of training.' in train(safe)
    assert not installation(look_at(safe)), 'nothing is left to do'


def test_only_our_tag_is_let_in(safe):
    program = ('import yaml\n'
               'class Own(yaml.SafeLoader): pass\n'
               'Own.add_constructor("!x", lambda loader, node: 1)\n'
               'import rdbm_plugin.basicsr_host.safe_yaml\n'
               'assert yaml.load("!!python/name:rdbm_plugin.registration.__version__", Own) == "0.2.0"\n'
               'assert yaml.safe_load("p: !!python/name:rdbm_plugin.registration.__version__")["p"] == "0.2.0"\n'
               'yaml.safe_load("p: !!python/name:os.system")\n')
    process = command('-c', program, cwd=safe, env={'PYTHONPATH': str(safe)}, check=False)
    assert process.returncode and 'ConstructorError' in process.stdout and 'os.system' in process.stdout


# ------------------------------------------------------------------ another plugin beside ours

SECOND = {
    '__init__.py': "import other_plugin.archs, other_plugin.models\n__version__ = '1'\n",
    'archs/__init__.py': 'from . import plain_arch\n',
    'archs/plain_arch.py': '''
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

@ARCH_REGISTRY.register()
class OtherNet(nn.Conv2d):
    def __init__(self):
        super().__init__(3, 3, 3, padding=1)
''',
    'models/__init__.py': 'from . import other_model\n',
    'models/other_model.py': '''
from basicsr.models.sr_model import SRModel
from basicsr.utils.registry import MODEL_REGISTRY

@MODEL_REGISTRY.register()
class OtherModel(SRModel):
    pass
''',
    'train.py': '''
import os.path as osp
import other_plugin
from basicsr.train import train_pipeline

if __name__ == '__main__':
    train_pipeline(osp.abspath(osp.join(__file__, osp.pardir, osp.pardir)))
'''}


@pytest.fixture(scope='module')
def shared(tmp_path_factory):
    """A code base with both; theirs as in Real-ESRGAN: modules that register when imported, and an own train.py."""
    folder = safe_in(tmp_path_factory.mktemp('shared'))
    doctor('--install-into', folder)
    for name, text in SECOND.items():
        (folder / 'other_plugin' / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / 'other_plugin' / name).write_text(text)
    return folder


def test_plugins_stand_beside_one_another(shared):
    text = (shared / 'options/train_rdbm_universal.yml').read_text()
    theirs = re.sub(r'model_type: .*', 'model_type: OtherModel', text).replace(
        'type: RDBMUNet', 'type: OtherNet').replace('type: ResidualModulatedLoss', 'type: L1Loss').replace(
        'type: Muon', 'type: Adam')   # BasicSR's own models know no other
    theirs = re.sub(r'\n  variant: .*', '', re.sub(r'\n    (criterion|measure|balance): .*', '', theirs))
    (shared / 'options/other.yml').write_text(theirs)
    changes = {key: value for key, value in TINY.items() if not key.startswith(('network_g', 'val:sampler'))}
    for file, wanted in (('other.yml', 'Model [OtherModel] is created.'),
                         ('train_rdbm_universal.yml', 'Model [RDBMModel] is created.')):
        more = {} if file == 'other.yml' else TINY
        printed = command('other_plugin/train.py', '-opt', f'options/{file}', *forced({**changes, **more, **short(1)}),
                          cwd=shared, env={'PYTHONPATH': str(shared)}).stdout
        assert wanted in printed and 'End of training.' in printed


@pytest.mark.parametrize('first', ['other_plugin', 'rdbm_plugin.registration'])
def test_plugins_load_in_either_order(shared, first):
    second = 'rdbm_plugin.registration' if first == 'other_plugin' else 'other_plugin'
    program = (f'import {first}, {second}\nfrom basicsr.utils.registry import ARCH_REGISTRY, MODEL_REGISTRY\n'
               'assert {"OtherModel", "RDBMModel"} <= set(dict(iter(MODEL_REGISTRY)))\n'
               'assert {"OtherNet", "RDBMUNet"} <= set(dict(iter(ARCH_REGISTRY)))\n')
    command('-c', program, cwd=shared, env={'PYTHONPATH': str(shared)})


# ------------------------------------------------------------------ forks without registries

def shrink(folder, **train_changes):
    """Make the installed option files those of the smallest run."""
    for name in ('train', 'test'):
        file = folder / f'options/{name}_rdbm_universal.yml'
        opt = yaml.load(file.read_text(), Loader=yaml.SafeLoader)
        opt['num_gpu'], opt['network_g']['variant'], opt['val']['sampler']['steps'] = 0, 'T', 2
        for phase, dataset in opt['datasets'].items():
            dataset['gt_size'] = 32 if phase == 'train' else 24
        if name == 'train':
            opt['datasets']['train'].update(batch_size_per_gpu=5, num_worker_per_gpu=1, dataset_enlarge_ratio=5,
                                            pin_memory=False, iters=[2, 2], gt_sizes=[16, 32], mini_batch_sizes=[5, 3])
            opt['train'].update(total_iter=4, scheduler={'type': 'CosineAnnealingRestartLR', 'periods': [4],
                                                         'restart_weights': [1]}, **train_changes)
            opt['val']['val_freq'] = 2
            opt['logger'].update(print_freq=1, save_checkpoint_freq=2, use_tb_logger=False)
        file.write_text(yaml.safe_dump(opt, sort_keys=False))


@pytest.mark.parametrize('loop', ['plain', 'progressive'])
def test_fork_without_registries_trains_and_tests(tmp_path, loop):
    fork = make_fork(tmp_path, loop)
    before = contents(fork)
    assert look_at(fork).kind == SCANS
    assert 'a fork from before BasicSR had registries' in doctor('--install-into', fork, '--dry-run')
    assert contents(fork) == before
    shown = doctor('--install-into', fork)
    assert f'python basicsr/train.py {FLAGS[loop]} options/train_rdbm_universal.yml' in shown
    assert ('"mini_batch_sizes: [20]" with batch_size_per_gpu' in shown) == (loop == 'progressive')
    shrink(fork)
    environment, flag = {'PYTHONPATH': str(fork)}, FLAGS[loop]
    printed = command('basicsr/train.py', flag, 'options/train_rdbm_universal.yml', cwd=fork, env=environment).stdout
    assert [int(number) for number in re.findall(r'iter: (\d), ', printed)] == [1, 2, 3, 4]
    assert re.search('psnr +degraded +restored', printed) and 'End of training.' in printed
    run = fork / 'experiments/train_rdbm_universal'
    names = {path.name for path in run.rglob('*') if path.is_file()}
    assert {'net_g_2.pth', 'net_g_4.pth', 'net_g_latest.pth', '2.state', '4.state', 'before_after.png'} <= names
    assert ('net_g_best.pth' in names) == (loop == 'progressive')
    best = torch.load(run / 'training_states/4.state', weights_only=True)['best_metric']
    assert best.keys() == {'iter', 'psnr', 'ssim'} and best['iter'] == (2 if loop == 'progressive' else 0)
    printed = command('basicsr/test.py', flag, 'options/test_rdbm_universal.yml', cwd=fork, env=environment).stdout
    assert (fork / 'results/test_rdbm_universal/table.csv').is_file() and 'average' in printed
    shutil.rmtree(fork / 'experiments'), shutil.rmtree(fork / 'results')
    assert 'Nothing to change.' in doctor('--install-into', fork), 'changed option files are the user\'s'
    doctor('--codebase', fork, '--undo')
    after = contents(fork)
    kept = {path.name for path in after.keys() - before.keys()}
    assert kept == {'train_rdbm_universal.yml', 'test_rdbm_universal.yml'}
    assert before.items() <= after.items()


def test_a_protocol_is_the_same_number_in_a_fork(tmp_path):
    fork = make_fork(tmp_path, 'plain')
    doctor('--install-into', fork)
    program = ('import numpy as np\nfrom rdbm_plugin.evaluation import protocols\n'
               'a, b = np.random.default_rng(3).integers(0, 256, (2, 30, 40, 3), np.uint8)\n'
               'print([repr(float(getattr(protocols, n)(a, b, 2))) for n in ("psnr_rgb", "ssim_rgb", "ssim_y")])\n')
    here = command('-c', program, cwd=tmp_path.parent).stdout
    of_fork = f'import basicsr\nassert basicsr.__file__.startswith({str(fork)!r})\n'
    there = command('-c', of_fork + program, cwd=fork, env={'PYTHONPATH': str(fork)}).stdout
    assert here == there and here.count('.') == 3


PINS = {'requirements.txt': 'numpy\nbasicsr == 1.3.4.9\n', 'setup.py': 'setup(install_requires=["basicsr>=1.3,<2"])\n'}


@pytest.mark.parametrize(('script', 'pin', 'pinned'), [
    ('hat/train.py', 'requirements.txt', 'basicsr==1.3.4.9'), ('train.py', 'setup.py', 'basicsr>=1.3,<2'),
    ('train.py', None, None)])
def test_a_package_on_an_installed_basicsr_is_recognised(tmp_path, script, pin, pinned):
    """As HAT, Real-ESRGAN and HI-Diff are laid out."""
    file = tmp_path / script
    file.parent.mkdir(exist_ok=True)
    file.write_text('from basicsr.train import train_pipeline\nsizes = opt.get("mini_batch_sizes")\n')
    if pin:
        (tmp_path / pin).write_text(PINS[pin])
    found = look_at(tmp_path)
    assert (found.kind, found.script, found.pinned, found.stages) == (PLUGIN, script, pinned, True)
    shown = doctor('--codebase', tmp_path)
    assert f'its requirements name {pinned or "no BasicSR"}' in shown and f'python {script} -opt OPTIONS.yml' in shown
    assert 'Nothing to change.' in doctor('--install-into', tmp_path)
    assert not undoing(found)


def test_a_checkout_before_its_first_installation_is_named(tmp_path):
    folder = basicsr_into(tmp_path)
    assert not look_at(folder).unfinished
    (folder / 'basicsr/version.py').unlink()
    process = command('-m', 'rdbm_plugin', 'doctor', '--codebase', folder, cwd=tmp_path.parent, check=False)
    assert process.returncode == 1 and 'version.py is missing' in process.stdout
    assert 'pip install --no-build-isolation -e .' in process.stdout


def test_the_rdbm_command_sends_users_of_forks_to_their_scripts(tmp_path):
    fork = make_fork(tmp_path, 'plain')
    doctor('--install-into', fork)
    environment = {'PYTHONPATH': str(fork)}
    for name, status in (('train', 2), ('doctor', 1)):
        process = command('-m', 'rdbm_plugin', name, '-opt', 'x.yml', cwd=fork, env=environment, check=False)
        assert process.returncode == status and 'use its own scripts' in process.stdout
        assert 'Traceback' not in process.stdout


def test_installed_modules_do_no_harm_without_the_plugin(tmp_path):
    fork = make_fork(tmp_path, 'plain')
    doctor('--install-into', fork)
    program = ('import sys\nclass No:\n    def find_spec(self, name, *rest):\n        if name == "rdbm_plugin": '
               'raise ModuleNotFoundError("no", name=name)\nsys.meta_path.insert(0, No())\n'
               'from basicsr.models import find\nassert find("ImageCleanModel")\n')
    command('-c', program, cwd=fork, env={'PYTHONPATH': str(fork)})


# ------------------------------------------------------------------ the changes themselves

def test_fix_and_undo_give_back_every_byte(tmp_path):
    folder = basicsr_into(tmp_path)
    file = folder / 'basicsr/data/degradations.py'
    file.write_bytes(file.read_bytes().replace(b'\n', b'\r\n').replace(b'import torch\r', b'import torch  # caf\xe9\r'))
    before = contents(folder)
    assert look_at(folder).kind == REGISTRIES and look_at(folder).outdated == [file]
    assert 'functional_tensor' in doctor('--codebase', folder, '--fix', '--dry-run')
    assert contents(folder) == before
    doctor('--codebase', folder, '--fix')
    assert b'functional_tensor' not in file.read_bytes() and not look_at(folder).outdated
    doctor('--codebase', folder, '--fix')
    doctor('--codebase', folder, '--undo')
    assert contents(folder) == before


def test_nothing_is_left_of_a_fix_when_basicsr_was_installed_anew(tmp_path):
    folder = basicsr_into(tmp_path)
    file = folder / 'basicsr/data/degradations.py'
    before = contents(folder)
    doctor('--codebase', folder, '--fix')
    file.write_bytes(before[file])
    doctor('--codebase', folder, '--undo')
    assert contents(folder) == before
    doctor('--codebase', folder, '--fix')
    file.unlink()
    doctor('--codebase', folder, '--undo')
    assert contents(folder) == {path: content for path, content in before.items() if path != file}


def test_forks_get_all_that_is_registered():
    installed = ' '.join(change.content for change in installation(Codebase(ROOT, SCANS, True, [])))
    for entry in (*REGISTERED['ARCH'], *REGISTERED['DATASET']):
        module, name = entry.split(':')
        assert f'from {module} import {name}' in installed


def test_metrics_are_called_as_basicsr_and_as_forks_do(monkeypatch):
    def of_fork(img1, img2, crop_border): ...
    def of_any(**given): ...
    def of_basicsr(img, crop_border, **given): ...
    monkeypatch.setattr(lookup, 'registered', lambda kind: {'fork': of_fork, 'any': of_any, 'basicsr': of_basicsr})
    block = {'type': 'x', 'crop_border': 0, 'better': 'higher'}
    assert lookup.metric_arguments('fork', block, 1, 2) == {'img1': 1, 'img2': 2, 'crop_border': 0}
    for name in ('any', 'basicsr'):
        assert lookup.metric_arguments(name, block, 1, 2) == {'img': 1, 'img2': 2, 'crop_border': 0, 'better': 'higher'}


def test_what_was_changed_since_is_kept(tmp_path):
    folder = basicsr_into(tmp_path, 'from yaml import CSafeLoader as Loader')
    before = contents(folder)
    for change in [*installation(look_at(folder)), *mending(look_at(folder))]:
        change.make()
    mended = folder / 'basicsr/data/degradations.py'
    mended.write_bytes(mended.read_bytes() + b'# mine\n')
    path = folder / 'basicsr/models/rdbm_plugin_model.py'
    whole = path.read_bytes()
    path.write_bytes(whole + b'# mine\n')
    with pytest.raises(OptionError, match=f'{path.name}: was changed since'):
        undoing(look_at(folder))
    path.write_bytes(whole)
    for change in undoing(look_at(folder)):
        change.make()
    assert mended.read_bytes() == before[mended] + b'# mine\n' and not path.exists()
    path.write_text('mine = True\n')
    with pytest.raises(OptionError, match='exists, and was not written by rdbm doctor'):
        installation(look_at(folder))


def test_code_that_does_not_parse_is_named(tmp_path):
    folder = basicsr_into(tmp_path)
    (folder / 'basicsr/utils/misc.py').write_text('print "two"\n')
    (folder / 'basicsr/lost.py').symlink_to('nowhere')
    with pytest.raises(OptionError, match='basicsr: cannot be read: '):
        look_at(folder)


@pytest.mark.parametrize('name', ['', 'basicsr/utils'])
def test_what_is_no_code_base_is_named(tmp_path, name):
    (tmp_path / name).mkdir(parents=True, exist_ok=True)
    with pytest.raises(OptionError, match='no folder basicsr in it' if not name else 'neither BasicSR with registries'):
        look_at(tmp_path)


def test_doctor_without_an_option_file_looks_at_the_installation():
    printed = doctor()
    assert f'Python {sys.version.split()[0]}' in printed and 'BasicSR with registries' in printed


@pytest.mark.parametrize(('mark', 'name', 'works'), [
    ('neosr/archs', 'neosr', 'experiments/results/NAME'), ('traiNNer/archs', 'traiNNer-redux', 'results/NAME'),
    ('mmagic/registry.py', 'MMagic', 'rdbm_plugin.mmengine')])
def test_code_bases_without_basicsr_are_told_what_works(tmp_path, mark, name, works):
    (tmp_path / mark).mkdir(parents=True)
    (tmp_path / 'train.py').write_text('import torch\n')
    shown = doctor('--codebase', tmp_path)
    assert f'{tmp_path}: {name}, which has no BasicSR' in shown and works in shown and 'rdbm compare' in shown
    assert 'Nothing to change.' in doctor('--install-into', tmp_path)
