"""The sampler with oracle networks: exact ends, first order, and pixels that nobody touches."""
import math

import pytest
import torch
from scipy.integrate import solve_ivp

from rdbm_plugin import BridgeSampler, build_bridge
from rdbm_plugin.bridge import BRIDGES, MODULATIONS, PREDICTIONS, ResidualBridge
from rdbm_plugin.config.options import OptionError
from rdbm_plugin.samplers import ParallelSampler, build_sampler
from rdbm_plugin.samplers.bridge_sampler import SOLVERS
from rdbm_plugin.samplers.consistency import known_blur, known_downsampling, known_pixels

COMBINATIONS = [(m, p) for m in MODULATIONS for p in PREDICTIONS if (m, p) != ('zero', 'noise')]


def pair(shape=(2, 3, 6, 7)):
    generator = torch.Generator().manual_seed(1)
    return (torch.rand((2, *shape), generator=generator) * 2 - 1).unbind()


def oracle(bridge, x0):
    """A network that knows x0 and answers in the bridge's own terms."""
    def network(x_t, mu, t):
        t, residual = t.cpu(), x0.repeat(len(mu) // len(x0), 1, 1, 1) - mu
        z = x_t - bridge.centre(mu, t) - bridge._at('mean_coef', t, mu) * residual
        n = z / bridge._at('std_coef', t, mu).clamp(min=1e-9)
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


SETTINGS = [{'solver': solver} for solver in SOLVERS] + [{'eta': 0.5}, {'eta': 1}, {'type': 'ParallelSampler'}]


@pytest.mark.parametrize('name', BRIDGES)
@pytest.mark.parametrize('setting', SETTINGS, ids=str)
@pytest.mark.filterwarnings('ignore:eta > 0')
def test_every_sampler_restores_on_every_bridge(name, setting):
    """With an oracle, at any number of evaluations, from either start."""
    x0, mu = pair()
    for prediction in ('residual', 'velocity'):
        bridge = build_bridge({'type': name, 'prediction': prediction})
        for steps in (1, 2, 3, 10, 37):
            for start in ('mean', 'stochastic'):
                sampler = build_sampler({**setting, 'steps': steps, 'start': start}, bridge)
                calls = []
                network = oracle(bridge, x0)

                def counted(x_t, mu, t, network=network, calls=calls):
                    calls.append(len(x_t))
                    return network(x_t, mu, t)
                result = sampler(counted, mu, seeds=[0, 1])
                torch.testing.assert_close(result.x0, x0, atol=1e-5, rtol=0)
                assert result.nfe * len(mu) == sum(calls)
                assert result.nfe == steps or setting.get('type') == 'ParallelSampler'


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


def sample_between(bridge, network, z, first, last, solver='euler'):
    """Steps of a solver through every node from ``first`` down to ``last``, in float64."""
    mu = torch.zeros_like(z)

    def estimate(z, t):
        node = torch.full((len(z),), t)
        return bridge.to_residual(network(mu + z, mu, node), z, mu, node)

    before = None
    for t in range(first, last, -1):
        step = bridge.step(t - 1, t)
        residual = estimate(z, t)
        moved = step.z_weight * z + step.residual_weight * residual
        if solver == 'heun':
            moved = step.z_weight * z + step.residual_weight * (residual + estimate(moved, t - 1)) / 2
        elif solver.startswith('multistep') and before is not None:
            weight = bridge.curvature(t - 1, t, t + 1, solver.removeprefix('multistep_'))
            moved = moved + weight * (residual - before)
        z, before = moved, residual
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


ENDS = {gaussian_toy: ([.389901151, -.184325630, .074076421], [.888383327, -.103951966, .342598916]),
        mixture_toy: ([-.25, .02, .3], [-.555627261, .216649775, .855015554])}
ERRORS = {  # at 64 and 256 steps
    ('euler', gaussian_toy): (4.8e-3, 1.2e-3), ('euler', mixture_toy): (2.0e-3, 5.0e-4),
    ('multistep_rho', gaussian_toy): (2.8e-5, 2.1e-6), ('multistep_rho', mixture_toy): (8.2e-5, 4.6e-6),
    ('multistep_phi', gaussian_toy): (4.1e-5, 2.4e-6), ('multistep_phi', mixture_toy): (1.0e-4, 6.0e-6),
    ('heun', gaussian_toy): (9.7e-5, 6.1e-6), ('heun', mixture_toy): (2.7e-5, 1.7e-6)}


@pytest.mark.parametrize(('solver', 'toy'), ERRORS)
def test_order_of_the_solvers(solver, toy):
    found = {}
    for count in (64, 128, 256):
        bridge, network, start, exact, first, last = toy(count)
        for value, end in zip((start, exact), ENDS[toy]):
            torch.testing.assert_close(value.flatten(), torch.tensor(end, dtype=torch.float64), atol=1e-8, rtol=0)
        found[count] = float((sample_between(bridge, network, start, first, last, solver) - exact).abs().max())
    orders = [math.log2(found[64] / found[128]), math.log2(found[128] / found[256])]
    assert (found[64], found[256]) == pytest.approx(ERRORS[solver, toy], rel=0.05)
    if solver == 'euler':
        assert all(0.95 <= order <= 1.1 for order in orders)
    else:
        assert orders[1] >= 1.8


MEANS, WEIGHTS, SPREAD = (torch.tensor(values, dtype=torch.float64) for values in ([-.6, .1, .7], [.3, .4, .3], .01))


def mixture_network(bridge):
    """The exact E[residual | z] for three Gaussians and modulation one; at a pinned node T, their mean."""
    def network(x_t, mu, t):
        i = t.cpu()
        mean, std = (table[i].view(-1, 1, 1, 1, 1) for table in (bridge.mean_coef, bridge.std_coef))
        z = (x_t - bridge.centre(mu, i)).double()[..., None]
        variance = (mean**2 * SPREAD + std**2).clamp(min=1e-30)
        log = WEIGHTS.log() - (z - mean * MEANS)**2 / (2 * variance)
        return ((MEANS + mean * SPREAD / variance * (z - mean * MEANS)) * log.softmax(-1)).sum(-1).to(x_t)
    return network


def mixture_level(z, mean, std):
    """Distribution function of z = mean r + std eps."""
    return (WEIGHTS * torch.special.ndtr((z[..., None] - mean * MEANS) / (mean**2 * SPREAD + std**2).sqrt())).sum(-1)


def test_whole_runs_end_where_the_flow_does():
    """From mu with a stochastic start; after the first jump the exact flow keeps the distribution function."""
    bridge = ResidualBridge('one')
    mu = torch.zeros(1, 1, 40, 40, dtype=torch.float64)
    errors = {}
    for solver in ('euler', 'multistep_rho', 'multistep_phi', 'heun'):
        for steps in (10, 20):
            result = BridgeSampler(bridge, steps, start='stochastic', solver=solver)(
                mixture_network(bridge), mu, seeds=[3], keep_trajectory=True)
            first = result.trajectory[1]
            level = mixture_level(first.x_t, bridge.mean_coef[first.t], bridge.std_coef[first.t])
            low, high = torch.full_like(level, -3), torch.full_like(level, 3)
            for _ in range(60):
                middle = (low + high) / 2
                below = mixture_level(middle, torch.ones(()), torch.zeros(())) < level
                low, high = torch.where(below, middle, low), torch.where(below, high, middle)
            errors[solver, steps] = float((result.residual - low.clamp(-1, 1)).square().mean().sqrt())
    for steps in (10, 20):
        assert errors['multistep_phi', steps] < 0.5 * errors['euler', steps]
        assert errors['multistep_rho', steps] < 0.5 * errors['euler', steps]
        assert errors['heun', steps] < 0.8 * errors['euler', steps]


def test_mean_ode_follows_the_posterior_mean():
    """GOUB's mean-ODE z' = -coth(b) z + 2 lambda / Sigma n at a constant estimate, by an independent integrator."""
    bridge = ResidualBridge('one', 'constant', stationary_variance=0.1, total=2.0)
    s, t, z, residual = 30, 80, 0.4, 0.7
    a_s, a_t = (float(bridge.theta_bar_0t[i]) for i in (s, t))

    def slope(a, z):
        b = 2.0 - a
        mean = math.sinh(b) / math.sinh(2.0)
        variance = 0.2 * math.sinh(a) * math.sinh(b) / math.sinh(2.0)
        return -z / math.tanh(b) + 0.2 / variance * (z - mean * residual)

    solved = solve_ivp(slope, (a_t, a_s), [z], rtol=1e-10, atol=1e-12).y[0, -1]
    step = bridge.mean_step(s, t)
    assert step.z_weight * z + step.residual_weight * residual == pytest.approx(solved, abs=1e-8)
    assert step.noise_weight == 0


def test_heun_spends_every_evaluation_it_is_given():
    bridge = ResidualBridge('one')
    for steps in range(1, 101):
        sampler = BridgeSampler(bridge, steps, solver='heun')
        assert sum(2 if move.twice else 1 for move in sampler.plan) == steps == sampler.nfe


# ------------------------------------------------------------------------------------------------- parallel in time

@pytest.mark.parametrize('name', ['ResidualBridge', 'OUBridge', 'IRSDE', 'VPBridge', 'FlowMatching'])
@pytest.mark.parametrize('memory', [0, 3])
def test_parallel_sampler_gives_the_sequential_result(name, memory):
    bridge = build_bridge({'type': name})
    mu = pair()[1].double() * 0.5
    network = mixture_network(bridge)
    for steps in (1, 2, 3, 12):
        for start in ('mean', 'stochastic'):
            wanted = BridgeSampler(bridge, steps, start=start)(network, mu, seeds=[1, 2], keep_trajectory=True)
            exact = ParallelSampler(bridge, steps, start, tolerance=0, memory=memory)(
                network, mu, seeds=[1, 2], keep_trajectory=True)
            torch.testing.assert_close(exact.x0, wanted.x0, atol=1e-9, rtol=0)
            for found, point in zip(exact.trajectory, wanted.trajectory, strict=True):
                assert found.t == point.t
                torch.testing.assert_close(found.x_t, point.x_t, atol=1e-9, rtol=0)
                torch.testing.assert_close(found.x0_hat, point.x0_hat, atol=1e-9, rtol=0)
            assert exact.nfe == 1 + steps * (steps - 1) // 2


def test_parallel_sampler_stops_early_within_its_tolerance():
    bridge = build_bridge({'type': 'OUBridge'})
    mu = pair()[1].double() * 0.5
    network = mixture_network(bridge)
    wanted = BridgeSampler(bridge, 50, start='stochastic')(network, mu, seeds=[1, 2]).x0
    rounds = {}
    for memory in (0, 3):
        sampler = ParallelSampler(bridge, 50, 'stochastic', tolerance=1e-3, memory=memory)
        found = sampler(network, mu, seeds=[1, 2]).x0
        assert float((found - wanted).abs().max()) < 5e-3
        rounds[memory] = sampler.rounds
    assert rounds[3] <= rounds[0] < 50


def test_parallel_sampler_does_not_mix_images():
    bridge = build_bridge({'type': 'OUBridge'})
    mu = pair()[1].double() * 0.5
    sampler = ParallelSampler(bridge, 8, tolerance=0)
    together = sampler(mixture_network(bridge), mu).x0
    for i in range(2):
        alone = sampler(mixture_network(bridge), mu[i:i + 1]).x0
        torch.testing.assert_close(alone, together[i:i + 1], atol=1e-12, rtol=0)


# --------------------------------------------------------------------------------------------------------- guidance

@pytest.mark.parametrize('kind', ['BridgeSampler', 'ParallelSampler'])
def test_known_pixels_come_back_exactly(kind):
    bridge = build_bridge()
    x0, mu = pair()
    mask = torch.rand((2, 1, 6, 7), generator=torch.Generator().manual_seed(0)) < 0.5
    sampler = build_sampler({'type': kind, 'steps': 5}, bridge)
    found = sampler(lambda x_t, mu, t: 0.1 * mu, mu, consistency=known_pixels(mask, x0)).x0
    known = mask.expand_as(x0)
    torch.testing.assert_close(found[known], x0[known], atol=1e-6, rtol=0)
    without = sampler(lambda x_t, mu, t: 0.1 * mu, mu).x0
    torch.testing.assert_close(found[~known], without[~known])


def test_known_downsampling_is_met():
    x0, mu = pair((2, 3, 8, 12))
    small = torch.nn.functional.avg_pool2d(x0, 4)
    found = BridgeSampler(build_bridge(), 5)(lambda x_t, mu, t: 0 * mu, mu, consistency=known_downsampling(small, 4))
    torch.testing.assert_close(torch.nn.functional.avg_pool2d(found.x0, 4), small, atol=1e-6, rtol=0)
    with pytest.raises(OptionError, match='expected 3 times its size'):
        known_downsampling(small, 3)(x0)
    with pytest.raises(OptionError, match='factor: found 1'):
        known_downsampling(small, 1)


def test_known_blur_is_met():
    """A kernel without zeros in its spectrum, an image that the network leaves as it is."""
    x0 = pair((1, 3, 16, 20))[0]
    kernel = torch.zeros(3, 5)
    kernel[1, 1:4] = torch.tensor([0.2, 0.6, 0.2])
    blurred = 0.6 * x0 + 0.2 * x0.roll(1, -1) + 0.2 * x0.roll(-1, -1)
    consistent = known_blur(blurred, kernel, noise_ratio=1e-6)
    # The least of its spectrum is 0.2, where the noise ratio takes 1e-6 / 0.2**2 of the image away.
    torch.testing.assert_close(consistent(torch.zeros_like(x0)), x0, atol=5e-5, rtol=0)
    found = BridgeSampler(build_bridge(), 10)(lambda x_t, mu, t: 0 * mu, blurred, consistency=consistent).x0
    torch.testing.assert_close(found, x0, atol=5e-5, rtol=0)
    with pytest.raises(OptionError, match='odd height and width'):
        known_blur(blurred, torch.ones(2, 3))
    with pytest.raises(OptionError, match='noise_ratio'):
        known_blur(blurred, kernel, 0)


def test_blur_kernel_is_not_mirrored():
    """An impulse to the right of the kernel's centre moves the image to the right, as in a convolution."""
    x0 = pair((1, 1, 9, 9))[0]
    kernel = torch.zeros(1, 3)
    kernel[0, 2] = 1.0
    torch.testing.assert_close(known_blur(x0.roll(1, -1), kernel, 1e-9)(torch.zeros_like(x0)), x0, atol=1e-5, rtol=0)


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
    ({'eta': 0.5, 'solver': 'heun'}, ['eta', 'found 0.5', "'heun'", "'euler'"]),
    ({'solver': 'rk4'}, ['solver', "'rk4'", 'multistep_phi']),
    ({'type': 'ParallelSampler', 'tolerance': -1}, ['tolerance', 'found -1']),
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
