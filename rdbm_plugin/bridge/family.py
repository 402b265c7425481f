"""Published bridges as settings of :class:`rdbm_plugin.bridge.bridge.ResidualBridge`. Needs torch only.

Each docstring gives the mapping and its differences from the published code. Variances are in units of the range
[-1, 1], four times those for images in [0, 1]. ``timesteps``, ``schedule``, ``prediction``: see ResidualBridge.
"""
import math

import torch

from rdbm_plugin.bridge.bridge import ResidualBridge
from rdbm_plugin.config.options import check_int, check_number


class FlowMatching(ResidualBridge):
    """Rectified flow between mu and x0 (Lipman et al., arXiv 2210.02747; Liu et al., arXiv 2209.03003).

    x_t = (1 - u) x0 + u mu with u = t/T: modulation zero, Brownian clock. Its velocity dx/du is -residual. Exact.
    ``prediction: noise`` raises OptionError.
    """

    def __init__(self, timesteps: int = 100, prediction: str = 'residual') -> None:
        super().__init__('zero', 'constant', timesteps, prediction=prediction, brownian=True)


class BrownianBridge(ResidualBridge):
    """BBDM (Li et al., arXiv 2205.07680).

    Mean (1 - m) x0 + m mu, variance 2 s (m - m^2): modulation one, Brownian clock, lambda = s at total 1. Exact in m.
    Here m = t/T. In the published code, m runs from 0.001 to 0.999, so that its ends are not exactly pinned, and eta
    changes the marginals, which here are the same for every eta.

    Args:
        variance_scale: s > 0.
        prediction: The paper's network gives x_t - x0, which is the residual up to known terms.
    """

    def __init__(self, timesteps: int = 100, variance_scale: float | str = 1.0, prediction: str = 'residual') -> None:
        super().__init__('one', 'constant', timesteps, check_number('variance_scale', variance_scale, above=0),
                         prediction, total=1.0, brownian=True)


class VEBridge(ResidualBridge):
    """DDBM with a variance-exploding process (Zhou et al., arXiv 2309.16948).

    Weight of mu u = sigma_t^2 / sigma_T^2, variance sigma_T^2 u (1 - u): modulation one, Brownian clock whose rates are
    the increments of sigma^2, lambda = 1/2. Exact. Nodes are evenly spaced in sigma_t, as in the paper (sigma_t = t).
    The published sigma_max of 80 needs their preconditioned network; 1 suits a network whose input is x_t itself.

    Args:
        sigma_max: sigma_T > 0.
        prediction: The paper's is x0.
    """

    def __init__(self, timesteps: int = 100, sigma_max: float | str = 1.0, prediction: str = 'residual') -> None:
        count = check_int('timesteps', timesteps, 1)
        sigma = torch.linspace(0, check_number('sigma_max', sigma_max, above=0), count + 1, dtype=torch.float64)
        super().__init__('one', sigma.square().diff().tolist(), timesteps, 0.5, prediction, brownian=True)


class VPBridge(ResidualBridge):
    """DDBM with a variance-preserving process (Zhou et al., arXiv 2309.16948).

    alpha_t = exp(-theta_bar_{0:t}) with theta = beta/2, beta rising linearly; modulation one, lambda = 1. The process
    reverts to 0, not to mu: reversion_level 0 makes all weights and the variance exact. With reversion to mu, as in
    RDBM, the weight of mu would be off by up to 1 - 1/cosh(theta_bar_{0:T} / 2), 0.037 at the defaults.

    Args:
        beta_min: beta at x0, > 0.
        beta_d: beta at mu minus beta_min, >= 0.
        prediction: The paper's is x0.
    """

    def __init__(self, timesteps: int = 100, beta_min: float | str = 0.1, beta_d: float | str = 2.0,
                 prediction: str = 'residual') -> None:
        low, rise = check_number('beta_min', beta_min, above=0), check_number('beta_d', beta_d, 0)
        u = torch.linspace(0, 1, check_int('timesteps', timesteps, 1) + 1, dtype=torch.float64)
        accumulated = (low * u + rise * u.square() / 2) / 2
        super().__init__('one', accumulated.diff().tolist(), timesteps, 1.0, prediction, reversion_level=0.0)


class OUBridge(ResidualBridge):
    """GOUB (Yue et al., arXiv 2312.10299).

    Modulation one, lambda = (2 max_sigma / 255)^2, theta_bar_{0:T} = -log(eps), rates along 1 - cos^2. Exact,
    posterior included. The published lambda is a standard deviation in 1/255 for images in [0, 1]; RDBM's 10/255 is a
    variance.

    Args:
        max_sigma: In 1/255 of the range [0, 1], > 0.
        eps: exp(-theta_bar_{0:T}), between 0 and 1.
        prediction: The paper's is noise.
    """

    def __init__(self, timesteps: int = 100, max_sigma: float | str = 30, eps: float | str = 0.005,
                 schedule: str = 'cosine_rate', prediction: str = 'residual') -> None:
        super().__init__('one', schedule, timesteps, _variance(max_sigma), prediction, total=_total(eps))


class I2SB(ResidualBridge):
    """I2SB (Liu et al., arXiv 2302.05872).

    With s^2 and sbar^2 the variances accumulated from either end: weight of mu s^2 / (s^2 + sbar^2), variance
    s^2 sbar^2 / (s^2 + sbar^2): modulation one, Brownian clock with the betas as rates, lambda = 1/2. Exact for their
    equations; their code counts beta_t in both sums, which moves weights and standard deviations by up to 8e-4 at 1000
    steps. Their deterministic OT-ODE is FlowMatching on this clock.

    Args:
        beta_max: T times the largest beta, > 0; betas rise quadratically to the middle and fall again.
        prediction: The paper's is (x_t - x0) / s.
    """

    def __init__(self, timesteps: int = 100, beta_max: float | str = 0.3, prediction: str = 'residual') -> None:
        count = check_int('timesteps', timesteps, 1)
        roots = torch.linspace(1e-4**0.5, (check_number('beta_max', beta_max, above=0) / count) ** 0.5, count,
                               dtype=torch.float64)
        rising = roots.square()[:(count + 1) // 2]
        betas = torch.cat([rising, rising[:count // 2].flip(0)])
        super().__init__('one', betas.tolist(), timesteps, 0.5, prediction, brownian=True)


class UniDB(ResidualBridge):
    """UniDB (Zhu et al., arXiv 2502.05749): GOUB with a finite penalty gamma on the distance to mu.

    A bridge whose pin lies delta = log(1 + 1 / (lambda gamma)) / 2 beyond node T, with their lambda (of images in
    [0, 1]). The mean is exact; the standard deviation is that of their controlled equation, sqrt(2 lambda sinh(L)
    sinh(delta) / sinh(L + delta)) at node T, whereas their code uses GOUB's, which is 0 there.

    Args:
        gamma: Penalty > 0; large values give GOUB.
        max_sigma, eps: As for OUBridge.
    """

    def __init__(self, timesteps: int = 100, max_sigma: float | str = 30, gamma: float | str = 1e7,
                 eps: float | str = 0.005, schedule: str = 'cosine_rate', prediction: str = 'residual') -> None:
        variance = _variance(max_sigma)
        delta = math.log1p(4 / (variance * check_number('gamma', gamma, above=0))) / 2
        super().__init__('one', schedule, timesteps, variance, prediction, total=_total(eps), soft_end=delta)


class IRSDE(ResidualBridge):
    """IR-SDE (Luo et al., arXiv 2301.11699): an OU process to mu, without a pin.

    Mean mu + exp(-theta_bar_{0:t}) residual, variance lambda (1 - exp(-2 theta_bar_{0:t})): modulation one, soft_end
    inf. Exact, posterior included. Node T is mu plus noise of variance lambda: sample with ``start: stochastic``.

    Args:
        max_sigma, eps: As for OUBridge.
    """

    def __init__(self, timesteps: int = 100, max_sigma: float | str = 10, eps: float | str = 0.005,
                 schedule: str = 'cosine_rate', prediction: str = 'residual') -> None:
        super().__init__('one', schedule, timesteps, _variance(max_sigma), prediction, total=_total(eps),
                         soft_end='inf')


def _variance(max_sigma: float | str) -> float:
    return (2 * check_number('max_sigma', max_sigma, above=0) / 255) ** 2


def _total(eps: float | str) -> float:
    return -math.log(check_number('eps', eps, high=1 - 1e-9, above=0))
