"""The training objective of a bridge's network, for any training loop. Needs torch only."""
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rdbm_plugin.bridge import ResidualBridge
from rdbm_plugin.config.options import OptionError, check_choice, check_int, check_number
from rdbm_plugin.losses.draws import Draws, most_in
from rdbm_plugin.losses.residual_modulated_loss import ResidualModulatedLoss

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]
"""The network with gradients, in float32: predict(x_t, mu, t) -> (N, C, H, W), all on one device."""


class Plan(NamedTuple):
    """The random numbers of a step, on the device of its images; their shapes are the same in every step."""

    t: Tensor
    """Nodes, (N,) int64."""
    eps: Tensor
    """Standard normal noise, (N, C, H, W)."""
    rows: Tensor
    """Indices of the samples for which on-policy states are made, (M,) int64."""
    taken: Tensor
    """Which of these states are used, (M,) bool; the others only fill up the fixed number M."""
    later: Tensor
    """Nodes of the passes after the first, (N, passes - 1) int64."""


class States(NamedTuple):
    """The states that one step trains on, with their targets; one row per sample."""

    z: Tensor
    """x_t minus its centre, (N, C, H, W)."""
    target: Tensor
    mu: Tensor
    t: Tensor
    """Nodes, (N,) int64."""
    residual: Tensor
    gt: Tensor
    eps: Tensor
    later: Tensor
    """Nodes of the passes after this one, (N, their number) int64."""
    mean_weight: Tensor
    """Mean of the loss's weights over all samples of all ranks, ()."""

    def part(self, rows: Any) -> 'States':
        """The states of some samples."""
        return States(*(tensor[rows] if tensor.dim() else tensor for tensor in self))


class Objective:
    """Draws bridge states from pairs of images, and compares the network's outputs with their targets.

    Args:
        bridge: Also defines what the network predicts.
        criterion: ResidualModulatedLoss, or any loss of two images in [0, 1], which compares the estimate of x0 with
            the clean image; None if only states are needed.
        node_t_share: Share of samples at t = T, where x_t = mu; the others are uniform over nodes 1 to T-1. Default
            1/T (uniform over all nodes).
        own_start_share: Share of the samples at t < T that are on-policy: their state is made from the network's own
            estimate at t = T, as in sampling, instead of the true residual. Default 0.
        passes: Number of times a step trains on each sample: first at node T, then from the latest estimate, without
            its gradient; see :meth:`next_pass`. More than one excludes both shares.
        pass_nodes: Nodes of the later passes. ``random``: from 1 to T-1, with the noise of the marginal; ``sampler``:
            those that BridgeSampler with as many evaluations visits after node T, without noise.

    Raises:
        OptionError: A share is not in [0, 1] or is combined with several passes, or there are more passes than nodes.
    """

    def __init__(self, bridge: ResidualBridge, criterion: nn.Module | None, node_t_share: float | None = None,
                 own_start_share: float | None = None, passes: int | None = None,
                 pass_nodes: str | None = None) -> None:
        self.bridge, self.criterion = bridge, criterion
        self.passes = check_int('passes', passes or 1, 1, bridge.timesteps)
        self.pass_nodes = check_choice('pass_nodes', pass_nodes or 'random', ('random', 'sampler'))
        if self.passes > 1 and (node_t_share is not None or own_start_share):
            raise OptionError(f'passes: found {passes} with node_t_share or own_start_share; leave both out: every '
                              'sample starts at node T, and its later states come from its own estimates.')
        node_t_share = 1.0 if self.passes > 1 else node_t_share
        nodes = bridge.nodes(self.passes)
        self._moves = [(s, bridge.step(s, t)) for t, s in zip(nodes, nodes[1:-1])]
        self.node_t_share = (1 / bridge.timesteps if node_t_share is None
                             else check_number('node_t_share', node_t_share, 0, 1))
        self.own_start_share = check_number('own_start_share', own_start_share or 0, 0, 1)

    def plan(self, draws: Draws, like: Tensor) -> Plan:
        """Draw the random numbers for a batch of images like ``like``, (N, C, H, W)."""
        last = self.bridge.timesteps
        place = draws.spread()
        t = torch.where(place < self.node_t_share, last, draws.integers(1, max(last, 2)))
        eps = draws.noise(like)
        share = (1 - self.node_t_share) * self.own_start_share if last > 1 else 0
        chosen = (place >= self.node_t_share) & (place < self.node_t_share + share)
        # Chosen samples come first.
        rows = torch.argsort((~chosen).int(), stable=True)[:most_in(share, len(like))]
        later = self._later_nodes(draws, len(like))
        packed = to_device(torch.cat([t, rows, chosen[rows].long(), later.flatten()]), like.device)
        t, rows, taken, flat = packed.split([len(t), len(rows), len(rows), later.numel()])
        return Plan(t, eps, rows, taken.bool(), flat.view_as(later))

    def _later_nodes(self, draws: Draws, count: int) -> Tensor:
        if self.pass_nodes == 'sampler':
            return torch.tensor([node for node, _ in self._moves], dtype=torch.int64).expand(count, -1)
        nodes = [draws.integers(1, self.bridge.timesteps) for _ in range(self.passes - 1)]
        return torch.stack(nodes, dim=1) if nodes else torch.zeros(count, 0, dtype=torch.int64)

    def states(self, lq: Tensor, gt: Tensor, plan: Plan, predict: Predict,
               mean_of_ranks: Callable[[Tensor], Tensor] = lambda value: value) -> States:
        """Return the states of a batch of degraded and clean images, both (N, C, H, W) in [0, 1].

        ``predict`` is used for on-policy states, with the same number of samples in every step. ``mean_of_ranks``
        returns the mean of a tensor over all processes. Nothing here waits for the device.
        """
        mu, residual = 2 * lq - 1, 2 * (gt - lq)
        n = self.bridge.modulate(residual, plan.eps)
        z = self.bridge.marginal(residual, n, plan.t)
        if len(plan.rows):
            z, n = self._on_policy(plan, z, n, residual, mu, predict)
        mean_weight = torch.ones((), device=lq.device)
        if isinstance(self.criterion, ResidualModulatedLoss) and self.criterion.balance > 0:
            mean_weight = mean_of_ranks(self.criterion.weights(residual).mean())
        return States(z, self.bridge.target(residual, n, mu, plan.t), mu, plan.t, residual, gt, plan.eps, plan.later,
                      mean_weight)

    def next_pass(self, states: States, output: Tensor) -> States:
        """Return the states of the next pass, from the estimate that the network's output for ``states`` gives."""
        estimate = self._residual_in_range(output.detach(), states.z, states.mu, states.t)
        t = states.later[:, 0]
        if self.pass_nodes == 'sampler':
            move = self._moves[len(self._moves) - states.later.shape[1]][1]
            z = move.z_weight * states.z + move.residual_weight * estimate
        else:
            z = self.bridge.marginal(estimate, self.bridge.modulate(estimate, states.eps), t)
        n = self.bridge.noise_of(z, states.residual, t)
        return states._replace(z=z, t=t, target=self.bridge.target(states.residual, n, states.mu, t),
                               later=states.later[:, 1:])

    def draw(self, lq: Tensor, gt: Tensor, draws: Draws, predict: Predict,
             mean_of_ranks: Callable[[Tensor], Tensor] = lambda value: value) -> States:
        """Draw a :meth:`plan` and return its :meth:`states`."""
        return self.states(lq, gt, self.plan(draws, lq), predict, mean_of_ranks)

    def _on_policy(self, plan: Plan, z: Tensor, n: Tensor, residual: Tensor, mu: Tensor,
                   predict: Predict) -> tuple[Tensor, Tensor]:
        """Replace the states (z, n) of the rows that are taken with those of the network's own estimate at node T."""
        rows, taken = plan.rows, plan.taken
        last = torch.full_like(rows, self.bridge.timesteps)
        mu, residual, eps = mu[rows], residual[rows], plan.eps[rows]
        # Rows that are not taken may be at node T, where noise_of is undefined.
        t = torch.where(taken, plan.t[rows], 1)
        with torch.no_grad():
            nothing = torch.zeros_like(mu)
            start = self.bridge.marginal(nothing, self.bridge.modulate(nothing, eps), last)
            output = predict(self.bridge.centre(mu, last) + start, mu, last)
        estimate = self._residual_in_range(output, start, mu, last)
        own = self.bridge.marginal(estimate, self.bridge.modulate(estimate, eps), t)
        taken = taken.view(-1, 1, 1, 1)
        new_n = torch.where(taken, self.bridge.noise_of(own, residual, t), n[rows])
        return z.index_copy(0, rows, torch.where(taken, own, z[rows])), n.index_copy(0, rows, new_n)

    def _residual_in_range(self, output: Tensor, z: Tensor, mu: Tensor, t: Tensor) -> Tensor:
        """The residual estimate of an output, with its x0 clamped to [-1, 1] as in the sampler."""
        return (mu + self.bridge.to_residual(output, z, mu, t)).clamp(-1, 1) - mu

    def output(self, states: States, predict: Predict) -> Tensor:
        """The network's output for states, (N, C, H, W)."""
        return predict(self.bridge.centre(states.mu, states.t) + states.z, states.mu, states.t)

    def estimate(self, output: Tensor, states: States) -> Tensor:
        """The estimate of the clean image in [0, 1], not clamped, from the network's output; (N, C, H, W)."""
        return (states.mu + 1 + self.bridge.to_residual(output, states.z, states.mu, states.t)) / 2

    def loss(self, output: Tensor, states: States) -> Tensor:
        """Loss of each sample, (N,); criteria other than ResidualModulatedLoss may return that of the batch, ()."""
        if isinstance(self.criterion, ResidualModulatedLoss):
            return self.criterion.of_samples(output, states.target, states.t, self.bridge, states.residual,
                                             states.mean_weight)
        return self.criterion(self.estimate(output, states), states.gt)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Send a small tensor to a device without waiting for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == 'cuda' else tensor.to(device)
