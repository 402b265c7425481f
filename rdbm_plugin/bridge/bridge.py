"""The residual diffusion bridge: its marginals, its conversions and its steps. Needs torch only."""
from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rdbm_plugin.bridge import coefficients as closed_form
from rdbm_plugin.bridge.schedules import rates
from rdbm_plugin.options import OptionError, check_choice, check_int, check_number

MODULATIONS = ('residual', 'one', 'zero')
PREDICTIONS = ('x0', 'residual', 'noise', 'velocity')


class Step(NamedTuple):
    """One reverse step z_s = z_weight z_t + residual_weight r_hat + noise_weight pi_hat xi, with z = x - mu."""

    z_weight: float
    residual_weight: float
    noise_weight: float


class ResidualBridge:
    """Diffusion bridge from a clean image x0 to its degraded image mu (RDBM, arXiv 2510.23116).

    With residual = x0 - mu, modulation pi and eps ~ N(0, I), the state at node t is::

        x_t = mu + mean_coef[t] * residual + std_coef[t] * pi * eps

    There are T+1 nodes: node 0 is x0 (mean_coef 1, std_coef 0), node T is mu (both 0). All images are
    (N, C, H, W) in [-1, 1]; ``t`` is a (N,) int64 tensor of nodes on the CPU; coefficients are kept in float64.

    What a network predicts is turned into the residual at one place, :meth:`to_residual`:

    - ``residual``: x0 - mu, and ``x0``: x0 itself.
    - ``noise``: n = pi * eps, the paper's target. At node T the state is mu whatever n is, so there n says nothing
      about x0 (0/0 in the conversion); the network is trained to give the residual at that one node.
    - ``velocity``: cos(phi) residual - sin(phi) n with tan(phi) = mean_coef / std_coef: a rotation of the two, well
      conditioned at every node, and the residual itself at node T.

    Args:
        modulation: pi. ``residual`` (RDBM: clean pixels get no noise), ``one`` (OU bridges), ``zero`` (no noise).
        schedule: ``cosine``, ``linear``, ``sigmoid`` or ``constant``.
        timesteps: T, at least 1.
        stationary_variance: lambda > 0, a *variance* in units of the [-1, 1] range; number or text such as '10/255'.
        prediction: What the network gives: ``x0``, ``residual``, ``noise`` or ``velocity``.
        total: If given, rescales the schedule so that theta_bar_{0:T} has this value.

    Raises:
        OptionError: An argument is out of its range, or prediction 'noise' goes with modulation 'zero'.
    """

    def __init__(self, modulation: str = 'residual', schedule: str = 'cosine', timesteps: int = 100,
                 stationary_variance: float | str = '10/255', prediction: str = 'residual',
                 total: float | None = None) -> None:
        self.modulation = check_choice('modulation', modulation, MODULATIONS)
        self.prediction = check_choice('prediction', prediction, PREDICTIONS)
        if modulation == 'zero' and prediction == 'noise':
            raise OptionError("prediction: found 'noise' with modulation 'zero', where the noise is 0 everywhere; "
                              'allowed are x0, residual, velocity.')
        self.timesteps = check_int('timesteps', timesteps, 1)
        self.stationary_variance = check_number('stationary_variance', stationary_variance, above=0)
        self.theta = rates(schedule, timesteps, total)
        zero = self.theta.new_zeros(1)
        # theta_bar_{t:T} is summed from its own end: the total minus theta_bar_{0:t} has no digits left near node T.
        self.theta_bar_0t = a = torch.cat([zero, self.theta.cumsum(0)])
        self.theta_bar_tT = b = torch.cat([self.theta.flip(0).cumsum(0).flip(0), zero])
        self.mean_coef = closed_form.mean_coef(a, b)
        self.std_coef = closed_form.std_coef(a, b, self.stationary_variance)
        self._norm_squared = self.mean_coef.square() + self.std_coef.square()
        norm = self._norm_squared.sqrt()
        self._sin = (self.mean_coef / norm).nan_to_num(nan=0.0)
        self._cos = (self.std_coef / norm).nan_to_num(nan=1.0)

    @property
    def rnr(self) -> Tensor:
        """Residual-to-noise ratio Theta_t^2 / Sigma_t^2 at the T+1 nodes, float64; inf at node 0, 0 at node T."""
        inner = closed_form.rnr(self.theta_bar_0t[1:], self.theta_bar_tT[1:], self.stationary_variance)
        return torch.cat([inner.new_full((1,), torch.inf), inner])

    def _at(self, table: Tensor, t: Tensor, like: Tensor) -> Tensor:
        return table[t].to(device=like.device, dtype=like.dtype).view(-1, 1, 1, 1)

    def _at_mu(self, t: Tensor, like: Tensor) -> Tensor:
        return (t == self.timesteps).to(like.device).view(-1, 1, 1, 1)

    def modulate(self, residual: Tensor, eps: Tensor) -> Tensor:
        """The modulated noise n = pi * eps; (N, C, H, W)."""
        if self.modulation == 'residual':
            return residual * eps
        return eps if self.modulation == 'one' else torch.zeros_like(eps)

    def marginal(self, residual: Tensor, n: Tensor, t: Tensor) -> Tensor:
        """z_t = x_t - mu at nodes ``t`` for the modulated noise ``n`` (Eq. 13); (N, C, H, W)."""
        return self._at(self.mean_coef, t, residual) * residual + self._at(self.std_coef, t, residual) * n

    def noise_of(self, z: Tensor, residual: Tensor, t: Tensor) -> Tensor:
        """The n with which :meth:`marginal` gives ``z``, at nodes 1 to T-1; (N, C, H, W)."""
        return (z - self._at(self.mean_coef, t, z) * residual) / self._at(self.std_coef, t, z)

    def target(self, residual: Tensor, n: Tensor, mu: Tensor, t: Tensor) -> Tensor:
        """What the network shall give at nodes ``t``, the inverse of :meth:`to_residual`; (N, C, H, W)."""
        if self.prediction == 'x0':
            return mu + residual
        if self.prediction == 'noise':
            return torch.where(self._at_mu(t, n), residual, n)
        if self.prediction == 'velocity':
            return self._at(self._cos, t, n) * residual - self._at(self._sin, t, n) * n
        return residual

    def to_residual(self, output: Tensor, z: Tensor, mu: Tensor, t: Tensor) -> Tensor:
        """The residual estimate that a network output stands for.

        Args:
            output: What the network gave, (N, C, H, W).
            z: x_t - mu, (N, C, H, W).
            mu: Degraded image, (N, C, H, W) in [-1, 1].
            t: Nodes, (N,) int64, from 1 to T.
        """
        if self.prediction == 'x0':
            return output - mu
        if self.prediction == 'noise':
            at_mu = self._at_mu(t, output)
            mean = self._at(self.mean_coef, t, z)
            residual = (z - self._at(self.std_coef, t, z) * output) / torch.where(at_mu, 1.0, mean)
            return torch.where(at_mu, output, residual)
        if self.prediction == 'velocity':
            z_weight = (self.mean_coef / self._norm_squared).nan_to_num(nan=0.0)
            return self._at(z_weight, t, z) * z + self._at(self._cos, t, z) * output
        return output

    def error_gain(self, quantity: str, t: Tensor) -> Tensor:
        """|error of ``quantity``| / |error of the residual| at nodes ``t``; (N,) float64.

        ``noise``: Theta_t / Sigma_t; ``velocity``: sqrt(1 + Theta_t^2 / Sigma_t^2); ``residual`` and ``x0``: 1.
        At node T noise stands for the residual (see above), so its gain there is 1.
        """
        if check_choice('quantity', quantity, PREDICTIONS) in ('residual', 'x0'):
            return torch.ones(len(t), dtype=torch.float64)
        if quantity == 'noise':
            return torch.where(t == self.timesteps, 1.0, self.rnr[t].sqrt())
        return 1 / self._cos[t]

    def posterior(self, s: int, t: int) -> tuple[float, float, float]:
        """(k, c, v) of q(x_s | x_t, x0, mu) = N(mu + k z_t + c residual, v pi^2) for nodes s < t."""
        a_s, a_t, d = self.theta_bar_0t[s], self.theta_bar_0t[t], self.theta[s:t].sum()
        k, c, v = closed_form.posterior(a_s, a_t, d, self.stationary_variance)
        return float(k), float(c), float(v)

    def step(self, s: int, t: int, eta: float = 0.0) -> Step:
        """Weights of the reverse step from node t to node s < t.

        eta = 0 is the deterministic step of the paper (Eq. 19), eta = 1 the posterior; the one-time marginals are
        the same for every eta in [0, 1]. From node T every eta gives the marginal of node s, since x_T = mu: the
        weights are then mean_coef[s] and std_coef[s]. Into node 0 it gives the residual estimate itself.
        """
        if s == 0:
            return Step(0.0, 1.0, 0.0)
        if t == self.timesteps:
            noise_weight = 0.0 if self.modulation == 'zero' else float(self.std_coef[s])
            return Step(0.0, float(self.mean_coef[s]), noise_weight)
        if self.modulation == 'zero':
            return Step(1.0, float(self.mean_coef[s] - self.mean_coef[t]), 0.0)
        a, b = self.theta_bar_0t, self.theta_bar_tT
        z_weight = closed_form.std_ratio(a[s], a[t], b[s], b[t])
        if eta == 0:
            weight = closed_form.residual_step(a[s], a[t], b[s], b[t], self.theta[s:t].sum(), self.stationary_variance)
            return Step(float(z_weight), float(weight), 0.0)
        omega_squared = eta**2 * self.posterior(s, t)[2]
        z_weight = z_weight * (1 - omega_squared / self.std_coef[s].square()).clamp(min=0).sqrt()
        return Step(float(z_weight), float(self.mean_coef[s] - self.mean_coef[t] * z_weight), omega_squared**0.5)

    def nodes(self, steps: int) -> list[int]:
        """The nodes T = t_0 > ... > t_steps = 0 that a sampler of ``steps`` steps visits, evenly spaced.

        Integer arithmetic floor(i T / steps), as rounding a float grid skips or repeats nodes for some counts.

        Raises:
            OptionError: steps < 1 or steps > T.
        """
        check_int('steps', steps, 1, self.timesteps)
        return [i * self.timesteps // steps for i in range(steps, -1, -1)]
