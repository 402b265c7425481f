"""The sampler with oracle networks: exact ends, first order, and pixels that nobody touches."""
import math

import pytest
import torch

from rdbm_plugin import BridgeSampler, build_bridge
from rdbm_plugin.bridge import MODULATIONS, PREDICTIONS, ResidualBridge
from rdbm_plugin.options import OptionError
from rdbm_plugin.samplers import build_sampler

COMBINATIONS = [(m, p) for m in MODULATIONS for p in PREDICTIONS if (m, p) != ('zero', 'noise')]


def pair(shape=(2, 3, 6, 7)):
    generator = torch.Generator().manual_seed(1)
    return (torch.rand((2, *shape), generator=generator) * 2 - 1).unbind()


def oracle(bridge, x0):
    """A network that knows x0 and answers in the bridge's own terms."""
    def network(x_t, mu, t):
        t, residual = t.cpu(), x0 - mu
        if bridge.prediction == 'noise':
            sigma = bridge._at(bridge.std_coef, t, mu)
            n = (x_t - mu - bridge._at(bridge.mean_coef, t, mu) * residual) / sigma.clamp(min=1e-9)
        else:
            z = x_t - mu - bridge._at(bridge.mean_coef, t, mu) * residual
            n = z / bridge._at(bridge.std_coef, t, mu).clamp(min=1e-9)
        return bridge.target(residual, n, mu, t)
    return network


@pytest.mark.parametrize(('modulation', 'prediction'), COMBINATIONS)
@pytest.mark.parametrize('steps', [1, 2, 10, 100])
def test_oracle_restores_the_clean_image(modulation, prediction, steps):
    bridge = ResidualBridge(modulation, prediction=prediction)
    x0, mu = pair()
    for start in ('mean', 'stochastic'):
        result = BridgeSampler(bridge, steps, start=start)(oracle(bridge, x0), mu, seeds=[0, 1])
        torch.testing.assert_close(result.x0, x0, atol=2e-5, rtol=0)
        assert result.nfe == steps


@pytest.mark.parametrize('start', ['mean', 'stochastic'])
@pytest.mark.parametrize('eta', [0, 0.5, 1])
@pytest.mark.filterwarnings('ignore:eta > 0')
def test_a_pixel_without_residual_comes_back_bit_identical(start, eta):
    bridge = ResidualBridge()
    x0, mu = pair((1, 3, 16, 16))
    clean = torch.rand(mu.shape, generator=torch.Generator().manual_seed(3)) < 0.5
    x0 = torch.where(clean, mu, x0)
    result = BridgeSampler(bridge, 10, eta, start)(oracle(bridge, x0), mu, keep_trajectory=True)
    for point in result.trajectory:
        assert torch.equal(point.x_t[clean], mu[clean])
    assert torch.equal(result.x0[clean], mu[clean])
    assert not torch.equal(result.x0[~clean], mu[~clean])


def sample_between(bridge, network, z, first, last):
    """Deterministic steps through every node from ``first`` down to ``last``, in float64."""
    mu = torch.zeros_like(z)
    for t in range(first, last, -1):
        step = bridge.step(t - 1, t)
        node = torch.full((len(z),), t)
        residual = bridge.to_residual(network(mu + z, mu, node), z, mu, node)
        z = step.z_weight * z + step.residual_weight * residual
    return z


def gaussian_toy(count):
    """r ~ N(0.3, 0.5^2), modulation one, L = 2, lambda = 0.25, from 0.9 L to 0.1 L; the flow is linear and exact."""
    bridge = ResidualBridge('one', 'constant', timesteps=count * 10 // 8, stationary_variance=0.25, total=2.0)
    mean, std = bridge.mean_coef, bridge.std_coef
    variance = mean.square() * 0.25 + std.square()

    def network(x_t, mu, t):
        i = int(t[0])
        return 0.3 + mean[i] * 0.25 / variance[i] * (x_t - mu - mean[i] * 0.3)

    first, last = count * 9 // 8, count // 8
    eps = torch.tensor([1.3, -0.7, 0.2], dtype=torch.float64).view(3, 1, 1, 1)
    start = mean[first] * 0.3 + variance[first].sqrt() * eps
    exact = mean[last] * 0.3 + (variance[last] / variance[first]).sqrt() * (start - mean[first] * 0.3)
    return bridge, network, start, exact, first, last


def mixture_toy(count):
    """r in {-.5, .25, .75} with weights .3 .4 .3, modulation residual; exact by matching distribution functions."""
    bridge = ResidualBridge('residual', 'constant', timesteps=count * 10 // 8, stationary_variance=0.25, total=2.0)
    mean, std = bridge.mean_coef, bridge.std_coef
    values = torch.tensor([-.5, .25, .75], dtype=torch.float64)
    weights = torch.tensor([.3, .4, .3], dtype=torch.float64)

    def network(x_t, mu, t):
        i = int(t[0])
        z = (x_t - mu).flatten()[:, None]
        scale = values.abs() * std[i]
        log = weights.log() - scale.log() - ((z - mean[i] * values) / scale).square() / 2
        return (log.softmax(1) @ values).view_as(x_t)

    def distribution(z, i):
        return (weights * torch.special.ndtr((z - mean[i] * values) / (values.abs() * std[i]))).sum()

    first, last = count * 9 // 8, count // 8
    start = torch.tensor([-0.25, 0.02, 0.3], dtype=torch.float64).view(3, 1, 1, 1)
    exact = []
    for z in start.flatten():
        level = distribution(z, first)
        low, high = torch.tensor([-5.0, 5.0], dtype=torch.float64)
        for _ in range(80):
            middle = (low + high) / 2
            low, high = (middle, high) if distribution(middle, last) < level else (low, middle)
        exact.append(low)
    return bridge, network, start, torch.stack(exact).view_as(start), first, last


@pytest.mark.parametrize(('toy', 'ends', 'errors'), [
    (gaussian_toy, ([.389901151, -.184325630, .074076421], [.888383327, -.103951966, .342598916]), (4.8e-3, 1.2e-3)),
    (mixture_toy, ([-.25, .02, .3], [-.555627261, .216649775, .855015554]), (2.0e-3, 5.0e-4)),
])
def test_equation_19_is_of_first_order(toy, ends, errors):
    found = {}
    for count in (64, 128, 256):
        bridge, network, start, exact, first, last = toy(count)
        torch.testing.assert_close(start.flatten(), torch.tensor(ends[0], dtype=torch.float64), atol=1e-8, rtol=0)
        torch.testing.assert_close(exact.flatten(), torch.tensor(ends[1], dtype=torch.float64), atol=1e-8, rtol=0)
        found[count] = float((sample_between(bridge, network, start, first, last) - exact).abs().max())
    assert (found[64], found[256]) == pytest.approx(errors, rel=0.05)
    assert 0.95 <= math.log2(found[64] / found[128]) <= 1.1
    assert 0.95 <= math.log2(found[128] / found[256]) <= 1.1


def test_stochastic_start_has_the_marginals_of_the_data():
    """r ~ N(0.3, 0.2^2), modulation one: with the exact E[r|z] the sampler draws from the prior again."""
    bridge = ResidualBridge('one')
    mean, std = bridge.mean_coef, bridge.std_coef

    def network(x_t, mu, t):
        i = int(t[0])
        variance = mean[i] ** 2 * 0.04 + std[i] ** 2
        pull = float(mean[i] * 0.04 / variance) if i < 100 else 0.0
        return 0.3 + pull * (x_t - mu - float(mean[i]) * 0.3)

    mu = torch.zeros(1, 1, 200, 200)
    drawn = BridgeSampler(bridge, 50, start='stochastic')(network, mu, seeds=[0]).residual
    assert float(drawn.mean()) == pytest.approx(0.3, abs=5e-3)
    assert float(drawn.std()) == pytest.approx(0.2, rel=0.05)
    still = BridgeSampler(bridge, 50)(network, mu).residual
    assert float(still.std()) < 1e-6 and float(still.mean()) == pytest.approx(0.3, abs=0.02)


def test_noise_of_an_image_depends_on_its_seed_alone():
    bridge = ResidualBridge('one')
    mu = pair((3, 3, 8, 8))[1]
    sampler = BridgeSampler(bridge, 5, eta=1, start='stochastic')

    def network(x_t, mu, t):
        return 0.5 * (x_t - mu) - 0.1 * mu

    together = sampler(network, mu, seeds=[5, 6, 7]).x0
    for i, seed in enumerate((5, 6, 7)):
        assert torch.equal(sampler(network, mu[i:i + 1], seeds=[seed]).x0, together[i:i + 1])
    assert not torch.equal(sampler(network, mu, seeds=[5, 6, 8]).x0[2], together[2])


def test_trajectory_runs_from_mu_to_the_result():
    bridge = ResidualBridge()
    x0, mu = pair()
    result = BridgeSampler(bridge, 4)(oracle(bridge, x0), mu, keep_trajectory=True)
    assert [point.t for point in result.trajectory] == [100, 75, 50, 25, 0]
    assert torch.equal(result.trajectory[0].x_t, mu)
    assert torch.equal(result.trajectory[-1].x_t, result.x0)


def test_result_stays_in_range():
    bridge = ResidualBridge()
    mu = torch.full((1, 3, 8, 8), 0.9)
    result = BridgeSampler(bridge, 10)(lambda x_t, mu, t: torch.full_like(mu, 5.0), mu)
    assert float(result.x0.max()) == 1


@pytest.mark.parametrize(('block', 'words'), [
    ({'type': 'BridgeSampler', 'steps': 101}, ['val: sampler', 'steps', 'found 101', 'from 1 to 100']),
    ({'steps': 0}, ['steps', 'found 0', 'from 1 to 100']),
    ({'stesp': 3}, ["unknown key 'stesp'", "Did you mean 'steps'?"]),
    ({'eta': 2}, ['eta', 'found 2', '<= 1']),
    ({'start': 'noise'}, ['start', "'noise'", 'mean, stochastic']),
    ({'type': 'DDIM'}, ['val: sampler: type', "'DDIM'", 'BridgeSampler']),
    ({'bridge': 1}, ["unknown key 'bridge'"]),
])
def test_bad_options_are_named(block, words):
    with pytest.raises(OptionError) as error:
        build_sampler(block, build_bridge())
    for word in words:
        assert word in str(error.value)


def test_eta_warns_where_it_is_biased():
    with pytest.warns(UserWarning, match='biased'):
        BridgeSampler(build_bridge(), eta=0.5)


def test_seeds_must_match_the_batch():
    with pytest.raises(OptionError, match='found 1 for 2 images'):
        BridgeSampler(build_bridge())(lambda x_t, mu, t: mu, torch.zeros(2, 3, 8, 8), seeds=[1])
