"""The residual diffusion bridge: its marginals, its conversions and its steps. Needs torch only."""
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rdbm_plugin.bridge import coefficients as closed_form
from rdbm_plugin.bridge.schedules import rates
from rdbm_plugin.config.options import OptionError, check_choice, check_int, check_number

MODULATIONS = ('residual', 'one', 'zero')
PREDICTIONS = ('x0', 'residual', 'noise', 'velocity')


class Step(NamedTuple):
    """One reverse step z_s = z_weight z_t + residual_weight r_hat + noise_weight pi_hat xi, with z = x - centre."""

    z_weight: float
    residual_weight: float
    noise_weight: float


class ResidualBridge:
    """Diffusion bridge from a clean image x0 to its degraded image mu (RDBM, arXiv 2510.23116).

    With residual = x0 - mu, modulation pi and eps ~ N(0, I), the state at node t is::

        x_t = mu + mean_coef[t] * residual + std_coef[t] * pi * eps

    Node 0 of the T+1 nodes is x0 (mean_coef 1, std_coef 0), node T is mu (both 0). All images are (N, C, H, W) in
    [-1, 1]; ``t`` is an (N,) int64 tensor of nodes on the CPU or the device of the images; coefficients are float64.
    Other bridges are settings of this one, see :mod:`rdbm_plugin.bridge.family`. With n = pi * eps, a network predicts

    - ``residual``: x0 - mu, or ``x0`` itself.
    - ``noise``: n, the paper's target; at a pinned node T the residual, as x_T = mu does not depend on n (0/0).
    - ``velocity``: cos(phi) residual - sin(phi) n with tan(phi) = mean_coef / std_coef: a rotation of the two, well
      conditioned at every node, and the residual itself at node T.

    Args:
        modulation: pi: ``residual`` (RDBM: clean pixels get no noise), ``one`` (OU bridges) or ``zero`` (no noise).
        schedule: ``cosine``, ``linear``, ``cosine_rate``, ``sigmoid`` or ``constant``, or a list of T rates theta > 0.
        timesteps: T, at least 1.
        stationary_variance: lambda > 0, a *variance* in units of the [-1, 1] range; number or text such as '10/255'.
        prediction: What the network predicts: ``x0``, ``residual``, ``noise`` or ``velocity``.
        total: If given, rescales the schedule so that theta_bar_{0:T} has this value.
        brownian: Whether to take the limit of no mean reversion at constant stationary_variance * rate: a Brownian
            bridge of total variance 2 * stationary_variance * total.
        soft_end: delta >= 0, number or 'inf': the accumulated rate from node T to the pin at mu, so that mean_coef and
            std_coef are not 0 at node T. 'inf': no pin, an OU process.
        reversion_level: m, the value in [-1, 1] to which the process reverts; default mu. The mean then is
            Theta x0 + Phi mu + (1 - Theta - Phi) m with Phi = sinh(theta_bar_{0:t}) / sinh(theta_bar_{0:T}).

    Raises:
        OptionError: An argument is out of range, or arguments contradict each other: prediction 'noise' and modulation
            'zero', a reversion_level and a soft_end, or brownian and soft_end 'inf'.
    """

    def __init__(self, modulation: str = 'residual', schedule: str | Sequence[float] = 'cosine', timesteps: int = 100,
                 stationary_variance: float | str = '10/255', prediction: str = 'residual',
                 total: float | None = None, brownian: bool = False, soft_end: float | str = 0.0,
                 reversion_level: float | None = None) -> None:
        self.modulation = check_choice('modulation', modulation, MODULATIONS)
        self.prediction = check_choice('prediction', prediction, PREDICTIONS)
        if modulation == 'zero' and prediction == 'noise':
            raise OptionError("prediction: found 'noise' with modulation 'zero', where the noise is 0 everywhere; "
                              'allowed are x0, residual, velocity.')
        self.timesteps = check_int('timesteps', timesteps, 1)
        self.stationary_variance = check_number('stationary_variance', stationary_variance, above=0)
        self.brownian = bool(brownian)
        infinite = str(soft_end) in ('inf', '.inf')
        self.soft_end = math.inf if infinite else check_number('soft_end', soft_end, 0)
        self.reversion_level = reversion_level
        if reversion_level is not None:
            self.reversion_level = check_number('reversion_level', reversion_level, -1, 1)
            if self.soft_end:
                raise OptionError(f'reversion_level: found {reversion_level!r} with soft_end {soft_end!r}; leave out '
                                  'one of them: a bridge with a soft end reverts to mu.')
        if self.brownian and infinite:
            raise OptionError("soft_end: found 'inf' with brownian; expected a finite number without mean reversion.")
        self._copies: dict[tuple[str, torch.device], Tensor] = {}
        self.theta = theta = rates(schedule, timesteps, total)
        zero = theta.new_zeros(1)
        # theta_bar_{t:T} is summed from node T: near it, the total minus theta_bar_{0:t} would lose all digits.
        self.theta_bar_0t = a = torch.cat([zero, theta.cumsum(0)])
        self.theta_bar_tT = b = torch.cat([theta.flip(0).cumsum(0).flip(0), zero]) + self.soft_end
        self.mean_coef = closed_form.mean_coef(a, b, self.brownian)
        self.std_coef = closed_form.std_coef(a, b, self.stationary_variance, self.brownian)
        norm_squared = self.mean_coef.square() + self.std_coef.square()
        norm = norm_squared.sqrt()
        self._sin = (self.mean_coef / norm).nan_to_num(nan=0.0)
        self._cos = (self.std_coef / norm).nan_to_num(nan=1.0)
        self._velocity_weight = (self.mean_coef / norm_squared).nan_to_num(nan=0.0)
        self._velocity_gain = 1 / self._cos
        self._noise_gain = self.rnr.sqrt()
        if self.pinned:
            self._noise_gain[-1] = 1.0
        if self.reversion_level is not None:
            self._gap = closed_form.reversion_gap(a, b, self.brownian)

    @property
    def pinned(self) -> bool:
        """Whether node T is mu itself."""
        return self.soft_end == 0

    def centre(self, mu: Tensor, t: Tensor) -> Tensor:
        """x_t minus the z of :meth:`marginal`: mu, or a mix of mu and the reversion level; (N, C, H, W)."""
        if self.reversion_level is None:
            return mu
        return mu + self._at('_gap', t, mu) * (mu - self.reversion_level)

    @property
    def rnr(self) -> Tensor:
        """Residual-to-noise ratio Theta_t^2 / Sigma_t^2 at the T+1 nodes, float64; inf at node 0, 0 at node T."""
        inner = closed_form.rnr(self.theta_bar_0t[1:], self.theta_bar_tT[1:], self.stationary_variance, self.brownian)
        return torch.cat([inner.new_full((1,), torch.inf), inner])

    def _at(self, table: str, t: Tensor, like: Tensor) -> Tensor:
        """The values of a table at nodes ``t``, (N, 1, 1, 1), with the device and dtype of ``like``."""
        return self._on(table, t.device)[t].to(device=like.device, dtype=like.dtype).view(-1, 1, 1, 1)

    def _on(self, table: str, device: torch.device) -> Tensor:
        # The table is copied to the device of the nodes, so that no look-up waits for the CPU.
        if device.type == 'cpu':
            return getattr(self, table)
        if (table, device) not in self._copies:
            # Apple's GPUs do not support float64.
            dtype = torch.float32 if device.type == 'mps' else torch.float64
            self._copies[table, device] = getattr(self, table).to(device, dtype)
        return self._copies[table, device]

    def _at_mu(self, t: Tensor, like: Tensor) -> Tensor:
        # TorchScript cannot combine a tensor and a bool with "and".
        return (t == (self.timesteps if self.pinned else -1)).to(like.device).view(-1, 1, 1, 1)

    def modulate(self, residual: Tensor, eps: Tensor) -> Tensor:
        """The modulated noise n = pi * eps; (N, C, H, W)."""
        if self.modulation == 'residual':
            return residual * eps
        return eps if self.modulation == 'one' else torch.zeros_like(eps)

    def marginal(self, residual: Tensor, n: Tensor, t: Tensor) -> Tensor:
        """z_t = x_t - centre at nodes ``t`` for the modulated noise ``n`` (Eq. 13); (N, C, H, W)."""
        return self._at('mean_coef', t, residual) * residual + self._at('std_coef', t, residual) * n

    def noise_of(self, z: Tensor, residual: Tensor, t: Tensor) -> Tensor:
        """The n for which :meth:`marginal` returns ``z``, at nodes 1 to T-1; (N, C, H, W)."""
        return (z - self._at('mean_coef', t, z) * residual) / self._at('std_coef', t, z)

    def target(self, residual: Tensor, n: Tensor, mu: Tensor, t: Tensor) -> Tensor:
        """The network's target at nodes ``t``, the inverse of :meth:`to_residual`; (N, C, H, W)."""
        if self.prediction == 'x0':
            return mu + residual
        if self.prediction == 'noise':
            return torch.where(self._at_mu(t, n), residual, n)
        if self.prediction == 'velocity':
            return self._at('_cos', t, n) * residual - self._at('_sin', t, n) * n
        return residual

    def to_residual(self, output: Tensor, z: Tensor, mu: Tensor, t: Tensor) -> Tensor:
        """The residual estimate of a network's output, all (N, C, H, W); z = x_t - centre, nodes ``t`` from 1 to T."""
        if self.prediction == 'x0':
            return output - mu
        if self.prediction == 'noise':
            at_mu = self._at_mu(t, output)
            mean = self._at('mean_coef', t, z)
            residual = (z - self._at('std_coef', t, z) * output) / torch.where(at_mu, 1.0, mean)
            return torch.where(at_mu, output, residual)
        if self.prediction == 'velocity':
            return self._at('_velocity_weight', t, z) * z + self._at('_cos', t, z) * output
        return output

    def error_gain(self, quantity: str, t: Tensor) -> Tensor:
        """|error of ``quantity``| / |error of the residual| at nodes ``t``; (N,), float64 unless all are 1.

        ``noise``: Theta_t / Sigma_t, but 1 at a pinned node T; ``velocity``: sqrt(1 + Theta_t^2 / Sigma_t^2); else 1.
        """
        if check_choice('quantity', quantity, PREDICTIONS) in ('residual', 'x0'):
            return torch.ones_like(t, dtype=torch.float32)
        return self._on('_noise_gain' if quantity == 'noise' else '_velocity_gain', t.device)[t]

    def posterior(self, s: int, t: int) -> tuple[float, float, float]:
        """(k, c, v) of q(x_s | x_t, x0, mu) = N(centre_s + k z_t + c residual, v pi^2) for nodes s < t."""
        a_s, a_t, d = self.theta_bar_0t[s], self.theta_bar_0t[t], self.theta[s:t].sum()
        k, c, v = closed_form.posterior(a_s, a_t, d, self.stationary_variance, self.brownian)
        return float(k), float(c), float(v)

    def step(self, s: int, t: int, eta: float = 0.0) -> Step:
        """Weights of the reverse step from node t to node s < t.

        eta = 0 is the deterministic step of the paper (Eq. 19), eta = 1 the posterior; all eta in [0, 1] have the same
        marginals. A step from a pinned node T gives the marginal of node s, a step to node 0 the residual estimate.
        """
        if s == 0:
            return Step(0.0, 1.0, 0.0)
        if t == self.timesteps and self.pinned:
            noise_weight = 0.0 if self.modulation == 'zero' else float(self.std_coef[s])
            return Step(0.0, float(self.mean_coef[s]), noise_weight)
        if self.modulation == 'zero':
            return Step(1.0, float(self.mean_coef[s] - self.mean_coef[t]), 0.0)
        a, b = self.theta_bar_0t, self.theta_bar_tT
        z_weight = closed_form.std_ratio(a[s], a[t], b[s], b[t], self.brownian)
        if eta == 0:
            weight = closed_form.residual_step(a[s], a[t], b[s], b[t], self.theta[s:t].sum(),
                                               self.stationary_variance, self.brownian)
            return Step(float(z_weight), float(weight), 0.0)
        omega_squared = eta**2 * self.posterior(s, t)[2]
        z_weight = z_weight * (1 - omega_squared / self.std_coef[s].square()).clamp(min=0).sqrt()
        return Step(float(z_weight), float(self.mean_coef[s] - self.mean_coef[t] * z_weight), omega_squared**0.5)

    def mean_step(self, s: int, t: int) -> Step:
        """The step to the mean of the posterior, without noise: GOUB's mean-ODE (arXiv 2312.10299), solved exactly."""
        if self.modulation == 'zero':
            return self.step(s, t)
        k, c, _ = self.posterior(s, t)
        return Step(k, c, 0.0)

    def curvature(self, s: int, t: int, u: int, variable: str = 'phi') -> float:
        """Weight of r_hat(t) - r_hat(u), u > t > s, that makes ``step(s, t)`` second order.

        It follows from the exact solution z_s = Sigma_s / Sigma_t z_t + Sigma_s int r_hat drho with rho = Theta / Sigma
        for a residual estimate that is linear in ``variable``.

        Args:
            s, t, u: Node to step to, node to step from, and node of the previous estimate.
            variable: ``rho``: log rho, as in DPM-Solver++ (arXiv 2211.01095) and DBIM (arXiv 2405.15885), infinite at
                node 0 and at a pinned node T. ``phi``: arctan rho, finite everywhere. Without noise both are Theta.
        """
        mean, std = self.mean_coef, self.std_coef
        if self.modulation == 'zero':
            return float((mean[s] - mean[t]) ** 2 / (2 * (mean[t] - mean[u])))
        if variable == 'rho':
            log_rho = self.rnr[[s, t, u]].log() / 2
            h = log_rho[0] - log_rho[1]
            return float(mean[s] * (h + torch.expm1(-h)) / (log_rho[1] - log_rho[2]))
        phi = torch.atan2(mean, std)
        moved = mean[s] * (phi[s] - phi[t]) + std[s] * (self._cos[s] / self._cos[t]).log()
        return float(moved / (phi[t] - phi[u]))

    def nodes(self, steps: int) -> list[int]:
        """Evenly spaced nodes T = t_0 > ... > t_steps = 0; raises OptionError unless ``steps`` is from 1 to T."""
        check_int('steps', steps, 1, self.timesteps)
        # Integer arithmetic: rounding a grid of floats skips or repeats nodes for some counts.
        return [i * self.timesteps // steps for i in range(steps, -1, -1)]
