"""What a run has to remember so that it resumes exactly where it stopped. Needs torch only."""
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch.optim.lr_scheduler import LRScheduler

from rdbm_plugin import __version__

_PROGRESS = ('last_epoch', '_step_count', '_last_lr', 'base_lrs')
"""What a scheduler knows that is not in the option file."""
_COMPARED = ('bridge', 'network_g', 'train', 'datasets')
"""Blocks of the option file that decide what is trained."""


class Loop(NamedTuple):
    """What BasicSR's training loop does not hand to its model."""

    train_loader: Any
    train_sampler: Any
    val_loaders: list[Any]
    tb_logger: Any

    def skip_to(self, epoch: int, iteration: int) -> None:
        """Let the training set of ``epoch`` start after what the run has had of it until ``iteration``."""
        batches = iteration - epoch * len(self.train_loader)
        if 0 <= batches <= len(self.train_loader) and hasattr(self.train_sampler, 'skip'):
            self.train_sampler.skip(epoch, batches * self.train_loader.batch_size)


class Progress:
    """How far a run is: trained, saved and validated until which iteration, with which seed and options."""

    def __init__(self, opt: Mapping[str, Any]) -> None:
        self.seed: int = opt.get('manual_seed') or 0
        self.options = remembered(opt, _COMPARED)
        self.epoch = self.saved_iter = self.tried_iter = 0
        self.validated = True
        """Whether the validation that is due at ``tried_iter`` was finished."""
        self.validated_iter: int | str | None = None

    def begin_saving(self, epoch: int, iteration: int, validation_due: bool) -> None:
        """Note on all ranks that ``iteration`` is about to be saved; only rank 0 will know whether that went well."""
        self.epoch, self.tried_iter = epoch, iteration
        self.validated = self.validated_iter == iteration or not validation_due

    def state(self) -> dict[str, Any]:
        """The part of a training state that :meth:`resume` reads."""
        return {'validated': self.validated, 'seed': self.seed, 'options': self.options, 'rdbm_plugin': __version__}

    def resume(self, state: Mapping[str, Any]) -> Iterator[str]:
        """Go on from a training state; what should be known about it comes back as sentences."""
        self.epoch, self.saved_iter, self.tried_iter = state['epoch'], state['iter'], state['iter']
        if 'seed' not in state:
            yield ('The state was written by BasicSR, not by this model: the best scores so far are not in it. '
                   'The run is resumed, but not bit for bit as if it had never been interrupted.')
            return
        self.validated = state['validated']
        if state['seed'] != self.seed:
            yield f'manual_seed was {state["seed"]} until now and is {self.seed} from here.'
        yield from changed(state['options'], self.options)


def replay(step: Callable[[int], None], iterations: int) -> None:
    """Bring new schedules to where a run with them would be: ``step`` is called with each iteration, from 1."""
    with warnings.catch_warnings():
        # Schedules expect the optimizer to step between their steps.
        warnings.simplefilter('ignore')
        for iteration in range(1, iterations + 1):
            step(iteration)


def with_settings(saved: Mapping[str, Any], fresh: Mapping[str, Any]) -> dict[str, Any]:
    """An optimizer's saved state with the rates and settings of a new one's; its averages are kept."""
    groups = zip(saved['param_groups'], fresh['param_groups'])
    return {**saved, 'param_groups': [{**before, **now, 'params': before['params']} for before, now in groups]}


def progress_of(scheduler: LRScheduler) -> dict[str, Any]:
    """What a training state holds of a scheduler."""
    return {key: value for key, value in scheduler.state_dict().items() if key in _PROGRESS}


def remembered(options: Mapping[str, Any], blocks: Sequence[str]) -> str:
    """What a checkpoint holds of the options, for :func:`changed`."""
    return json.dumps({block: options.get(block) for block in blocks}, default=str)


def changed(before: str, now: str) -> list[str]:
    """A sentence for every option that is another than when the checkpoint was written."""
    return [f'Resumed with another option than before: {change}'
            for change in _changes(json.loads(before), json.loads(now))]


def _changes(before: Any, now: Any, where: str = '') -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        return [change for key in {**before, **now}
                for change in _changes(before.get(key), now.get(key), f'{where}: {key}'.removeprefix(': '))]
    return [] if before == now else [f'{where}: {before!r} -> {now!r}']
