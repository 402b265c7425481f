"""The record of a run's progress, from which it resumes exactly where it stopped. Needs torch only."""
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch.optim.lr_scheduler import LRScheduler

from rdbm_plugin import __version__

_PROGRESS = ('last_epoch', '_step_count', '_last_lr', 'base_lrs')
"""State of a scheduler that is not in the option file."""
_COMPARED = ('bridge', 'network_g', 'train', 'datasets')
"""Blocks of the option file that affect training."""


class Loop(NamedTuple):
    """Objects of BasicSR's training loop that it does not pass to its model."""

    train_loader: Any
    train_sampler: Any
    val_loaders: list[Any]
    tb_logger: Any

    def skip_to(self, epoch: int, iteration: int) -> None:
        """Let the training set skip the batches of ``epoch`` that the run has used up to ``iteration``."""
        batches = iteration - epoch * len(self.train_loader)
        if 0 <= batches <= len(self.train_loader) and hasattr(self.train_sampler, 'skip'):
            self.train_sampler.skip(epoch, batches * self.train_loader.batch_size)


class Progress:
    """Progress of a run: the iterations up to which it is saved and validated, and its seed and options."""

    def __init__(self, opt: Mapping[str, Any]) -> None:
        self.seed: int = opt.get('manual_seed') or 0
        self.options = remembered(opt, _COMPARED)
        self.epoch = self.saved_iter = self.tried_iter = 0
        self.validated = True
        """Whether the validation due at ``tried_iter`` is complete."""
        self.validated_iter: int | str | None = None

    def begin_saving(self, epoch: int, iteration: int, validation_due: bool) -> None:
        """Record on all ranks that ``iteration`` is about to be saved; only rank 0 learns whether that succeeds."""
        self.epoch, self.tried_iter = epoch, iteration
        self.validated = self.validated_iter == iteration or not validation_due

    def state(self) -> dict[str, Any]:
        """The part of a training state that :meth:`resume` reads."""
        return {'validated': self.validated, 'seed': self.seed, 'options': self.options, 'rdbm_plugin': __version__}

    def resume(self, state: Mapping[str, Any]) -> Iterator[str]:
        """Resume from a training state; yield warnings about it as sentences."""
        self.epoch, self.saved_iter, self.tried_iter = state['epoch'], state['iter'], state['iter']
        if 'seed' not in state:
            yield ('The state was written by BasicSR, not by this model: it lacks the best scores so far. '
                   'The resumed run is not bit-identical to an uninterrupted one.')
            return
        self.validated = state['validated']
        if state['seed'] != self.seed:
            yield f'manual_seed has changed from {state["seed"]} to {self.seed}.'
        yield from changed(state['options'], self.options)


def replay(step: Callable[[int], None], iterations: int) -> None:
    """Advance new schedules to the state after ``iterations``: call ``step`` with each iteration, starting at 1."""
    with warnings.catch_warnings():
        # Schedulers warn if the optimizer does not step between their steps.
        warnings.simplefilter('ignore')
        for iteration in range(1, iterations + 1):
            step(iteration)


def with_settings(saved: Mapping[str, Any], fresh: Mapping[str, Any]) -> dict[str, Any]:
    """Return an optimizer's saved state, averages included, with the learning rates and settings of a new one."""
    groups = zip(saved['param_groups'], fresh['param_groups'])
    return {**saved, 'param_groups': [{**before, **now, 'params': before['params']} for before, now in groups]}


def progress_of(scheduler: LRScheduler) -> dict[str, Any]:
    """The part of a scheduler's state that a training state stores."""
    return {key: value for key, value in scheduler.state_dict().items() if key in _PROGRESS}


def remembered(options: Mapping[str, Any], blocks: Sequence[str]) -> str:
    """The text of some option blocks that a checkpoint stores for :func:`changed`."""
    return json.dumps({block: options.get(block) for block in blocks}, default=str)


def changed(before: str, now: str) -> list[str]:
    """Return a sentence for each option that has changed since the checkpoint was written."""
    return [f'Resumed with a changed option: {change}'
            for change in _changes(json.loads(before), json.loads(now))]


def _changes(before: Any, now: Any, where: str = '') -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        return [change for key in {**before, **now}
                for change in _changes(before.get(key), now.get(key), f'{where}: {key}'.removeprefix(': '))]
    return [] if before == now else [f'{where}: {before!r} -> {now!r}']
