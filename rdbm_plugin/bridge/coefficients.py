"""Closed forms of the bridges as functions of accumulated rates (arXiv 2510.23116). Needs torch only.

Written with ``expm1`` of negative arguments: accurate to a few rounding errors for accumulated rates from 1e-8 to 1e3,
in float32 and float64, where the textbook ``sinh`` forms overflow.

Notation: ``a`` = theta_bar_{0:t}, ``b`` = theta_bar_{t:T} (>= 0, same shape, same dtype), ``variance`` = lambda,
the stationary variance. For two nodes s < t (s nearer x0), ``d`` = theta_bar_{s:t}. If ``b`` > 0 at node T, up to
``inf``, the bridge has a soft end: it stops before its pin. ``flat`` is the limit of no mean reversion at constant
lambda * rate: sinh(x) becomes x, and the OU bridge becomes Brownian.
"""
from collections.abc import Callable

import torch
from torch import Tensor


def _functions(flat: bool) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """exp(-x) and expm1(-2x) or, if ``flat``, their limits for small x; other factors cancel in every form below."""
    if flat:
        return torch.ones_like, lambda x: -2 * x
    return lambda x: torch.exp(-x), lambda x: torch.expm1(-2 * x)


def mean_coef(a: Tensor, b: Tensor, flat: bool = False) -> Tensor:
    """Theta_t = sinh(b) / sinh(a + b), the weight of the residual in the mean; 1 at x0, 0 at mu."""
    decay, fall = _functions(flat)
    return decay(a) * fall(b) / fall(a + b)


def std_coef(a: Tensor, b: Tensor, variance: float, flat: bool = False) -> Tensor:
    """Sigma_t = sqrt(2 lambda sinh(a) sinh(b) / sinh(a + b)), the scale of the noise; 0 at both ends."""
    fall = _functions(flat)[1]
    return torch.sqrt(variance * (fall(a) / fall(a + b)) * -fall(b))


def rnr(a: Tensor, b: Tensor, variance: float, flat: bool = False) -> Tensor:
    """Residual-to-noise ratio Theta_t^2 / Sigma_t^2 = (coth(a) - coth(a + b)) / (2 lambda), for a > 0."""
    decay, fall = _functions(flat)
    return -decay(2 * a) * fall(b) / (variance * fall(a) * fall(a + b))


def posterior(a_s: Tensor, a_t: Tensor, d: Tensor, variance: float,
              flat: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """(k, c, v) of q(x_s | x_t, x0, mu) = N(mu + k (x_t - mu) + c residual, v pi^2), for a_t > 0 and any end."""
    decay, fall = _functions(flat)
    scale = fall(a_t)
    k = decay(d) * fall(a_s) / scale
    c = decay(a_s) * fall(d) / scale
    return k, c, -variance * fall(a_s) * fall(d) / scale


def std_ratio(a_s: Tensor, a_t: Tensor, b_s: Tensor, b_t: Tensor, flat: bool = False) -> Tensor:
    """Sigma_s / Sigma_t for a_t, b_t > 0."""
    fall = _functions(flat)[1]
    return torch.sqrt((fall(a_s) / fall(a_t)) * (fall(b_s) / fall(b_t)))


def residual_step(a_s: Tensor, a_t: Tensor, b_s: Tensor, b_t: Tensor, d: Tensor, variance: float,
                  flat: bool = False) -> Tensor:
    """Theta_s - Theta_t Sigma_s / Sigma_t, the weight of the residual estimate in Eq. 19, for a_s, b_t > 0.

    Factored as Sigma_s (R_s - R_t) / (rho_s + rho_t) with R the RNR and rho its root: the difference as written
    loses up to four digits in float32 for neighbouring nodes.
    """
    decay, fall = _functions(flat)
    rnr_difference = -decay(2 * a_s) * fall(d) / (variance * fall(a_s) * fall(a_t))
    rho_sum = rnr(a_s, b_s, variance, flat).sqrt() + rnr(a_t, b_t, variance, flat).sqrt()
    return std_coef(a_s, b_s, variance, flat) * rnr_difference / rho_sum


def reversion_gap(a: Tensor, b: Tensor, flat: bool = False) -> Tensor:
    """sinh(a) / sinh(a + b) + Theta_t - 1 <= 0: the negative weight of a reversion level other than mu."""
    if flat:
        return torch.zeros_like(a)
    # cosh((b - a) / 2) / cosh((a + b) / 2) - 1, as a product that is 0 at both ends.
    return -torch.expm1(-a) * torch.expm1(-b) / (1 + torch.exp(-(a + b)))
