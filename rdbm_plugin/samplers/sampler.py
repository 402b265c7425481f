"""Base of all samplers: estimates of the residual, noise of each image, results. Needs torch only."""
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rdbm_plugin.bridge import ResidualBridge
from rdbm_plugin.config.options import OptionError, check_choice

Network = Callable[[Tensor, Tensor, Tensor], Tensor]
Consistency = Callable[[Tensor], Tensor]
"""Corrects an estimate of x0, (N, C, H, W) in [-1, 1], to agree with what is known of x0."""


class TrajectoryPoint(NamedTuple):
    """State and estimate at one node, each (N, C, H, W) in [-1, 1]."""

    t: int
    x_t: Tensor
    x0_hat: Tensor


class SampleResult(NamedTuple):
    """What a sampler returns."""

    x0: Tensor
    """Restored images, (N, C, H, W) in [-1, 1]."""
    residual: Tensor
    """x0 - mu: added to the input, it leaves pixels whose residual is 0 bit-identical."""
    nfe: int
    """Network evaluations per image."""
    trajectory: list[TrajectoryPoint]
    """The visited nodes from T downwards if requested, else empty."""


class Sampler:
    """Reverse process from a degraded image to its restoration.

    To add one, derive from this class, set ``nfe``, implement :meth:`sample`, and register it in SAMPLER_REGISTRY.

    Args:
        bridge: The bridge to run backwards; it also defines what the network predicts.
        start: How to leave node T. At a pinned end, ``mean`` adds no noise and is near the least squared error, and
            ``stochastic`` adds noise modulated by the first residual estimate. At a soft end, x_T is the mean of the
            last marginal or a sample of it; both are the same for pi = residual, as the residual is unknown there.

    Raises:
        OptionError: An argument is out of range.
    """

    nfe: int
    """Network evaluations per image, or the smallest possible number."""

    def __init__(self, bridge: ResidualBridge, start: str = 'mean') -> None:
        self.bridge = bridge
        self.start = check_choice('start', start, ('mean', 'stochastic'))

    def __call__(self, network: Network, mu: Tensor, seeds: Sequence[int] | None = None,
                 keep_trajectory: bool = False, consistency: Consistency | None = None) -> SampleResult:
        """Restore ``mu``.

        Args:
            network: Called as network(x_t, mu, t) with t of shape (N,), int64, on the device of ``mu``.
            mu: Degraded images, (N, C, H, W) in [-1, 1].
            seeds: One seed per image, which alone determines its noise; default: torch's global generator.
            keep_trajectory: Also return the state and the estimate at every node.
            consistency: Corrects every estimate of x0; see :mod:`rdbm_plugin.samplers.consistency`.

        Raises:
            OptionError: The number of seeds differs from the number of images.
        """
        if seeds is not None and len(seeds) != len(mu):
            raise OptionError(f'seeds: found {len(seeds)} for {len(mu)} images; expected one seed per image.')
        generators = None if seeds is None else [torch.Generator().manual_seed(seed) for seed in seeds]
        images = len(mu)

        def noise() -> Tensor:
            if generators is None:
                return torch.randn_like(mu)
            return torch.stack([torch.randn(mu.shape[1:], generator=each) for each in generators]).to(mu)

        def estimate(z: Tensor, t: int | Tensor, mu: Tensor = mu) -> Tensor:
            node = torch.full((len(mu),), t, device=mu.device) if isinstance(t, int) else t.to(mu.device)
            x_t = self.bridge.centre(mu, node) + z
            residual = self.bridge.to_residual(network(x_t, mu, node), z, mu, node)
            x0 = torch.add(mu, residual).clamp_(-1, 1)
            if consistency is not None:
                return torch.cat([consistency(part) for part in x0.split(images)]) - mu
            return x0.sub_(mu)

        return self.sample(mu, estimate, noise, keep_trajectory)

    def sample(self, mu: Tensor, estimate: Callable[..., Tensor], noise: Callable[[], Tensor],
               keep_trajectory: bool) -> SampleResult:
        """Run the reverse process from ``mu``; ``estimate(z, t)`` returns the residual for states z = x_t - centre at
        node t, ``noise()`` returns standard normal noise, both with the shape of ``mu``."""
        raise NotImplementedError

    def first_state(self, mu: Tensor, noise: Callable[[], Tensor]) -> Tensor:
        """z at node T: 0, or the noise of a soft end."""
        zero = torch.zeros_like(mu)
        if self.bridge.pinned or self.start == 'mean':
            return zero
        return float(self.bridge.std_coef[-1]) * self.bridge.modulate(zero, noise())

    def point(self, t: int, z: Tensor, residual: Tensor, mu: Tensor) -> TrajectoryPoint:
        """A point of the trajectory."""
        node = torch.full((len(mu),), t, device=mu.device)
        return TrajectoryPoint(t, self.bridge.centre(mu, node) + z, mu + residual)
