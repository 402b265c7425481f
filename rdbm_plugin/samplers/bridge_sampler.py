"""The sequential sampler: first or second order, deterministic or stochastic. Needs torch only."""
import warnings
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from rdbm_plugin.bridge import ResidualBridge, Step
from rdbm_plugin.config.options import OptionError, check_choice, check_int, check_number
from rdbm_plugin.samplers.sampler import Sampler, SampleResult

SOLVERS = ('euler', 'multistep_rho', 'multistep_phi', 'heun', 'mean_ode')


class Move(NamedTuple):
    """One step of the plan: from node t to node s."""

    t: int
    s: int
    step: Step
    noisy: bool
    curvature: float = 0.0
    """Weight of the difference to the previous estimate; 0: first order."""
    twice: bool = False
    """Whether to evaluate at node s as well and step with the mean of both estimates."""


class BridgeSampler(Sampler):
    """Reverse sampler of a bridge at evenly spaced nodes, with a last jump to x0.

    ::

        bridge = build_bridge({'modulation': 'residual'})
        sampler = BridgeSampler(bridge, steps=10)
        restored = sampler(network, mu).x0       # network(x_t, mu, t), images in [-1, 1]

    Solvers of the deterministic flow, all with an NFE of ``steps``:

    - ``euler``: Eq. 19 of RDBM (arXiv 2510.23116), first order; the only one for eta > 0.
    - ``multistep_rho``, ``multistep_phi``: second order from the previous estimate, taken as linear in log rho or in
      arctan rho, rho = Theta / Sigma; see :meth:`ResidualBridge.curvature`.
    - ``heun``: second order from two evaluations a step, in half as many steps.
    - ``mean_ode``: the posterior mean at every step, GOUB's mean-ODE (arXiv 2312.10299). Without the noise of eta = 1
      it does not keep the marginals: fewer details, higher PSNR for bridges with much noise.

    The first step and the last one, to x0, are first order. So is the step after a pinned node T with the multistep
    solvers: the estimate is discontinuous at node T, as x_T = mu contains no noise.

    Args:
        bridge, start: See :class:`Sampler`.
        steps: Network evaluations (NFE), from 1 to T.
        eta: From 0 (deterministic, Eq. 19) to 1 (samples the posterior). With modulation 'residual', eta > 0 warns
            that it is biased: it needs E[residual^2], but the network estimates E[residual].
        solver: See above.

    Raises:
        OptionError: An argument is out of range, or eta > 0 is combined with a solver other than euler.
    """

    def __init__(self, bridge: ResidualBridge, steps: int = 10, eta: float = 0.0, start: str = 'mean',
                 solver: str = 'euler') -> None:
        super().__init__(bridge, start)
        self.nfe = check_int('steps', steps, 1, bridge.timesteps)
        self.eta = check_number('eta', eta, 0, 1)
        self.solver = check_choice('solver', solver, SOLVERS)
        if self.eta > 0 and solver != 'euler':
            raise OptionError(f"eta: found {eta!r} with solver {solver!r}; eta > 0 needs solver 'euler'.")
        if self.eta > 0 and bridge.modulation == 'residual':
            warnings.warn("eta > 0 with modulation 'residual' is biased: the noise it adds needs E[residual^2], "
                          'but the network estimates E[residual].', stacklevel=2)
        # Heun's first and last step take one evaluation, the others two; with an odd NFE, one more step takes one.
        self.nodes = bridge.nodes(steps if solver != 'heun' else min(steps, 2) + (steps - 1) // 2)
        self.plan = [self._move(i) for i in range(len(self.nodes) - 1)]

    def _move(self, i: int) -> Move:
        t, s = self.nodes[i], self.nodes[i + 1]
        from_pin = t == self.bridge.timesteps and self.bridge.pinned
        step = self.bridge.mean_step(s, t) if self.solver == 'mean_ode' and s > 0 else self.bridge.step(s, t, self.eta)
        noisy = step.noise_weight > 0 and (self.start == 'stochastic' if from_pin else self.eta > 0)
        move = Move(t, s, step, noisy)
        if s == 0 or i == 0:
            return move
        if self.solver == 'heun':
            return move._replace(twice=self.nfe % 2 == 0 or i < len(self.nodes) - 3)
        if self.solver.startswith('multistep') and not (i == 1 and self.bridge.pinned):
            variable = self.solver.removeprefix('multistep_')
            return move._replace(curvature=self.bridge.curvature(s, t, self.nodes[i - 1], variable))
        return move

    def sample(self, mu: Tensor, estimate: Callable[..., Tensor], noise: Callable[[], Tensor],
               keep_trajectory: bool) -> SampleResult:
        z, before = self.first_state(mu, noise), None
        trajectory = []
        for move in self.plan:
            residual = estimate(z, move.t)
            if keep_trajectory:
                trajectory.append(self.point(move.t, z, residual, mu))
            step = move.step
            # Operations on new tensors are in place, because allocating large images is slow.
            moved = (z * step.z_weight).add_(residual, alpha=step.residual_weight)
            if move.twice:
                moved = moved.add(estimate(moved, move.s) - residual, alpha=step.residual_weight / 2)
            elif move.curvature:
                moved.add_(residual, alpha=move.curvature).sub_(before, alpha=move.curvature)
            if move.noisy:
                moved.add_(self.bridge.modulate(residual, noise()), alpha=step.noise_weight)
            z, before = moved, residual
        if keep_trajectory:
            trajectory.append(self.point(0, z, z, mu))
        return SampleResult(mu + z, z, self.nfe, trajectory)
