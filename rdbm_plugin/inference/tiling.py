"""Networks that see large images tile by tile. Needs torch only."""
import math
from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor, nn

from rdbm_plugin.config.options import check_int

SMALLEST = 64
"""Tiles are never made smaller than this."""
GRID = 16
"""Tiles begin and end at multiples of this, so that networks halve the same pixels as in the whole image."""
OVERLAP = 64
"""Of neighbouring tiles, where nothing else is said."""
CPU_BUDGET = 2.0**30
"""Bytes that one evaluation may take on a CPU, where nothing else is said; on a GPU half of what is free."""
CPU_TILE = 576
"""The largest tile on a CPU, where nothing else is said. Memory for features of larger ones is taken anew from the
system every time: a 2048x2048 image took three times as long whole (variant T)."""


class TiledNetwork:
    """A network that is evaluated on overlapping tiles, whose outputs are blended with smooth weights.

    It takes the place of the network in a sampler, so that tiles are blended at every step: all of them go on from
    one common state, which leaves no seams. Images that fit into one tile are passed on as they are.

    A network with a method ``context(x_t, mu)`` gets in every tile what the whole image is like, as a fourth
    argument, ``context``.

    Args:
        network: Called as network(x_t, mu, t), images (N, C, H, W).
        tile: Height and width of the tiles in pixels, a multiple of GRID.
        overlap: The least of neighbouring tiles, in pixels, at most half of ``tile``.
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
        height, width = mu.shape[-2:]
        if max(height, width) <= self.tile:
            out = self.network(x_t, mu, t)
            self.progress(1.0)
            return out
        given = {'context': self.network.context(x_t, mu)} if hasattr(self.network, 'context') else {}
        out = torch.zeros_like(mu)
        rows, columns = (blending(length, self.tile, self.overlap) for length in (height, width))
        for (top, row), (left, column) in product(rows, columns):
            part = (..., slice(top, top + len(row)), slice(left, left + len(column)))
            out[part] += self.network(x_t[part], mu[part], t, **given) * (row[:, None] * column).to(mu)
            self.progress(1 / (len(rows) * len(columns)))
        return out


def blending(length: int, tile: int, overlap: int) -> list[tuple[int, Tensor]]:
    """Starts and weights of the tiles along one side; the weights of all tiles sum to 1 at every pixel.

    There are as few tiles of at most ``tile`` pixels as there can be, and they are as small as that allows. They start
    at multiples of GRID and are evenly spread; the last one ends where the image does. A weight rises and falls along
    a squared sine over the middle half of the overlap.
    """
    if length <= tile:
        return [(0, torch.ones(length))]
    largest = tile // GRID
    count = math.ceil((length - overlap) / (largest * GRID - overlap))
    reach = None
    while reach is None:
        least = math.ceil((length + (count - 1) * overlap) / count / GRID)
        reach = next((each * GRID for each in range(least, largest + 1)
                      if _evenly_spread(length, each * GRID, overlap, count)), None)
        count += reach is None
    starts = _evenly_spread(length, reach, overlap, count)
    ends = [min(start + reach, length) for start in starts]
    total = torch.zeros(length)
    weights = []
    for i, (start, end) in enumerate(zip(starts, ends)):
        weight = torch.ones(end - start)
        if i > 0:
            shared = ends[i - 1] - start
            weight[:shared] *= _ramp(shared)
        if i < count - 1:
            shared = end - starts[i + 1]
            weight[len(weight) - shared:] *= _ramp(shared).flip(0)
        weights.append(weight)
        total[start:end] += weight
    return [(start, weight / total[start:end]) for start, end, weight in zip(starts, ends, weights)]


def _evenly_spread(length: int, reach: int, overlap: int, count: int) -> list[int]:
    """Starts of ``count`` tiles of ``reach`` pixels; empty if they do not overlap enough."""
    starts = [round(i * (length - reach) / (count - 1) / GRID) * GRID for i in range(count)]
    starts[-1] = math.ceil((length - reach) / GRID) * GRID
    return starts if all(a + reach - b >= overlap for a, b in zip(starts, starts[1:])) else []


def _ramp(length: int) -> Tensor:
    """0 to 1 over the middle half: what is nearer to the edge of a tile lacks too much of its surroundings."""
    place = 2 * (torch.arange(length) + 0.5) / max(length, 1) - 0.5
    return torch.sin(place.clamp(0, 1) * math.pi / 2).square()


def bytes_per_pixel(network: nn.Module) -> float:
    """About how much memory one evaluation takes, in bytes a pixel of the tile, from a trial on 128x128 pixels.

    It counts what the layers with the largest inputs and outputs hold at once, and what waits for the way up.
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
    """The largest tile, a multiple of 32 and at least SMALLEST, whose evaluation takes about ``budget`` bytes or less.

    Args:
        network: On the device where it will be used.
        budget: Default: CPU_BUDGET but no larger a tile than CPU_TILE, or half of the free memory of the GPU that the
            network is on.
    """
    device = next(network.parameters()).device
    largest = CPU_TILE if budget is None and device.type == 'cpu' else math.inf
    if budget is None:
        budget = torch.cuda.mem_get_info(device)[0] / 2 if device.type == 'cuda' else CPU_BUDGET
    side = math.sqrt(budget / bytes_per_pixel(network))
    return max(SMALLEST, int(min(side, largest)) // 32 * 32)


def tiled(network: Callable[..., Tensor], tile: int | None, overlap: int = OVERLAP) -> Callable[..., Tensor]:
    """The network itself if ``tile`` is None or 0, else on tiles of that size.

    Args:
        network: See :class:`TiledNetwork`.
        tile: Pixels.
        overlap: Pixels; cut to half of a tile.

    Raises:
        OptionError: ``tile`` or ``overlap`` is out of its range.
    """
    if tile in (None, 0):
        return network
    side = check_int('tile', tile, SMALLEST)
    return TiledNetwork(network, side, min(check_int('tile_overlap', overlap, 0), side // 2))
