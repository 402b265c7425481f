"""Random numbers of a training step, by seed, iteration and place in the batch of all ranks. Needs torch only."""
import random
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

GOLDEN = (5**0.5 - 1) / 2


@lru_cache
def most_in(share: float, count: int) -> int:
    """Return how many of ``count`` samples :meth:`Draws.spread` puts at most into an interval of length ``share``."""
    if share <= 0:
        return 0
    points = GOLDEN * np.arange(count) % 1
    # The fullest interval starts at a point; without the tolerance, rounding could lose a point at its end.
    return int((((points[None] - points[:, None]) % 1) < share + 1e-9).sum(axis=1).max())


def seed_step(seed: int, iteration: int, rank: int) -> None:
    """Seed all global generators for one step, so that training states need not store them."""
    value = _mixed(seed, iteration, rank + 1)
    random.seed(value)
    np.random.seed(value % 2**32)
    # Until a GPU is used, torch.manual_seed spends half a millisecond on formatting the call stack for it.
    torch.default_generator.manual_seed(value)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(value)


class Draws:
    """Random numbers for one rank's samples, equal to those that a single process would draw for the same samples.

    Each of the ``ranks`` processes has a batch of ``count`` samples.
    """

    def __init__(self, seed: int, iteration: int, rank: int, ranks: int, count: int) -> None:
        self.generator = torch.Generator().manual_seed(_mixed(seed, iteration))
        self.total, self.own = ranks * count, slice(rank * count, (rank + 1) * count)

    def integers(self, low: int, high: int) -> Tensor:
        """Integers from ``low`` to ``high`` - 1, (N,) int64."""
        return torch.randint(low, high, (self.total,), generator=self.generator)[self.own]

    def spread(self) -> Tensor:
        """Numbers that are each uniform in [0, 1), but evenly spread over the batch, (N,) float64.

        They are multiples of the golden ratio plus a common random shift. Of N consecutive samples, nearly the same
        number falls into a given interval in every step, for any number of ranks; see :func:`most_in`.
        """
        shift = torch.rand((), generator=self.generator, dtype=torch.float64)
        return (shift + GOLDEN * torch.arange(self.total, dtype=torch.float64)[self.own]) % 1

    def noise(self, like: Tensor) -> Tensor:
        """Standard normal noise with the shape, device and memory format of ``like``, (N, C, H, W).

        Every rank draws for all ranks and keeps its part, as a generator on the device cannot skip the others' numbers.
        """
        seed = int(torch.randint(2**62, (), generator=self.generator))
        generator = torch.Generator(like.device).manual_seed(seed)
        whole = torch.randn((self.total, *like.shape[1:]), generator=generator, device=like.device, dtype=like.dtype)
        return torch.empty_like(like).copy_(whole[self.own])


def _mixed(*numbers: int) -> int:
    return int(np.random.SeedSequence([number % 2**64 for number in numbers]).generate_state(1, np.uint64)[0]) >> 1
