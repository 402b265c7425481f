"""Restore images with trained weights, in three lines. Only networks of BasicSR need BasicSR.

::

    from rdbm_plugin import Restorer
    restore = Restorer()                     # the weights that come with the package
    clean = restore(photo)                   # numpy (H, W, 3) or tensor (3, H, W)
"""
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rdbm_plugin.archs.checkpoint import find_network, load_weights
from rdbm_plugin.archs.conditional_unet_arch import ConditionalUNet
from rdbm_plugin.archs.precision import HALVES, working_in
from rdbm_plugin.archs.rdbm_unet_arch import RDBMUNet
from rdbm_plugin.basicsr_host.lookup import of_basicsr
from rdbm_plugin.bridge import BRIDGES, build_bridge
from rdbm_plugin.config.options import OptionError, build, check_choice, check_int, check_number
from rdbm_plugin.inference.tiling import OVERLAP, SMALLEST, TiledNetwork, tile_for
from rdbm_plugin.inference.training_options import check_trained_bridge, options_of
from rdbm_plugin.samplers import SAMPLERS, build_sampler
from rdbm_plugin.samplers.sampler import Network, Sampler

Picture = TypeVar('Picture', NDArray[Any], Tensor)

NETWORKS = {'RDBMUNet': RDBMUNet, 'ConditionalUNet': ConditionalUNet}
"""The networks that do not need BasicSR."""
DTYPES = {'float32': torch.float32, **HALVES}


class Restorer:
    """Restores degraded images with a trained network.

    Args:
        checkpoint: Weights of a training run, or the folder of its experiment, which stands for its best network, or
            else its newest. ``shipped`` or None: the weights that come with the package.
        opt: Option file. Default: the options stored in the checkpoint, else the option file beside it or in the
            folder of its experiment, where BasicSR copies it.
        param_key: Weights to load from the file, ``params_ema`` or ``params``.
        steps: Network evaluations; default: as in the option file.
        solver: See :class:`BridgeSampler`; default: as in the option file.
        tile: Side in pixels of the tiles for large images; ``auto``: as large as ``memory`` allows; 0: no tiles.
        overlap: Overlap of neighbouring tiles, in pixels.
        memory: GiB that one evaluation may take, for ``tile='auto'``. Default: 1 on a CPU, half of the free memory on
            a GPU.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        dtype: Precision of the network: ``float32``, ``bf16`` or ``fp16``.
        other_bridge: Allow an ``opt`` whose bridge differs from the one that the network was trained with.

    Raises:
        OptionError: The message names the argument, file or key, what was found and what is expected.
    """

    def __init__(self, checkpoint: str | Path | None = 'shipped', opt: str | Path | None = None, *,
                 param_key: str = 'params_ema', steps: int | None = None, solver: str | None = None,
                 tile: int | str = 'auto', overlap: int = OVERLAP, memory: float | None = None, device: str = 'auto',
                 dtype: str = 'float32', other_bridge: bool = False) -> None:
        self.checkpoint = find_network(checkpoint or 'shipped', 'checkpoint')
        self.options = options = options_of(self.checkpoint, opt)
        if opt and not other_bridge:
            check_trained_bridge(self.checkpoint, options.get('bridge'), 'other_bridge=True, --other-bridge')
        self.device = _device(device)
        self.dtype = DTYPES[check_choice('dtype', dtype, DTYPES)]
        changes = {key: value for key, value in (('steps', steps), ('solver', solver)) if value is not None}
        network, self.sampler = build_parts(options, changes)
        self.bridge = self.sampler.bridge
        load_weights(network, self.checkpoint, param_key)
        self.network = network.to(self.device, memory_format=torch.channels_last).eval()
        self.overlap = check_int('tile_overlap', overlap, 0)
        if tile == 'auto':
            budget = None if memory is None else check_number('memory', memory, above=0) * 2**30
            self.tile = tile_for(self.network, budget)
        else:
            self.tile = check_int('tile', tile, 0 if tile == 0 else SMALLEST)

    def __call__(self, image: Picture, seed: int | Sequence[int] = 0,
                 progress: Callable[[float], None] | None = None) -> Picture:
        """Restore one image, or a batch of tensors.

        Args:
            image: numpy (H, W) or (H, W, 3), RGB, uint8, uint16 or float in [0, 1]; or a float tensor (3, H, W) or
                (N, 3, H, W) in [0, 1].
            seed: Seed of the noise, if the sampler adds any. For a batch: the seed of the first image, increased by 1
                for each further one, or a sequence with one seed per image.
            progress: Called after each tile of each evaluation with the finished share of the work, from 0 to 1.

        Returns:
            The restored image, with the type, shape, dtype and device of ``image``.

        Raises:
            OptionError: The image has another form.
        """
        if isinstance(image, Tensor):
            if image.dim() not in (3, 4) or image.shape[-3] != 3 or not image.is_floating_point():
                raise OptionError(f'image: found a tensor of shape {tuple(image.shape)} and {image.dtype}; expected '
                                  '(3, H, W) or (N, 3, H, W), float in [0, 1].')
            batch = image if image.dim() == 4 else image[None]
            return self._restore(batch.float(), seed, progress).to(image).view_as(image)
        array = np.asarray(image)
        if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3) or array.dtype.kind not in 'uf':
            raise OptionError(f'image: found an array of shape {array.shape} and {array.dtype}; expected (H, W) or '
                              '(H, W, 3), uint8, uint16 or float in [0, 1].')
        top = np.iinfo(array.dtype).max if array.dtype.kind == 'u' else 1.0
        color = array if array.ndim == 3 else np.repeat(array[..., None], 3, axis=2)
        tensor = torch.from_numpy((color.astype(np.float32) / np.float32(top)).transpose(2, 0, 1)[None])
        out = self._restore(tensor, seed, progress)[0].permute(1, 2, 0).numpy()
        out = out if array.ndim == 3 else out.mean(axis=2)
        return (np.rint(out * top) if top > 1 else out).astype(array.dtype)

    @torch.inference_mode()
    def _restore(self, lq: Tensor, seed: int | Sequence[int], progress: Callable[[float], None] | None) -> Tensor:
        """Restore (N, 3, H, W) in [0, 1]; the result is on the CPU."""
        if not lq.numel() or not bool(lq.isfinite().all()) or float(lq.abs().max()) > 2:
            found = f'values from {float(lq.min()):g} to {float(lq.max()):g}' if lq.numel() else 'no pixels'
            raise OptionError(f'image: found {found} in shape {tuple(lq.shape)}; expected finite floats in [0, 1], or '
                              'uint8 or uint16 arrays.')
        lq = lq.to(self.device)
        seeds = [seed + i for i in range(len(lq))] if isinstance(seed, int) else list(seed)
        longest = max(lq.shape[-2:])
        while True:
            side = max(self.tile or longest, SMALLEST)
            try:
                result = self.sampler(self._network(side, progress), 2 * lq - 1, seeds)
                return (lq + result.residual / 2).clamp_(0, 1).cpu()
            except (RuntimeError, MemoryError) as error:
                side = min(side, longest) // 2
                if side < SMALLEST or not _out_of_memory(error):
                    raise
            if self.device.type == 'cuda':
                torch.cuda.empty_cache()
            warnings.warn(f'Out of memory; retrying with tiles of {side} pixels.', stacklevel=3)
            self.tile = side

    def _network(self, side: int, progress: Callable[[float], None] | None) -> Network:
        done = 0.0

        def tell(share: float) -> None:
            nonlocal done
            done += share / self.sampler.nfe
            if progress:
                progress(min(done, 1.0))

        tiles = TiledNetwork(self.network, side, min(self.overlap, side // 2), tell)

        def evaluate(x_t: Tensor, mu: Tensor, t: Tensor) -> Tensor:
            x_t, mu = (image.contiguous(memory_format=torch.channels_last) for image in (x_t, mu))
            with working_in(self.dtype, self.device):
                return tiles(x_t, mu, t).float()
        return evaluate


def build_parts(options: Mapping[str, Any], sampler: Mapping[str, Any] | None = None) -> tuple[nn.Module, Sampler]:
    """Build the untrained network and the sampler from the content of an option file, with changes to the sampler.

    Raises:
        OptionError: The message names the key, what was found and what is expected.
    """
    network, bridge = options.get('network_g'), options.get('bridge')
    built = build_bridge(bridge, _registered('BRIDGE', BRIDGES, bridge))
    block = {**((options.get('val') or {}).get('sampler') or {}), **(sampler or {})}
    return (build('network_g', network, _registered('ARCH', NETWORKS, network)),
            build_sampler(block, built, _registered('SAMPLER', SAMPLERS, block)))


def _registered(registry: str, ours: Mapping[str, Any], block: Any) -> Mapping[str, Any]:
    """Return our types, or all types that BasicSR knows if the block names another one."""
    name = block.get('type') if isinstance(block, Mapping) else None
    if name is not None and name not in ours:
        with suppress(ImportError, OptionError):
            return of_basicsr(registry) or ours
    return ours


def _device(name: str) -> torch.device:
    if name == 'auto':
        name = 'cuda' if torch.cuda.is_available() else 'mps' if torch.backends.mps.is_available() else 'cpu'
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise OptionError(f'device: found {name!r}, which cannot be used here ({reason}).') from None
    return device


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
