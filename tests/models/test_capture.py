"""A step that is recorded once and repeated: on CPUs with a recorder that keeps the function and runs it again."""
import logging
import math
from threading import Thread

import pytest
import torch
from torch import nn

import rdbm_plugin.models  # noqa: F401  lets BasicSR be imported
from rdbm_plugin.bridge import build_bridge
from rdbm_plugin.config.options import OptionError
from rdbm_plugin.losses.objective import Objective
from rdbm_plugin.losses.residual_modulated_loss import ResidualModulatedLoss
from rdbm_plugin.models.capture import WARM_UP, CapturedStep, record, step_taker
from rdbm_plugin.models.ranks import Ranks
from rdbm_plugin.models.resuming import Progress
from rdbm_plugin.models.step_guard import StepGuard
from rdbm_plugin.models.task_losses import TaskLosses
from rdbm_plugin.models.training_step import Batch, MovingAverage, TrainingSettings, TrainingStep

ALONE = Ranks(False)


class Tape:
    """Stands for a CUDA graph: recording changes nothing, a repetition writes where the recording said it would."""

    def __init__(self, work):
        self.work, self.repeated = work, 0
        self.result = torch.zeros(2)

    def replay(self):
        self.repeated += 1
        self.result.copy_(self.work())


class Network(nn.Module):
    """A convolution, a running mean, and what is drawn anew in every step."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.drop = nn.Conv2d(6, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Dropout(0.2)

    def forward(self, x_t, mu, t):
        return self.drop(self.norm(self.conv(torch.cat([x_t, mu], 1))))


@pytest.fixture
def log(caplog):
    """What goes to BasicSR's log."""
    logging.getLogger('basicsr').addHandler(caplog.handler)
    caplog.set_level(logging.INFO, 'basicsr')
    yield caplog
    logging.getLogger('basicsr').removeHandler(caplog.handler)


def step_of(record=None, device='cpu', capture='none', folder=None):
    """A training step; with ``record`` it is captured by that."""
    net, average = Network().to(device), Network().to(device)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-2, fused=True)
    step = TrainingStep(net, optimizer, Objective(build_bridge(), ResidualModulatedLoss(balance=0.5), 0.5, 1.0),
                        TrainingSettings('none', 1.0, 1, 3, capture, False), StepGuard(3, folder, ALONE),
                        TaskLosses(['rain', 'snow'], torch.device(device), ALONE), Progress({'manual_seed': 3}),
                        MovingAverage([p.detach() for p in average.parameters()], 0.9))
    if record:
        step.work = CapturedStep(step._work, optimizer, step._changed, record)
    return step


def batch(iteration, count=6, bad=False, device='cpu'):
    gt = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(iteration))
    lq = gt / 2
    if bad:
        lq[0, 0, 0, 0] = math.nan
    return Batch(lq.to(device), gt.to(device), ['rain', 'snow'] * (count // 2), ['x.png'] * count)


def train(step, iterations, device='cpu'):
    """With a falling rate, a step that is not finite, and a batch of another size."""
    found = []
    for iteration in iterations:
        step.optimizer.param_groups[0]['lr'] = 1e-2 / iteration
        step.run(iteration, batch(iteration, 4 if iteration == 8 else 6, bad=iteration == 9, device=device))
        found.append(step.read())
    return found


def tapes():
    made = []

    def record(work):
        made.append(Tape(work))
        return made[-1], made[-1].result
    return made, record


def test_repeated_steps_are_the_plain_ones_bit_for_bit(log):
    made, record = tapes()
    plain, captured = step_of(), step_of(record)
    expected, found = train(plain, range(1, 13)), train(captured, range(1, 13))
    assert str(found) == str(expected), 'a nan is one of them'
    # One for the check, and one for each later step but that of another size.
    assert [tape.repeated for tape in made] == [12 - WARM_UP - 1]
    assert all(map(torch.equal, plain._changed(), captured._changed()))
    assert plain.state() == captured.state() and captured.guard.in_all == 1
    assert captured.optimizer.param_groups[0]['lr'] == 1e-2 / 12
    assert not captured.optimizer.param_groups[0]['capturable']
    assert 'Steps are captured as a CUDA graph' in log.text


def test_a_resumed_run_records_anew_and_goes_on_bit_for_bit():
    whole = step_of(tapes()[1])
    train(whole, range(1, 13))
    first, second = step_of(tapes()[1]), step_of(tapes()[1])
    train(first, range(1, 8))
    second.net.load_state_dict(first.net.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    for here, there in zip(second.average.values, first.average.values):
        here.copy_(there)
    second.load(first.state())
    train(second, range(8, 13))
    assert all(map(torch.equal, whole._changed(), second._changed()))


def test_a_step_that_cannot_be_recorded_stays_plain_and_the_log_says_why(log):
    def record(work):
        """Leaves what a recording leaves that broke off in the middle, and fails again when it is ended."""
        try:
            torch.rand(7)
            for parameter in captured.net.parameters():
                parameter.grad = torch.ones_like(parameter)
                captured.optimizer.state[parameter]['taken'] = 1
            assert captured.optimizer.param_groups[0]['capturable']
            raise RuntimeError('operation not permitted when stream is capturing\nmore')
        finally:
            raise RuntimeError('the recording was invalidated')
    plain, captured = step_of(), step_of(record)
    assert str(train(plain, range(1, 8))) == str(train(captured, range(1, 8)))
    assert all(map(torch.equal, plain._changed(), captured._changed()))
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(plain.net.parameters(), captured.net.parameters()))
    assert torch.equal(*(torch.rand(3) for step in (plain, captured) if step.run(8, batch(8)) is None))
    assert str(captured.optimizer.state_dict()) == str(plain.optimizer.state_dict())
    assert log.text.count('not captured: RuntimeError: operation not permitted when stream is capturing.') == 1
    captured = step_of(record)
    captured.work.required = True
    with pytest.raises(OptionError, match='train: capture: cuda_graph: RuntimeError: operation not permitted'):
        train(captured, range(1, 8))


def test_a_recording_that_goes_wrong_is_found_and_dropped(log):
    def record(work):
        tape = Tape(lambda: torch.zeros(2))
        return tape, tape.result
    plain, captured = step_of(), step_of(record)
    assert str(train(plain, range(1, 8))) == str(train(captured, range(1, 8)))
    assert all(map(torch.equal, plain._changed(), captured._changed()))
    assert 'Steps are not captured: a replayed step differs from a plain one' in log.text


def test_obstacles_are_named(log):
    assert step_taker('none', 1, None, None, '') == 1
    assert step_taker('auto', 1, None, None, 'several processes share the run') == 1
    assert 'Steps are not captured: several processes share the run.' in log.text
    with pytest.raises(OptionError, match='capture: found cuda_graph, but the network is on the cpu; write auto or n'):
        step_of(capture='cuda_graph')


@pytest.mark.gpu
def test_a_gpu_repeats_steps_and_waits_for_nothing():
    plain, captured = step_of(device='cuda'), step_of(device='cuda', capture='cuda_graph')
    expected, found = train(plain, range(1, 13), 'cuda'), train(captured, range(1, 13), 'cuda')
    for a, b in zip(expected, found):
        assert a == pytest.approx(b, rel=1e-3, nan_ok=True)
    batches = [batch(iteration, device='cuda') for iteration in range(13, 20)]
    torch.cuda.set_sync_debug_mode('error')
    try:
        for step in (plain, captured):
            for iteration, each in enumerate(batches, 13):
                step.run(iteration, each)
    finally:
        torch.cuda.set_sync_debug_mode('default')


@pytest.mark.gpu
def test_a_gpu_records_while_another_thread_pins_memory():
    def work():
        thread = Thread(target=lambda: torch.empty(2**20).pin_memory())
        thread.start()
        thread.join()
        return torch.ones(2, device='cuda') + 1
    graph, result = record(work)
    graph.replay()
    assert result.tolist() == [2, 2]


@pytest.mark.gpu
def test_a_gpu_goes_on_after_a_recording_that_failed(log):
    class Waiting(Network):
        def forward(self, x_t, mu, t):
            out = super().forward(x_t, mu, t)
            # A wait for the device, which no recording survives.
            assert out.sum().isfinite().item()
            return out
    torch.manual_seed(0)
    plain, captured = step_of(device='cuda'), step_of(device='cuda')
    captured.net.__class__ = Waiting
    captured.work = CapturedStep(captured._work, captured.optimizer, captured._changed)
    expected, found = train(plain, range(1, 8), 'cuda'), train(captured, range(1, 8), 'cuda')
    assert 'Steps are not captured: ' in log.text
    for a, b in zip(expected, found):
        assert a == pytest.approx(b, rel=1e-3, nan_ok=True)
