"""What all samplers share: estimates of the residual, noise by image, and results. Needs torch only."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rdbm_plugin.bridge import ResidualBridge
from rdbm_plugin.config.options import OptionError, check_choice

Network = Callable[[Tensor, Tensor, Tensor], Tensor]
Consistency = Callable[[Tensor], Tensor]
"""Takes an estimate of x0, (N, C, H, W) in [-1, 1], and returns one that agrees with what is known of it."""


class TrajectoryPoint(NamedTuple):
    """State and estimate at one node, each (N, C, H, W) in [-1, 1]."""

    t: int
    x_t: Tensor
    x0_hat: Tensor


class SampleResult(NamedTuple):
    """What a sampler returns.

    Attributes:
        x0: Restored images, (N, C, H, W) in [-1, 1].
        residual: x0 - mu, kept apart because adding it to the input elsewhere then leaves a pixel whose residual
            is 0 bit-identical.
        nfe: Number of network evaluations, of each image.
        trajectory: The visited nodes from T downwards, if asked for, else empty.
    """

    x0: Tensor
    residual: Tensor
    nfe: int
    trajectory: list[TrajectoryPoint]


class Sampler:
    """Base of the samplers: reverse processes from a degraded image to its restoration.

    To add one, derive from this class, set ``nfe``, implement :meth:`sample`, and register the class in
    SAMPLER_REGISTRY.

    Args:
        bridge: The bridge to run backwards; also says what the network predicts.
        start: How node T is left. At a pinned end, where x_T = mu holds no noise: ``mean``: without noise, near the
            least squared error; ``stochastic``: with noise modulated by the first residual estimate. At a soft end:
            whether x_T is the centre of the last marginal, or that with its noise; as pi = residual is not known
            before the first estimate, there both are the same for it.

    Raises:
        OptionError: An argument is out of its range.
    """

    nfe: int
    """Network evaluations an image, or the least there can be."""

    def __init__(self, bridge: ResidualBridge, start: str = 'mean') -> None:
        self.bridge = bridge
        self.start = check_choice('start', start, ('mean', 'stochastic'))

    def __call__(self, network: Network, mu: Tensor, seeds: Sequence[int] | None = None,
                 keep_trajectory: bool = False, consistency: Consistency | None = None) -> SampleResult:
        """Restore ``mu``.

        Args:
            network: Called as network(x_t, mu, t) with t of shape (N,), int64, on the device of ``mu``.
            mu: Degraded images, (N, C, H, W) in [-1, 1].
            seeds: One seed an image, so that an image's noise depends neither on the batch it is in nor on what ran
                before; default: torch's global generator. Without effect where no noise is added.
            keep_trajectory: Also return the state and the estimate at every node.
            consistency: Called with every estimate of x0, returns one that agrees with what is known of x0; see
                :mod:`rdbm_plugin.samplers.consistency`.

        Raises:
            OptionError: There are not as many seeds as images.
        """
        if seeds is not None and len(seeds) != len(mu):
            raise OptionError(f'seeds: found {len(seeds)} for {len(mu)} images; expected one seed an image.')
        generators = None if seeds is None else [torch.Generator().manual_seed(seed) for seed in seeds]

        images = len(mu)

        def noise() -> Tensor:
            if generators is None:
                return torch.randn_like(mu)
            return torch.stack([torch.randn(mu.shape[1:], generator=each) for each in generators]).to(mu)

        def estimate(z: Tensor, t: int | Tensor, mu: Tensor = mu) -> Tensor:
            node = torch.full((len(mu),), t, dtype=torch.int64) if isinstance(t, int) else t
            x_t = self.bridge.centre(mu, node) + z
            residual = self.bridge.to_residual(network(x_t, mu, node.to(mu.device)), z, mu, node)
            x0 = torch.add(mu, residual).clamp_(-1, 1)
            if consistency is not None:
                return torch.cat([consistency(part) for part in x0.split(images)]) - mu
            return x0.sub_(mu)

        return self.sample(mu, estimate, noise, keep_trajectory)

    def sample(self, mu: Tensor, estimate: Callable[..., Tensor], noise: Callable[[], Tensor],
               keep_trajectory: bool) -> SampleResult:
        """Run the reverse process.

        Args:
            mu: Degraded images, (N, C, H, W) in [-1, 1].
            estimate: estimate(z, t) gives the residual from states z = x_t - centre at node t.
            noise: Gives standard normal noise of the shape of ``mu``.
            keep_trajectory: Whether the result shall hold the trajectory.
        """
        raise NotImplementedError

    def first_state(self, mu: Tensor, noise: Callable[[], Tensor]) -> Tensor:
        """z at node T: 0, or the noise of a soft end."""
        zero = torch.zeros_like(mu)
        if self.bridge.pinned or self.start == 'mean':
            return zero
        return float(self.bridge.std_coef[-1]) * self.bridge.modulate(zero, noise())

    def point(self, t: int, z: Tensor, residual: Tensor, mu: Tensor) -> TrajectoryPoint:
        """A point of the trajectory."""
        return TrajectoryPoint(t, self.bridge.centre(mu, torch.full((len(mu),), t)) + z, mu + residual)
