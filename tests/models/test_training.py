"""Whole runs of the command line: they learn, repeat, restart, and refuse bad input before they write."""
import re
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, command, forced, rdbm, short, two_ranks

from rdbm_plugin.archs.checkpoint import OPTIONS, SELF_CONTAINED, options_in

QUICK = 'train_rdbm_quickstart.yml'
RUN = 'experiments/train_rdbm_quickstart'


def weights(folder, name='net_g_latest.pth', run=RUN):
    return torch.load(folder / run / 'models' / name, weights_only=True)


def same(a, b):
    return all(torch.equal(a[key][name], b[key][name]) for key in a for name in a[key])


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A run of 60 iterations with two validations."""
    folder = tmp_path_factory.mktemp('trained')
    # Muon has not begun to learn after so few steps on such small crops.
    process = rdbm('train', QUICK, folder, {**short(60, every=30), 'train:optim_g:type': 'AdamW',
                                            'train:optim_g:lr': 0.003, 'logger:use_tb_logger': 'true'})
    return folder, process.stdout


def test_training_lowers_the_loss(trained):
    losses = [float(x) for x in re.findall(r'l_pix: (\S+)', trained[1])]
    assert len(losses) == 60
    assert sum(losses[-15:]) < 0.8 * sum(losses[:15])


def test_validation_reports_every_task_their_average_and_pictures(trained):
    folder, log = trained
    table = log[log.rindex('Validation, 2 network evaluations per image:'):].splitlines()
    assert table[1].split() == ['psnr', 'degraded', 'restored', 'gain', 'images']
    rows = {line.split()[0]: [float(x) for x in line.split()[1:]] for line in table[2:8]}
    assert list(rows) == ['derain', 'lowlight', 'desnow', 'dehaze', 'deblur', 'average']
    tasks = [rows[name] for name in rows if name != 'average']
    for column in range(2):
        mean = sum(row[column] for row in tasks) / 5
        assert rows['average'][column] == pytest.approx(mean, abs=0.011)
    assert all(restored - degraded == pytest.approx(gain, abs=0.011) for degraded, restored, gain, _ in rows.values())
    assert (folder / RUN / 'visualization/before_after.png').stat().st_size > 1000


def test_tensorboard_holds_curves_pictures_and_trajectories(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(trained[0] / 'tb_logger/train_rdbm_quickstart'))
    events.Reload()
    scalars, images = events.Tags()['scalars'], events.Tags()['images']
    for name in ('derain', 'lowlight', 'desnow', 'dehaze', 'deblur', 'average'):
        assert f'metrics/{name}/psnr' in scalars
    assert 'losses/l_pix' in scalars
    for name in ('derain', 'lowlight', 'desnow', 'dehaze', 'deblur'):
        assert {f'validation/{name}', f'trajectory/{name}'} <= set(images)


def test_checkpoint_has_basicsr_layout(trained):
    content = weights(trained[0])
    assert set(content) == {'params', 'params_ema', SELF_CONTAINED}
    assert options_in(content[SELF_CONTAINED])['network_g'] == {'type': 'RDBMUNet', 'variant': 'T'}
    assert content['params'].keys() == content['params_ema'].keys() == content[SELF_CONTAINED].keys() - {OPTIONS}
    assert not torch.equal(content['params']['tail.weight'], content['params_ema']['tail.weight'])


def test_same_options_and_seed_give_the_same_weights_with_any_workers_and_a_second_run_keeps_the_first(tmp_path):
    for workers in (0, 2):
        rdbm('train', QUICK, tmp_path, {**short(4), 'datasets:train:num_worker_per_gpu': workers})
    archived, = (path.name for path in (tmp_path / 'experiments').iterdir() if 'archived' in path.name)
    assert same(weights(tmp_path), weights(tmp_path, run=f'experiments/{archived}'))
    assert len(list((tmp_path / 'experiments').iterdir())) == 2


@pytest.mark.parametrize('prediction', ['x0', 'noise', 'velocity'])
def test_other_predictions_train_and_sample(tmp_path, prediction):
    process = rdbm('train', QUICK, tmp_path, {**short(3), 'bridge:prediction': prediction,
                                             'train:pixel_opt:measure': prediction})
    assert 'nan' not in process.stdout.lower()


def own_file(folder, *replacements):
    """A copy of the quickstart file with blocks replaced."""
    text = (ROOT / 'options' / QUICK).read_text(encoding='utf-8')
    for pattern, replacement in replacements:
        text, count = re.subn(pattern, replacement, text)
        assert count == 1, pattern
    file = folder / 'own.yml'
    file.write_text(text, encoding='utf-8')
    return file


LOSS_BLOCK = r'  pixel_opt:\n(    .*\n)+'


def test_basicsr_losses_and_other_optimizers_serve(tmp_path):
    file = own_file(tmp_path, (LOSS_BLOCK, '  pixel_opt: {type: CharbonnierLoss, loss_weight: 1.0, reduction: mean}\n'),
                    (r'  optim_g:\n(    .*\n)+', '  optim_g: {type: RMSprop, lr: !!float 1e-4}\n'))
    process = rdbm('train', file, tmp_path, {**short(2), 'train:node_t_share': '~', 'train:amp': 'none'})
    assert 'Loss [CharbonnierLoss] is created.' in process.stdout


def test_test_command_restores_and_scores(trained, tmp_path):
    folder = trained[0]
    changes = {'path:pretrain_network_g': folder / RUN / 'models/net_g_latest.pth', 'network_g:variant': 'T',
               'val:sampler:steps': 2, **{f'datasets:test_{i}:gt_size': 24 for i in range(1, 6)}, 'num_gpu': 0}
    process = rdbm('test', 'test_rdbm_universal.yml', tmp_path, changes)
    results = tmp_path / 'results/test_rdbm_universal/visualization'
    for task in ('derain', 'lowlight', 'desnow', 'dehaze', 'deblur'):
        assert {p.name for p in (results / task).iterdir()} == {'chelsea_test_rdbm_universal.png',
                                                                'coffee_test_rdbm_universal.png'}
    last = trained[1][trained[1].rindex('psnr      degraded'):].splitlines()[1:7]
    first = process.stdout[process.stdout.index('psnr      degraded'):].splitlines()[1:7]
    assert first == last, 'the test gives the figures of the last validation'
    assert 'ssim      degraded' in process.stdout


BAD = {
    'unknown key': ({'bridge:moddulation': 'one'}, ["unknown key 'moddulation'", "'modulation'"]),
    'unknown type': ({'bridge:type': 'Bridge'}, ['bridge: type', "'Bridge'", 'ResidualBridge']),
    'variance': ({'bridge:stationary_variance': 0}, ['stationary_variance', 'found 0', '> 0']),
    'steps': ({'val:sampler:steps': 101}, ['val: sampler', 'steps', 'found 101', '1 to 100']),
    'sampler key': ({'val:sampler:step': 5}, ["unknown key 'step'", "'steps'"]),
    'network key': ({'network_g:variants': 'T'}, ["unknown key 'variants'", "'variant'"]),
    'network type': ({'network_g:type': 'UNet'}, ['network_g: type', "'UNet'", 'RDBMUNet']),
    'model': ({'model_type': 'RDBM'}, ['model_type', "'RDBM'", 'RDBMModel']),
    'data folder': ({'datasets:train:dataroot_gt': '/no/such'}, ['datasets: photos: dataroot_gt', '/no/such']),
    'data type': ({'datasets:train:type': 'Pairs'}, ['datasets: train: type', "'Pairs'", 'PairedImageDataset']),
    'checkpoint': ({'path:pretrain_network_g': '/no/such.pth'}, ["path: no file '/no/such.pth'"]),
    'loss': ({'train:pixel_opt:measure': 'eps'}, ['pixel_opt: measure', "'eps'", 'noise, residual, velocity']),
    'optimizer': ({'train:optim_g:type': 'AdamV'}, ['optim_g: type', "'AdamV'", 'Adam, ', 'AdamW, ', 'Did you mean']),
    'share': ({'train:node_t_share': 2}, ['node_t_share', 'found 2', '<= 1']),
    'own share': ({'train:own_start_share': -1}, ['own_start_share', 'found -1', '>= 0']),
    'amp': ({'train:amp': 'fp8'}, ['train: amp', "'fp8'", 'auto, bf16, fp16, none']),
    'rate as text': ({'train:optim_g:lr': '1e-4x'}, ['optim_g: lr', "'1e-4x'", '!!float']),
    'scheduler': ({'train:scheduler:type': 'CosineLR'}, ['scheduler: type', "'CosineLR'", 'MultiStepLR']),
    'prefetch': ({'datasets:train:prefetch_mode': 'gpu'}, ['prefetch_mode', "'gpu'", 'cpu, cuda']),
    'too few images': ({'datasets:train:dataset_enlarge_ratio': 1}, ['enlarge_ratio: found 1', 'one batch of 5']),
    'interval': ({'val:val_freq': 'ten'}, ['val: val_freq', "'ten'"]),
    'state': ({'path:resume_state': 'foo.state'}, ['resume_state', 'foo.state']),
    'key of another type': ({'bridge:type': 'OUBridge'}, ["unknown key 'modulation' of OUBridge"]),
    'metric': ({'val:metrics:psnr:type': 'psnr'}, ['val: metrics: psnr: type', "'psnr'", 'calculate_psnr']),
}


@pytest.mark.parametrize('case', BAD)
def test_bad_input_is_named_before_anything_is_written(case, refused):
    changes, words = BAD[case]
    error = refused('train', QUICK, changes)
    for word in words:
        assert word in error


def test_checkpoint_of_another_variant_is_named(trained, refused):
    path = trained[0] / RUN / 'models/net_g_latest.pth'
    error = refused('train', QUICK, {'network_g:variant': 'S', 'path:pretrain_network_g': path})
    for words in (str(path), '0.46 M', 'RDBMUNet variant T', 'variant S', '1.19 M'):
        assert words in error


@pytest.mark.parametrize('content', [b'', b'not a checkpoint', b'PK\x03\x04 torn'])
def test_damaged_checkpoint_is_named(tmp_path, refused, content):
    path = tmp_path / 'torn.pth'
    path.write_bytes(content)
    error = refused('train', QUICK, {'path:pretrain_network_g': path})
    assert 'torn.pth' in error and 'damaged' in error


def test_checkpoint_that_would_run_code_is_refused(tmp_path, refused):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / 'evil ran',)

    torch.save({'params': Evil()}, tmp_path / 'evil.pth')
    assert 'safe to load' in refused('train', QUICK, {'path:pretrain_network_g': tmp_path / 'evil.pth'})


@pytest.mark.parametrize('text', ['name: [', 'just text', '', 'name: run'])
def test_broken_option_file_is_named(tmp_path, refused, text):
    file = tmp_path / 'broken.yml'
    file.write_text(text)
    assert 'broken.yml' in refused('train', file)


def test_missing_option_file_is_named(tmp_path, refused):
    assert 'none.yml' in refused('train', tmp_path / 'none.yml')


def test_the_real_command_ends_with_one_line_and_status_2(tmp_path):
    process = rdbm('train', QUICK, tmp_path, {'bridge:type': 'Bridge'}, check=False)
    assert process.returncode == 2 and 'Traceback' not in process.stdout
    assert process.stdout.strip().splitlines()[-1].startswith('rdbm train: bridge: type')


def test_other_basicsr_models_train_by_the_same_command(tmp_path):
    """A plain SRModel on our data, with an optimizer that BasicSR itself does not know."""
    file = own_file(
        tmp_path, (r'bridge:\n(  .*\n)+', ''), ('model_type: RDBMModel', 'model_type: SRModel'),
        (r'network_g:\n(  .*\n)+',
         'network_g: {type: EDSR, num_in_ch: 3, num_out_ch: 3, num_feat: 8, num_block: 1, upscale: 1}\n'),
        (r'  sampler:\n(    .*\n)+', ''),
        (LOSS_BLOCK, '  pixel_opt: {type: L1Loss, loss_weight: 1.0, reduction: mean}\n'))
    changes = {key: value for key, value in TINY.items() if 'sampler' not in key and 'variant' not in key}
    process = command('-m', 'rdbm_plugin', 'train', '-opt', file, *forced({**changes, **short(2)}), cwd=tmp_path)
    assert 'Model [SRModel] is created.' in process.stdout and 'Validation derain' in process.stdout


RANKS = '''
import torch
from torch import distributed
from rdbm_plugin.models.ranks import Ranks
from rdbm_plugin.models.task_losses import TaskLosses

distributed.init_process_group('gloo')
ranks = Ranks(True)
losses = TaskLosses(['a', 'b', 'c'], torch.device('cpu'), ranks)
losses.add(torch.tensor([[1.0, 0.0], [3.0, 5.0]][ranks.rank]), losses.members(['aa', 'ab'][ranks.rank], 2),
           torch.tensor(1.0))
first, second = losses.means(), losses.means()
open(f'rank{ranks.rank}.txt', 'w').write(f'{first} {second}')
ranks.part()
'''


def test_losses_of_tasks_are_the_same_on_every_rank(tmp_path):
    """Two real processes; one saw task b, the other did not, and neither c."""
    (tmp_path / 'ranks.py').write_text(RANKS)
    two_ranks(tmp_path / 'ranks.py', cwd=tmp_path)
    logs = [(tmp_path / f'rank{rank}.txt').read_text() for rank in (0, 1)]
    assert logs[0] == logs[1] == "{'l_a': 1.3333333333333333, 'l_b': 5.0} {}"
