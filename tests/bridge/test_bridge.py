"""Marginals, conversions and steps of the bridge object."""
import math

import pytest
import torch

from rdbm_plugin.bridge import MODULATIONS, PREDICTIONS, ResidualBridge, build_bridge
from rdbm_plugin.config.options import OptionError

COMBINATIONS = [(m, p) for m in MODULATIONS for p in PREDICTIONS if (m, p) != ('zero', 'noise')]


def images(count=3, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    x0, mu = torch.rand((2, count, 3, 4, 5), generator=generator, dtype=dtype) * 2 - 1
    return x0, mu, torch.randn(x0.shape, generator=generator, dtype=dtype)


def test_marginal_has_the_mean_and_spread_of_the_tables():
    bridge = ResidualBridge()
    residual = torch.full((1, 1, 300, 300), 0.4)
    eps = torch.randn(residual.shape, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([40])
    z = bridge.marginal(residual, bridge.modulate(residual, eps), t)
    assert float(z.mean()) == pytest.approx(0.4 * float(bridge.mean_coef[40]), abs=1e-3)
    assert float(z.std()) == pytest.approx(0.4 * float(bridge.std_coef[40]), rel=2e-2)


def test_marginal_ends_are_the_images():
    bridge = ResidualBridge(modulation='one')
    x0, mu, eps = images()
    n = bridge.modulate(x0 - mu, eps)
    torch.testing.assert_close(mu + bridge.marginal(x0 - mu, n, torch.tensor([0, 0, 0])), x0)
    assert torch.equal(bridge.marginal(x0 - mu, n, torch.tensor([100, 100, 100])), torch.zeros_like(mu))


@pytest.mark.parametrize(('modulation', 'prediction'), COMBINATIONS)
@pytest.mark.parametrize('schedule', ['cosine', 'constant'])
def test_every_target_converts_back_to_the_residual(modulation, prediction, schedule):
    bridge = ResidualBridge(modulation, schedule, prediction=prediction)
    x0, mu, eps = images(100, dtype=torch.float64)
    residual, t = x0 - mu, torch.arange(1, 101)
    n = bridge.modulate(residual, eps)
    z = bridge.marginal(residual, n, t)
    found = bridge.to_residual(bridge.target(residual, n, mu, t), z, mu, t)
    torch.testing.assert_close(found, residual, atol=1e-9, rtol=0)


def test_noise_of_inverts_the_marginal():
    bridge = ResidualBridge()
    x0, mu, eps = images(99, dtype=torch.float64)
    t = torch.arange(1, 100)
    n = bridge.modulate(x0 - mu, eps)
    torch.testing.assert_close(bridge.noise_of(bridge.marginal(x0 - mu, n, t), x0 - mu, t), n)


@pytest.mark.parametrize('prediction', PREDICTIONS)
def test_error_gain_is_the_ratio_of_the_errors(prediction):
    bridge = ResidualBridge('one', prediction=prediction)
    x0, mu, eps = images(99, dtype=torch.float64)
    residual, t = x0 - mu, torch.arange(1, 100)
    n = bridge.modulate(residual, eps)
    z = bridge.marginal(residual, n, t)
    target = bridge.target(residual, n, mu, t)
    off = bridge.to_residual(target + 0.01, z, mu, t) - residual
    gain = bridge.error_gain(prediction, t).view(-1, 1, 1, 1)
    torch.testing.assert_close((off.abs() * gain), torch.full_like(off, 0.01), rtol=1e-6, atol=0)


def test_velocity_is_the_angle_derivative_of_the_path():
    """d/dphi of (sin phi residual + cos phi n), phi from node to node, against finite differences."""
    bridge = ResidualBridge('one', 'constant', timesteps=4000, prediction='velocity')
    x0, mu, eps = images(1, dtype=torch.float64)
    residual = x0 - mu

    def unit_state(node):
        z = bridge.marginal(residual, eps, torch.tensor([node]))
        return z / math.hypot(bridge.mean_coef[node], bridge.std_coef[node])

    phi = [math.atan2(bridge.mean_coef[i], bridge.std_coef[i]) for i in (1999, 2001)]
    slope = (unit_state(2001) - unit_state(1999)) / (phi[1] - phi[0])
    torch.testing.assert_close(slope, bridge.target(residual, eps, mu, torch.tensor([2000])), atol=1e-5, rtol=0)


@pytest.mark.parametrize('eta', [0.0, 0.4, 1.0])
def test_steps_keep_the_marginals(eta):
    """Mean and variance of z_s given x0, from those of z_t through the step with the true residual."""
    bridge = ResidualBridge('one')
    for t in range(2, 100, 7):
        for s in (1, t // 2, t - 1):
            if not 0 < s < t:
                continue
            step = bridge.step(s, t, eta)
            mean = step.z_weight * bridge.mean_coef[t] + step.residual_weight
            variance = step.z_weight**2 * bridge.std_coef[t] ** 2 + step.noise_weight**2
            assert float(mean) == pytest.approx(float(bridge.mean_coef[s]), rel=1e-9)
            assert float(variance) == pytest.approx(float(bridge.std_coef[s]) ** 2, rel=1e-9)


def test_eta_one_is_the_posterior():
    bridge = ResidualBridge('one', 'linear')
    for s, t in ((1, 2), (10, 40), (89, 99)):
        k, c, v = bridge.posterior(s, t)
        step = bridge.step(s, t, eta=1)
        assert (step.z_weight, step.residual_weight, step.noise_weight**2) == pytest.approx((k, c, v), rel=1e-9)


def test_eta_zero_is_equation_19_in_both_of_its_forms():
    bridge = ResidualBridge('residual')
    mean, std = bridge.mean_coef, bridge.std_coef
    x0, mu, eps = images(dtype=torch.float64)
    residual = x0 - mu
    for s, t in ((1, 2), (30, 60), (89, 99)):
        z = bridge.marginal(residual, residual * eps, torch.tensor([t] * 3))
        guess = residual + 0.1 * eps
        noise = (z - mean[t] * guess) / std[t]
        by_noise = mean[s] / mean[t] * z - (mean[s] / mean[t] * std[t] - std[s]) * noise
        step = bridge.step(s, t)
        torch.testing.assert_close(step.z_weight * z + step.residual_weight * guess, by_noise, atol=1e-9, rtol=0)


def test_rnr_is_the_papers_formula():
    bridge = ResidualBridge()
    a, total = bridge.theta_bar_0t[1:100], bridge.theta_bar_0t[-1]
    formula = (1 / torch.tanh(a) - 1 / torch.tanh(total)) / (2 * bridge.stationary_variance)
    torch.testing.assert_close(bridge.rnr[1:100], formula, rtol=1e-6, atol=1e-6)
    assert bridge.rnr[0] == math.inf and bridge.rnr[100] == 0
    assert int((bridge.rnr >= 1).sum()) - 1 == 71


@pytest.mark.parametrize('timesteps', [1, 7, 100, 1000])
def test_nodes_cover_the_bridge_without_repeats(timesteps):
    bridge = ResidualBridge(timesteps=timesteps)
    for steps in range(1, timesteps + 1):
        nodes = bridge.nodes(steps)
        assert nodes[0] == timesteps and nodes[-1] == 0 and len(nodes) == steps + 1
        assert all(a > b for a, b in zip(nodes, nodes[1:]))
    if timesteps == 100:
        assert bridge.nodes(10) == [100, 90, 80, 70, 60, 50, 40, 30, 20, 10, 0]


@pytest.mark.parametrize(('block', 'words'), [
    ({'type': 'ResidualBrige'}, ['bridge: type', "'ResidualBrige'", "Did you mean 'ResidualBridge'?"]),
    ({'modulaton': 'one'}, ["unknown key 'modulaton'", "Did you mean 'modulation'?"]),
    ({'modulation': 'two'}, ['bridge: modulation', "'two'", 'one, residual, zero']),
    ({'stationary_variance': 0}, ['stationary_variance', 'found 0', '> 0']),
    ({'stationary_variance': '-10/255'}, ['stationary_variance', "'-10/255'", '> 0']),
    ({'stationary_variance': '10/0'}, ['stationary_variance', "'10/0'", 'fraction such as 10/255']),
    ({'stationary_variance': 'many'}, ['stationary_variance', "'many'"]),
    ({'timesteps': 0}, ['timesteps', 'found 0', 'at least 1']),
    ({'timesteps': 10.5}, ['timesteps', 'found 10.5', 'whole number']),
    ({'modulation': 'zero', 'prediction': 'noise'}, ['prediction', "'noise'", 'x0, residual, velocity']),
    ([], ['bridge', 'found []', 'block']),
])
def test_bad_options_are_named(block, words):
    with pytest.raises(OptionError) as error:
        build_bridge(block)
    for word in words:
        assert word in str(error.value)


def test_variance_text_is_read_exactly():
    assert build_bridge({'stationary_variance': '10/255'}).stationary_variance == 10 / 255
    assert build_bridge({'stationary_variance': '1e-3'}).stationary_variance == 1e-3
