"""Closed forms of the residual diffusion bridge as functions of accumulated rates.

Written with exponentials of negative arguments through ``expm1``: finite and accurate to a few rounding errors
for accumulated rates from 1e-8 to 1e3, in float32 and float64, where the textbook ``sinh`` forms overflow.

Notation: ``a`` = theta_bar_{0:t}, ``b`` = theta_bar_{t:T} (>= 0, same shape, same dtype), ``variance`` = lambda,
the stationary variance. For two nodes s < t (s nearer x0), ``d`` = theta_bar_{s:t}. Paper: arXiv 2510.23116.
"""
from __future__ import annotations

import torch
from torch import Tensor

_E = torch.expm1


def mean_coef(a: Tensor, b: Tensor) -> Tensor:
    """Theta_t = sinh(b) / sinh(a + b), the weight of the residual in the mean; 1 at x0, 0 at mu."""
    return torch.exp(-a) * _E(-2 * b) / _E(-2 * (a + b))


def std_coef(a: Tensor, b: Tensor, variance: float) -> Tensor:
    """Sigma_t = sqrt(2 lambda sinh(a) sinh(b) / sinh(a + b)), the scale of the noise; 0 at both ends."""
    return torch.sqrt(variance * (_E(-2 * a) / _E(-2 * (a + b))) * -_E(-2 * b))


def rnr(a: Tensor, b: Tensor, variance: float) -> Tensor:
    """Residual-to-noise ratio Theta_t^2 / Sigma_t^2 = (coth(a) - coth(a + b)) / (2 lambda), for a > 0."""
    return -torch.exp(-2 * a) * _E(-2 * b) / (variance * _E(-2 * a) * _E(-2 * (a + b)))


def posterior(a_s: Tensor, a_t: Tensor, d: Tensor, variance: float) -> tuple[Tensor, Tensor, Tensor]:
    """(k, c, v) of q(x_s | x_t, x0, mu) = N(mu + k (x_t - mu) + c residual, v pi^2), for a_t > 0.

    It does not contain the end T, so it holds at t = T as well.
    """
    scale = _E(-2 * a_t)
    k = torch.exp(-d) * _E(-2 * a_s) / scale
    c = torch.exp(-a_s) * _E(-2 * d) / scale
    return k, c, -variance * _E(-2 * a_s) * _E(-2 * d) / scale


def forward_kernel(b_s: Tensor, b_t: Tensor, d: Tensor, variance: float) -> tuple[Tensor, Tensor]:
    """(k, v) of q(x_t | x_s, mu) = N(mu + k (x_s - mu), v pi^2), for b_s > 0."""
    ratio = _E(-2 * b_t) / _E(-2 * b_s)
    return torch.exp(-d) * ratio, -variance * _E(-2 * d) * ratio


def std_ratio(a_s: Tensor, a_t: Tensor, b_s: Tensor, b_t: Tensor) -> Tensor:
    """Sigma_s / Sigma_t for a_t, b_t > 0."""
    return torch.sqrt((_E(-2 * a_s) / _E(-2 * a_t)) * (_E(-2 * b_s) / _E(-2 * b_t)))


def residual_step(a_s: Tensor, a_t: Tensor, b_s: Tensor, b_t: Tensor, d: Tensor, variance: float) -> Tensor:
    """Theta_s - Theta_t Sigma_s / Sigma_t, the weight of the residual estimate in Eq. 19, for a_s, b_t > 0.

    Factored as Sigma_s (R_s - R_t) / (rho_s + rho_t) with R the RNR and rho its root: the difference as written
    loses up to four digits in float32 for neighbouring nodes.
    """
    rnr_difference = -torch.exp(-2 * a_s) * _E(-2 * d) / (variance * _E(-2 * a_s) * _E(-2 * a_t))
    rho_sum = rnr(a_s, b_s, variance).sqrt() + rnr(a_t, b_t, variance).sqrt()
    return std_coef(a_s, b_s, variance) * rnr_difference / rho_sum
