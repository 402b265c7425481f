"""Optimizers by name: torch.optim's, timm's, and what a Muon step does."""
import shutil
import sys

import pytest
import torch
from conftest import rdbm, short
from test_training import QUICK, RUN, same, weights
from torch import nn

from rdbm_plugin.bridge import build_bridge
from rdbm_plugin.config.options import OptionError
from rdbm_plugin.losses.objective import Objective
from rdbm_plugin.losses.residual_modulated_loss import ResidualModulatedLoss
from rdbm_plugin.models import optimizers
from rdbm_plugin.models.optimizers import make_optimizer, optimizer_class, try_optimizer
from rdbm_plugin.models.ranks import Ranks
from rdbm_plugin.models.resuming import Progress
from rdbm_plugin.models.step_guard import StepGuard
from rdbm_plugin.models.task_losses import TaskLosses
from rdbm_plugin.models.training_step import Batch, MovingAverage, TrainingSettings, TrainingStep

timm = pytest.importorskip('timm')


def parameter(*shape, seed=0):
    made = nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)))
    made.grad = torch.randn(*shape, generator=torch.Generator().manual_seed(seed + 1))
    return made


@pytest.mark.parametrize('shape', [(24, 16, 3, 3), (16, 24, 1, 1), (32, 8)])
def test_muon_orthogonalises_a_convolution_in_float32(shape):
    """Against the polynomials of the iteration applied to singular values in float64; bfloat16 would be 1e-2 away."""
    from timm.optim.muon import _COEFFICIENTS
    weight = parameter(*shape)
    before, matrix = weight.detach().clone(), weight.grad.flatten(1).double()
    # A first step's momentum is the gradient, shrunk, whose size does not matter.
    make_optimizer('Muon', [weight], lr=0.1, momentum=0.9, weight_decay=0.5).step()
    u, s, v = torch.linalg.svd(matrix / matrix.norm(), full_matrices=False)
    for a, b, c in _COEFFICIENTS['quintic']:
        s = a * s + b * s**3 + c * s**5
    expected = before.double() * (1 - 0.1 * 0.5) - 0.1 * 0.2 * max(matrix.shape)**0.5 * (u * s @ v).reshape(shape)
    # Five polynomials of float32 products over at most 144 columns: a few hundred roundings of 6e-8 of an entry of 0.3.
    assert torch.allclose(weight.double(), expected, rtol=0, atol=2e-5)


def test_muon_steps_vectors_as_adamw():
    weights = [parameter(16, 3), parameter(16)]
    make_optimizer('Muon', weights, lr=0.1, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1).step()
    again = parameter(16)
    torch.optim.AdamW([again], 0.1, (0.9, 0.99), 1e-8, 0.1).step()
    assert torch.allclose(weights[1], again, atol=1e-6)


def test_muon_is_timms_where_torch_has_one_too():
    assert issubclass(optimizer_class({'type': 'Muon'}), timm.optim.Muon)
    assert optimizer_class({'type': 'AdamW', 'lr': 1e-3}) is torch.optim.AdamW
    assert optimizer_class({'type': 'Lion', 'lr': 1e-3}) is timm.optim.Lion


@pytest.mark.parametrize(('block', 'said'), [
    ({'type': 'Muom'}, ["'Muom'", "Did you mean 'Muon'?", 'AdamW']),
    ({'type': 'Muon', 'lr': 1e-3, 'conv_modus': 'flatten'}, ["'conv_modus'", "Did you mean 'conv_mode'?"]),
    ({'type': 'Muon', 'lr': 1e-3, 'conv_mode': 'flat'}, ['optim_g: Muon fails with these values', 'flat']),
    ({'type': 'Muon', 'lr': 1e-3, 'ns_coefficients': 'cubic'}, ["'cubic'", 'quintic']),
    ({'type': 'SparseAdam', 'lr': 1e-3}, ['SparseAdam', 'dense gradients']),
])
def test_what_an_optimizer_cannot_do_is_said_before_training(block, said):
    with pytest.raises(OptionError) as error:
        try_optimizer(block)
    assert all(each in str(error.value) for each in said), str(error.value)


def test_without_timm_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'timm', None)
    optimizers.timm_optimizers.cache_clear()
    try:
        with pytest.raises(OptionError, match=r"found 'Muon'.*pip install --upgrade timm"):
            optimizer_class({'type': 'Muon', 'lr': 1e-3})
        assert optimizer_class({'type': 'Adam', 'lr': 1e-3}) is torch.optim.Adam
    finally:
        optimizers.timm_optimizers.cache_clear()


class Capturable(torch.optim.SGD):
    """An optimizer that is not fused and waits for nothing, as timm's are on a GPU."""

    def __init__(self, params):
        super().__init__(params, 0.1, momentum=0.9)
        for group in self.param_groups:
            group['capturable'] = True


def step_of(optimizer, compiled=False):
    """A training step of the smallest network."""
    net, alone = Sum(), Ranks(False)
    return TrainingStep(net, optimizer(net.parameters()), Objective(build_bridge(), ResidualModulatedLoss(), 1.0),
                        TrainingSettings('none', 1.0, 1, 3, 'none', compiled), StepGuard(3, None, alone),
                        TaskLosses(['rain'], torch.device('cpu'), alone), Progress({'manual_seed': 1}),
                        MovingAverage())


def momentum(parameters):
    return torch.optim.SGD(parameters, 0.1, momentum=0.9)


def test_a_bad_step_of_an_optimizer_that_does_not_wait_is_undone():
    waiting, deferred = step_of(momentum), step_of(Capturable)
    assert waiting.waits and not deferred.waits
    gt = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    for iteration in range(1, 6):
        lq = gt / 2
        if iteration in (1, 3):
            lq[0, 0, 0, 0] = float('nan')
        for step in (waiting, deferred):
            step.run(iteration, Batch(lq, gt, ['rain'] * 2, ['x.png'] * 2))
            step.read()
    assert waiting.guard.in_all == deferred.guard.in_all == 2
    assert all(map(torch.equal, waiting._stepped(), deferred._stepped())) and deferred._stepped()[0].isfinite().all()


class Sum(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(6, 3, 1)
        nn.init.constant_(self.conv.weight, 0.1)
        nn.init.zeros_(self.conv.bias)

    def forward(self, x_t, mu, t):
        return self.conv(torch.cat([x_t, mu], 1))


def wound_back(folder, copy):
    """A copy of a run of four iterations as it was after two."""
    shutil.copytree(folder, copy)
    for later in ('training_states/4.state', 'models/net_g_4.pth', 'models/net_g_latest.pth'):
        (copy / RUN / later).unlink()


def test_a_run_with_muon_is_resumed_bit_for_bit(tmp_path):
    whole, resumed = tmp_path / 'whole', tmp_path / 'resumed'
    whole.mkdir()
    options = {**short(4, every=2), 'train:optim_g': '{type: Muon, lr: 0.01}', 'train:warmup_iter': 3}
    rdbm('train', QUICK, whole, options)
    wound_back(whole, resumed)
    rdbm('train', QUICK, resumed, options, ['--auto_resume'])
    assert same(weights(whole), weights(resumed))
    momenta = [torch.load(folder / RUN / 'training_states/4.state', weights_only=True)['optimizers'][0]['state']
               for folder in (whole, resumed)]
    assert any('momentum_buffer' in each for each in momenta[0].values())
    assert all(torch.equal(torch.as_tensor(value), torch.as_tensor(momenta[1][key][name]))
               for key, state in momenta[0].items() for name, value in state.items())


def test_mmengine_finds_timms_optimizers():
    pytest.importorskip('mmengine')
    from mmengine.registry import OPTIMIZERS

    import rdbm_plugin.registry  # noqa: F401
    made = OPTIMIZERS.build({'type': 'rdbm_plugin.Muon', 'params': [parameter(8, 8)], 'lr': 1e-3})
    assert isinstance(made, timm.optim.Muon)
