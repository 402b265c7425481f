"""A BasicSR model whose run outlasts kills, full disks and time limits, and goes on bit for bit where it stopped."""
from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from signal import Signals
from typing import Any, NamedTuple

import torch
from basicsr.utils.dist_util import master_only
from basicsr.utils.logger import get_root_logger
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from rdbm_plugin import __version__
from rdbm_plugin.archs.checkpoint import check_fits, read_parameters
from rdbm_plugin.config.options import OptionError
from rdbm_plugin.data.task_mixture import count_batches
from rdbm_plugin.models.basicsr_model import BasicSRModel
from rdbm_plugin.models.interruption import Interruption
from rdbm_plugin.models.ranks import validation_group
from rdbm_plugin.models.saving import delete_older, save_whole

_PROGRESS = ('last_epoch', '_step_count', '_last_lr', 'base_lrs')
"""What a scheduler knows that is not in the option file."""
_REMEMBERED = ('bridge', 'network_g', 'train', 'datasets')
"""Blocks that decide what is trained."""


class Loop(NamedTuple):
    """What BasicSR's training loop does not tell its model."""

    train_loader: Any
    train_sampler: Any
    val_loaders: list[Any]
    tb_logger: Any


class DurableModel(BasicSRModel):
    """Saves whole files or none, stops when asked to, and resumes exactly.

    All that is random in a step must follow from ``self.seed``, iteration and rank. Beside BasicSR's keys ``logger:``
    takes

    - ``keep_last``: how many states, and the networks that belong to them, are kept. Default: all.
    - ``keep_best``: name of a metric; the network with the best average of it is kept as ``net_g_best.pth``.
    """

    GO_ON = 'Go on with --auto_resume.'
    """What a user does after a stop."""

    def __init__(self, opt: dict[str, Any]) -> None:
        self.across_ranks = validation_group() if opt['dist'] else None
        self.interruption = Interruption(self.across_ranks)
        self.seed = opt.get('manual_seed') or 0
        if len(set(self.seeds_of_ranks())) > 1:
            raise OptionError('manual_seed: missing; several processes need one and the same.')
        self.loop: Loop | None = None
        self.epoch = self.saved_iter = self.tried_iter = 0
        self.validated, self.validated_iter = True, None
        self.resumed = False
        self.remembered = json.dumps({key: opt.get(key) for key in _REMEMBERED}, default=str)
        super().__init__(opt)

    def seeds_of_ranks(self) -> list[int]:
        """The seed of each rank; BasicSR draws another one in each where the option file has none."""
        if self.across_ranks is None:
            return [self.seed]
        found = [0] * torch.distributed.get_world_size(self.across_ranks)
        torch.distributed.all_gather_object(found, self.seed, group=self.across_ranks)
        return found

    def attach(self, loop: Loop) -> None:
        """Take what is needed to go on within an epoch, and to make up for a validation that was broken off."""
        self.loop = loop

    # ------------------------------------------------------------------ stopping

    def update_learning_rate(self, current_iter: int, warmup_iter: int = -1) -> None:
        # The first thing that BasicSR's loop calls in an iteration.
        self.interruption.listen()
        if self.interruption.asked_before():
            self.stop(current_iter - 1)
        super().update_learning_rate(current_iter, warmup_iter)

    def stop(self, iteration: int) -> None:
        """Save what has been trained until the end of ``iteration``, and end the process; all ranks call this."""
        # The same on all ranks, of which only the first knows whether saving went well.
        if self.tried_iter < iteration <= int(self.opt['train']['total_iter']):
            self.save(self.loop.train_sampler.epoch if self.loop else self.epoch, iteration)
        number = self.interruption.signal or 0
        get_root_logger().info(f'Stopped by {Signals(number).name if number else "another rank"} after iteration '
                               f'{iteration}; saved until {self.saved_iter}. {self.GO_ON}')
        if self.across_ranks is not None:
            torch.distributed.barrier(self.across_ranks)
            torch.distributed.destroy_process_group()
        raise SystemExit(128 + number)

    # ------------------------------------------------------------------ saving

    def save(self, epoch: int, current_iter: int) -> None:
        if current_iter == -1:
            super().save(epoch, current_iter)
            return
        self.epoch, self.tried_iter = epoch, current_iter
        self.validated = self.validated_iter == current_iter or not self.validation_due(current_iter)
        self.before_saving()
        with self.surviving(f'Iteration {current_iter}'):
            super().save(epoch, current_iter)
            self.saved_iter = current_iter
            keep = self.opt['logger'].get('keep_last')
            if keep and self.opt['rank'] == 0:
                delete_older(Path(self.opt['path']['models']), Path(self.opt['path']['training_states']), keep,
                             current_iter)

    @contextmanager
    def surviving(self, what: str) -> Iterator[None]:
        """Let training go on if ``what`` cannot be saved; what is saved at its end must be, and is not under this."""
        try:
            yield
        except OSError as error:
            get_root_logger().warning(f'{what} could not be saved: {error}. Training goes on; older checkpoints are as '
                                      'they were.')

    def before_saving(self) -> None:
        """Called on all ranks before the first one saves."""

    def validation_due(self, iteration: int) -> bool:
        """Whether BasicSR's loop validates at the end of ``iteration``."""
        sets = [phase for phase in self.opt['datasets'] if phase.startswith('val')]
        return bool(self.opt.get('val') and sets) and iteration % self.opt['val']['val_freq'] == 0

    def validation_finished(self, current_iter: int | str, best: bool) -> None:
        """Note the scores in the state of this iteration, and keep the network if its score is the best so far."""
        if not self.is_train:
            return
        self.validated_iter = current_iter
        with self.surviving('What validation found'):
            if best:
                self.save_networks('best')
            if current_iter == self.saved_iter and not self.validated:
                self.validated = True
                self.save_training_state(self.epoch, self.saved_iter)

    def save_networks(self, current_iter: int | str) -> None:
        """Save the network and its moving average, if there is one, as ``net_g_<current_iter>.pth``."""
        if hasattr(self, 'net_g_ema'):
            self.save_network([self.net_g, self.net_g_ema], 'net_g', current_iter, ['params', 'params_ema'])
        else:
            self.save_network(self.net_g, 'net_g', current_iter)

    @master_only
    def save_network(self, net: nn.Module | list[nn.Module], net_label: str, current_iter: int | str,
                     param_key: str | list[str] = 'params') -> None:
        nets, keys = (each if isinstance(each, list) else [each] for each in (net, param_key))
        content = {key: {name: value.detach().cpu() for name, value in self.get_bare_model(each).state_dict().items()}
                   for key, each in zip(keys, nets)}
        name = 'latest' if current_iter == -1 else current_iter
        save_whole(content, Path(self.opt['path']['models'], f'{net_label}_{name}.pth'))

    @master_only
    def save_training_state(self, epoch: int, current_iter: int) -> None:
        if current_iter == -1:
            return
        state = {'epoch': epoch, 'iter': current_iter,
                 'optimizers': [optimizer.state_dict() for optimizer in self.optimizers],
                 'schedulers': [{key: value for key, value in scheduler.state_dict().items() if key in _PROGRESS}
                                for scheduler in self.schedulers],
                 'best_metric_results': getattr(self, 'best_metric_results', {}), 'validated': self.validated,
                 'seed': self.seed, 'options': self.remembered, 'rdbm_plugin': __version__, **self.further_state()}
        save_whole(state, Path(self.opt['path']['training_states'], f'{current_iter}.state'))

    def further_state(self) -> dict[str, Any]:
        """What a model needs beside this to go on: tensors and plain values."""
        return {}

    # ------------------------------------------------------------------ loading

    def load_network(self, net: nn.Module, load_path: str, strict: bool = True,
                     param_key: str | None = 'params') -> None:
        # BasicSR's own error is torch's list of keys, and torch < 2.6 would run what the pickle holds.
        net = self.get_bare_model(net)
        parameters = read_parameters(load_path, param_key)
        if strict:
            check_fits(load_path, parameters, net)
        get_root_logger().info(f'Loading {type(net).__name__} from {load_path}, {param_key}.')
        self._print_different_keys_loading(net, parameters, strict)
        net.load_state_dict(parameters, strict=strict)

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        logger, iteration = get_root_logger(), resume_state['iter']
        schedules = [dict(vars(scheduler)) for scheduler in self.schedulers]
        settings = [[dict(group, params=None) for group in optimizer.param_groups] for optimizer in self.optimizers]
        super().resume_training(resume_state)
        for scheduler, options in zip(self.schedulers, schedules):
            _keep_options(scheduler, options)
        count_batches(iteration)
        self.resumed = True
        self.epoch, self.saved_iter, self.tried_iter = resume_state['epoch'], iteration, iteration
        if 'seed' not in resume_state:
            logger.warning('The state was written by BasicSR, not by this model: the best scores so far are not in it. '
                           'The run goes on, but is not the one that was broken off bit for bit.')
        else:
            for name, record in resume_state['best_metric_results'].items():
                self._initialize_best_metric_results(name)
                known = self.best_metric_results[name]
                known.update({metric: best for metric, best in record.items() if metric in known})
            self.validated = resume_state['validated']
            if resume_state['seed'] != self.seed:
                logger.warning(f'manual_seed was {resume_state["seed"]} until now and is {self.seed} from here.')
            before, now = json.loads(resume_state['options']), json.loads(self.remembered)
            for change in _changes(before, now):
                logger.warning(f'Resumed with another option than before: {change}')
            if before['train']['optim_g'] != now['train']['optim_g']:
                self._keep_settings(settings, schedules)
        if self.loop is None:
            logger.warning('The training set starts its epoch anew, unless it is one of rdbm_plugin; "rdbm train" goes '
                           'on with any where it stopped.')
            return
        batches = iteration - resume_state['epoch'] * len(self.loop.train_loader)
        if 0 <= batches <= len(self.loop.train_loader) and hasattr(self.loop.train_sampler, 'skip'):
            self.loop.train_sampler.skip(resume_state['epoch'], batches * self.loop.train_loader.batch_size)
        if not self.validated:
            logger.info(f'Making up for the validation of iteration {iteration}, which was broken off.')
            for loader in self.loop.val_loaders:
                self.validation(loader, iteration, self.loop.tb_logger, self.opt['val']['save_img'])

    def _keep_settings(self, settings: list[list[dict[str, Any]]], schedules: list[dict[str, Any]]) -> None:
        """Let a changed optim_g decide about a resumed optimizer, which keeps its averages and its place."""
        for optimizer, groups in zip(self.optimizers, settings):
            for group, fresh in zip(optimizer.param_groups, groups):
                rate = group['lr'] * fresh['initial_lr'] / group['initial_lr']
                group.update({key: value for key, value in fresh.items() if key != 'params'}, lr=rate)
        for scheduler, options in zip(self.schedulers, schedules):
            scheduler.base_lrs = options['base_lrs']


def _keep_options(scheduler: LRScheduler, options: Mapping[str, Any]) -> None:
    """Let the option file decide about a resumed schedule, which BasicSR takes from the state, however it was."""
    vars(scheduler).update({key: value for key, value in options.items()
                            if key not in _PROGRESS and key != 'optimizer'})


def _changes(before: Any, now: Any, where: str = '') -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        return [change for key in {**before, **now}
                for change in _changes(before.get(key), now.get(key), f'{where}: {key}'.removeprefix(': '))]
    return [] if before == now else [f'{where}: {before!r} -> {now!r}']
