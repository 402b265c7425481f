"""Runs that are broken off by signals, kills, full disks and damaged files, and what is left of them."""
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, WARM, command, forced, short
from test_training import RUN, own_file, weights

from rdbm_plugin.commands.pipeline import load_resume_state
from rdbm_plugin.config.options import OptionError
from rdbm_plugin.models.checkpoints import Checkpoints

RUNS = {**{key: value for key, value in TINY.items() if key[-11:-8] not in ('l_2', 'l_3', 'l_5')}, **short(12, every=6),
        'logger:keep_best': 'psnr', 'datasets:train:dataset_enlarge_ratio': 7, 'val:val_freq': 4}
"""Twelve iterations of five in an epoch, saved every sixth, validated every fourth."""


@pytest.fixture(scope='module')
def file(tmp_path_factory):
    """The quickstart with two of its validation sets."""
    return own_file(tmp_path_factory.mktemp('file'), *((rf'  val_{i}: .*\n', '') for i in (2, 3, 5)))


def line(file, changes, *extra):
    return ['-m', 'rdbm_plugin', 'train', '-opt', str(file), *extra, *forced({**RUNS, **changes})]


def train(file, folder, *extra, **changes):
    return command(*line(file, changes, *extra), cwd=folder).stdout


SLOW = '''
import time
from rdbm_plugin.models.rdbm_model import RDBMModel
from rdbm_plugin.registration import __version__
from basicsr.utils.registry import MODEL_REGISTRY


@MODEL_REGISTRY.register()
class SlowModel(RDBMModel):
    def restore(self, *given, **named):
        time.sleep(0.2)
        return super().restore(*given, **named)
'''


def own_model(file, folder, code, name):
    """The option file with a model that a module beside it registers; gives it and what makes the module be found."""
    (folder / 'own_model.py').write_text(code)
    text = file.read_text().replace('rdbm_plugin.registration.__version__', 'own_model.__version__')
    (folder / 'own.yml').write_text(text.replace('model_type: RDBMModel', f'model_type: {name}'))
    return folder / 'own.yml', {'PYTHONPATH': str(folder)}


def break_off(file, folder, words, number, group=False, **changes):
    """Train until the output holds ``words``, send the process or its group a signal, return status and output.

    A fifth of a second is slept at every picture of a validation, so that the signal is there before it ends.
    """
    file, environment = own_model(file, folder, SLOW, 'SlowModel')
    running = WARM.launch(line(file, changes), folder, environment)
    until = time.monotonic() + 120
    while words not in running.text() and time.monotonic() < until:
        time.sleep(0.01)
    (os.killpg if group else os.kill)(running.pid, number)
    process = running.wait()
    return process.returncode, process.stdout


def what_remains(folder):
    """Everything that training has come to: weights, state, losses and validation figures of each iteration."""
    logs = sorted((folder / RUN).glob('*.log'), key=lambda path: path.stat().st_mtime)
    text = ''.join(path.read_text() for path in logs)
    losses = {int(number): rest for number, rest in re.findall(r'iter: +(\d+), (lr:\(\S+\)\]) \[eta.*?\]', text)}
    losses = {key: (value, re.search(rf'iter: +{key}, .*?(l_pix.*)', text)[1]) for key, value in losses.items()}
    state = torch.load(folder / RUN / 'training_states/12.state', weights_only=True)
    del state['options']
    scores = re.findall(r'Validation (\S+)\n\t # psnr: (\S+)\tBest: (\S+ @ \d+)', text)
    return {'latest': weights(folder), 'best': weights(folder, 'net_g_best.pth'), 'state': state, 'losses': losses,
            'scores': sorted(set(scores))}


def differences(a, b, where=''):
    """Names of all places where two nested structures differ by a single bit."""
    if isinstance(a, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [where]
    if isinstance(a, dict):
        return [f'{where}/{key}' for key in a.keys() ^ b.keys()] + [
            each for key in a.keys() & b.keys() for each in differences(a[key], b[key], f'{where}/{key}')]
    if isinstance(a, (list, tuple)):
        return [where] if len(a) != len(b) else [each for i, (x, y) in enumerate(zip(a, b))
                                                for each in differences(x, y, f'{where}/{i}')]
    return [] if a == b else [f'{where}: {a} {b}']


@pytest.fixture(scope='module')
def whole(file, tmp_path_factory):
    """A run that nothing happens to."""
    folder = tmp_path_factory.mktemp('whole')
    train(file, folder)
    return folder


@pytest.fixture
def half(whole, tmp_path):
    """A copy of it as it was after iteration 6, which is within an epoch."""
    shutil.copytree(whole / 'experiments', tmp_path / 'experiments')
    for name in ('training_states/12.state', 'models/net_g_12.pth', 'models/net_g_latest.pth'):
        (tmp_path / RUN / name).unlink()
    return tmp_path


def test_comparison_sees_a_single_bit(whole):
    a, b = what_remains(whole), what_remains(whole)
    assert differences(a, b) == []
    b['latest']['params']['tail.bias'][0] = torch.nextafter(b['latest']['params']['tail.bias'][0], torch.tensor(9.0))
    assert differences(a, b) == ['/latest/params/tail.bias']
    assert len(a['losses']) == 12 and len(a['scores']) == 9


@pytest.mark.parametrize(('workers', 'number', 'group', 'words'), [
    (2, signal.SIGINT, True, 'iter:       7,'), (0, signal.SIGTERM, False, 'Validation derain'),
    *(pytest.param(*each, marks=pytest.mark.slow) for each in (
        (0, signal.SIGTERM, False, 'iter:       7,'), (2, signal.SIGTERM, True, 'iter:       2,')))])
def test_run_that_was_asked_to_stop_is_gone_on_with_bit_for_bit(file, whole, tmp_path, workers, number, group, words):
    changes = {'datasets:train:num_worker_per_gpu': workers}
    status, output = break_off(file, tmp_path, words, number, group, **changes)
    assert status == 128 + number and 'Traceback' not in output
    stopped = re.search(r'Stopped by (\w+) after iteration (\d+); saved up to (\d+)', output)
    assert stopped[1] == number.name and stopped[2] == stopped[3]
    output = train(file, tmp_path, '--auto_resume', **changes)
    assert f'iter: {stopped[2]}.' in output
    assert ('Repeating the interrupted validation of iteration 4' in output) == (words == 'Validation derain')
    assert differences(what_remains(whole), what_remains(tmp_path)) == []


@pytest.mark.parametrize('damage', ['truncated', 'bit', 'empty', 'weights', 'missing weights', 'evil'])
def test_damaged_newest_state_is_named_and_the_one_before_is_taken(whole, tmp_path, capsys, damage):
    shutil.copytree(whole / 'experiments', tmp_path / 'experiments')
    state, net = tmp_path / RUN / 'training_states/12.state', tmp_path / RUN / 'models/net_g_12.pth'
    victim = net if 'weights' in damage else state
    content = victim.read_bytes()
    if damage == 'truncated':
        victim.write_bytes(content[:len(content) // 2])
    elif damage == 'empty':
        victim.write_bytes(b'')
    elif damage == 'missing weights':
        victim.unlink()
    elif damage == 'evil':
        torch.save({'iter': 12, 'evil': Evil(tmp_path)}, victim)
    else:
        place = len(content) // 2
        victim.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1:])
    (tmp_path / RUN / 'models/.net_g_18.pth.partial').write_bytes(b'left by a kill')
    opt = options(tmp_path)
    assert load_resume_state(opt)['iter'] == 6
    assert opt['path']['resume_state'].endswith('6.state')
    told = capsys.readouterr().out
    assert f'Skipped {state}' in told and victim.name in told
    assert not (tmp_path / 'evil ran').exists()
    assert not list(tmp_path.rglob('.*.partial'))


class Evil:
    """What a pickle may do to who loads it."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return Path.touch, (self.folder / 'evil ran',)


def options(folder, **path):
    run = folder / RUN
    return {'auto_resume': not path, 'rank': 0, 'manual_seed': 0, 'network_g': {},
            'path': {'models': str(run / 'models'), 'training_states': str(run / 'training_states'), **path}}


def test_run_without_a_whole_state_is_not_archived_silently(half):
    (half / RUN / 'training_states/6.state').write_bytes(b'torn')
    with pytest.raises(OptionError, match=r'no state in \S+ is intact.*6\.state: damaged'):
        load_resume_state(options(half))


def test_state_that_was_asked_for_and_is_damaged_is_named(half):
    path = half / RUN / 'training_states/6.state'
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(OptionError, match=r'6\.state: damaged'):
        load_resume_state(options(half, resume_state=str(path)))


def test_no_state_starts_anew(tmp_path):
    assert load_resume_state(options(tmp_path)) is None


def test_damaged_newest_state_costs_the_iterations_since_the_one_before_and_nothing_else(file, whole, tmp_path):
    shutil.copytree(whole / 'experiments', tmp_path / 'experiments')
    state = tmp_path / RUN / 'training_states/12.state'
    state.write_bytes(state.read_bytes()[:5000])
    output = train(file, tmp_path, '--auto_resume')
    assert f'Skipped {state}' in output and 'iter: 6.' in output
    assert differences(what_remains(whole), what_remains(tmp_path)) == []


def test_state_of_basicsr_is_gone_on_with(file, half):
    """Only what BasicSR itself saves is left in the state."""
    path = half / RUN / 'training_states/6.state'
    state = torch.load(path, weights_only=True)
    torch.save({key: state[key] for key in ('epoch', 'iter', 'optimizers', 'schedulers')}, path)
    expected = weights(half, 'net_g_6.pth')
    output = train(file, half, '--auto_resume', **{'train:total_iter': 7})
    assert 'The state was written by BasicSR' in output and 'it lacks the best scores so far' in output
    assert re.findall(r'iter: +(\d+), lr', output) == ['7']
    assert 0 < max(float((weights(half)['params'][name] - value).abs().max())
                   for name, value in expected['params'].items()) < 0.01


def test_changed_options_are_named_and_a_longer_schedule_holds(file, half):
    """BasicSR would keep the old periods and fail behind their end."""
    output = train(file, half, '--auto_resume', **{**short(14), 'bridge:modulation': 'one'})
    assert "Resumed with a changed option: bridge: modulation: 'residual' -> 'one'" in output
    assert 'train: total_iter: 12 -> 14' in output
    rates = [float(x) for x in re.findall(r'lr:\((\S+),\)', output)]
    assert len(rates) == 8 and rates[-1] < rates[-2] < rates[0]


def test_changed_rate_holds_and_a_new_metric_is_taken_up(file, half):
    """BasicSR goes on with the rate of the state, and fails at a metric that the state does not have."""
    own = half / 'own.yml'
    metric = '  metrics:\n    ssim: {type: calculate_ssim, crop_border: 0}\n'
    own.write_text(file.read_text().replace('  metrics:\n', metric))
    output = train(own, half, '--auto_resume', **{'train:optim_g:lr': 1e-5})
    assert 'train: optim_g: lr: 0.0015 -> 1e-05' in output and '# ssim' in output
    rates = [float(x) for x in re.findall(r'lr:\((\S+),\)', output)]
    assert 4e-6 < rates[0] < 1e-5


def test_longer_epochs_do_not_end_a_resumed_run_early(file, half):
    output = train(file, half, '--auto_resume', **{'datasets:train:dataset_enlarge_ratio': 1000})
    assert [int(i) for i in re.findall(r'iter: +(\d+), lr', output)] == [7, 8, 9, 10, 11, 12]


def test_run_that_was_wound_back_deletes_nothing_of_what_came_later(tmp_path):
    for iteration in (2, 4, 6, 100, 200):
        (tmp_path / f'{iteration}.state').touch()
        (tmp_path / f'net_g_{iteration}.pth').touch()
    checkpoints = Checkpoints({'models': tmp_path, 'training_states': tmp_path}, keep_last=2)
    checkpoints.tidy(6)
    assert checkpoints.iterations() == [4, 6, 100, 200]
    assert len(list(tmp_path.glob('net_g_*.pth'))) == 4 and not (tmp_path / 'net_g_2.pth').exists()


@pytest.mark.parametrize('mode', ['cpu', pytest.param('~', marks=pytest.mark.slow)])
def test_no_worker_keeps_a_run_from_ending(file, tmp_path, mode):
    """They do not heed SIGTERM, with which Python ends what is left of them; here a run ends well, and in an error."""
    changes = {'datasets:train:num_worker_per_gpu': 2, 'datasets:train:prefetch_mode': mode, **short(2)}
    train(file, tmp_path, **changes)
    own, environment = own_model(file, tmp_path, FAILING, 'FailingModel')
    begin = time.monotonic()
    process = command(*line(own, changes), cwd=tmp_path, env=environment, check=False)
    assert process.returncode == 1 and 'RuntimeError: as intended' in process.stdout
    assert time.monotonic() - begin < 60


FAILING = '''
from rdbm_plugin.models.rdbm_model import RDBMModel
from rdbm_plugin.registration import __version__
from basicsr.utils.registry import MODEL_REGISTRY


@MODEL_REGISTRY.register()
class FailingModel(RDBMModel):
    def optimize_parameters(self, current_iter):
        raise RuntimeError('as intended')
'''


def test_disk_that_is_full_costs_no_checkpoint_and_no_training(file, half):
    """No file may grow beyond 1 MiB: writing fails in the middle of each, as on a full disk."""
    kept = (half / RUN / 'models/net_g_6.pth').read_bytes()
    arguments = line(file, {'logger:save_checkpoint_freq': 1}, '--auto_resume')
    process = WARM.launch(arguments, half, file_size=2**20).wait()
    warned = re.findall(r'Iteration (\d+) could not be saved: .*File too large', process.stdout)
    assert warned == ['7', '8', '9', '10', '11', '12']
    assert re.findall(r'iter: +(\d+), lr', process.stdout) == warned
    assert process.returncode != 0, 'what was trained in the end is lost, which must not look like success'
    assert (half / RUN / 'models/net_g_6.pth').read_bytes() == kept
    assert sorted(path.name for path in (half / RUN / 'training_states').iterdir()) == ['6.state']
    assert not list(half.rglob('.*.partial'))


def test_only_the_newest_and_the_best_are_kept(file, tmp_path):
    train(file, tmp_path, **{**short(9, every=2), 'logger:keep_last': 2, 'logger:keep_best': 'psnr'})
    assert {path.name for path in (tmp_path / RUN / 'models').iterdir()} == {
        'net_g_6.pth', 'net_g_8.pth', 'net_g_best.pth', 'net_g_latest.pth'}
    assert {path.name for path in (tmp_path / RUN / 'training_states').iterdir()} == {'6.state', '8.state'}
    best = torch.load(tmp_path / RUN / 'training_states/8.state', weights_only=True)['best_metric_results']['average']
    log = next((tmp_path / RUN).glob('*.log')).read_text()
    averages = [float(x) for x in re.findall(r'Validation average\n\t # psnr: (\S+)', log)][:4]
    assert best['psnr']['val'] == pytest.approx(max(averages), abs=1e-4)


PAIRS = """  train:
    name: pairs
    type: PairedImageDataset
    dataroot_gt: {root}/gt
    dataroot_lq: {root}/lq
    io_backend: {{type: disk}}
    gt_size: 32
    use_hflip: true
    use_rot: true
    num_worker_per_gpu: 2
    batch_size_per_gpu: 4
    dataset_enlarge_ratio: 1.5

"""


def test_basicsrs_own_data_set_is_gone_on_with_within_an_epoch(file, prepared, tmp_path):
    """Its crops and flips are drawn from generators that live in the workers."""
    own = tmp_path / 'own.yml'
    text = re.sub(r'  train:\n(    .*\n)+\n', PAIRS.format(root=prepared / 'datasets/universal/derain/train'),
                  file.read_text(), count=1)
    own.write_text(text)
    changes = {'datasets:train:batch_size_per_gpu': 4, 'datasets:train:num_worker_per_gpu': 2,
               'datasets:train:dataset_enlarge_ratio': 1.5}
    for name in ('whole', 'stopped'):
        (tmp_path / name).mkdir()
    train(own, tmp_path / 'whole', **changes)
    break_off(own, tmp_path / 'stopped', 'iter:       8,', signal.SIGTERM, True, **changes)
    output = train(own, tmp_path / 'stopped', '--auto_resume', **changes)
    assert int(re.search(r'Resuming training from epoch: 1, iter: (\d+)', output)[1]) % 6, 'within an epoch of 6'
    assert differences(what_remains(tmp_path / 'whole'), what_remains(tmp_path / 'stopped')) == []


@pytest.mark.parametrize(('kills', 'length'), [(4, 40), pytest.param(30, 220, marks=pytest.mark.slow)])
def test_kills_at_any_moment_cost_nothing(file, tmp_path, kills, length):
    """Every second one comes while a file is being written."""
    changes = {**{key: value for key, value in RUNS.items() if 'val_' not in key}, 'logger:keep_best': '~',
               **short(length), 'logger:save_checkpoint_freq': 1, 'logger:keep_last': 2,
               'logger:use_tb_logger': 'false', 'datasets:train:batch_size_per_gpu': 2, 'logger:print_freq': 50}
    own = Path(tmp_path / 'own.yml')
    own.write_text(re.sub(r'  val_\d: .*\n|\nval:\n(  .*\n)+', '', Path(file).read_text()))
    changes = {key: value for key, value in changes.items() if not key.startswith('val:')}
    arguments = ['train', '-opt', own, *forced(changes), '--auto_resume']
    found = {}
    for name, number in (('killed', kills), ('whole', 0)):
        (tmp_path / name).mkdir()
        process = command(ROOT / 'tests/kills.py', number, 0, '--', *arguments, cwd=tmp_path / name)
        found[name] = json.loads(process.stdout.splitlines()[-1])
        assert found[name]['status'] == 0
    rounds = found['killed']['rounds']
    assert all(each['killed'] and each['after'] >= each['before'] for each in rounds)
    assert sum(each['partial'] for each in rounds) >= kills // 3, 'killed while a file was being written'
    assert rounds[-1]['after'] < length, 'all kills came before the end'
    a, b = (weights(tmp_path / name) for name in ('whole', 'killed'))
    assert differences(a, b) == []
