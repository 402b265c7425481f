"""The residual-modulated loss in every measure."""
import pytest
import torch

from rdbm_plugin import ResidualModulatedLoss
from rdbm_plugin.bridge import PREDICTIONS, ResidualBridge
from rdbm_plugin.config.options import OptionError, build

T = torch.tensor([1, 10, 50, 90, 99])


def batch(bridge):
    generator = torch.Generator().manual_seed(0)
    residual, mu, eps = torch.randn((3, len(T), 3, 4, 4), generator=generator, dtype=torch.float64)
    n = bridge.modulate(residual, eps)
    z = bridge.marginal(residual, n, T)
    target = bridge.target(residual, n, mu, T)
    output = target + 0.1 * torch.randn(target.shape, generator=generator, dtype=torch.float64)
    return residual, n, z, mu, target, output


@pytest.mark.parametrize('prediction', PREDICTIONS)
@pytest.mark.parametrize('criterion', ['l1', 'l2'])
def test_measure_noise_is_the_papers_loss_whatever_is_predicted(prediction, criterion):
    bridge = ResidualBridge(prediction=prediction)
    residual, n, z, mu, target, output = batch(bridge)
    residual_hat = bridge.to_residual(output, z, mu, T)
    mean, std = bridge.mean_coef[T].view(-1, 1, 1, 1), bridge.std_coef[T].view(-1, 1, 1, 1)
    error = (z - mean * residual_hat) / std - n
    expected = error.abs().mean() if criterion == 'l1' else error.square().mean()
    found = ResidualModulatedLoss(criterion=criterion, measure='noise')(output, target, T, bridge, residual)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize('prediction', PREDICTIONS)
def test_measure_residual_is_the_error_of_the_image(prediction):
    bridge = ResidualBridge(prediction=prediction)
    residual, _, z, mu, target, output = batch(bridge)
    expected = (bridge.to_residual(output, z, mu, T) - residual).abs().mean()
    for measure in ('residual', 'x0'):
        found = ResidualModulatedLoss(measure=measure)(output, target, T, bridge, residual)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize('prediction', PREDICTIONS)
@pytest.mark.parametrize('measure', PREDICTIONS)
def test_finite_and_trainable_at_both_ends(prediction, measure):
    bridge = ResidualBridge(prediction=prediction)
    t = torch.tensor([1, 100])
    output = torch.zeros(2, 3, 4, 4, requires_grad=True)
    loss = ResidualModulatedLoss(measure=measure)(output, torch.ones(2, 3, 4, 4), t, bridge, torch.ones(2, 3, 4, 4))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(output.grad).all() and (output.grad != 0).all()


def test_weight_scales_the_loss():
    bridge = ResidualBridge()
    output, target = torch.zeros(5, 1, 2, 2), torch.ones(5, 1, 2, 2)
    assert float(ResidualModulatedLoss(loss_weight=0.25)(output, target, T, bridge, target)) == 0.25


def test_balance_evens_out_heavy_and_slight_damage():
    """A guess of zero misses each sample by its own residual: with full balance all count the same."""
    bridge, t = ResidualBridge(), torch.tensor([50, 50])
    residual = torch.stack([torch.full((3, 4, 4), 1.99), torch.full((3, 4, 4), 0.09)])
    for balance, ratio in ((0, 1.99 / 0.09), (0.5, 1.99 / 0.09 / 20**0.5), (1, 1.99 / 0.09 / 20)):
        output = torch.zeros(2, 3, 4, 4, requires_grad=True)
        loss = ResidualModulatedLoss(balance=balance)(output * residual, residual, t, bridge, residual)
        loss.backward()
        heavy, slight = output.grad.abs().sum(dim=(1, 2, 3))
        assert float(heavy / slight) == pytest.approx(ratio, rel=1e-5)


@pytest.mark.parametrize('block', [{'measure': 'pi'}, {'criterion': 'huber'}, {'loss_weight': -1},
                                   {'balance': 2}, {'reduction': 'sum'}])
def test_bad_options_are_named(block):
    with pytest.raises(OptionError, match=next(iter(block))):
        build('train: pixel_opt', {'type': 'L', **block}, {'L': ResidualModulatedLoss})
