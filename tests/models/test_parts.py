"""The parts that RDBMModel holds, each without a model."""
import json
import logging
import math
import os
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rounding import of_sums
from torch import nn

import rdbm_plugin.models  # noqa: F401  lets BasicSR be imported

from basicsr.models.lr_scheduler import CosineAnnealingRestartLR, MultiStepRestartLR  # isort: skip
from rdbm_plugin.archs.checkpoint import SELF_CONTAINED, options_in
from rdbm_plugin.bridge import build_bridge
from rdbm_plugin.losses.draws import Draws
from rdbm_plugin.losses.objective import Objective
from rdbm_plugin.losses.residual_modulated_loss import ResidualModulatedLoss
from rdbm_plugin.models.checkpoints import Checkpoints, surviving
from rdbm_plugin.models.interruption import Interruption
from rdbm_plugin.models.ranks import Ranks
from rdbm_plugin.models.resuming import Loop, Progress, replay, with_settings
from rdbm_plugin.models.step_guard import NonFiniteLoss, StepGuard
from rdbm_plugin.models.task_losses import TaskLosses
from rdbm_plugin.models.training_step import Batch, MovingAverage, TrainingSettings, TrainingStep
from rdbm_plugin.models.validator import Restoration, Validator

ALONE = Ranks(False)


@pytest.fixture
def log(caplog):
    """What goes to BasicSR's log."""
    logging.getLogger('basicsr').addHandler(caplog.handler)
    yield caplog
    logging.getLogger('basicsr').removeHandler(caplog.handler)


# ---------------------------------------------------------------------------------------------------- ranks


def test_one_process_alone_is_rank_0_of_1():
    assert (ALONE.rank, ALONE.count, ALONE.gather('x'), ALONE.in_turn(lambda: [1, 2])) == (0, 1, ['x'], [1, 2])
    value = torch.tensor([2.0, 3.0])
    assert torch.equal(ALONE.mean(value), value) and torch.equal(ALONE.sum(value), value)
    ALONE.part()


# ---------------------------------------------------------------------------------------------------- checkpoints


@pytest.fixture
def checkpoints(tmp_path):
    paths = {'models': str(tmp_path / 'models'), 'training_states': str(tmp_path / 'states')}
    for path in paths.values():
        os.mkdir(path)
    return Checkpoints(paths, keep_last=2)


def test_networks_are_saved_in_basicsrs_layout(checkpoints, tmp_path):
    nets = {'params': nn.Linear(2, 3), 'params_ema': nn.Linear(2, 3)}
    checkpoints.save_network(nets, 'net_g', 7)
    checkpoints.save_network(nets, 'net_g', -1)
    assert sorted(path.name for path in (tmp_path / 'models').iterdir()) == ['net_g_7.pth', 'net_g_latest.pth']
    found = torch.load(tmp_path / 'models/net_g_7.pth', weights_only=True)
    assert found.keys() == nets.keys()
    assert all(torch.equal(found[key][name], value) for key in nets for name, value in nets[key].state_dict().items())


def test_networks_hold_the_options_they_are_run_with_beside_what_basicsr_reads(tmp_path):
    nets = {'params': nn.Linear(2, 3), 'params_ema': nn.Linear(2, 3)}
    options = {'network_g': {'type': 'X'}, 'bridge': {'soft_end': float('inf')}, 'val': {'sampler': None}}
    for name, given in (('with', options), ('without', None)):
        (tmp_path / name).mkdir()
        Checkpoints({'models': tmp_path / name}, options=given).save_network(nets, 'net_g', -1)
    whole = torch.load(tmp_path / 'with/net_g_latest.pth', weights_only=True)
    assert options_in(whole[SELF_CONTAINED]) == options
    for key, net in nets.items():
        net.load_state_dict(whole[key], strict=True)
    assert torch.equal(whole[SELF_CONTAINED]['weight'], whole['params_ema']['weight'])
    sizes = [(tmp_path / name / 'net_g_latest.pth').stat().st_size for name in ('with', 'without')]
    assert sizes[0] - sizes[1] < 2000, 'the tensors are saved once'


def test_the_newest_states_are_kept_and_their_networks(checkpoints, tmp_path):
    for iteration in (1, 2, 3):
        checkpoints.save_network({'params': nn.Linear(1, 1)}, 'net_g', iteration)
        checkpoints.save_state({'iter': iteration})
        checkpoints.tidy(iteration)
    assert sorted(path.name for path in tmp_path.glob('*/*')) == ['2.state', '3.state', 'net_g_2.pth', 'net_g_3.pth']


def test_only_what_cannot_be_written_is_survived(checkpoints, tmp_path, log):
    os.rmdir(tmp_path / 'models')
    with surviving('Iteration 5'):
        checkpoints.save_network({'params': nn.Linear(1, 1)}, 'net_g', 5)
    assert 'Iteration 5 could not be saved: ' in log.text and 'net_g_5.pth' in log.text
    with pytest.raises(ValueError, match='a fault of ours'), surviving('Iteration 5'):
        raise ValueError('a fault of ours')


# ---------------------------------------------------------------------------------------------------- resuming

OPT = {'manual_seed': 3, 'bridge': {'modulation': 'residual'}, 'network_g': {'type': 'RDBMUNet'},
       'train': {'optim_g': {'lr': 1e-3}}, 'datasets': {'train': {'gt_size': 64}}, 'name': 'not compared'}


def saved(opt=OPT, iteration=6, **more):
    progress = Progress(opt)
    progress.begin_saving(1, iteration, validation_due=False)
    return {'epoch': 1, 'iter': iteration, **progress.state(), **more}


def test_progress_goes_on_without_a_word_where_nothing_has_changed():
    progress = Progress(OPT)
    assert list(progress.resume(saved())) == []
    assert (progress.epoch, progress.saved_iter, progress.tried_iter, progress.validated) == (1, 6, 6, True)


def test_every_option_that_has_changed_is_named():
    now = {**OPT, 'manual_seed': 4, 'bridge': {'modulation': 'one'}, 'train': {'optim_g': {'lr': 1e-4}, 'amp': 'bf16'}}
    progress = Progress(now)
    found = list(progress.resume(saved()))
    assert found[0] == 'manual_seed has changed from 3 to 4.'
    assert [text.removeprefix('Resumed with a changed option: ') for text in found[1:]] == [
        "bridge: modulation: 'residual' -> 'one'", 'train: optim_g: lr: 0.001 -> 0.0001', "train: amp: None -> 'bf16'"]


def test_state_of_basicsrs_own_models_is_gone_on_with():
    progress = Progress(OPT)
    state = {'epoch': 1, 'iter': 6}
    assert ['written by BasicSR' in text for text in progress.resume(state)] == [True]
    assert progress.saved_iter == 6


@pytest.mark.parametrize(('due', 'done', 'validated'), [(True, None, False), (True, 5, False), (True, 6, True),
                                                        (False, None, True)])
def test_a_validation_that_was_due_and_is_not_finished_is_remembered(due, done, validated):
    progress = Progress(OPT)
    progress.validated_iter = done
    progress.begin_saving(0, 6, due)
    assert progress.state()['validated'] is validated


def optimizer(lr, period, steps=0):
    """An optimizer and BasicSR's schedule after some steps."""
    made = torch.optim.Adam([nn.Parameter(torch.ones(2))], lr=lr)
    schedule = CosineAnnealingRestartLR(made, periods=[period], restart_weights=[1], eta_min=0)
    for _ in range(steps):
        made.step()
        schedule.step()
    return made, schedule


def test_the_option_file_decides_about_a_resumed_schedule_and_rate():
    """After 4 of 20 iterations at a tenth of the rate the schedule stands where a new one of that length would."""
    old, _ = optimizer(1e-2, 10, steps=4)
    new, schedule = optimizer(1e-3, 20)
    replay(lambda _: schedule.step(), 4)
    new.load_state_dict(with_settings(old.state_dict(), new.state_dict()))
    group, = new.param_groups
    assert (schedule.last_epoch, group['initial_lr']) == (4, 1e-3)
    assert group['lr'] == pytest.approx(1e-3 * (1 + math.cos(math.pi * 4 / 20)) / 2)
    new.param_groups[0]['params'][0].grad = torch.ones(2)
    new.step()
    schedule.step()
    assert group['lr'] == pytest.approx(1e-3 * (1 + math.cos(math.pi * 5 / 20)) / 2)


def test_the_option_file_decides_about_milestones():
    """The old one was passed, the new one lies ahead: the rate is back, and falls there."""
    made = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1)
    schedule = MultiStepRestartLR(made, milestones=[6], gamma=0.1)
    replay(lambda _: schedule.step(), 4)
    saved = {'state': {}, 'param_groups': [{**made.state_dict()['param_groups'][0], 'lr': 0.01}]}
    made.load_state_dict(with_settings(saved, made.state_dict()))
    rates = []
    for _ in range(3):
        rates.append(made.param_groups[0]['lr'])
        made.step()
        schedule.step()
    assert [*rates, made.param_groups[0]['lr']] == pytest.approx([0.1, 0.1, 0.01, 0.01])


def test_what_an_optimizer_has_found_out_is_kept_with_new_settings():
    saved = {'state': {0: 'averages'}, 'param_groups': [{'lr': 1.0, 'betas': (0.9, 0.99), 'step': 7, 'params': [0]}]}
    fresh = {'state': {}, 'param_groups': [{'lr': 0.5, 'betas': (0.8, 0.9), 'params': [3]}]}
    assert with_settings(saved, fresh) == {'state': {0: 'averages'}, 'param_groups': [
        {'lr': 0.5, 'betas': (0.8, 0.9), 'step': 7, 'params': [0]}]}


@pytest.mark.parametrize(('epoch', 'iteration', 'skipped'), [(0, 0, [(0, 0)]), (1, 8, [(1, 8)]), (1, 12, [(1, 24)]),
                                                             (0, 13, []), (2, 8, [])])
def test_an_epoch_is_gone_on_with_after_the_batches_that_were_had(epoch, iteration, skipped):
    class Loader(list):
        batch_size = 4
    found = []
    Loop(Loader(range(6)), SimpleNamespace(skip=lambda *place: found.append(place)), [], None).skip_to(epoch, iteration)
    assert found == skipped


# ---------------------------------------------------------------------------------------------------- interruption


def test_a_signal_is_noted_and_a_second_one_counts_only_later(monkeypatch):
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        interruption = Interruption(None)
        assert not interruption.asked_before() and not interruption.asked_by_any()
        interruption.listen()
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.asked_before() and interruption.asked_by_any() and interruption.signal == signal.SIGTERM
        later = time.monotonic() + 60
        monkeypatch.setattr('rdbm_plugin.models.interruption.monotonic', lambda: later)
        with pytest.raises(SystemExit) as end:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        assert end.value.code == 128 + signal.SIGINT
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ---------------------------------------------------------------------------------------------------- guard


def test_the_guard_counts_and_ends_with_a_dump(tmp_path, log):
    guard = StepGuard(2, tmp_path, ALONE)
    names = [f'{i}.png' for i in range(10)]
    guard.report(4, {'l_pix': math.nan}, 1.5, names, [])
    assert 'Iteration 4: l_pix nan, norm of the gradient 1.5: step skipped (1 in a row, 1 in all)' in log.text
    assert '0.png, 1.png' in log.text and '7.png and 2 more' in log.text and '8.png' not in log.text
    assert not guard.lost
    guard.report(5, {'l_pix': 1.0}, math.inf, names, [])
    assert guard.lost
    with pytest.raises(NonFiniteLoss, match='2 steps in a row'):
        guard.end(5, {'l_pix': 1.0}, math.inf, {'weights': torch.ones(2)})
    dump = torch.load(tmp_path / 'nonfinite_5_rank0.pth', weights_only=True)
    assert dump['iteration'] == 5 and dump['norm'] == math.inf and torch.equal(dump['weights'], torch.ones(2))


# ---------------------------------------------------------------------------------------------------- losses of tasks


def test_losses_are_means_of_the_samples_of_each_task():
    losses = TaskLosses(['rain', 'snow', 'rain', 'haze'], torch.device('cpu'), ALONE)

    def add(values, tasks, taken=1.0):
        losses.add(torch.tensor(values), losses.members(tasks, len(values)), torch.tensor(taken))
    add([1.0, 2.0, 6.0], ['rain', 'snow', 'other'])
    add([4.0], ['rain'])
    other = TaskLosses(['rain', 'snow', 'haze'], torch.device('cpu'), ALONE)
    other.load(losses.state())
    assert losses.means() == other.means() == {'l_rain': 2.5, 'l_snow': 2.0}
    assert losses.means() == {}
    other.load([[1.0], [1.0]])
    assert other.means() == {}, 'a state of other tasks is left out'
    add([math.nan, 5.0], ['haze', 'rain'], taken=0.0)
    add([3.0], ['rain'])
    assert losses.means() == {'l_rain': 3.0} and 'nan' not in str(losses.state())


# ---------------------------------------------------------------------------------------------------- a training step


class Linear(nn.Module):
    """The least that takes (x_t, mu, t)."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(6, 3, 1)

    def forward(self, x_t, mu, t):
        return self.conv(torch.cat([x_t, mu], 1))


def step_of(micro_batches=1, lr=0.1, clip=math.inf, share=0.0):
    net = Linear()
    objective = Objective(build_bridge(), ResidualModulatedLoss(), 1.0, share)
    return TrainingStep(net, torch.optim.SGD(net.parameters(), lr), objective,
                        TrainingSettings('none', clip, micro_batches, 3, 'auto', False), StepGuard(3, None, ALONE),
                        TaskLosses(['rain', 'snow'], torch.device('cpu'), ALONE), Progress(OPT), MovingAverage())


SUMS = of_sums(4 * 8 * 8)
"""For gradients of a mean over the pixels of four images: what is added up is at most 1 in all."""


def largest_gap(a, b):
    return float((a - b).detach().abs().max())


def pairs(count=4):
    gt = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return Batch(gt / 2, gt, ['rain', 'snow'] * (count // 2), ['x.png'] * count)


def test_a_step_at_node_t_is_regression_on_the_residual():
    """At t = T x_t is mu, and nothing is random: loss and gradient by hand."""
    step, batch = step_of(), pairs()
    by_hand = Linear()
    mu, residual = 2 * batch.lq - 1, 2 * (batch.gt - batch.lq)
    loss = (by_hand(mu, mu, None) - residual).abs().mean()
    loss.backward()
    step.run(1, batch)
    assert step.read() == {'l_pix': pytest.approx(loss.item())}
    expected = by_hand.conv.weight - 0.1 * by_hand.conv.weight.grad
    assert largest_gap(step.net.conv.weight, expected) < SUMS
    assert set(step.task_losses.means()) == {'l_rain', 'l_snow'}


def test_parts_of_a_batch_give_its_gradient_and_a_clipped_one_its_norm():
    whole, parts, clipped = step_of(), step_of(micro_batches=3), step_of(clip=0.01)
    for step in (whole, parts, clipped):
        step.run(1, pairs())
    assert largest_gap(whole.net.conv.weight.grad, parts.net.conv.weight.grad) < SUMS
    norm = torch.cat([p.grad.flatten() for p in clipped.parameters]).norm()
    assert float(norm) == pytest.approx(0.01, rel=1e-3)


def test_a_step_that_is_not_finite_changes_nothing_and_the_next_one_goes_on():
    step = step_of()
    before = {name: value.clone() for name, value in step.net.state_dict().items()}
    bad = pairs()
    bad.lq[0, 0, 0, 0] = math.nan
    step.run(1, bad)
    assert math.isnan(step.read()['l_pix']) and step.guard.in_a_row == 1
    assert all(torch.equal(before[name], value) for name, value in step.net.state_dict().items())
    step.run(2, pairs())
    assert not all(torch.equal(before[name], value) for name, value in step.net.state_dict().items())
    assert step.state()['nonfinite'] == [0, 1]
    other = step_of()
    other.load(step.state())
    assert other.state() == step.state() and other.resumed


def test_passes_add_up_the_gradients_of_their_states():
    """Two passes, whole or in parts, against the two steps of the objective by hand."""
    def passing(micro_batches):
        step = step_of(micro_batches)
        step.objective = Objective(build_bridge(), ResidualModulatedLoss(), passes=2)
        return step
    step, parts, batch = passing(1), passing(3), pairs()
    by_hand, objective = Linear(), step.objective
    states = objective.draw(batch.lq, batch.gt, Draws(OPT['manual_seed'], 1, 0, 1, 4), None)
    output = by_hand(states.mu + states.z, states.mu, None)
    later = objective.next_pass(states, output)
    again = by_hand(later.mu + later.z, later.mu, None)
    loss = ((output - states.residual).abs().mean() + (again - states.residual).abs().mean()) / 2
    loss.backward()
    for each in (step, parts):
        each.run(1, batch)
        assert each.read() == {'l_pix': pytest.approx(loss.item())}
        assert largest_gap(each.net.conv.weight, by_hand.conv.weight - 0.1 * by_hand.conv.weight.grad) < SUMS


def test_steps_are_read_later_where_that_saves_waiting(log, tmp_path):
    """Unread, a bad step is skipped all the same; a run that is lost ends at the next reading."""
    def fused():
        step = step_of()
        step.optimizer = torch.optim.AdamW(step.net.parameters(), 0.1, fused=True)
        again = TrainingStep(step.net, step.optimizer, step.objective, step.settings, StepGuard(3, tmp_path, ALONE),
                             step.task_losses, Progress(OPT), MovingAverage())
        assert again.fused
        return again
    plain, late = fused(), fused()
    late.read_every = 100
    bad = pairs()
    bad.gt[0, 0, 0, 0] = math.inf
    for iteration, batch in enumerate((pairs(), bad, pairs(), bad), 1):
        plain.run(iteration, batch)
        late.run(iteration, batch)
    assert late.guard.in_all == 0 and plain.guard.in_all == 2
    assert late.state() == plain.state() and late.state()['nonfinite'] == [1, 2]
    assert all(map(torch.equal, late.weights, plain.weights))
    assert log.text.count('Iteration 2: ') == log.text.count('Iteration 4: ') == 2
    for iteration in (5, 6, 7):
        late.run(iteration, bad)
    with pytest.raises(NonFiniteLoss, match=r'4 steps in a row were not finite .*iteration 7'):
        late.read()
    assert torch.load(tmp_path / 'nonfinite_7_rank0.pth', weights_only=True)['states']['gt'].isinf().any()


def test_what_is_random_follows_from_seed_and_iteration_alone():
    def run(iteration):
        step = step_of()
        step.objective = Objective(build_bridge(), ResidualModulatedLoss())
        step.run(iteration, pairs())
        return step.read()
    assert run(1) == run(1) != run(2)


# ---------------------------------------------------------------------------------------------------- validator


class Pictures(list):
    """A data set of BasicSR's form: pairs with one constant error."""

    def __init__(self, name, count, error=0.1):
        super().__init__({'lq': torch.full((3, 16, 16), 0.5 - error), 'gt': torch.full((3, 16, 16), 0.5),
                          'lq_path': f'{name}/{i}.png'} for i in range(count))
        self.opt = {'name': name}


def validator(tmp_path, training=True, **val):
    blocks = {f'val_{name}': {'name': name} for name in 'ab'} if training else {
        f'test_{name}': {'name': name} for name in 'ab'}
    opt = {'name': 'run', 'is_train': training, 'datasets': {'train': {'name': 'x'}, **blocks},
           'val': {'val_freq': 5, 'metrics': {'psnr': {'type': 'psnr_rgb'}}, **val},
           'path': {'visualization': str(tmp_path / 'pictures'), 'results_root': str(tmp_path / 'results')}}
    return Validator(opt, ALONE)


def halve_the_error(data, keep_trajectory):
    return Restoration({'lq': data['lq'], 'gt': data['gt'], 'result': (data['lq'] + data['gt']) / 2}, 0.25, 2)


@pytest.mark.usefixtures('log')
def test_sets_are_scored_and_reported_after_the_last(tmp_path):
    part = validator(tmp_path, training=False)
    scores = part.run(Pictures('a', 3), halve_the_error, 'x', None, save_img=True)
    assert [score.image for score in scores] == ['0', '1', '2'] and scores[0].evaluations == 2
    levels = np.rint(255 * np.array([0.4, 0.45, 0.5]))
    for found, level in ((scores[0].degraded, levels[0]), (scores[0].restored, levels[1])):
        assert found['psnr'] == pytest.approx(20 * math.log10(255 / abs(level - levels[2])), abs=1e-6)
    assert (tmp_path / 'pictures/a/1_run.png').is_file()
    assert part.collect('a', scores) is None
    finished = part.collect('b', part.run(Pictures('b', 1), halve_the_error, 'x', None, save_img=False))
    assert list(finished) == ['a', 'b'] and part.finished == {}
    part.report(finished)
    results = json.loads((tmp_path / 'results/results.json').read_text(encoding='utf-8'))
    assert results['sets']['average']['restored']['psnr'] == pytest.approx(scores[0].restored['psnr'])
    assert (tmp_path / 'pictures/before_after.png').stat().st_size > 500


def test_a_run_that_is_asked_to_stop_restores_no_more(tmp_path):
    done = []

    def restore(data, keep_trajectory):
        done.append(data)
        return halve_the_error(data, keep_trajectory)
    found = validator(tmp_path).run(Pictures('a', 5), restore, 5, None, False, stopping=lambda: len(done) == 2)
    assert len(found) == len(done) == 2


def test_validation_is_due_where_basicsrs_loop_has_one(tmp_path):
    part = validator(tmp_path)
    assert [iteration for iteration in range(1, 12) if part.due(iteration)] == [5, 10]
    part.sets = []
    assert not part.due(5)
