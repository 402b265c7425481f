"""Steps that must not reach the weights, and what else happens to a gradient: clipping, parts, precision."""
import copy
import logging
import math
import platform
from pathlib import Path

import pytest
import torch
from conftest import ROOT, command, training_options

from rdbm_plugin.archs.precision import computes_bf16


@pytest.fixture
def build(tmp_path):
    """A model in training, with changed options."""
    import rdbm_plugin.registration  # noqa: F401
    from rdbm_plugin.models.rdbm_model import RDBMModel

    def make(*changes):
        opt = training_options(changes)
        opt['path']['experiments_root'] = str(tmp_path)
        torch.manual_seed(0)
        return RDBMModel(opt)
    return make


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    gt = torch.rand(4, 3, 16, 16, generator=generator)
    return {'gt': gt, 'lq': (0.5 * gt + 0.1 * torch.rand(gt.shape, generator=generator)).clamp(0, 1),
            'task': ['derain', 'dehaze', 'derain', 'deblur'], 'lq_path': ['a.png', 'b.png', 'c.png', 'd.png']}


def poisoned(key, value):
    data = batch()
    data[key][1, 0, 2, 3] = value
    return data


def step(model, data, iteration):
    model.feed_data(data)
    model.optimize_parameters(iteration)


def everything(model):
    states = [model.net_g.state_dict(), model.net_g_ema.state_dict(), model.optimizer_g.state_dict()['state']]
    return copy.deepcopy(states)


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return all(map(same, a, b))
    return a == b


@pytest.mark.parametrize(('key', 'value'), [('lq', math.nan), ('gt', math.inf), ('gt', -math.inf), ('lq', 3e38)])
@pytest.mark.parametrize('amp', ['none', 'bf16', 'fp16'])
def test_bad_step_is_skipped_named_and_changes_nothing(build, caplog, key, value, amp):
    """An infinite gt under an L1 loss has a finite gradient, so that the loss has to be looked at as well."""
    model = build(f'train:amp={amp}')
    step(model, batch(), 1)
    before = everything(model)
    logging.getLogger('basicsr').addHandler(caplog.handler)
    step(model, poisoned(key, value), 2)
    logging.getLogger('basicsr').removeHandler(caplog.handler)
    assert same(before, everything(model))
    for words in ('Iteration 2', 'step skipped (1 in a row, 1 in all)', 'derain a.png, dehaze b.png'):
        assert words in caplog.text
    step(model, batch(1), 3)
    assert not same(before, everything(model)), 'training goes on'
    assert (model.step.guard.in_a_row, model.step.guard.in_all) == (0, 1)
    assert all(map(math.isfinite, model.get_current_log().values()))


def test_too_many_in_a_row_end_the_training_with_a_dump_that_repeats_the_step(build, tmp_path):
    from rdbm_plugin.models.step_guard import NonFiniteLoss
    model = build('train:nonfinite_limit=3', 'train:amp=bf16')
    step(model, poisoned('lq', math.nan), 1)
    step(model, batch(), 2)
    for iteration in (3, 4):
        step(model, poisoned('lq', math.nan), iteration)
    with pytest.raises(NonFiniteLoss, match='3 steps in a row') as error:
        step(model, poisoned('lq', math.nan), 5)
    dump = tmp_path / 'nonfinite_5_rank0.pth'
    assert str(dump) in str(error.value) and 'scripts/upkeep/replay_step.py' in str(error.value)
    process = command(ROOT / 'scripts/upkeep/replay_step.py', dump, cwd=tmp_path, check=False)
    assert process.returncode == 1
    assert 'mu is not finite: b.png' in process.stdout
    assert 'amp: none: first not finite: output of' in process.stdout and 'amp: bf16: first not' in process.stdout


def test_replay_tells_a_sick_network_from_sick_data(build, tmp_path):
    from rdbm_plugin.models.step_guard import NonFiniteLoss
    model = build('train:nonfinite_limit=1', 'train:own_start_share=0')
    with torch.no_grad():
        model.net_g.tail.bias[0] = math.nan
    with pytest.raises(NonFiniteLoss):
        step(model, batch(), 1)
    output = command(ROOT / 'scripts/upkeep/replay_step.py', tmp_path / 'nonfinite_1_rank0.pth', cwd=tmp_path,
                     check=False).stdout
    assert 'weights tail.bias is not finite' in output and 'mu is not' not in output
    assert 'first not finite: output of tail (Conv2d)' in output


def test_the_average_begins_as_the_network_itself(build):
    model = build()
    averages, values = ([*net.state_dict().values()] for net in (model.net_g_ema, model.net_g))
    assert all(map(torch.equal, averages, values))


def test_gradient_is_clipped(build):
    norms = {}
    for clip in ('~', '0.01'):
        model = build(f'train:grad_clip={clip}', 'train:amp=none')
        step(model, batch(), 1)
        norms[clip] = float(torch.stack([p.grad.norm() for p in model.step.parameters]).norm())
    assert norms['~'] > 0.02 and norms['0.01'] == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize('amp', ['bf16', 'fp16'])
def test_half_precision_trains_like_float32(build, amp):
    """Same batch, same draws: losses stay close, and the scaler of fp16 comes back with its state.

    Steps amplify what was rounded before, so that some twenty later any loss is possible. bf16 keeps 8 bits: 0.4 %."""
    losses = {}
    for precision in ('none', amp):
        model, found = build(f'train:amp={precision}'), []
        for iteration in range(1, 9):
            step(model, batch(), iteration)
            found.append(model.step.read()['l_pix'])
        losses[precision] = found
    assert losses[amp] == pytest.approx(losses['none'], rel=0.04)
    if amp == 'fp16':
        assert model.further_state()['scaler']['scale'] > 1


def test_overflow_of_fp16_lowers_the_scale_and_is_no_fault(build):
    model = build('train:amp=fp16')
    model.step.scaler = torch.amp.GradScaler('cpu', init_scale=2.0**40)
    before = everything(model)
    step(model, batch(), 1)
    assert model.step.scaler.get_scale() == 2.0**39 and model.step.guard.in_all == 0
    assert same(before, everything(model))


@pytest.mark.parametrize(('change', 'words'), [
    ('train:micro_batches=15', 'micro_batches: found 15; batch_size_per_gpu is 14'),
    ('train:micro_batches=0', 'train: micro_batches: found 0'),
    ('train:grad_clip=0', 'train: grad_clip: found 0'),
    ('train:nonfinite_limit=none at all', "nonfinite_limit: found 'none at all'"),
    ('logger:keep_last=0', 'logger: keep_last: found 0'), ('logger:keep_best=lpips', "keep_best: found 'lpips'")])
def test_bad_settings_are_named(build, change, words):
    from rdbm_plugin.config.options import OptionError
    with pytest.raises(OptionError) as error:
        build(change)
    assert words in str(error.value)


@pytest.mark.skipif(not Path('/proc/cpuinfo').is_file() or platform.machine() != 'x86_64', reason='needs Linux on x86')
def test_bf16_is_fast_only_on_processors_with_its_instructions():
    flags = Path('/proc/cpuinfo').read_text(encoding='utf-8').split()
    assert not computes_bf16('cpu') or {'avx512_bf16', 'avx512bw'} <= set(flags)


def test_auto_takes_bf16_only_where_it_is_fast(build, monkeypatch):
    model = build('train:amp=auto')
    fast = computes_bf16('cpu')
    assert model.step.dtype == (torch.bfloat16 if fast else torch.float32)
    monkeypatch.setattr('rdbm_plugin.archs.precision.computes_bf16', lambda device: not fast)
    assert build('train:amp=auto').step.dtype != model.step.dtype
