"""mmengine's Runner trains, validates and resumes the same model, in one process and in two with gloo."""
import logging
import math
import sys
from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, command, training_options, two_ranks

pytest.importorskip('mmengine')

from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.optim import LinearLR, MultiStepLR, OptimWrapper
from mmengine.registry import DATASETS, METRICS, MODELS, TASK_UTILS
from mmengine.structures import BaseDataElement

from rdbm_plugin import OptionError, RDBMUNet, Restorer
from rdbm_plugin.archs.checkpoint import from_mmengine, read_parameters, to_mmengine
from rdbm_plugin.bridge import FlowMatching
from rdbm_plugin.mmengine.__main__ import main
from rdbm_plugin.mmengine.launch import build_runner, read_config
from rdbm_plugin.mmengine.training import Bf16OptimWrapper, RepeatableHook

QUICKSTART = ROOT / 'options/mmengine/rdbm_quickstart.py'
TINY = '''
_base_ = [{base!r}]
model = dict(sampler=dict(steps=2))
train_cfg = dict(max_iters=4, val_interval=2)
train_dataloader = dict(num_workers=0, dataset=dict(gt_size=16))
val_dataloader = dict(dataset=dict(gt_size=24))
test_dataloader = dict(dataset=dict(gt_size=24))
default_hooks = dict(checkpoint=dict(interval=2), logger=dict(interval=1))
param_scheduler = dict(T_max=4)
'''
SGD = '''
train_cfg = dict(max_iters=2, val_interval=2)
optim_wrapper = dict(optimizer=dict(_delete_=True, type='SGD', lr=0.1))
'''


def tiny(folder, base='rdbm_quickstart', more=''):
    """A config file for the smallest run that does everything."""
    file = folder / f'tiny_{base}.py'
    file.write_text(TINY.format(base=str(QUICKSTART.with_stem(base))) + more)
    return file


def runner(config, folder, resume=False, amp=False, **changes):
    options = {key.replace('__', '.'): value for key, value in changes.items()}
    cfg = read_config(Namespace(config=config, work_dir=str(folder), resume=resume, launcher='none', amp=amp,
                                cfg_options=options))
    # Runners of one process and second would share their message hub.
    cfg.experiment_name = folder.name
    return build_runner(cfg)


def load(file):
    return torch.load(file, weights_only=True)


def largest_gap(one, other):
    """Over all tensors of two nested states with the same keys."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        return max((largest_gap(one[key], other[key]) for key in one), default=0)
    return float((one - other).abs().max()) if isinstance(one, torch.Tensor) else 0


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """Four iterations in one go: runner, folder, weights before."""
    folder = tmp_path_factory.mktemp('whole')
    made = runner(tiny(folder), folder)
    before = {key: value.clone() for key, value in made.model.state_dict().items()}
    made.train()
    return made, folder, before


def test_scope_finds_what_the_plugin_and_basicsr_register():
    net = MODELS.build({'type': 'rdbm_plugin.BridgeBackbone', 'backbone': {
        'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, 'num_block': 1, 'upscale': 1}})
    assert net(*torch.rand(2, 1, 3, 8, 8), torch.tensor([3])).shape == (1, 3, 8, 8)
    assert isinstance(TASK_UTILS.build({'type': 'rdbm_plugin.FlowMatching'}), FlowMatching)
    assert MODELS.get('rdbm_plugin.RDBMUNet') is RDBMUNet
    assert MODELS.get('rdbm_plugin.CharbonnierLoss').__module__ == 'basicsr.losses.basic_loss'
    from basicsr.utils.registry import LOSS_REGISTRY
    later = type('LossRegisteredLater', (torch.nn.L1Loss,), {})
    LOSS_REGISTRY.register(later)
    assert MODELS.get('rdbm_plugin.LossRegisteredLater') is later
    assert METRICS.build({'type': 'rdbm_plugin.calculate_psnr', 'crop_border': 4}).options['crop_border'] == 4
    data = DATASETS.build({'type': 'rdbm_plugin.SyntheticUniversalDataset', 'phase': 'val', 'gt_size': 16,
                           'dataroot_gt': 'embedded'})
    assert data[0]['lq'].shape == (3, 16, 16)


def test_runner_trains_validates_and_saves(whole):
    made, folder, before = whole
    info = made.message_hub
    losses = info.get_scalar('train/loss').data[0]
    assert len(losses) == 4 and all(map(math.isfinite, losses))
    assert largest_gap(before, made.model.state_dict()) > 1e-3
    score, degraded = (info.get_scalar(f'val/psnr_rgb{suffix}').current() for suffix in ('', '_degraded'))
    assert math.isfinite(score) and score != degraded
    assert 'val/derain/psnr_rgb_degraded' in info.log_scalars
    names = {path.name for path in folder.rglob('*')}
    assert {'iter_2.pth', 'iter_4.pth', 'last_checkpoint', 'derain_0_2.png'} <= names
    assert any(name.startswith('best_psnr_rgb_iter_') for name in names)
    assert any(name.startswith('events.out.tfevents') for name in names)
    assert made.test().keys() >= {'psnr_rgb', 'psnr_rgb_degraded', 'deblur/psnr_rgb'}


@pytest.mark.parametrize('workers', [0, 1])
def test_resumed_run_ends_bit_for_bit_as_the_whole_one(whole, tmp_path, workers):
    again = runner(tiny(tmp_path), tmp_path, resume=True, load_from=str(whole[1] / 'iter_2.pth'),
                   train_dataloader__num_workers=workers)
    again.train()
    assert again.iter == 4
    one, other = load(whole[1] / 'iter_4.pth'), load(tmp_path / 'iter_4.pth')
    for part in ('state_dict', 'ema_state_dict', 'optimizer'):
        assert largest_gap(one[part], other[part]) == 0
    assert one['param_schedulers'] == other['param_schedulers']
    assert one['message_hub']['runtime_info']['keep_ckpt_ids'] == [2, 4]


def cosine(base, length, places):
    return [1e-6 + (base - 1e-6) * (1 + math.cos(math.pi * place / length)) / 2 for place in places]


STEPS = '''
param_scheduler = dict(_delete_=True, type='MultiStepLR', by_epoch=False, milestones=[2, 5], gamma=0.1)
'''
OTHER = 'Resumed with a changed option: '


@pytest.mark.parametrize(('start', 'more', 'changes', 'rates', 'words'), [
    ('iter_4', '', {'train_cfg__max_iters': 6, 'param_scheduler__T_max': 10}, cosine(1e-3, 10, (4, 5)),
     [OTHER + 'train_cfg: max_iters: 4 -> 6', OTHER + 'param_scheduler: T_max: 4 -> 10']),
    ('iter_2', '', {'optim_wrapper__optimizer__lr': 5e-4, 'optim_wrapper__optimizer__weight_decay': 0.5},
     cosine(5e-4, 4, (2, 3)), [OTHER + 'optim_wrapper: optimizer: lr: 0.001 -> 0.0005']),
    ('of_old', STEPS, {'train_cfg__max_iters': 6}, [1e-4, 1e-5],
     ['The checkpoint does not tell which options it was trained with']),
])
def test_a_resumed_run_takes_rates_and_lengths_of_the_config(whole, tmp_path, start, more, changes, rates, words):
    """Rates are those of a run that had this config from its start."""
    old = load(whole[1] / 'iter_4.pth')
    del old['meta']['options']
    torch.save(old, whole[1] / 'of_old.pth')
    again = runner(tiny(tmp_path, more=more), tmp_path, resume=True, load_from=str(whole[1] / f'{start}.pth'),
                   train_cfg__val_begin=9, **changes)
    again.train()
    assert again.message_hub.get_scalar('train/lr').data[0] == pytest.approx(rates, rel=1e-12)
    group, = again.optim_wrapper.param_groups
    assert group['weight_decay'] == changes.get('optim_wrapper__optimizer__weight_decay', 1e-4)
    log = next(tmp_path.rglob('*.log')).read_text()
    assert all(each in log for each in words)
    assert all(state['step'] == again.iter for state in again.optim_wrapper.optimizer.state.values())


def test_schedules_by_epoch_stand_where_those_of_a_run_do():
    """Warm-up by iteration and steps by epoch, of three iterations each, over two groups of parameters."""
    def made(rate):
        groups = [{'params': torch.nn.Parameter(torch.ones(1)), 'lr': each} for each in (rate, 2 * rate)]
        optimizer = OptimWrapper(torch.optim.SGD(groups, lr=rate))
        return optimizer, [MultiStepLR(optimizer, milestones=[1, 3]), LinearLR(optimizer, 0.2, by_epoch=False, end=5)]

    trained, schedules = made(0.1)
    for iteration in range(1, 12):
        schedules[1].step()
        if iteration % 3 == 0:
            schedules[0].step()
    fresh = SimpleNamespace(cfg=Config({'resume': True}), logger=logging.getLogger())
    fresh.optim_wrapper, fresh.param_schedulers = made(0.1)
    checkpoint = {'meta': {'iter': 11, 'epoch': 3}, 'param_schedulers': [], 'optimizer': made(9.0)[0].state_dict()}
    RepeatableHook().after_load_checkpoint(fresh, checkpoint)
    assert checkpoint['param_schedulers'] == [each.state_dict() for each in schedules]
    assert schedules[0].get_last_value() == pytest.approx([0.1 * 0.1**2, 0.2 * 0.1**2, 0.1 * 0.1**2])
    again, _ = made(7.0)
    again.load_state_dict(checkpoint['optimizer'])
    assert [group['lr'] for group in again.param_groups] == [group['lr'] for group in trained.param_groups]


def test_two_ranks_with_half_a_batch_each_train_as_one_with_the_whole(tmp_path):
    """Their data differ, their weights do not, with DDP as with FSDP."""
    start = tmp_path / 'start.pth'
    torch.save(to_mmengine(read_parameters('shipped', 'params_ema')), start)
    runner(tiny(tmp_path, more=SGD), tmp_path / 'one', load_from=str(start)).train()
    one = from_mmengine(load(tmp_path / 'one/iter_2.pth'))['params']
    assert largest_gap(one, from_mmengine(load(start))['params']) > 1e-4
    for base in ('rdbm_quickstart', 'rdbm_fsdp'):
        config = tiny(tmp_path, base, SGD)
        two_ranks('-m', 'rdbm_plugin.mmengine', config, '--launcher', 'pytorch', '--work-dir', base, '--cfg-options',
                  f'load_from={start}', 'train_dataloader.batch_size=7', cwd=tmp_path)
        assert largest_gap(one, from_mmengine(load(tmp_path / base / 'iter_2.pth'))['params']) < 1e-5


def test_losses_are_those_under_basicsr():
    import rdbm_plugin.registration  # noqa: F401
    from rdbm_plugin.models.rdbm_model import RDBMModel
    model = RDBMModel(training_options(['train:amp=none', 'manual_seed=5']))
    restorer = MODELS.build(Config.fromfile(QUICKSTART).model)
    torch.nn.init.normal_(model.net_g.tail.weight, std=0.1)
    restorer.network.load_state_dict(model.net_g.state_dict())
    batch = {'lq': torch.rand(4, 3, 16, 16), 'gt': torch.rand(4, 3, 16, 16)}
    hub = MessageHub.get_instance('losses')
    hub.update_info_dict({'step_seed': model.progress.seed, 'iter': 6})
    loss = restorer(**restorer.data_preprocessor(batch), mode='loss')['loss_pix']
    hub.pop_info('step_seed')
    model.feed_data(batch)
    model.optimize_parameters(7)
    assert loss.item() == pytest.approx(model.get_current_log()['l_pix'], rel=1e-6)


def test_bfloat16_on_a_cpu(tmp_path):
    args = Namespace(config=QUICKSTART, work_dir=None, resume=False, launcher='none', amp=True, cfg_options={})
    cfg = read_config(args)
    assert cfg.optim_wrapper.type == 'rdbm_plugin.Bf16OptimWrapper'
    restorer = MODELS.build(cfg.model)
    seen = set()
    restorer.network.head.register_forward_hook(lambda _, inputs, output: seen.add(output.dtype))
    wrapper = Bf16OptimWrapper(torch.optim.SGD(restorer.parameters(), lr=0.1))
    batch = {'lq': torch.rand(2, 3, 16, 16), 'gt': torch.rand(2, 3, 16, 16)}
    before = restorer.network.tail.weight.clone()
    assert math.isfinite(restorer.train_step(batch, wrapper)['loss'])
    assert seen == {torch.bfloat16}
    assert restorer.network.tail.weight.dtype == torch.float32
    assert not torch.equal(restorer.network.tail.weight, before)
    assert restorer.val_step({'lq': batch['lq']})[0]['restored'].dtype == torch.float32


def test_weights_go_to_basicsr_and_back(whole, tmp_path):
    made, folder, _ = whole
    checkpoint = load(folder / 'iter_4.pth')
    converted = from_mmengine(checkpoint)
    command(ROOT / 'scripts/model_conversion/convert_weights.py', folder / 'iter_4.pth', 'average.pth', cwd=tmp_path)
    command(ROOT / 'scripts/model_conversion/convert_weights.py', 'average.pth', 'start.pth', '--mmengine',
            cwd=tmp_path)
    assert largest_gap(read_parameters(tmp_path / 'average.pth'), converted['params_ema']) == 0
    assert largest_gap(load(tmp_path / 'start.pth')['state_dict'], checkpoint['state_dict']) == 0
    restorer = MODELS.build(made.cfg.model)
    photos = torch.rand(1, 3, 40, 48)
    for key, state in (('params_ema', checkpoint['state_dict']),
                       ('params', {key[7:]: value for key, value in checkpoint['ema_state_dict'].items()
                                   if key.startswith('module.')})):
        restorer.load_state_dict(state)
        found = Restorer(folder / 'iter_4.pth', ROOT / 'options/train_rdbm_quickstart.yml', param_key=key, steps=2,
                         device='cpu')(photos)
        assert largest_gap(found, restorer.eval()(photos).clamp(0, 1)) < 1e-6
    back = to_mmengine(converted['params'], converted['params_ema'])
    assert largest_gap(back['state_dict'], checkpoint['state_dict']) == 0
    assert largest_gap(from_mmengine(back), converted) == 0
    torch.save(to_mmengine(converted['params']), tmp_path / 'back.pth')
    made.load_checkpoint(str(tmp_path / 'back.pth'), strict=True)
    assert largest_gap(made.model.network.state_dict(), converted['params']) == 0
    with pytest.raises(OptionError, match='expected a checkpoint of BridgeRestorer'):
        from_mmengine(converted)


def test_batches_as_mmagic_has_them():
    restorer = MODELS.build({**Config.fromfile(QUICKSTART).model,
                             'data_preprocessor': {'type': 'rdbm_plugin.PairPreprocessor', 'peak': 255, 'bgr': True}})
    images = torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8)
    batch = {'inputs': list(images[:2]), 'data_samples': [BaseDataElement(gt_img=each) for each in images[2:]]}
    data = restorer.data_preprocessor(batch, training=True)
    assert torch.equal(data['lq'], images[:2].flip(1) / 255) and torch.equal(data['gt'], images[2:].flip(1) / 255)
    assert math.isfinite(restorer(**data, mode='loss')['loss_pix'])


WITHOUT_BASICSR = '''
import sys
sys.modules['basicsr'] = None
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
cfg = Config.fromfile(sys.argv[1])
restorer = MODELS.build(cfg.model)
pair = {'lq': torch.rand(2, 3, 16, 16), 'gt': torch.rand(2, 3, 16, 16)}
assert restorer(**pair, mode='loss')['loss_pix'].isfinite() and restorer(pair['lq']).shape == (2, 3, 16, 16)
cfg.model.loss = {'type': 'L1Loss'}
MODELS.build(cfg.model)
'''


def test_bridge_network_loss_and_sampler_need_no_basicsr(tmp_path):
    process = command('-c', WITHOUT_BASICSR, QUICKSTART, cwd=tmp_path, check=False)
    assert "OptionError: model: loss: type: found 'L1Loss'; allowed are BridgeBackbone, " in process.stdout


def test_nothing_else_needs_mmengine(tmp_path):
    code = ("import runpy, sys; sys.modules['mmengine'] = None; import rdbm_plugin.registration; "
            "import rdbm_plugin.archs.checkpoint; assert 'rdbm_plugin.registry' not in sys.modules; "
            "runpy.run_module('rdbm_plugin.mmengine', run_name='__main__')")
    process = command('-c', code, cwd=tmp_path, check=False)
    assert process.returncode == 2
    assert process.stdout.splitlines()[-1] == 'rdbm_plugin.mmengine: mmengine is not installed: pip install mmengine'


@pytest.mark.parametrize(('arguments', 'words'), [
    (['nothing.py'], "config: no file 'nothing.py'"),
    (['broken.py'], 'config: broken.py: NameError:'),
    ([QUICKSTART, '--cfg-options', 'train_cgf.max_iters=3'], "has no 'train_cgf'. Did you mean 'train_cfg'?"),
    ([QUICKSTART, '--launcher', 'pytorch'], '--launcher pytorch: RANK is not set; start this command with torchrun.'),
    ([QUICKSTART, '--work-dir', 'old'], 'work_dir: old has checkpoints of an earlier run (iter_2.pth); resume it'),
    ([QUICKSTART, '--cfg-options', 'model.bridge.timestep=3'], "bridge: unknown key 'timestep'"),
    ([QUICKSTART, '--cfg-options', 'model.network.type=RDBMUnet'], "Did you mean 'RDBMUNet'?"),
    pytest.param([QUICKSTART, '--cfg-options', 'load_from=old/iter_2.pth', 'train_dataloader.num_workers=0'],
                 'old/iter_2.pth: not a checkpoint that is safe', marks=pytest.mark.slow),
])
def test_launcher_refuses(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('RANK', raising=False)
    (tmp_path / 'broken.py').write_text('train_cfg = undefined\n')
    (tmp_path / 'old').mkdir()
    (tmp_path / 'old/iter_2.pth').write_text('no checkpoint')
    monkeypatch.setattr(sys, 'argv', ['mmengine', *map(str, arguments)])
    assert main() == 2
    error = capsys.readouterr().err
    assert 'rdbm_plugin.mmengine: ' in error and words in error
