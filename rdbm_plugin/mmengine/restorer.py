"""RDBM as an mmengine model, for training and restoration with any mmengine runner. Needs mmengine."""
import zlib
from collections.abc import Mapping, Sequence
from os import path as osp
from typing import Any

import torch
from mmengine.dist import all_reduce, get_rank, get_world_size
from mmengine.logging import MessageHub
from mmengine.model import BaseDataPreprocessor, BaseModel
from torch import Tensor

from rdbm_plugin.config.options import OptionError, check_number
from rdbm_plugin.inference.tiling import OVERLAP, tiled
from rdbm_plugin.losses.draws import Draws
from rdbm_plugin.losses.objective import Objective
from rdbm_plugin.registry import MODELS, TASK_UTILS

Block = Mapping[str, Any]


@MODELS.register_module()
class PairPreprocessor(BaseDataPreprocessor):
    """Moves batches to the device and converts them to one format.

    Accepts ``{'lq', 'gt', ...}``, from our and BasicSR's data sets, or ``{'inputs', 'data_samples'}`` with clean images
    in ``gt_img`` of the samples, from MMagic's.

    Args:
        peak: Value of white: 1, or 255 for MMagic's batches.
        bgr: Whether images are BGR, the default in MMagic.

    Raises:
        OptionError: ``peak`` is not above 0.
    """

    def __init__(self, peak: float = 1.0, bgr: bool = False) -> None:
        super().__init__(non_blocking=True)
        self.peak, self.bgr = check_number('model: data_preprocessor: peak', peak, above=0), bgr

    def forward(self, data: Mapping[str, Any], training: bool = False) -> dict[str, Any]:
        """Return the arguments of :meth:`BridgeRestorer.forward` for a batch: images (N, C, H, W), RGB in [0, 1]."""
        data = self.cast_data(data)
        if 'inputs' in data:
            samples = data.get('data_samples')
            listed = samples if isinstance(samples, (list, tuple)) else [samples]
            clean = [sample.gt_img for sample in listed if hasattr(sample, 'gt_img')]
            data = {'lq': data['inputs'], 'gt': (clean if listed is samples else clean[0]) if clean else None}
        images = {key: self._images(data[key]) for key in ('lq', 'gt') if data.get(key) is not None}
        return {**images, **{key: data[key] for key in ('task', 'lq_path') if key in data}}

    def _images(self, images: Tensor | Sequence[Tensor]) -> Tensor:
        batch = images if isinstance(images, Tensor) else torch.stack(list(images))
        batch = batch.flip(1) if self.bgr else batch
        batch = batch if batch.is_floating_point() and self.peak == 1 else batch.float() / self.peak
        return batch.contiguous(memory_format=torch.channels_last)


@MODELS.register_module()
class BridgeRestorer(BaseModel):
    """Restores images with a diffusion bridge from the degraded to the clean image.

    Blocks have the keys of the option files for BasicSR. Types without a scope are looked up in the plugin, then in
    BasicSR, then in mmengine. With RepeatableHook, training draws the same random numbers as RDBMModel, from the run's
    seed, the iteration and the sample's position in the batch of all ranks. Without it, they come from torch's
    generator, and ranks need different seeds (``diff_rank_seed=True``).

    Args:
        network: A network that takes (x_t, mu, t).
        bridge: Default: the paper's bridge.
        loss: ResidualModulatedLoss (default), or any loss of two images in [0, 1].
        sampler: Default: BridgeSampler with 10 steps.
        node_t_share, own_start_share: See :class:`rdbm_plugin.losses.objective.Objective`.
        tile, tile_overlap: See :func:`rdbm_plugin.inference.tiling.tiled`.
        data_preprocessor: Default: PairPreprocessor.
        init_cfg: As in mmengine.

    Raises:
        OptionError: An option cannot be used; the message names key, value and what is allowed.
    """

    def __init__(self, network: Block, bridge: Block | None = None, loss: Block | None = None,
                 sampler: Block | None = None, node_t_share: float | None = None,
                 own_start_share: float | None = None, tile: int | None = None, tile_overlap: int = OVERLAP,
                 data_preprocessor: Block | None = None, init_cfg: Block | None = None) -> None:
        super().__init__(data_preprocessor or {'type': 'rdbm_plugin.PairPreprocessor'}, init_cfg)
        self.bridge = TASK_UTILS.make('model: bridge', bridge, 'ResidualBridge')
        self.sampler = TASK_UTILS.make('model: sampler', sampler, 'BridgeSampler', bridge=self.bridge)
        self.network = MODELS.make('model: network', network).to(memory_format=torch.channels_last)
        self.criterion = MODELS.make('model: loss', loss, 'ResidualModulatedLoss')
        self.objective = Objective(self.bridge, self.criterion, node_t_share, own_start_share)
        self.restoring = tiled(self.predict, tile, tile_overlap)

    def forward(self, lq: Tensor, gt: Tensor | None = None, task: Sequence[str] | None = None,
                lq_path: Sequence[str] | None = None,
                mode: str = 'tensor') -> dict[str, Tensor] | Tensor | list[dict[str, Any]]:
        """Return the loss or the restored images of a batch, as mmengine's loops request them.

        Args:
            lq: Degraded images, (N, C, H, W) in [0, 1].
            gt: Clean images, in the same format.
            task: Task of each image, for the results.
            lq_path: Path of each image; the file name seeds the noise, if the sampler adds any.
            mode: ``loss``, ``predict`` or ``tensor``.

        Returns:
            ``loss``: {'loss_pix': ()}. ``tensor``: restored images, (N, C, H, W). ``predict``: a dict for each
            image, with ``lq``, ``restored`` and, if given, ``gt``, (C, H, W) in [0, 1] on the CPU, and ``task``.

        Raises:
            OptionError: Mode ``loss`` without ``gt``.
        """
        if mode == 'loss':
            if gt is None:
                raise OptionError('train_dataloader: found a batch without gt; expected pairs of lq and gt.')
            states = self.objective.draw(lq, gt, _draws(len(lq)), self.predict, _mean_of_ranks)
            return {'loss_pix': self.objective.loss(self.objective.output(states, self.predict), states).mean()}
        restored = self.restore(lq, lq_path)
        if mode == 'tensor':
            return restored
        images = {key: value.cpu() for key, value in (('lq', lq), ('restored', restored), ('gt', gt))
                  if value is not None}
        return [{**{key: value[i] for key, value in images.items()}, 'task': task[i] if task else ''}
                for i in range(len(lq))]

    @torch.no_grad()
    def restore(self, lq: Tensor, paths: Sequence[str] | None = None) -> Tensor:
        """Restore images, (N, C, H, W) in [0, 1]; the file names in ``paths`` seed the noise."""
        seeds = [zlib.crc32(osp.basename(path).encode()) for path in paths or [''] * len(lq)]
        return lq + self.sampler(self.restoring, 2 * lq - 1, seeds).residual / 2

    def predict(self, x_t: Tensor, mu: Tensor, t: Tensor) -> Tensor:
        """Return the network's output, (N, C, H, W) in float32, whatever precision it computes in."""
        return self.network(x_t, mu, t).float()


def _draws(count: int) -> Draws:
    hub = MessageHub.get_current_instance()
    seed = hub.get_info('step_seed')
    if seed is None:
        return Draws(int(torch.randint(2**62, ())), 0, 0, 1, count)
    # BasicSR counts iterations from 1.
    return Draws(seed, hub.get_info('iter') + 1, get_rank(), get_world_size(), count)


def _mean_of_ranks(value: Tensor) -> Tensor:
    value = value.clone()
    all_reduce(value, 'mean')
    return value
