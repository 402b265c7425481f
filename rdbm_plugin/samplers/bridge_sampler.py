"""The reverse process: from a degraded image to its restoration. Needs torch only."""
from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rdbm_plugin.bridge import ResidualBridge
from rdbm_plugin.options import OptionError, check_choice, check_number

Network = Callable[[Tensor, Tensor, Tensor], Tensor]


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
        nfe: Number of network evaluations.
        trajectory: The visited nodes from T downwards, if asked for, else empty.
    """

    x0: Tensor
    residual: Tensor
    nfe: int
    trajectory: list[TrajectoryPoint]


class BridgeSampler:
    """Reverse sampler of a bridge: Eq. 19 of RDBM (arXiv 2510.23116) at evenly spaced nodes, last jump to x0.

    ::

        bridge = build_bridge({'modulation': 'residual'})
        sampler = BridgeSampler(bridge, steps=10)
        restored = sampler(network, mu).x0       # network(x_t, mu, t), images in [-1, 1]

    Args:
        bridge: The bridge to run backwards; also says what the network predicts.
        steps: Network evaluations (NFE), from 1 to T.
        eta: 0 deterministic (Eq. 19) ... 1 samples the posterior. With modulation 'residual' an eta > 0 is biased:
            it needs E[residual^2], the network gives E[residual]; a warning says so.
        start: How node T is left, where x_T = mu holds no noise. ``mean``: without noise, near the least squared
            error. ``stochastic``: with noise modulated by the first residual estimate.

    Raises:
        OptionError: An argument is out of its range.
    """

    def __init__(self, bridge: ResidualBridge, steps: int = 10, eta: float = 0.0, start: str = 'mean') -> None:
        self.bridge = bridge
        self.nodes = bridge.nodes(steps)
        self.eta = check_number('eta', eta, 0, 1)
        self.start = check_choice('start', start, ('mean', 'stochastic'))
        if self.eta > 0 and bridge.modulation == 'residual':
            warnings.warn("eta > 0 with modulation 'residual' is biased: the noise it adds needs E[residual^2], "
                          'the network estimates E[residual].', stacklevel=2)
        self.plan = [(t, bridge.step(s, t, self.eta)) for t, s in zip(self.nodes, self.nodes[1:])]
        self.nfe = len(self.plan)

    def __call__(self, network: Network, mu: Tensor, seeds: Sequence[int] | None = None,
                 keep_trajectory: bool = False) -> SampleResult:
        """Restore ``mu``.

        Args:
            network: Called as network(x_t, mu, t) with t of shape (N,), int64, on the device of ``mu``.
            mu: Degraded images, (N, C, H, W) in [-1, 1].
            seeds: One seed an image, so that an image's noise depends neither on the batch it is in nor on what ran
                before; default: torch's global generator. Without effect where no noise is added.
            keep_trajectory: Also return the state and the estimate at every node.
        """
        if seeds is not None and len(seeds) != len(mu):
            raise OptionError(f'seeds: found {len(seeds)} for {len(mu)} images; expected one seed an image.')
        generators = None if seeds is None else [torch.Generator().manual_seed(seed) for seed in seeds]
        z = torch.zeros_like(mu)
        trajectory = []
        for t, step in self.plan:
            node = torch.full((len(mu),), t, dtype=torch.int64)
            output = network(mu + z, mu, node.to(mu.device))
            residual = self.bridge.to_residual(output, z, mu, node)
            residual = (mu + residual).clamp(-1, 1) - mu
            if keep_trajectory:
                trajectory.append(TrajectoryPoint(t, mu + z, mu + residual))
            z = step.z_weight * z + step.residual_weight * residual
            noisy = self.start == 'stochastic' if t == self.bridge.timesteps else self.eta > 0
            if noisy and step.noise_weight > 0:
                z = z + step.noise_weight * self.bridge.modulate(residual, _noise(mu, generators))
        if keep_trajectory:
            trajectory.append(TrajectoryPoint(0, mu + z, mu + z))
        return SampleResult(mu + z, z, self.nfe, trajectory)


def _noise(like: Tensor, generators: list[torch.Generator] | None) -> Tensor:
    if generators is None:
        return torch.randn_like(like)
    images = [torch.randn(like.shape[1:], generator=generator) for generator in generators]
    return torch.stack(images).to(like)
