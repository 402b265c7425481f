"""Checkpoints in the real spandrel, as chaiNNer and ComfyUI load and call them."""
import shutil

import pytest
import torch
import yaml

spandrel = pytest.importorskip('spandrel')
import rdbm_plugin.spandrel  # noqa: E402, F401
from rdbm_plugin import Restorer  # noqa: E402
from rdbm_plugin.archs.checkpoint import OPTIONS, SHIPPED, read_parameters, with_options, write_safetensors  # noqa: E402
from rdbm_plugin.archs.conditional_unet_arch import ConditionalUNet  # noqa: E402
from rdbm_plugin.archs.rdbm_unet_arch import RDBMUNet  # noqa: E402
from rdbm_plugin.config.options import OptionError  # noqa: E402
from rdbm_plugin.inference.training_options import running_options  # noqa: E402
from rdbm_plugin.models.checkpoints import Checkpoints  # noqa: E402

ODD = [(1, 1, 1), (1, 7, 5), (2, 51, 64), (1, 64, 600)]
"""The last in several tiles."""


def load(file):
    return spandrel.ModelLoader().load_from_file(file)


def photo(count, height, width):
    """Smooth as photos are, in which rounding stays small."""
    noise = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(noise, (height, width), mode='bicubic').clamp(0, 1)


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    """The shipped weights without their option file."""
    return shutil.copy(SHIPPED, tmp_path_factory.mktemp('alone'))


def test_shipped_weights_are_described(alone):
    model = load(alone)
    assert isinstance(model, spandrel.ImageModelDescriptor)
    assert (model.purpose, model.scale, model.input_channels, model.output_channels) == ('Restoration', 1, 3, 3)
    assert model.size_requirements.none and model.tiling is spandrel.ModelTiling.INTERNAL
    assert model.supports_half and model.supports_bfloat16 and model.tags == ['T', 'NFE 1']
    assert (model.architecture.id, model.dtype) == ('RDBM', torch.float32)


@pytest.mark.parametrize('size', ODD)
def test_restores_as_the_restorer_does(alone, size):
    image = photo(*size)
    assert torch.allclose(load(alone)(image), Restorer(device='cpu')(image), atol=1e-6)


@pytest.mark.parametrize(('dtype', 'bound'), [(torch.float16, 1 / 255), (torch.bfloat16, 8 / 255)])
def test_restores_in_half_precision(alone, dtype, bound):
    model, restorer = load(alone).to(dtype), Restorer(device='cpu')
    for size in ODD[:3]:
        image = photo(*size).to(dtype)
        found = model(image)
        assert found.dtype == dtype and float((found.float() - restorer(image.float())).abs().max()) < bound


def test_sampler_bridge_and_average_of_a_training_are_taken(tmp_path):
    options = {'network_g': {'type': 'ConditionalUNet', 'nf': 8, 'depth': 2}, 'path': {}, 'name': 'mine',
               'bridge': {'type': 'OUBridge', 'prediction': 'velocity'}, 'val': {'sampler': {'steps': 3}}}
    torch.manual_seed(0)
    nets = {key: ConditionalUNet(nf=8, depth=2) for key in ('params', 'params_ema')}
    (tmp_path / 'models').mkdir()
    Checkpoints({'models': tmp_path / 'models'}, options=running_options(options)).save_network(nets, 'net_g', -1)
    model = load(tmp_path / 'models/net_g_latest.pth')
    (tmp_path / 'mine.yml').write_text(yaml.safe_dump(options))
    image = photo(1, 33, 40)
    expected = Restorer(tmp_path / 'models/net_g_latest.pth', device='cpu')(image)
    assert torch.allclose(model(image), expected, atol=1e-6) and model.tags == ['ConditionalUNet', 'NFE 3']
    assert float((expected - image).abs().max()) > 1e-3


def test_basicsr_loads_the_same_file_strictly(alone):
    base_model = pytest.importorskip('basicsr.models.base_model')
    network = RDBMUNet('T')
    model = base_model.BaseModel({'num_gpu': 0, 'is_train': False})
    model.load_network(network, str(alone), strict=True, param_key='params_ema')
    expected = read_parameters(alone)
    assert all(torch.equal(value, expected[name].float()) for name, value in network.state_dict().items())


def test_comfyui_and_safetensors_see_tensors_alone(alone, tmp_path):
    image, expected = photo(1, 20, 30), load(alone)(photo(1, 20, 30))
    # What ComfyUI does with a file of several keys.
    whole = spandrel.ModelLoader().load_from_state_dict(torch.load(alone, weights_only=True))
    options = {'network_g': {'type': 'RDBMUNet'}, 'val': {'sampler': {'steps': 1}}}
    write_safetensors(with_options(read_parameters(alone), options), tmp_path / 'x.safetensors')
    # What chaiNNer's "Save Model" writes.
    torch.save(whole.model.state_dict(), tmp_path / 'saved.pth')
    for model in (whole, load(tmp_path / 'x.safetensors'), load(tmp_path / 'saved.pth')):
        assert torch.equal(model(image), expected)


def test_older_checkpoint_is_read_with_its_option_file_or_refused(tmp_path):
    old = tmp_path / 'net_g_latest.pth'
    torch.save({'params': read_parameters(SHIPPED)}, old)
    with pytest.raises(spandrel.UnsupportedModelError, match=r'does not say which bridge .* beside it under the same'):
        load(old)
    (tmp_path / 'net_g_latest.yml').write_text('network_g: {type: RDBMUNet}\nval: {sampler: {steps: 2}}\n')
    image = photo(1, 20, 30)
    assert torch.allclose(load(old)(image), Restorer(steps=2, device='cpu')(image), atol=1e-6)


@pytest.mark.parametrize(('options', 'message'), [
    (torch.tensor([1, 2, 3], dtype=torch.int32), 'damaged'),
    (with_options({}, {'network_g': {'type': 'RDBMUNet'}, 'bridge': {'timesteps': 0}})[OPTIONS], 'timesteps: found 0'),
    (with_options({}, {'network_g': {'type': 'RDBMUNet', 'variant': 'S'}})[OPTIONS], 'size mismatch')])
def test_options_that_cannot_be_used_are_refused_in_words(options, message):
    with pytest.raises((OptionError, RuntimeError), match=message):
        spandrel.ModelLoader().load_from_state_dict({**read_parameters(SHIPPED), OPTIONS: options})


def test_other_networks_are_loaded_as_before(tmp_path):
    from spandrel.architectures.Compact.__arch.SRVGG import SRVGGNetCompact
    network = SRVGGNetCompact(num_feat=4, num_conv=1, upscale=2)
    torch.save({'params': network.state_dict()}, tmp_path / 'compact.pth')
    assert load(tmp_path / 'compact.pth').architecture.id == 'Compact'
