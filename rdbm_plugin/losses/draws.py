"""What is random in a training step: a pure function of seed, iteration and place in the batch of all ranks."""
from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor


def seed_step(seed: int, iteration: int, rank: int) -> None:
    """Seed all global generators for one step, for dropout in networks and data sets read in this process.

    So a resumed run needs no saved generators, whatever wrote its state.
    """
    value = _mixed(seed, iteration, rank + 1)
    random.seed(value)
    np.random.seed(value % 2**32)
    # torch.manual_seed formats the call stack for GPUs that have not been used yet, which takes half a millisecond.
    torch.default_generator.manual_seed(value)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(value)


class Draws:
    """Nodes, chances and noise of the samples of one rank; together those that one process would draw for all.

    Args:
        seed: Of the run.
        iteration: Current iteration.
        rank: This process.
        ranks: How many there are, each with ``count`` samples.
        count: Samples in this rank's batch.
    """

    def __init__(self, seed: int, iteration: int, rank: int, ranks: int, count: int) -> None:
        self.generator = torch.Generator().manual_seed(_mixed(seed, iteration))
        self.total, self.own = ranks * count, slice(rank * count, (rank + 1) * count)

    def whole(self, low: int, high: int) -> Tensor:
        """Whole numbers from ``low`` to ``high`` - 1, (N,) int64."""
        return torch.randint(low, high, (self.total,), generator=self.generator)[self.own]

    def chances(self) -> Tensor:
        """Uniform in [0, 1), (N,) float32."""
        return torch.rand(self.total, generator=self.generator)[self.own]

    def noise(self, like: Tensor) -> Tensor:
        """Standard normal, of shape, device and memory format of ``like``, (N, C, H, W)."""
        noise = torch.empty_like(like)
        generator = torch.Generator(like.device)
        for sample, seed in zip(noise, self.whole(0, 2**62).tolist()):
            sample.copy_(torch.randn(like.shape[1:], generator=generator.manual_seed(seed), device=like.device))
        return noise


def _mixed(*numbers: int) -> int:
    return int(np.random.SeedSequence([number % 2**64 for number in numbers]).generate_state(1, np.uint64)[0]) >> 1
