"""The random numbers of a training step, from seed, iteration and place in the batch of all ranks. Needs torch only."""
import random
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

GOLDEN = (5**0.5 - 1) / 2


@lru_cache
def most_in(share: float, count: int) -> int:
    """The most of ``count`` samples that :meth:`Draws.spread` ever puts into one interval of length ``share``."""
    if share <= 0:
        return 0
    points = GOLDEN * np.arange(count) % 1
    # The fullest interval begins at a point; rounding may not lose one at its end.
    return int((((points[None] - points[:, None]) % 1) < share + 1e-9).sum(axis=1).max())


def seed_step(seed: int, iteration: int, rank: int) -> None:
    """Seed all global generators for one step, so that a resumed run needs no saved ones."""
    value = _mixed(seed, iteration, rank + 1)
    random.seed(value)
    np.random.seed(value % 2**32)
    # torch.manual_seed takes half a millisecond to format the call stack for GPUs that have not been used yet.
    torch.default_generator.manual_seed(value)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(value)


class Draws:
    """Nodes, places and noise of one rank's samples, which are those that a single process would draw for them.

    ``count`` is the samples in the batch of each of the ``ranks`` processes.
    """

    def __init__(self, seed: int, iteration: int, rank: int, ranks: int, count: int) -> None:
        self.generator = torch.Generator().manual_seed(_mixed(seed, iteration))
        self.total, self.own = ranks * count, slice(rank * count, (rank + 1) * count)

    def integers(self, low: int, high: int) -> Tensor:
        """Integers from ``low`` to ``high`` - 1, (N,) int64."""
        return torch.randint(low, high, (self.total,), generator=self.generator)[self.own]

    def spread(self) -> Tensor:
        """Each uniform in [0, 1), but evenly spread over the batch, (N,) float64.

        Multiples of the golden ratio behind a common random shift: of N samples that follow one another nearly the same
        number falls into an interval in every step, whatever the number of ranks; see :func:`most_in`.
        """
        shift = torch.rand((), generator=self.generator, dtype=torch.float64)
        return (shift + GOLDEN * torch.arange(self.total, dtype=torch.float64)[self.own]) % 1

    def noise(self, like: Tensor) -> Tensor:
        """Standard normal, of shape, device and memory format of ``like``, (N, C, H, W).

        Every rank draws for all, and keeps its own: a generator on the device cannot skip the others' numbers.
        """
        seed = int(torch.randint(2**62, (), generator=self.generator))
        generator = torch.Generator(like.device).manual_seed(seed)
        whole = torch.randn((self.total, *like.shape[1:]), generator=generator, device=like.device, dtype=like.dtype)
        return torch.empty_like(like).copy_(whole[self.own])


def _mixed(*numbers: int) -> int:
    return int(np.random.SeedSequence([number % 2**64 for number in numbers]).generate_state(1, np.uint64)[0]) >> 1
