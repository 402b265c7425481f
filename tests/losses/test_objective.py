"""What a training step draws: shares of nodes and of on-policy states, in shapes that no draw changes."""
import numpy as np
import pytest
import torch

from rdbm_plugin.bridge import build_bridge
from rdbm_plugin.config.options import OptionError
from rdbm_plugin.losses.draws import Draws, most_in
from rdbm_plugin.losses.objective import Objective
from rdbm_plugin.samplers import BridgeSampler

T = 100


@pytest.mark.parametrize('count', [1, 4, 5, 16, 20, 33])
@pytest.mark.parametrize('share', [0.04, 0.2, 0.4, 0.7, 1.0])
def test_an_interval_never_holds_more_than_is_said_and_hardly_fewer(count, share):
    most, found = most_in(share, count), []
    for iteration in range(3000):
        place = Draws(0, iteration, 0, 1, count).spread()
        low = 1 - share
        found.append(int(((place >= low) & (place < low + share)).sum()))
    assert max(found) == most and most - min(found) <= 3
    assert np.mean(found) == pytest.approx(share * count, rel=0.05, abs=0.02)


def test_every_place_of_a_batch_is_uniform():
    """By the Kolmogorov-Smirnov distance of 4,000 draws, whose 99.9 % quantile is 1.95 / sqrt(4000)."""
    places = torch.stack([Draws(3, iteration, 0, 1, 6).spread() for iteration in range(4000)])
    uniform = (np.arange(4000) + 0.5) / 4000
    for column in places.T:
        assert np.abs(np.sort(column.numpy()) - uniform).max() < 1.95 / 4000**0.5


def batch(count):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, count, 3, 8, 8, generator=generator)


class Recorder:
    """A network that answers with a fixed share of mu, and notes how many samples it was given."""

    def __init__(self):
        self.counts = []

    def __call__(self, x_t, mu, t):
        self.counts.append(len(mu))
        assert (t == T).all() and torch.equal(x_t, mu)
        return 0.1 * mu


@pytest.mark.parametrize('count', [5, 16])
@pytest.mark.parametrize(('node_t_share', 'own_start_share'), [(0.6, 1), (0.8, 0.5), (None, 1), (0, 1)])
def test_own_states_are_made_for_the_same_number_in_every_step(count, node_t_share, own_start_share):
    bridge = build_bridge({'modulation': 'residual', 'timesteps': T})
    objective = Objective(bridge, None, node_t_share, own_start_share)
    plain = Objective(bridge, None, node_t_share, 0)
    network, lq_gt, taken, at_t = Recorder(), batch(count), 0, 0
    for iteration in range(400):
        draws = [Draws(0, iteration, 0, 1, count) for _ in range(2)]
        states, others = objective.draw(*lq_gt, draws[0], network), plain.draw(*lq_gt, draws[1], network)
        assert torch.equal(states.t, others.t) and states.z.isfinite().all() and states.target.isfinite().all()
        own = (states.z != others.z).flatten(1).any(1)
        assert not (own & (states.t == T)).any()
        taken, at_t = taken + int(own.sum()), at_t + int((states.t == T).sum())
    assert len(network.counts) == 400 and len(set(network.counts)) == 1
    share = 1 / T if node_t_share is None else node_t_share
    assert at_t / (400 * count) == pytest.approx(share, abs=0.01)
    assert taken / (400 * count) == pytest.approx((1 - share) * own_start_share, abs=0.01)


def test_own_states_are_those_of_the_networks_estimate():
    """In closed form: z = Theta e + Sigma e eps for the estimate e = clamp(mu + 0.1 mu) - mu."""
    bridge = build_bridge({'modulation': 'residual', 'timesteps': T})
    objective, (lq, gt) = Objective(bridge, None, 0.0, 1), batch(6)
    draws = Draws(0, 7, 0, 1, 6)
    states = objective.draw(lq, gt, draws, Recorder())
    again = Draws(0, 7, 0, 1, 6)
    again.spread()
    t, eps = again.integers(1, T), again.noise(2 * (gt - lq))
    mu = 2 * lq - 1
    estimate = (1.1 * mu).clamp(-1, 1) - mu
    mean, std = (table[t].float().view(-1, 1, 1, 1) for table in (bridge.mean_coef, bridge.std_coef))
    torch.testing.assert_close(states.z, mean * estimate + std * estimate * eps)


def test_two_ranks_draw_what_one_draws():
    objective = Objective(build_bridge({'timesteps': T}), None, 0.6, 1)
    lq, gt = batch(8)
    whole = objective.draw(lq, gt, Draws(0, 3, 0, 1, 8), Recorder())
    parts = [objective.draw(lq[own], gt[own], Draws(0, 3, rank, 2, 4), Recorder())
             for rank, own in enumerate((slice(4), slice(4, 8)))]
    assert torch.equal(whole.t, torch.cat([part.t for part in parts]))
    torch.testing.assert_close(whole.z, torch.cat([part.z for part in parts]))


class Answer:
    """A network that answers with a given residual, and notes the nodes that it is asked at."""

    def __init__(self, residual):
        self.residual, self.nodes = residual, []

    def __call__(self, x_t, mu, t):
        self.nodes.append(t.tolist())
        return self.residual


@pytest.mark.parametrize('modulation', ['residual', 'one', 'zero'])
def test_later_passes_start_from_the_estimate_just_made(modulation):
    """In closed form, of an estimate that is a tenth too large; its own gradient is left out."""
    bridge, (lq, gt) = build_bridge({'modulation': modulation, 'timesteps': T}), batch(6)
    objective = Objective(bridge, None, passes=3)
    residual = 2 * (gt - lq)
    estimate = (2 * lq - 1 + 1.1 * residual).clamp(-1, 1) - (2 * lq - 1)
    states = objective.draw(lq, gt, Draws(0, 7, 0, 1, 6), None)
    assert (states.t == T).all() and (states.z == 0).all() and states.later.shape == (6, 2)
    assert len(set(states.later.flatten().tolist())) > 6
    output = (1.1 * residual).requires_grad_()
    for _ in range(2):
        t, eps = states.later[:, 0], states.eps
        states = objective.next_pass(states, output)
        mean, std = (table[t].float().view(-1, 1, 1, 1) for table in (bridge.mean_coef, bridge.std_coef))
        noise = {'residual': estimate * eps, 'one': eps, 'zero': 0}[modulation]
        torch.testing.assert_close(states.z, mean * estimate + std * noise)
        assert torch.equal(states.t, t) and torch.equal(states.target, residual) and not states.z.requires_grad
    assert states.later.shape == (6, 0)


def test_passes_can_go_where_the_sampler_goes():
    """The states that BridgeSampler with as many evaluations meets, bit for bit, for a network of fixed answers."""
    bridge, (lq, gt) = build_bridge({'modulation': 'one', 'timesteps': T}), batch(4)
    mu, network = 2 * lq - 1, Answer(0.3 * (gt - lq))
    visited = BridgeSampler(bridge, steps=4)(network, mu, keep_trajectory=True).trajectory
    objective = Objective(bridge, None, passes=4, pass_nodes='sampler')
    states = objective.draw(lq, gt, Draws(0, 7, 0, 1, 4), None)
    for point in visited[:-1]:
        assert (states.t == point.t).all()
        torch.testing.assert_close(states.mu + states.z, point.x_t)
        if point.t > T // 4:
            states = objective.next_pass(states, network.residual)


def test_passes_leave_no_choice_of_shares():
    for shares in ((0.5, None), (None, 1)):
        with pytest.raises(OptionError, match='passes: found 2 with node_t_share or own_start_share'):
            Objective(build_bridge(), None, *shares, passes=2)
    for wrong, words in ((0.5, 'passes: found 0.5'), (101, 'passes: found 101')):
        with pytest.raises(OptionError, match=words):
            Objective(build_bridge({'timesteps': T}), None, passes=wrong)
