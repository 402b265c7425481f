"""Hooks, an optimizer wrapper and a strategy for training under mmengine. Needs mmengine."""
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import repeat
from typing import Any

import numpy as np
import torch
from mmengine._strategy import FSDPStrategy
from mmengine.dataset import InfiniteSampler
from mmengine.dist import broadcast, get_rank
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.utils.data import DataLoader

from rdbm_plugin.config.options import OptionError
from rdbm_plugin.data.task_mixture import MixedDataset, count_batches
from rdbm_plugin.evaluation import pictures
from rdbm_plugin.losses.draws import seed_step
from rdbm_plugin.models.resuming import changed, remembered, replay, with_settings
from rdbm_plugin.registry import HOOKS, OPTIM_WRAPPERS, STRATEGIES

_COMPARED = ('model', 'train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler')
"""Blocks of the config that determine the training."""


@HOOKS.register_module()
class RepeatableHook(Hook):
    """Makes nodes, noise and our data sets depend only on seed and iteration, also in resumed runs.

    When mmengine resumes, it reads all earlier batches again; this hook skips them for our data sets, and other data
    sets keep mmengine's order. Optimizer settings and schedules come from the config instead of the checkpoint, and
    changes are logged.

    Raises:
        OptionError: Ranks share a seed, or ``persistent_workers`` is on, whose workers would not learn the iteration.
    """

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Replace the optimizer settings and schedules in a checkpoint to resume by those of the config."""
        if not (runner.cfg.get('resume') and isinstance(runner.optim_wrapper, OptimWrapper)):
            return
        meta, schedulers = checkpoint['meta'], runner.param_schedulers or []
        changes = changed(meta['options'], _options(runner)) if 'options' in meta else [
            'The checkpoint does not tell which options it was trained with; training uses those of the config.']
        if not changes:
            return
        runner.logger.warning('\n'.join(changes))
        length, in_turn = meta['iter'] // (meta['epoch'] or 1), sorted(schedulers, key=lambda each: each.by_epoch)
        replay(lambda done: [each.step() for each in in_turn if not each.by_epoch or (meta['epoch'] and
                             done % length == 0)], meta['iter'])
        fresh = runner.optim_wrapper.state_dict()
        checkpoint['param_schedulers'] = [scheduler.state_dict() for scheduler in schedulers]
        checkpoint['optimizer'] = with_settings(checkpoint['optimizer'], fresh)
        if 'base_param_settings' in fresh:
            checkpoint['optimizer']['base_param_settings'] = fresh['base_param_settings']

    def before_train(self, runner: Any) -> None:
        """Share the seed among ranks, and start our data sets at the run's iteration."""
        # mmengine has added the rank to the seed of each process; rank 0 has the run's seed.
        seed = torch.tensor(runner.seed)
        broadcast(seed)
        self.seed = int(seed)
        runner.message_hub.update_info('step_seed', self.seed)
        self.trained = runner.iter
        loader = runner.train_dataloader
        if not isinstance(loader.dataset, MixedDataset):
            return
        if runner.seed != self.seed + get_rank():
            raise OptionError('randomness: diff_rank_seed: found False; our data sets need True on several ranks.')
        if loader.persistent_workers:
            raise OptionError('train_dataloader: persistent_workers: found True; expected False.')
        count_batches(runner.iter)
        if hasattr(runner.train_loop, 'dataloader_iterator'):
            if isinstance(loader.sampler, InfiniteSampler):
                # mmengine's sampler cannot be iterated a second time; our data sets ignore the indices.
                loader.sampler.indices = repeat(0)
            runner.train_loop.dataloader_iterator = _batches(loader, runner.iter)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Seed the global generators, which dropout uses."""
        seed_step(self.seed, runner.iter + 1, get_rank())

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Pass the iteration to our data sets."""
        self.trained = runner.iter + 1
        count_batches(self.trained)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Save options and iteration; FlexibleRunner's count is one too high when it saves after a validation."""
        checkpoint['meta'].update(iter=self.trained, options=_options(runner))

    def after_train(self, runner: Any) -> None:
        """Make later draws use torch's generator again."""
        runner.message_hub.pop_info('step_seed')


def _options(runner: Any) -> str:
    return remembered(runner.cfg.to_dict(), _COMPARED)


def _batches(loader: DataLoader, had: int) -> Iterator[Any]:
    """Yield batches forever, after ``had`` empty ones, which mmengine skips."""
    yield from repeat(None, had)
    while True:
        batch = None
        for batch in loader:
            yield batch
        if batch is None:
            raise OptionError('train_dataloader: sampler: found less than one batch; expected InfiniteSampler.')


@HOOKS.register_module()
class PlainCheckpointHook(Hook):
    """Keeps only plain values in checkpoints, so that runs can be resumed: by default torch loads no others."""

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Reduce the message hub to its plain values; the curves in the logs stay complete."""
        info = checkpoint['message_hub']['runtime_info']
        plain = {key: value.item() if isinstance(value, np.generic) else value for key, value in info.items()}
        kept = (str, int, float, bool, list, type(None))
        checkpoint['message_hub'] = {'log_scalars': {}, 'resumed_keys': {}, 'runtime_info': {
            key: value for key, value in plain.items() if isinstance(value, kept)}}


@HOOKS.register_module()
class PictureHook(Hook):
    """Shows the first image of the first ``images`` validation batches in the visualizer: degraded, restored, clean."""

    def __init__(self, images: int = 5) -> None:
        self.images = images

    def after_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None,
                       outputs: Sequence[Mapping[str, Any]] | None = None) -> None:
        """Show the first image of a batch."""
        if outputs and batch_idx < self.images:
            found = [pictures.to_picture(outputs[0][key]) for key in ('lq', 'restored', 'gt') if key in outputs[0]]
            name = f'{outputs[0]["task"] or "image"}_{batch_idx}'
            runner.visualizer.add_image(name, pictures.strip(found), runner.iter)


@OPTIM_WRAPPERS.register_module()
class Bf16OptimWrapper(OptimWrapper):
    """Runs the network in bfloat16, also on CPUs, where mmengine's AmpOptimWrapper fails."""

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Return the context for the forward pass."""
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, torch.bfloat16):
            yield


@STRATEGIES.register_module()
class ResumableFSDPStrategy(FSDPStrategy):
    """mmengine's FSDPStrategy, adapted to CPUs, and to torch 2's argument order when resuming."""

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        if not torch.cuda.is_available():
            self.model_wrapper = {'device_id': torch.device('cpu'), **(self.model_wrapper or {})}
            # Offloading from CPU to CPU makes no copy, so torch would save one buffer under every name.
            self.optim_state_dict_config.offload_to_cpu = False
        # Sharded optimizer states lose channels_last.
        return super()._wrap_model(model.to(memory_format=torch.contiguous_format))

    def load_optim_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a full optimizer state into the shards."""
        self.optim_wrapper.load_state_dict(FullyShardedDataParallel.optim_state_dict_to_load(
            self.model, self.optim_wrapper.optimizer, state_dict))
