"""Evaluate networks on large images tile by tile. Needs torch only."""
import itertools
import math
from collections.abc import Callable
from itertools import pairwise, product

import torch
from torch import Tensor, nn

from rdbm_plugin.config.options import check_int

SMALLEST = 64
"""Smallest side of a tile, in pixels."""
GRID = 16
"""Tiles start and end at multiples of this, so that networks downsample the same pixels as in the whole image."""
OVERLAP = 64
"""Default overlap of neighbouring tiles, in pixels."""
CPU_BUDGET = 2.0**30
"""Default memory for one evaluation on a CPU, in bytes; on a GPU it is half of the free memory."""
CPU_TILE = 576
"""Default maximum tile on a CPU. Feature maps of larger ones are allocated anew from the system every time: a whole
2048x2048 image took three times as long as its tiles (variant T)."""


class TiledNetwork:
    """Evaluates a network on overlapping tiles, and blends the outputs with smooth weights.

    It replaces the network in a sampler, so tiles are blended at every step. All tiles continue from a common state,
    which leaves no seams. Images that fit into one tile go to the network unchanged.

    A network with a method ``context(x_t, mu)`` receives its result for the whole image with every tile, as the
    argument ``context``.

    Args:
        network: Called as network(x_t, mu, t), images (N, C, H, W).
        tile: Height and width of the tiles in pixels, a multiple of GRID.
        overlap: Minimum overlap of neighbouring tiles in pixels, at most half of ``tile``.
        progress: Called after each tile with its share of the evaluation.

    Raises:
        OptionError: ``tile`` or ``overlap`` is out of its range.
    """

    def __init__(self, network: Callable[..., Tensor], tile: int, overlap: int = OVERLAP,
                 progress: Callable[[float], None] | None = None) -> None:
        self.network = network
        self.progress = progress or (lambda share: None)
        self.tile = check_int('tile', tile, SMALLEST)
        self.overlap = check_int('tile_overlap', overlap, 0, tile // 2)

    def __call__(self, x_t: Tensor, mu: Tensor, t: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        if max(mu.shape[-2:]) <= self.tile:
            out = self.network(x_t, mu, t)
            self.progress(1.0)
            return out
        given = {'context': self.network.context(x_t, mu)} if hasattr(self.network, 'context') else {}
        out = torch.zeros_like(mu)
        rows, columns = (blending(length, self.tile, self.overlap) for length in mu.shape[-2:])
        for (top, row), (left, column) in product(rows, columns):
            part = (..., slice(top, top + len(row)), slice(left, left + len(column)))
            out[part] += self.network(x_t[part], mu[part], t, **given) * (row[:, None] * column).to(mu)
            self.progress(1 / (len(rows) * len(columns)))
        return out


def blending(length: int, tile: int, overlap: int) -> list[tuple[int, Tensor]]:
    """Return the starts and weights of the tiles along one side; all weights sum to 1 at every pixel.

    The number of tiles of at most ``tile`` pixels is minimal, and so is their size for that number. Tiles start at
    multiples of GRID and are evenly spread; the last one ends with the image. A weight rises and falls along a squared
    sine over the middle half of the overlap.
    """
    if length <= tile:
        return [(0, torch.ones(length))]
    largest = tile // GRID
    fewest = math.ceil((length - overlap) / (largest * GRID - overlap))
    layouts = ((side * GRID, _evenly_spread(length, side * GRID, overlap, count)) for count in itertools.count(fewest)
               for side in range(math.ceil((length + (count - 1) * overlap) / count / GRID), largest + 1))
    reach, starts = next((reach, starts) for reach, starts in layouts if starts)
    spans = [slice(start, min(start + reach, length)) for start in starts]
    weights = [torch.ones(span.stop - span.start) for span in spans]
    for (left, right), (before, after) in zip(pairwise(weights), pairwise(spans)):
        ramp = _ramp(before.stop - after.start)
        left[len(left) - len(ramp):] *= ramp.flip(0)
        right[:len(ramp)] *= ramp
    total = torch.zeros(length)
    for span, weight in zip(spans, weights):
        total[span] += weight
    return [(span.start, weight / total[span]) for span, weight in zip(spans, weights)]


def _evenly_spread(length: int, reach: int, overlap: int, count: int) -> list[int]:
    """Return the starts of ``count`` tiles of ``reach`` pixels, or an empty list if they do not overlap enough."""
    starts = [round(i * (length - reach) / (count - 1) / GRID) * GRID for i in range(count)]
    starts[-1] = math.ceil((length - reach) / GRID) * GRID
    return starts if all(a + reach - b >= overlap for a, b in pairwise(starts)) else []


def _ramp(length: int) -> Tensor:
    """Rise from 0 to 1 over the middle half; pixels nearer to the edge of a tile lack too much of their context."""
    place = 2 * (torch.arange(length) + 0.5) / max(length, 1) - 0.5
    return torch.sin(place.clamp(0, 1) * math.pi / 2).square()


def bytes_per_pixel(network: nn.Module) -> float:
    """Estimate the memory of one evaluation, in bytes per pixel of the tile, from a trial on 128x128 pixels.

    The estimate counts what the layers with the largest inputs and outputs hold at once, and the skip connections.
    """
    largest, kept = 0, 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal largest, kept
        if isinstance(output, Tensor) and inputs and isinstance(inputs[0], Tensor):
            largest = max(largest, inputs[0].nbytes + output.nbytes)
            if isinstance(module, nn.Conv2d) and module.stride != (1, 1):
                kept += inputs[0].nbytes

    hooks = [module.register_forward_hook(count) for module in network.modules()]
    try:
        parameter = next(network.parameters())
        image = torch.zeros(1, 3, 128, 128, device=parameter.device, dtype=parameter.dtype)
        with torch.inference_mode():
            network(image, image, torch.ones(1, dtype=torch.int64, device=parameter.device))
    finally:
        for hook in hooks:
            hook.remove()
    return (2 * largest + kept) / 128**2


def tile_for(network: nn.Module, budget: float | None = None) -> int:
    """Return the largest tile whose evaluation takes about ``budget`` bytes: a multiple of 32, at least SMALLEST.

    Args:
        network: The network, on the device where it will be used.
        budget: Default: half of the free memory of the GPU that the network is on; on a CPU CPU_BUDGET, with tiles of
            at most CPU_TILE.
    """
    device = next(network.parameters()).device
    largest = CPU_TILE if budget is None and device.type == 'cpu' else math.inf
    if budget is None:
        budget = torch.cuda.mem_get_info(device)[0] / 2 if device.type == 'cuda' else CPU_BUDGET
    side = math.sqrt(budget / bytes_per_pixel(network))
    return max(SMALLEST, int(min(side, largest)) // 32 * 32)


def tiled(network: Callable[..., Tensor], tile: int | None, overlap: int = OVERLAP) -> Callable[..., Tensor]:
    """Return the network itself if ``tile`` is None or 0, else the network on tiles of that size.

    Args:
        network: See :class:`TiledNetwork`.
        tile: Side of a tile in pixels.
        overlap: Minimum overlap in pixels; reduced to half of a tile if larger.

    Raises:
        OptionError: ``tile`` or ``overlap`` is out of its range.
    """
    if tile in (None, 0):
        return network
    side = check_int('tile', tile, SMALLEST)
    return TiledNetwork(network, side, min(check_int('tile_overlap', overlap, 0), side // 2))
