"""A training step as one CUDA graph: its kernel launches are recorded once and then replayed. Needs torch only."""
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging import getLogger

import torch
from torch import Tensor

from rdbm_plugin.config.options import OptionError

CAPTURES = ('auto', 'none', 'cuda_graph')
"""Values of ``train: capture:``."""
WARM_UP = 3
"""Plain steps before the recording: they tune the convolutions and create the optimizer's state."""

Work = Callable[..., Tensor]
"""A step, work(*tensors): returns the numbers for the log, (K,), without ever waiting for the device."""


def step_taker(capture: str, work: Work, optimizer: torch.optim.Optimizer, changed: Callable[[], list[Tensor]],
               obstacle: str) -> Work:
    """Return ``work``, captured as a CUDA graph if ``capture`` asks for it and ``obstacle`` is empty.

    Raises:
        OptionError: ``capture`` is ``cuda_graph``, but there is an obstacle.
    """
    if capture == 'none' or (obstacle and capture == 'auto'):
        if capture == 'auto' and 'on the cpu' not in obstacle:
            getLogger('basicsr').info(f'Steps are not captured: {obstacle}.')
        return work
    if obstacle:
        raise OptionError(f'train: capture: found cuda_graph, but {obstacle}; write auto or none.')
    return CapturedStep(work, optimizer, changed, required=capture == 'cuda_graph')


def record(work: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """Record what ``work`` launches on the GPU without running it; return the graph and the tensor of its result."""
    graph, generator = torch.cuda.CUDAGraph(), torch.cuda.default_generators[torch.cuda.current_device()]
    # torch before 2.4 cannot copy a generator.
    copy = generator.clone_state() if hasattr(generator, 'clone_state') else None
    try:
        # In the global mode, an allocation by any thread breaks the recording, and loaders with pin_memory allocate.
        with torch.cuda.graph(graph, capture_error_mode='thread_local'):
            result = work()
    except RuntimeError:
        # A failed recording does not tell the generator that it has ended.
        if copy is not None:
            generator.graphsafe_set_state(copy)
        raise
    return graph, result


@contextmanager
def aside(device: torch.device) -> Iterator[None]:
    """Run the body on a side stream of a GPU, as torch requires before a recording; does nothing on other devices."""
    if device.type != 'cuda':
        yield
        return
    side, here = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    side.wait_stream(here)
    with torch.cuda.stream(side):
        yield
    here.wait_stream(side)


class CapturedStep:
    """Takes plain steps to warm up, then records one step and replays it.

    Batches whose shapes differ from the recorded ones take plain steps. The first replay is compared with a plain step
    from the same state. If they differ, or if the step cannot be recorded, all steps stay plain and the log says why.

    Args:
        work: The step.
        optimizer: A fused or capturable optimizer of torch.optim; its learning rates may change between steps.
        changed: Returns all tensors that a step changes.
        record: See :func:`record`; tests pass their own.
        required: Whether to raise OptionError if the step cannot be captured.
    """

    def __init__(self, work: Work, optimizer: torch.optim.Optimizer, changed: Callable[[], list[Tensor]],
                 record: Callable[[Callable[[], Tensor]], tuple[torch.cuda.CUDAGraph, Tensor]] = record,
                 required: bool = False) -> None:
        self.work, self.optimizer, self.changed, self.record = work, optimizer, changed, record
        self.required, self.taken, self.given_up = required, 0, False
        self.recording: torch.cuda.CUDAGraph | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Take a step."""
        self.taken += 1
        if self.taken <= WARM_UP:
            with aside(inputs[0].device):
                return self.work(*inputs)
        if self.recording is None and not self.given_up:
            return self._begin(inputs)
        if self.given_up or any(a.shape != b.shape for a, b in zip(self.inputs, inputs)):
            return self.work(*inputs)
        return self._repeat(inputs)

    def _begin(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Record the step, then take it both replayed and plain."""
        self.inputs = [tensor.clone() for tensor in inputs]
        self.rates = [torch.tensor(float(group['lr']), device=inputs[0].device)
                      for group in self.optimizer.param_groups]
        self.optimizer.zero_grad()
        # Only the plain step below may advance the random generators.
        with torch.random.fork_rng([inputs[0].device] if inputs[0].device.type == 'cuda' else []):
            try:
                with self._rates_on_device():
                    self.recording, self.result = self.record(lambda: self.work(*self.inputs))
            except RuntimeError as error:
                # Ending a failed recording raises another error, whose context is the cause.
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
                self._give_up(f'a replayed step differs from a plain one by {apart:g}')
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
        """Give the optimizer its rates as tensors that a replay reads; its Python values are restored afterwards."""
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
