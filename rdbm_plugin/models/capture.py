"""A training step as one CUDA graph: what Python would launch anew in every step is recorded once. Needs torch only.

Knows nothing of what the step does: it is a function of tensors of fixed shapes that waits for nothing.
"""
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging import getLogger
from typing import Protocol

import torch
from torch import Tensor

from rdbm_plugin.config.options import OptionError

CAPTURES = ('auto', 'none', 'cuda_graph')
"""Values of ``train: capture:``."""
WARM_UP = 3
"""Steps that are taken before one is recorded, so that convolutions are tuned and the optimizer has its state."""

Work = Callable[..., Tensor]
"""A step, work(*tensors): gives the numbers to be logged, (K,)."""


class Recording(Protocol):
    """A recorded function that can be repeated on what its tensors hold by then."""

    def replay(self) -> None:
        """Repeat it."""


def step_taker(capture: str, work: Work, optimizer: torch.optim.Optimizer, changed: Callable[[], list[Tensor]],
               obstacle: str) -> Work:
    """``work``, or the same as a CUDA graph where ``capture`` wants it and no ``obstacle`` is named.

    Raises:
        OptionError: ``cuda_graph`` is wanted and there is an obstacle.
    """
    if capture == 'none' or (obstacle and capture == 'auto'):
        if capture == 'auto' and 'on the cpu' not in obstacle:
            getLogger('basicsr').info(f'Steps are not captured: {obstacle}.')
        return work
    if obstacle:
        raise OptionError(f'train: capture: found cuda_graph, but {obstacle}; write auto or none.')
    return CapturedStep(work, optimizer, changed, required=capture == 'cuda_graph')


def record(work: Callable[[], Tensor]) -> tuple[Recording, Tensor]:
    """Record what ``work`` launches on the GPU, without running it; also gives where its result will be."""
    graph, generator = torch.cuda.CUDAGraph(), torch.cuda.default_generators[torch.cuda.current_device()]
    # torch before 2.4 has no copy of a generator.
    copy = generator.clone_state() if hasattr(generator, 'clone_state') else None
    try:
        # Any thread that allocates would break a global recording, as that of a loader with pin_memory does.
        with torch.cuda.graph(graph, capture_error_mode='thread_local'):
            result = work()
    except RuntimeError:
        # A recording that fails never tells the generator that it has ended.
        if copy is not None:
            generator.graphsafe_set_state(copy)
        raise
    return graph, result


@contextmanager
def aside(device: torch.device) -> Iterator[None]:
    """Work on another stream of a GPU, as torch wants it before a recording."""
    if device.type != 'cuda':
        yield
        return
    side, here = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    side.wait_stream(here)
    with torch.cuda.stream(side):
        yield
    here.wait_stream(side)


class CapturedStep:
    """Takes steps one by one until it is warm, then records one and repeats it.

    Batches of other shapes than the recorded one are worked on as before. The first repetition is checked against the
    plain step from the same state: if they differ, or the step cannot be recorded, a line of the log says so, and steps
    stay plain.

    Args:
        work: The step.
        optimizer: Fused, of torch.optim; its learning rates may change between steps.
        changed: Gives all tensors that a step changes.
        record: See :func:`record`; another one is for tests.
        required: Whether a step that cannot be recorded is an error.
    """

    def __init__(self, work: Work, optimizer: torch.optim.Optimizer, changed: Callable[[], list[Tensor]],
                 record: Callable[[Callable[[], Tensor]], tuple[Recording, Tensor]] = record,
                 required: bool = False) -> None:
        self.work, self.optimizer, self.changed, self.record = work, optimizer, changed, record
        self.required = required
        self.recording: Recording | None = None
        self.taken, self.given_up = 0, False

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Take a step."""
        self.taken += 1
        if self.taken <= WARM_UP:
            with aside(inputs[0].device):
                return self.work(*inputs)
        if self.given_up:
            return self.work(*inputs)
        if self.recording is None:
            return self._begin(inputs)
        if any(a.shape != b.shape for a, b in zip(self.inputs, inputs)):
            return self.work(*inputs)
        return self._repeat(inputs)

    def _begin(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Record, and take this step both ways."""
        self.inputs = [tensor.clone() for tensor in inputs]
        self.rates = [torch.tensor(float(group['lr']), device=inputs[0].device)
                      for group in self.optimizer.param_groups]
        self.optimizer.zero_grad()
        # What networks draw, they draw in the plain step.
        with torch.random.fork_rng([inputs[0].device] if inputs[0].device.type == 'cuda' else []):
            try:
                with self._rates_on_device():
                    self.recording, self.result = self.record(lambda: self.work(*self.inputs))
            except RuntimeError as error:
                # To end a recording that has failed is an error, too; the one before it is the reason.
                reason = error.__context__ or error
                self._give_up(f'{type(reason).__name__}: {reason}'.split('\n')[0])
            else:
                before = [tensor.clone() for tensor in self.changed()]
                self._repeat(inputs)
                repeated = [tensor.clone() for tensor in self.changed()]
                for tensor, old in zip(self.changed(), before):
                    tensor.copy_(old)
        found = self.work(*inputs)
        if self.recording is not None:
            apart = _distance(self.changed(), repeated)
            if apart <= 0.1 * _distance(self.changed(), before):
                getLogger('basicsr').info('Steps are captured as a CUDA graph.')
            else:
                self._give_up(f'a repeated step leads elsewhere than a plain one, by {apart:g}')
        return found

    def _give_up(self, reason: str) -> None:
        self.optimizer.zero_grad()
        self.given_up, self.recording, self.result = True, None, None
        if self.required:
            raise OptionError(f'train: capture: cuda_graph: {reason}; write auto or none.')
        getLogger('basicsr').warning(f'Steps are not captured: {reason}.')

    def _repeat(self, inputs: tuple[Tensor, ...]) -> Tensor:
        for held, new in zip(self.inputs, inputs):
            held.copy_(new, non_blocking=True)
        for rate, group in zip(self.rates, self.optimizer.param_groups):
            rate.fill_(group['lr'])
        self.recording.replay()
        return self.result.clone()

    @contextmanager
    def _rates_on_device(self) -> Iterator[None]:
        """Let the optimizer read its rates where a repetition finds them; what it notes in Python is undone."""
        groups = self.optimizer.param_groups
        before = [(notes, dict(notes)) for notes in (*groups, *self.optimizer.state.values())]
        for group, rate in zip(groups, self.rates):
            group['lr'], group['capturable'] = rate, True
        try:
            yield
        finally:
            for notes, held in before:
                notes.clear()
                notes.update(held)


def _distance(these: list[Tensor], those: list[Tensor]) -> float:
    return float(torch.stack([(a.float() - b.float()).norm() for a, b in zip(these, those)]).norm())
