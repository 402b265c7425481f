"""The residual-modulated loss in every measure."""
import pytest
import torch

from rdbm_plugin import ResidualModulatedLoss
from rdbm_plugin.bridge import PREDICTIONS, ResidualBridge
from rdbm_plugin.options import OptionError, build

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
    _, n, z, mu, target, output = batch(bridge)
    residual_hat = bridge.to_residual(output, z, mu, T)
    mean, std = bridge.mean_coef[T].view(-1, 1, 1, 1), bridge.std_coef[T].view(-1, 1, 1, 1)
    error = (z - mean * residual_hat) / std - n
    expected = error.abs().mean() if criterion == 'l1' else error.square().mean()
    found = ResidualModulatedLoss(criterion=criterion, measure='noise')(output, target, T, bridge)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize('prediction', PREDICTIONS)
def test_measure_residual_is_the_error_of_the_image(prediction):
    bridge = ResidualBridge(prediction=prediction)
    residual, _, z, mu, target, output = batch(bridge)
    expected = (bridge.to_residual(output, z, mu, T) - residual).abs().mean()
    for measure in ('residual', 'x0'):
        found = ResidualModulatedLoss(measure=measure)(output, target, T, bridge)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize('prediction', PREDICTIONS)
@pytest.mark.parametrize('measure', PREDICTIONS)
def test_finite_and_trainable_at_both_ends(prediction, measure):
    bridge = ResidualBridge(prediction=prediction)
    t = torch.tensor([1, 100])
    output = torch.zeros(2, 3, 4, 4, requires_grad=True)
    loss = ResidualModulatedLoss(measure=measure)(output, torch.ones(2, 3, 4, 4), t, bridge)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(output.grad).all() and (output.grad != 0).all()


def test_weight_scales_the_loss():
    bridge = ResidualBridge()
    output, target = torch.zeros(5, 1, 2, 2), torch.ones(5, 1, 2, 2)
    assert float(ResidualModulatedLoss(loss_weight=0.25)(output, target, T, bridge)) == 0.25


@pytest.mark.parametrize('block', [{'measure': 'pi'}, {'criterion': 'huber'}, {'loss_weight': -1},
                                   {'reduction': 'sum'}])
def test_bad_options_are_named(block):
    with pytest.raises(OptionError, match=next(iter(block))):
        build('train: pixel_opt', {'type': 'L', **block}, {'L': ResidualModulatedLoss})
