"""What a run has to remember so that it goes on exactly where it stopped. Needs torch only."""
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch.optim import Optimizer
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
    """How far a run is: trained, saved and validated until which iteration, with which seed and options.

    Args:
        opt: The options.
    """

    def __init__(self, opt: Mapping[str, Any]) -> None:
        self.seed: int = opt.get('manual_seed') or 0
        self.options = json.dumps({key: opt.get(key) for key in _COMPARED}, default=str)
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
                   'The run goes on, but is not the one that was broken off bit for bit.')
            return
        self.validated = state['validated']
        if state['seed'] != self.seed:
            yield f'manual_seed was {state["seed"]} until now and is {self.seed} from here.'
        for change in _changes(json.loads(state['options']), json.loads(self.options)):
            yield f'Resumed with another option than before: {change}'

    def optimizer_changed(self, state: Mapping[str, Any]) -> bool:
        """Whether ``train: optim_g:`` differs from that of a training state."""
        before, now = (json.loads(options)['train']['optim_g']
                       for options in (state.get('options', self.options), self.options))
        return before != now


class FreshSettings:
    """Optimizers and schedulers as the option file makes them, kept while a training state is loaded into them.

    BasicSR takes settings from the state, however the option file has changed; here the option file decides.
    """

    def __init__(self, optimizers: Sequence[Optimizer], schedulers: Sequence[LRScheduler]) -> None:
        self.optimizers, self.schedulers = optimizers, schedulers
        self.groups = [[dict(group, params=None) for group in optimizer.param_groups] for optimizer in optimizers]
        self.schedules = [dict(vars(scheduler)) for scheduler in schedulers]

    def put_back_schedules(self) -> None:
        """Let schedules have their options again, and keep their place."""
        for scheduler, options in zip(self.schedulers, self.schedules):
            vars(scheduler).update({key: value for key, value in options.items()
                                    if key not in _PROGRESS and key != 'optimizer'})

    def put_back_optimizers(self) -> None:
        """Let optimizers have their options again, and keep their averages and their place in the schedule."""
        for optimizer, groups in zip(self.optimizers, self.groups):
            for group, fresh in zip(optimizer.param_groups, groups):
                rate = group['lr'] * fresh['initial_lr'] / group['initial_lr']
                group.update({key: value for key, value in fresh.items() if key != 'params'}, lr=rate)
        for scheduler, options in zip(self.schedulers, self.schedules):
            scheduler.base_lrs = options['base_lrs']


def progress_of(scheduler: LRScheduler) -> dict[str, Any]:
    """What a training state holds of a scheduler."""
    return {key: value for key, value in scheduler.state_dict().items() if key in _PROGRESS}


def _changes(before: Any, now: Any, where: str = '') -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        return [change for key in {**before, **now}
                for change in _changes(before.get(key), now.get(key), f'{where}: {key}'.removeprefix(': '))]
    return [] if before == now else [f'{where}: {before!r} -> {now!r}']
