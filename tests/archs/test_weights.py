"""Weights in other layouts and back, and files that are not what they say."""
import shutil
import sys

import convert_weights
import numpy as np
import pytest
import torch
from conftest import ROOT, command
from rounding import doubled, within_rounding
from safetensors.torch import load_file

from rdbm_plugin import Restorer
from rdbm_plugin.archs.checkpoint import OPTIONS, SHIPPED, read_options, read_parameters
from rdbm_plugin.archs.conditional_unet_arch import ConditionalUNet
from rdbm_plugin.archs.rdbm_unet_arch import RDBMUNet
from rdbm_plugin.bridge import build_bridge
from rdbm_plugin.config.options import OptionError


def convert(*arguments, cwd, check=True):
    return command(ROOT / 'scripts/model_conversion/convert_weights.py', *arguments, cwd=cwd, check=check)


@pytest.fixture(scope='module')
def converted(tmp_path_factory):
    """The shipped weights as safetensors, with their option file beside them."""
    folder = tmp_path_factory.mktemp('weights')
    convert(SHIPPED, 'own.safetensors', cwd=folder)
    shutil.copy(SHIPPED.with_suffix('.yml'), folder / 'own.yml')
    return folder


def test_there_and_back_changes_nothing(converted):
    convert('own.safetensors', 'back.pth', cwd=converted)
    first, second = read_parameters(SHIPPED, 'params_ema'), read_parameters(converted / 'back.pth')
    assert first.keys() == second.keys() == load_file(converted / 'own.safetensors').keys() - {OPTIONS}
    assert all(torch.equal(first[key], second[key]) and first[key].dtype == second[key].dtype for key in first)


def test_plain_file_holds_the_weights_alone(converted, monkeypatch):
    monkeypatch.chdir(converted)
    monkeypatch.setattr(sys, 'argv', ['convert_weights.py', 'own.safetensors', 'plain.pth', '--plain'])
    convert_weights.main()
    expected = read_parameters(converted / 'own.safetensors')
    for found in (torch.load(converted / 'plain.pth', weights_only=True), read_parameters(converted / 'plain.pth')):
        assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)


def test_half_precision_halves_the_file(tmp_path):
    network = RDBMUNet('T')
    torch.save({'params_ema': network.state_dict()}, tmp_path / 'net_g.pth')
    convert('net_g.pth', 'small.pth', '--half', cwd=tmp_path)
    found = read_parameters(tmp_path / 'small.pth')
    assert all(torch.equal(found[name], value.half()) for name, value in network.state_dict().items())
    assert (tmp_path / 'small.pth').stat().st_size < 0.6 * (tmp_path / 'net_g.pth').stat().st_size


def test_restores_the_same_from_both(converted):
    image = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    assert np.array_equal(Restorer(steps=2)(image), Restorer(converted / 'own.safetensors', steps=2)(image))


def test_needs_no_option_file_any_more(converted, tmp_path):
    shutil.copy(converted / 'own.safetensors', tmp_path)
    image = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    assert np.array_equal(Restorer(tmp_path / 'own.safetensors')(image), Restorer()(image))


def test_options_are_those_named(tmp_path):
    torch.save(RDBMUNet('T').state_dict(), tmp_path / 'old.pth')
    told = convert('old.pth', 'none.pth', cwd=tmp_path).stdout
    assert 'programs with spandrel will refuse it: opt: found none for old.pth' in told
    assert torch.load(tmp_path / 'none.pth', weights_only=True).keys() == {'params'}
    (tmp_path / 'mine.yml').write_text('network_g: {type: RDBMUNet}\nval: {sampler: {steps: 7}}\nname: other\n')
    convert('old.pth', 'new.pth', '--opt', 'mine.yml', cwd=tmp_path)
    assert read_options(tmp_path / 'new.pth') == {
        'network_g': {'type': 'RDBMUNet'}, 'bridge': None, 'val': {'sampler': {'steps': 7}}}


def test_nothing_is_replaced(converted):
    before = (converted / 'own.safetensors').read_bytes()
    process = convert(SHIPPED, 'own.safetensors', cwd=converted, check=False)
    assert process.returncode != 0 and 'exists already' in process.stdout and 'Traceback' not in process.stdout
    assert (converted / 'own.safetensors').read_bytes() == before


@pytest.mark.parametrize('content', [b'', b'no safetensors', b'\xff' * 64])
def test_damaged_file_is_named(tmp_path, content):
    (tmp_path / 'torn.safetensors').write_bytes(content)
    with pytest.raises(OptionError, match=r'torn\.safetensors: damaged'):
        read_parameters(tmp_path / 'torn.safetensors')


def test_truncated_file_is_named(converted, tmp_path):
    content = (converted / 'own.safetensors').read_bytes()
    (tmp_path / 'torn.safetensors').write_bytes(content[:len(content) // 2])
    with pytest.raises(OptionError, match=r'torn\.safetensors: damaged'):
        read_parameters(tmp_path / 'torn.safetensors')


class Evil:
    """What a pickle may do to who loads it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return type(self.path).touch, (self.path,)


@pytest.mark.parametrize('protocol', ['zip', 'legacy'])
def test_pickle_that_would_run_code_is_refused_and_named(tmp_path, protocol):
    path = tmp_path / 'evil.pth'
    torch.save({'params': Evil(tmp_path / 'ran')}, path, _use_new_zipfile_serialization=protocol == 'zip')
    with pytest.raises(OptionError, match=r'evil\.pth: not a checkpoint that is safe to load'):
        read_parameters(path)
    assert not (tmp_path / 'ran').exists()


def moving_average(parameters, online=True, prefix=''):
    """The state of ema_pytorch's EMA: two networks and its counters; the average is twice the online one."""
    state = {'initted': torch.tensor(True), 'step': torch.tensor(7)}
    for name, value in parameters.items():
        state.update({f'online_model.{prefix}{name}': value} if online else {})
        state[f'ema_model.{prefix}{name}'] = 2 * value
    return state


@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_state_of_a_moving_average_holds_two_networks(tmp_path, prefix):
    parameters = {'a.weight': torch.rand(2), 'b': torch.rand(3)}
    torch.save(moving_average(parameters, prefix=prefix), tmp_path / 'ema.pth')
    for param_key, factor in (('params', 1), ('params_ema', 2), (None, 2)):
        found = read_parameters(tmp_path / 'ema.pth', param_key)
        assert found.keys() == parameters.keys()
        assert all(torch.equal(found[key], factor * parameters[key]) for key in found)


def test_state_of_a_moving_average_may_lack_the_online_network(tmp_path):
    torch.save(moving_average({'a': torch.ones(2)}, online=False), tmp_path / 'ema.pth')
    assert torch.equal(read_parameters(tmp_path / 'ema.pth', 'params')['a'], torch.full((2,), 2.0))


def test_parameters_named_like_the_counters_are_kept(tmp_path):
    torch.save({'step': torch.ones(1), 'initted': torch.ones(1)}, tmp_path / 'net.pth')
    assert read_parameters(tmp_path / 'net.pth').keys() == {'step', 'initted'}


def test_weights_of_another_network_are_told_apart(converted, tmp_path):
    """As IR-SDE and GOUB save them: a plain state, from under torch's DataParallel or not."""
    other = ConditionalUNet(nf=4, depth=1).state_dict()
    torch.save({f'module.{name}': value for name, value in other.items()}, tmp_path / 'lastest_EMA.pth')
    assert read_parameters(tmp_path / 'lastest_EMA.pth', 'params_ema').keys() == other.keys()
    with pytest.raises(OptionError, match=r'lastest_EMA\.pth: holds 0\.02 M parameters, but network_g is RDBMUNet'):
        Restorer(tmp_path / 'lastest_EMA.pth', converted / 'own.yml')


def test_conditional_unet_takes_published_weights():
    """Names, shapes and number of parameters of the public code at nf 64 and depth 4."""
    with torch.device('meta'):
        shapes = {name: tuple(value.shape) for name, value in ConditionalUNet().state_dict().items()}
    assert len(shapes) == 151 and sum(np.prod(shape) for shape in shapes.values()) == 137_147_523
    assert shapes.items() >= {
        'init_conv.weight': (64, 6, 7, 7), 'time_mlp.1.weight': (256, 64), 'time_mlp.3.bias': (256,),
        'downs.0.0.mlp.1.weight': (128, 256), 'downs.0.1.block2.proj.weight': (64, 64, 3, 3),
        'downs.0.2.fn.fn.to_qkv.weight': (384, 64, 1, 1), 'downs.0.2.fn.fn.to_out.0.bias': (64,),
        'downs.0.2.fn.fn.to_out.1.g': (1, 64, 1, 1), 'downs.0.2.fn.norm.g': (1, 64, 1, 1),
        'downs.0.3.bias': (128,), 'downs.3.3.weight': (1024, 512, 3, 3), 'ups.0.0.res_conv.weight': (1024, 1536, 1, 1),
        'ups.0.3.1.weight': (512, 1024, 3, 3), 'ups.3.3.weight': (64, 128, 3, 3),
        'mid_attn.fn.fn.to_out.1.g': (1, 1024, 1, 1), 'mid_block2.mlp.1.weight': (2048, 256),
        'final_res_block.res_conv.weight': (64, 128, 1, 1), 'final_conv.bias': (3,)}.items()
    assert not {'downs.3.3.bias', 'ups.3.3.bias', 'downs.0.0.res_conv.weight'} & shapes.keys()


def test_conditional_unet_takes_images_in_either_range():
    torch.manual_seed(0)
    own = ConditionalUNet(nf=4, depth=3).eval()
    unit = ConditionalUNet(nf=4, depth=3, unit_range=True, silent_node=100).eval()
    unit.load_state_dict(own.state_dict())
    x_t, mu, t = torch.rand(2, 3, 19, 30), torch.rand(2, 3, 19, 30), torch.tensor([100, 4])
    with torch.inference_mode():
        expected, found = own(x_t, mu, t), unit(2 * x_t - 1, 2 * mu - 1, t)
        assert own(x_t[..., :2, :5], mu[..., :2, :5], t).shape == (2, 3, 2, 5)
    assert torch.equal(found[0], torch.zeros(3, 19, 30)) and float(expected[0].abs().max()) > 0.1
    with torch.inference_mode():
        exact = doubled(own)(x_t.double(), mu.double(), t)
    assert within_rounding(found[1], expected[1], exact[1])


def test_published_step_of_irsde_is_the_posterior_of_the_node():
    """Their index is our node: x_{t-1} from their noise, by their reverse_optimum_step in images in [0, 1]."""
    bridge = build_bridge({'type': 'IRSDE', 'max_sigma': 10, 'prediction': 'noise'})
    x_t, mu, noise = torch.rand(3, 1, 3, 5, 5, dtype=torch.float64)
    for t in (1, 2, 50, 100):
        a, b, c = (torch.exp(-bar) for bar in (bridge.theta[t - 1], *bridge.theta_bar_0t[[t, t - 1]]))
        x0 = mu + (x_t - mu - 10 / 255 * (1 - b**2).sqrt() * noise) / b
        theirs = mu + a * (1 - c**2) / (1 - b**2) * (x_t - mu) + c * (1 - a**2) / (1 - b**2) * (x0 - mu)
        k, weight, _ = bridge.posterior(t - 1, t)
        z = 2 * (x_t - mu)
        ours = k * z + weight * bridge.to_residual(noise, z, 2 * mu - 1, torch.tensor([t]))
        torch.testing.assert_close(ours, 2 * (theirs - mu), atol=1e-9, rtol=0)
