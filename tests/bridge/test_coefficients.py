"""Closed forms against numerical integration of the SDE and against arithmetic with 60 digits."""
import mpmath
import numpy as np
import pytest
import torch
from scipy.integrate import quad, solve_ivp

from rdbm_plugin.bridge import SCHEDULES, ResidualBridge, coefficients, schedules

VARIANCE = 10 / 255


@pytest.mark.parametrize('schedule', SCHEDULES)
def test_tables_solve_the_moment_equations_of_the_sde(schedule):
    """The bridge drift is coth(theta_bar_{t:T}) (mu - x) per unit of theta_bar; with diffusion 2 lambda pi^2."""
    bridge = ResidualBridge(schedule=schedule, timesteps=20, total=2.5, stationary_variance=VARIANCE)
    grid = bridge.theta_bar_0t.numpy()
    total = grid[-1]

    def moments(a, y):
        pull = 1 / np.tanh(total - a)
        return [-pull * y[0], -2 * pull * y[1] + 2 * VARIANCE]

    inside = grid[:-1]  # the pull is infinite at node T
    solved = solve_ivp(moments, (0, inside[-1]), [1.0, 0.0], method='DOP853', t_eval=inside, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(bridge.mean_coef[:-1].numpy(), solved.y[0], atol=1e-9)
    np.testing.assert_allclose(bridge.std_coef[:-1].square().numpy(), solved.y[1], atol=1e-9)
    assert bridge.mean_coef[-1] == 0 and bridge.std_coef[-1] == 0
    assert bridge.mean_coef[0] == 1 and bridge.std_coef[0] == 0


@pytest.mark.parametrize(('s', 't'), [(3, 4), (5, 15), (1, 18)])
def test_posterior_follows_from_the_drift_by_gaussian_conditioning(s, t):
    bridge = ResidualBridge(schedule='linear', timesteps=20, total=1.7, stationary_variance=VARIANCE)
    a, total = bridge.theta_bar_0t.numpy(), float(bridge.theta_bar_0t[-1])
    decay = np.exp(-quad(lambda u: 1 / np.tanh(total - u), a[s], a[t])[0])
    added = quad(lambda u: 2 * VARIANCE * np.exp(-2 * quad(lambda v: 1 / np.tanh(total - v), u, a[t])[0]),
                 a[s], a[t])[0]

    variance_s = float(bridge.std_coef[s]) ** 2
    gain = variance_s * decay / (decay**2 * variance_s + added)
    mean_s = float(bridge.mean_coef[s])
    expected = [gain, mean_s * (1 - gain * decay), variance_s * (1 - gain * decay)]
    np.testing.assert_allclose(bridge.posterior(s, t), expected, rtol=1e-8)


def test_posterior_from_node_T_is_the_marginal():
    bridge = ResidualBridge()
    for s in (1, 50, 99):
        k, c, v = bridge.posterior(s, 100)
        # z_T = 0, so k has nothing to act on.
        assert c == pytest.approx(float(bridge.mean_coef[s]), rel=1e-12)
        assert v == pytest.approx(float(bridge.std_coef[s]) ** 2, rel=1e-12)
        assert 0 <= k <= 1


PAIRS = [(a, b) for a in np.logspace(-8, 3, 23) for b in np.logspace(-8, 3, 23)]


@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float32, 5e-7), (torch.float64, 2e-15)])
def test_stable_from_1e_minus_8_to_1e3(dtype, tolerance):
    """Relative error against 60 digits wherever the true value is representable; never inf or nan."""
    a = torch.tensor([p[0] for p in PAIRS], dtype=dtype)
    b = torch.tensor([p[1] for p in PAIRS], dtype=dtype)
    found = {'mean': coefficients.mean_coef(a, b), 'std': coefficients.std_coef(a, b, VARIANCE),
             'rnr': coefficients.rnr(a, b, VARIANCE)}
    smallest = torch.finfo(dtype).tiny
    with mpmath.workdps(60):
        lam = mpmath.mpf(VARIANCE)
        for i, (x, y) in enumerate(zip(a.tolist(), b.tolist())):
            x, y = mpmath.mpf(x), mpmath.mpf(y)
            exact = {'mean': mpmath.sinh(y) / mpmath.sinh(x + y),
                     'std': mpmath.sqrt(2 * lam * mpmath.sinh(x) * mpmath.sinh(y) / mpmath.sinh(x + y)),
                     'rnr': mpmath.sinh(y) / (2 * lam * mpmath.sinh(x) * mpmath.sinh(x + y))}
            for name, value in exact.items():
                got = float(found[name][i])
                assert np.isfinite(got), (name, x, y)
                # exp(-a) is read from a rounded argument: its relative error grows with a.
                allowed = tolerance * (1 + float(x))
                assert abs(got - value) <= max(allowed * value, smallest * (1 + float(x))), (name, x, y)


@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float32, 1e-6), (torch.float64, 4e-15)])
def test_steps_of_the_sampler_are_stable(dtype, tolerance):
    generator = np.random.default_rng(0)
    for _ in range(200):
        a_s, d, b_t = (float(torch.tensor(x, dtype=dtype)) for x in 10 ** generator.uniform(-8, 0.5, 3))
        tensors = [torch.tensor(x, dtype=dtype) for x in (a_s, a_s + d, d + b_t, b_t, d)]
        got = float(coefficients.residual_step(*tensors, VARIANCE))
        with mpmath.workdps(60):
            s, r, d = mpmath.mpf(a_s), mpmath.mpf(b_t), mpmath.mpf(d)
            t, q = s + d, r + d
            sigma_ratio = mpmath.sqrt(mpmath.sinh(s) * mpmath.sinh(q) / (mpmath.sinh(t) * mpmath.sinh(r)))
            exact = (mpmath.sinh(q) - mpmath.sinh(r) * sigma_ratio) / mpmath.sinh(s + q)
        assert abs(got - exact) <= tolerance * 4 * exact


def test_tables_match_published_values():
    """Theta / Sigma at nodes 11, 51 and 99 of T = 100, lambda = 10/255, worked out with 30 digits elsewhere."""
    expected = {'cosine': [(.96678, .05062), (.48179, .17353), (.00089, .18411)],
                'linear': [(.98416, .03063), (.68817, .11945), (.01691, .03909)],
                'sigmoid': [(.99717, .01301), (.83925, .09218), (.01687, .03904)],
                'constant': [(.86133, .08629), (.43384, .13459), (.00851, .02782)]}
    for schedule, rows in expected.items():
        bridge = ResidualBridge(schedule=schedule)
        found = torch.stack([bridge.mean_coef, bridge.std_coef], 1)[[11, 51, 99]]
        torch.testing.assert_close(found, torch.tensor(rows, dtype=torch.float64), atol=6e-6, rtol=0)


def test_total_rescales_the_rates():
    assert float(schedules.rates('cosine', 100).sum()) == pytest.approx(7.8789, abs=1e-4)
    assert float(schedules.rates('sigmoid', 100, total=3).sum()) == pytest.approx(3, rel=1e-12)
