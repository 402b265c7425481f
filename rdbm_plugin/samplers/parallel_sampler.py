"""The parallel sampler: all nodes of a trajectory at once, as a fixed point. Needs torch only."""
from collections.abc import Callable

import torch
from torch import Tensor

from rdbm_plugin.bridge import ResidualBridge
from rdbm_plugin.config.options import check_int, check_number
from rdbm_plugin.samplers.sampler import Sampler, SampleResult


class ParallelSampler(Sampler):
    """The deterministic trajectory of Eq. 19 as the fixed point of one map, found by Anderson acceleration.

    Each round evaluates the states of all nodes in one batch and computes new states by the linear recursion. The last
    rounds are then combined to minimize the remaining change (Anderson 1965; for restoration by deep equilibria see Cao
    et al., arXiv 2311.11600). After round k the first k states are exact for any network: ``steps`` rounds give the
    sequential result, and far fewer usually reach ``tolerance``.

    It takes fewer *rounds* than the sequential sampler but a larger NFE, as every round evaluates all nodes that are
    not yet exact. This helps if the device has room for such a batch, and is slower on a CPU.

    Args:
        bridge, start: See :class:`Sampler`.
        steps: Nodes of the trajectory, from 1 to T.
        tolerance: Stop when no pixel of any state changes by more than this, in units of the [-1, 1] range; 0: stop
            when all states are exact.
        memory: Number of earlier rounds to combine; 0: plain fixed-point iteration.

    Raises:
        OptionError: An argument is out of range.
    """

    def __init__(self, bridge: ResidualBridge, steps: int = 10, start: str = 'mean',
                 tolerance: float | str = 1e-3, memory: int = 3) -> None:
        super().__init__(bridge, start)
        self.nfe = check_int('steps', steps, 1, bridge.timesteps)
        self.nodes = bridge.nodes(steps)
        self.tolerance = check_number('tolerance', tolerance, 0)
        self.memory = check_int('memory', memory, 0)
        self.steps = [bridge.step(s, t) for t, s in zip(self.nodes, self.nodes[1:])]
        self.rounds = 0
        """Rounds of the last call."""

    def sample(self, mu: Tensor, estimate: Callable[..., Tensor], noise: Callable[[], Tensor],
               keep_trajectory: bool) -> SampleResult:
        count = len(self.steps)
        first = self.first_state(mu, noise)
        residual = estimate(first, self.nodes[0])
        jump = self.steps[0]
        kick = torch.zeros_like(mu)
        if self.bridge.pinned and self.start == 'stochastic' and jump.noise_weight > 0:
            kick = jump.noise_weight * self.bridge.modulate(residual, noise())
        # Estimates at all nodes, (count, N, C, H, W), at first all equal.
        residuals = residual.expand(count, *mu.shape).clone()
        states = self._through(first, residuals, kick)
        nfe, history = 1, []
        self.rounds = 1
        for exact in range(1, count):
            # States up to this index are exact, and the network has been evaluated at those before it.
            rest = states[exact:]
            node = torch.tensor(self.nodes[exact:-1]).repeat_interleave(len(mu))
            batch = (len(rest), *[1] * (mu.dim() - 1))
            residuals[exact:] = estimate(rest.flatten(0, 1), node, mu.repeat(batch)).view_as(rest)
            nfe += len(rest)
            self.rounds += 1
            moved = self._through(first, residuals, kick)
            change = (moved - states)[exact + 1:]
            if not change.numel() or float(change.abs().max()) <= self.tolerance:
                states = moved
                break
            history = [*history[-self.memory:], (states, moved)] if self.memory else []
            states = moved.clone()
            if len(history) > 1 and exact + 2 < count:
                states[exact + 2:] = _combine([(x[exact + 2:], y[exact + 2:]) for x, y in history])
        z = residuals[-1]
        visited = [*zip(self.nodes, states, residuals), (0, z, z)] if keep_trajectory else []
        return SampleResult(mu + z, z, nfe, [self.point(*each, mu) for each in visited])

    def _through(self, first: Tensor, residuals: Tensor, kick: Tensor) -> Tensor:
        """The states at all nodes except 0 that follow from the estimates, (count, N, C, H, W)."""
        states = [first]
        for i, step in enumerate(self.steps[:-1]):
            z = step.z_weight * states[-1] + step.residual_weight * residuals[i]
            states.append(z + kick if i == 0 else z)
        return torch.stack(states)


def _combine(history: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Combine pairs x -> y, each (nodes, N, C, H, W), by Anderson's method, separately for each image."""
    changes = torch.stack([(y - x).movedim(1, 0).flatten(1) for x, y in history], dim=1).double()
    gram = changes @ changes.transpose(1, 2)
    scale = gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None].clamp(min=1e-30)
    gram = gram / scale + 1e-8 * torch.eye(len(history), dtype=gram.dtype, device=gram.device)
    weights = torch.linalg.solve(gram, torch.ones_like(gram[:, :, :1]))[..., 0]
    weights = (weights / weights.sum(1, keepdim=True)).to(history[0][1])
    shape = (1, -1, *[1] * (history[0][1].dim() - 2))
    return sum(weights[:, i].view(shape) * y for i, (_, y) in enumerate(history))
