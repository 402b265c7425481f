"""Every bridge of the family against its published closed form, written here independently of the package's own."""
import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from rdbm_plugin.bridge import BRIDGES, ResidualBridge, build_bridge
from rdbm_plugin.config.options import OptionError


def weights(bridge):
    """Weights of x0 and mu in the mean and the standard deviation at all nodes, (3, T+1), read off the states."""
    t = torch.arange(bridge.timesteps + 1)
    one, zero = (torch.full((len(t), 1, 1, 1), value, dtype=torch.float64) for value in (1.0, 0.0))

    def mean(x0, mu):
        return bridge.centre(mu, t) + bridge.marginal(x0 - mu, zero, t)

    noise = bridge.marginal(zero, bridge.modulate(zero, one), t)
    if bridge.modulation == 'residual':
        noise = bridge.marginal(one, bridge.modulate(one, one), t) - bridge.marginal(one, zero, t)
    return torch.stack([mean(one, zero), mean(zero, one), noise]).view(3, -1).numpy()


def flow_matching(t, T):
    return 1 - t / T, t / T, 0 * t


def bbdm(t, T, s=1.0):
    """BBDM: m_t = t/T, delta_t = 2 s (m_t - m_t^2)."""
    m = t / T
    return 1 - m, m, np.sqrt(2 * s * (m - m**2))


def ddbm(alpha, sigma):
    """DDBM: SNR = alpha^2 / sigma^2, of the whole bridge in the last entry."""
    with np.errstate(divide='ignore', invalid='ignore'):
        ratio = (alpha[-1] / sigma[-1]) ** 2 / (alpha / sigma) ** 2
    ratio[0] = 0.0
    return alpha * (1 - ratio), ratio * alpha / alpha[-1], sigma * np.sqrt(1 - ratio)


def ve(t, T, sigma_max=1.0):
    return ddbm(np.ones(len(t)), sigma_max * t / T)


def vp(t, T, beta_min=0.1, beta_d=2.0):
    u = t / T
    log_alpha = -0.25 * u**2 * beta_d - 0.5 * u * beta_min
    return ddbm(np.exp(log_alpha), np.sqrt(1 - np.exp(2 * log_alpha)))


def ou_thetas(T, eps=0.005):
    """IR-SDE's cosine rates: alpha_bar over T+2 intervals, one minus it at 1 ... T+1, from the second one on."""
    x = np.arange(T + 3) / (T + 2)
    alpha_bar = np.cos((x + 0.008) / 1.008 * math.pi / 2) ** 2
    theta = (1 - alpha_bar / alpha_bar[0])[1:-1]
    bar = np.cumsum(theta) - theta[0]
    return bar / bar[-1] * -math.log(eps)


def goub(t, T, max_sigma=30):
    """GOUB, with sigma_bar^2_{s:t} = lambda^2 (1 - exp(-2 theta_bar_{s:t})); lambda doubled for [-1, 1]."""
    bar = ou_thetas(T)
    lam = 2 * max_sigma / 255
    var_0t, var_tT, var_0T = (lam**2 * -np.expm1(-2 * x) for x in (bar, bar[-1] - bar, bar[-1]))
    mean_mu = 1 - np.exp(-bar) + 0 * bar
    # m_bar = exp(-bar_0t) (var_tT / var_0T) x0 + [(1 - exp(-bar_0t)) var_tT/var_0T + exp(-2 bar_tT) var_0t/var_0T] mu
    scaled = var_tT / var_0T
    rest = np.exp(-2 * (bar[-1] - bar)) * var_0t / var_0T
    return np.exp(-bar) * scaled, mean_mu * scaled + rest, np.sqrt(var_0t * var_tT / var_0T)


def i2sb(t, T, beta_max=0.3):
    """I2SB: betas that rise to the middle and fall, variances accumulated from both ends."""
    beta = np.linspace(1e-4**0.5, (beta_max / T) ** 0.5, T) ** 2
    beta = np.concatenate([beta[:(T + 1) // 2], beta[:T // 2][::-1]])
    before = np.concatenate([[0], np.cumsum(beta)])
    after = before[-1] - before
    total = before[-1]
    return after / total, before / total, np.sqrt(before * after / total)


def unidb(t, T, max_sigma=30, gamma=1e7):
    """UniDB with lambda of images in [0, 1]; the spread by integrating the variance of its controlled equation."""
    bar = ou_thetas(T)
    lam = (max_sigma / 255) ** 2

    def left(x):
        return 1 / gamma + lam * -np.expm1(-2 * (bar[-1] - x))

    def variance(x, v):
        """Drift -(1 + g^2 exp(-2 rest) / left), g^2 = 2 lambda in units of theta_bar."""
        return -2 * (1 + 2 * lam * np.exp(-2 * (bar[-1] - x)) / left(x)) * v + 2 * lam

    x0 = np.exp(-bar) * left(bar) / left(0)
    solved = solve_ivp(variance, (0, bar[-1]), [0.0], method='Radau', t_eval=bar, rtol=1e-10, atol=1e-14).y[0]
    return x0, 1 - x0, 2 * np.sqrt(np.maximum(solved, 0))


def irsde(t, T, max_sigma=10):
    """IR-SDE: an OU process to mu."""
    bar = ou_thetas(T)
    return np.exp(-bar), -np.expm1(-bar), 2 * max_sigma / 255 * np.sqrt(-np.expm1(-2 * bar))


PUBLISHED = {'FlowMatching': flow_matching, 'BrownianBridge': bbdm, 'VEBridge': ve, 'VPBridge': vp, 'OUBridge': goub,
             'I2SB': i2sb, 'UniDB': unidb, 'IRSDE': irsde}


def gaps(name, T=100):
    bridge = build_bridge({'type': name, 'timesteps': T})
    expected = np.stack(PUBLISHED[name](np.arange(T + 1, dtype=float), T))
    return np.abs(weights(bridge) - expected).max(axis=1)


def test_every_bridge_of_the_family_is_compared():
    assert set(PUBLISHED) == set(BRIDGES) - {'ResidualBridge'}


@pytest.mark.parametrize('name', PUBLISHED)
@pytest.mark.parametrize('timesteps', [1, 10, 100, 1000])
def test_weights_and_spread_are_the_published_ones(name, timesteps):
    assert gaps(name, timesteps).max() < 1e-6


@pytest.mark.parametrize(('name', 'keys', 'function'), [
    ('BrownianBridge', {'variance_scale': 4}, lambda t, T: bbdm(t, T, 4.0)),
    ('VEBridge', {'sigma_max': 80}, lambda t, T: ve(t, T, 80.0)),
    ('VPBridge', {'beta_min': 0.5, 'beta_d': 8}, lambda t, T: vp(t, T, 0.5, 8.0)),
    ('OUBridge', {'max_sigma': 70}, lambda t, T: goub(t, T, 70)),
    ('I2SB', {'beta_max': 1.0}, lambda t, T: i2sb(t, T, 1.0)),
    ('UniDB', {'gamma': 100}, lambda t, T: unidb(t, T, gamma=100)),
    ('IRSDE', {'max_sigma': 50}, lambda t, T: irsde(t, T, 50))])
def test_published_parameters_mean_what_they_say(name, keys, function):
    found = weights(build_bridge({'type': name, **keys}))
    np.testing.assert_allclose(found, np.stack(function(np.arange(101.0), 100)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('name', ['OUBridge', 'IRSDE', 'I2SB', 'BrownianBridge', 'VPBridge', 'UniDB'])
def test_posterior_is_bayes_rule_on_a_simulated_chain(name):
    """q(x_s | x_t, x0, mu) by Gaussian conditioning in the Markov chain of the forward kernels."""
    bridge = build_bridge({'type': name})
    b, d = bridge.theta_bar_tT, bridge.theta
    variance, factor = [0.0], []
    for i in range(80):
        # k = sinh(b_t) / sinh(b_s), v = 2 lambda sinh(d) k, written so that b may be infinite.
        scale = (lambda x: 2 * x) if bridge.brownian else (lambda x: -torch.expm1(-2 * x))
        ratio = scale(b[i + 1]) / scale(b[i])
        k = ratio * (1 if bridge.brownian else torch.exp(-d[i]))
        v = bridge.stationary_variance * scale(d[i]) * ratio
        factor.append(float(k))
        variance.append(float(k) ** 2 * variance[-1] + float(v))
    np.testing.assert_allclose(np.sqrt(variance[1:]), bridge.std_coef[1:81].numpy(), rtol=1e-6)
    for s, t in ((5, 6), (10, 40), (1, 80)):
        covariance = variance[s] * math.prod(factor[s:t])
        k = covariance / variance[t]
        mean = float(bridge.mean_coef[s]) - k * float(bridge.mean_coef[t])
        assert bridge.posterior(s, t) == pytest.approx((k, mean, variance[s] - k * covariance), rel=1e-6)


def test_vp_would_be_off_without_its_reversion_level():
    """By 1 - 1 / cosh(L / 2) at the middle of the clock: what keeps VP out of a family that reverts to mu."""
    exact = build_bridge({'type': 'VPBridge', 'timesteps': 1000})
    to_mu = ResidualBridge('one', exact.theta.tolist(), 1000, 1.0)
    gap = np.abs(weights(to_mu) - weights(exact)).max(axis=1)
    total = float(exact.theta.sum())
    assert gap[0] == gap[2] == 0
    assert gap[1] == pytest.approx(1 - 1 / math.cosh(total / 2), abs=1e-5) == pytest.approx(0.0367, abs=1e-4)


def test_ou_bridges_become_brownian_as_the_reversion_vanishes():
    brownian = weights(ResidualBridge('one', 'constant', 100, 0.5, total=1.0, brownian=True))
    for total, bound in ((1e-2, 2e-5), (1e-4, 2e-9)):
        ou = weights(ResidualBridge('one', 'constant', 100, 0.5 / total, total=total))
        assert np.abs(ou - brownian).max() < bound


def test_soft_end_goes_from_bridge_to_ou_process():
    hard, free = build_bridge({'type': 'OUBridge'}), build_bridge({'type': 'IRSDE', 'max_sigma': 30})
    assert np.abs(weights(build_bridge({'type': 'UniDB', 'gamma': 1e14})) - weights(hard)).max() < 1e-6
    assert np.abs(weights(build_bridge({'type': 'UniDB', 'gamma': 1e-6})) - weights(free)).max() < 1e-6
    assert not free.pinned and hard.pinned
    assert float(free.std_coef[-1]) == pytest.approx(60 / 255 * math.sqrt(1 - 0.005**2))


def test_soft_end_is_a_longer_bridge_stopped_early():
    longer = ResidualBridge('one', 'constant', 130, 0.1, total=1.3)
    stopped = ResidualBridge('one', 'constant', 100, 0.1, total=1.0, soft_end=0.3)
    np.testing.assert_allclose(weights(stopped), weights(longer)[:, :101], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(('block', 'words'), [
    ({'type': 'GOUB'}, ['bridge: type', "'GOUB'", 'OUBridge']),
    ({'type': 'OUBridge', 'eps': 1}, ['eps', 'found 1', '<= 1']),
    ({'type': 'OUBridge', 'max_sigma': 0}, ['max_sigma', '> 0']),
    ({'type': 'UniDB', 'gamma': -1}, ['gamma', '> 0']),
    ({'type': 'VPBridge', 'beta_min': 0}, ['beta_min', '> 0']),
    ({'type': 'VEBridge', 'timesteps': 0}, ['timesteps', 'at least 1']),
    ({'type': 'FlowMatching', 'prediction': 'noise'}, ['prediction', "'noise'"]),
    ({'type': 'FlowMatching', 'modulation': 'one'}, ["unknown key 'modulation'"]),
    ({'schedule': [0.1] * 3}, ['schedule', 'found 3 rates', '100 timesteps']),
    ({'schedule': [0.1, -1], 'timesteps': 2}, ['schedule', 'found -1', '> 0']),
    ({'soft_end': -1}, ['soft_end', 'found -1', '>= 0']),
    ({'soft_end': 'inf', 'brownian': True}, ['soft_end', 'brownian']),
    ({'soft_end': 1, 'reversion_level': 0}, ['reversion_level', 'soft_end']),
    ({'reversion_level': 2}, ['reversion_level', 'found 2'])])
def test_bad_options_are_named(block, words):
    with pytest.raises(OptionError) as error:
        build_bridge(block)
    assert all(word in str(error.value) for word in words), error.value


if __name__ == '__main__':  # the table of the README
    for each in PUBLISHED:
        print(each, *(f'{gap:.0e}' for gap in gaps(each, 1000)))
