"""Networks as TorchScript, torch.export and ONNX files, and sampling with these."""
import json
import sys
import warnings
import zipfile
from io import BytesIO
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, command
from rounding import as_doubles, doubled, within_rounding
from torch import nn

onnxruntime = pytest.importorskip('onnxruntime')
onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxscript')
import example_onnx  # noqa: E402
import export_network  # noqa: E402

import rdbm_plugin  # noqa: E402
from rdbm_plugin import Restorer  # noqa: E402
from rdbm_plugin.archs.checkpoint import SHIPPED  # noqa: E402
from rdbm_plugin.archs.conditional_unet_arch import ConditionalUNet  # noqa: E402
from rdbm_plugin.bridge import build_bridge  # noqa: E402
from rdbm_plugin.config.options import OptionError  # noqa: E402
from rdbm_plugin.samplers import build_sampler  # noqa: E402

SIZES = [(3, 64, 64), (1, 33, 130), (1, 515, 45)]
"""Other than traced with: whole windows, several across, and a last strip too low to be reflected."""
SMALL = [(2, 1, 7), (1, 9, 3)]


@pytest.fixture(scope='module')
def restorer():
    return Restorer(steps=3, tile=0, device='cpu')


@pytest.fixture(scope='module')
def files(restorer):
    """Content of the .pt2 and the .onnx of the shipped weights, and what each does when read. The program in both is
    found once, as that takes seconds."""
    evaluation = export_network.traceable(restorer)
    plan = json.dumps(export_network.plan_of(restorer.sampler))
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        program = export_network.as_program(evaluation, inputs(2, 45, 61))
        patch.setattr(export_network, 'as_program', lambda *args: program)
        return {suffix: export_network.FORMATS[suffix](evaluation, inputs(2, 45, 61), plan)
                for suffix in ('.pt2', '.onnx')}


@pytest.fixture(scope='module')
def session(files):
    return onnxruntime.InferenceSession(files['.onnx'][0], providers=['CPUExecutionProvider'])


def inputs(count, height, width, nodes=100):
    generator = torch.Generator().manual_seed(height)
    mu = 2 * torch.rand(count, 3, height, width, generator=generator) - 1
    return mu + 0.1 * torch.randn(mu.shape, generator=generator), mu, torch.randint(1, nodes + 1, (count,))


def residual(network, x_t, mu, t):
    """The estimate that the sampler makes from a network that gives it."""
    with torch.inference_mode():
        return (mu + network(x_t, mu, t)).clamp(-1, 1) - mu


def largest(a, b):
    return float((a - b).detach().abs().max())


def gives_what_the_network_gives(found, restorer, each):
    exact = residual(doubled(restorer.network), *as_doubles(*each))
    return within_rounding(found, residual(restorer.network, *each), exact)


def samples_as_the_sampler_does(found, unit, mu):
    with torch.inference_mode():
        single, exact = (unit.sampler(network, start).x0 for network, start in (
            (unit.network, mu), (doubled(unit.network), mu.double())))
    return within_rounding(found, single, exact)


def test_program_gives_what_the_network_gives(files, restorer):
    content, program = files['.pt2']
    for size in SIZES:
        each = inputs(*size)
        assert gives_what_the_network_gives(program(*each), restorer, each)
    with zipfile.ZipFile(BytesIO(content)) as archive:
        name, = (name for name in archive.namelist() if name.endswith('plan.json'))
        assert json.loads(archive.read(name))[0] == [100, 0.0, float(restorer.bridge.mean_coef[66])]


@pytest.mark.parametrize('size', SIZES + SMALL)
def test_onnx_gives_what_the_network_gives(session, restorer, size):
    each = inputs(*size)
    found, = session.run(None, {name: value.numpy() for name, value in zip(('x_t', 'mu', 't'), each)})
    assert gives_what_the_network_gives(torch.from_numpy(found), restorer, each)


def test_onnx_samples_as_the_sampler_does(session, restorer):
    _, mu, _ = inputs(2, 51, 77)
    assert samples_as_the_sampler_does(torch.from_numpy(example_onnx.restore(session, mu.numpy())), restorer, mu)


def test_example_restores_a_photo(files, restorer, tmp_path):
    photo = np.random.default_rng(0).integers(0, 256, (45, 37, 3), np.uint8)
    cv2.imwrite(str(tmp_path / 'photo.png'), photo[..., ::-1])
    (tmp_path / 'rdbm.onnx').write_bytes(files['.onnx'][0])
    run = (ROOT / 'scripts/examples/example_onnx.py', 'rdbm.onnx', 'photo.png', 'restored.png')
    command(*run, cwd=tmp_path)
    found = cv2.imread(str(tmp_path / 'restored.png'))[..., ::-1]
    assert np.abs(found.astype(int) - restorer(photo)).max() <= 1
    assert command(*run, cwd=tmp_path, check=False).returncode != 0, 'the picture is not replaced'
    text = (ROOT / 'scripts/examples/example_onnx.py').read_text()
    assert 'import torch' not in text and 'rdbm_plugin ' not in text


# ---------------------------------------------------------------------------------------------- from image to image

@pytest.fixture(scope='module')
def image_file(files, tmp_path_factory):
    """What the command writes, with the evaluation that has been found already."""
    evaluation = onnx.load_model_from_string(files['.onnx'][0])
    out = tmp_path_factory.mktemp('image') / 'restore.onnx'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_network, 'evaluation_model', lambda *inputs: evaluation)
        patch.setattr(sys, 'argv', ['export_network.py', 'shipped', str(out), '--image', '--steps', '3'])
        export_network.main()
    return out


@pytest.fixture(scope='module')
def restore_image(image_file):
    return export_network.running(onnx.load(image_file))


def test_image_file_is_what_programs_ask_for(image_file):
    model = onnx.load(image_file)
    onnx.checker.check_model(model, full_check=True)
    # chaiNNer has onnxruntime 1.17.
    assert model.opset_import[0].version <= 20 and model.ir_version <= 9 and not model.functions
    assert str(ROOT).encode() not in image_file.read_bytes()
    for names, name in ((model.graph.input, 'input'), (model.graph.output, 'output')):
        assert [each.name for each in names] == [name] and names[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        assert shape(names[0]) == ['batch_size', 3, 'height', 'width']
    found = {each.key: each.value for each in model.metadata_props}
    assert found.keys() == {'name', 'version', 'bridge', 'evaluations'}
    assert (found['name'], found['version'], found['evaluations']) == ('RDBMUNet T', rdbm_plugin.__version__, '3')
    assert build_bridge(json.loads(found['bridge'])).timesteps == 100


def test_size_of_the_output_is_known_before_it_runs(image_file):
    """chaiNNer finds the scale so, and vs-mlrt the size of its pictures."""
    model = onnx.load(image_file)
    for dim, length in zip(model.graph.input[0].type.tensor_type.shape.dim, (1, 3, 16, 48)):
        dim.dim_value = length
    found = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    assert shape(found.graph.output[0])[1:] == [3, 16, 48]


def shape(value):
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


@pytest.mark.parametrize('size', [(1, 1, 1), (1, 7, 5), (2, 64, 64), (1, 333, 500),
                                  pytest.param((1, 1080, 1920), marks=pytest.mark.slow)])
def test_image_file_restores_as_the_restorer_does(restore_image, size):
    count, height, width = size
    image = torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(height))
    # Tiles of the Restorer, which it cuts larger pictures into, would change more than the export does.
    found, expected = restore_image(image), Restorer(steps=3, tile=0, device='cpu')(image)
    difference = 255 * (found - expected).abs()
    assert found.shape == image.shape and float(found.min()) >= 0 and float(found.max()) <= 1
    assert float(difference.max()) < 1 and float(difference.mean()) < 0.05
    assert height < 64 or float((found - image).abs().max()) > 0.05, 'it restores'


def test_statistics_stay_float32_in_half_precision(restorer):
    each = inputs(2, 70, 90)
    with torch.inference_mode():
        found = export_network.traceable(restorer, torch.float16)(*each)
        assert found.dtype == torch.float32
        assert 1e-5 < largest(found, residual(restorer, *each)) < export_network.HALF_TOLERANCE


class Tiny(nn.Module):
    """Exported in a moment."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, x_t, mu, t):
        return self.conv(torch.cat([x_t, mu], dim=1)) * t.view(-1, 1, 1, 1) / 100


def test_image_file_in_half_precision():
    restorer = Restorer(steps=3, tile=0, device='cpu')
    restorer.network = Tiny()
    content, difference = export_network.export(restorer, '.onnx', (45, 61), image=True, half=True)
    model = onnx.load_model_from_string(content)
    assert [each.type.tensor_type.elem_type for each in (*model.graph.input, *model.graph.output)] == [
        onnx.TensorProto.FLOAT16] * 2
    image = torch.rand(2, 3, 37, 50, generator=torch.Generator().manual_seed(0)).half()
    found, expected = export_network.running(model)(image), restorer(image.float())
    assert 0 < largest(found.float(), expected) < 1 / 255 and difference < 1 / 255
    assert largest(expected, image.float()) > 0.1
    weight, = (each for each in model.graph.initializer if list(each.dims) == [3, 6, 3, 3])
    assert weight.data_type == onnx.TensorProto.FLOAT16


@pytest.mark.slow
def test_shipped_weights_in_half_precision():
    restorer = Restorer(steps=2, tile=0, device='cpu')
    content, _ = export_network.export(restorer, '.onnx', (45, 61), image=True, half=True)
    image = torch.nn.functional.interpolate(torch.rand(1, 3, 8, 8), (333, 500), mode='bicubic').clamp(0, 1).half()
    found = export_network.running(onnx.load_model_from_string(content))(image).float()
    assert largest(found, restorer(image.float())) < 1.5 / 255


def test_command_writes_torchscript_of_any_size(restorer, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['export_network.py', str(SHIPPED), 'rdbm.pt', '--steps', '3'])
    export_network.main()
    assert 'MB, 3 steps, largest difference to the network' in capsys.readouterr().out
    plan = {'plan.json': ''}
    script = load(tmp_path / 'rdbm.pt', plan)
    assert [len(step) for step in json.loads(plan['plan.json'])] == [3, 3, 3]
    for size in SIZES + SMALL:
        each = inputs(*size)
        assert gives_what_the_network_gives(script(*each), restorer, each)
    assert [path.name for path in tmp_path.iterdir()] == ['rdbm.pt']


def load(file, plan=None):
    """TorchScript, run as it stands: optimising it takes longer than running it."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', FutureWarning)
        script = torch.jit.load(file, _extra_files=plan)

    def evaluate(*inputs):
        with torch.jit.optimized_execution(False), torch.inference_mode():
            return script(*inputs)
    return evaluate


def parts(network, bridge, **sampler):
    """What is exported of a Restorer."""
    bridge = build_bridge(bridge)
    return SimpleNamespace(network=network.eval(), bridge=bridge, sampler=build_sampler(sampler, bridge))


@pytest.mark.parametrize('bridge', [{'type': 'OUBridge', 'prediction': 'noise'}, {'prediction': 'velocity'}])
def test_residual_is_given_whatever_the_network_predicts(bridge):
    torch.manual_seed(0)
    unit = parts(ConditionalUNet(nf=4, depth=1), bridge, steps=3)
    content, difference = export_network.export(unit, '.pt', (45, 61))
    script = load(BytesIO(content))
    _, mu, _ = inputs(2, 35, 50)
    plan = export_network.plan_of(unit.sampler)
    z = torch.zeros_like(mu)
    for t, z_weight, residual_weight in plan:
        z = z_weight * z + residual_weight * script(mu + z, mu, torch.full((2,), t))
    assert samples_as_the_sampler_does(mu + z, unit, mu)
    assert 0 < difference < export_network.TOLERANCE and float(z.abs().max()) > 0.1


class Fixed(nn.Module):
    """Takes its width for a number."""

    def forward(self, x_t, mu, t):
        return x_t / float(x_t.shape[-1])


def test_network_for_one_size_is_refused():
    with pytest.raises(OptionError, match=r'Fixed exported as \.pt differs from itself by .* nothing was written'):
        export_network.export(parts(Fixed(), {}), '.pt', (45, 61))


@pytest.mark.parametrize(('bridge', 'sampler', 'message'), [
    ({}, {'start': 'stochastic'}, "start: found 'stochastic'; only 'mean'"),
    ({'modulation': 'one'}, {'eta': 0.5}, 'eta: found 0.5; only 0.0'),
    ({}, {'solver': 'heun'}, "solver: found 'heun'; only 'euler' can be exported. Set it in a copy"),
    ({}, {'type': 'ParallelSampler'}, 'found ParallelSampler; only BridgeSampler'),
    ({'type': 'VPBridge'}, {}, 'found VPBridge, which reverts to a level')])
def test_other_samplers_are_refused(bridge, sampler, message):
    with pytest.raises(OptionError) as error:
        export_network.export(parts(Fixed(), bridge, **sampler), '.onnx', (45, 61))
    assert message in str(error.value)


@pytest.mark.parametrize('module', ['onnx', 'onnxruntime', 'onnxscript'])
def test_missing_package_is_named(restorer, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(OptionError, match=f'needs {module}: pip install onnx onnxscript onnxruntime'):
        export_network.export(restorer, '.onnx', (45, 61))


@pytest.mark.parametrize(('arguments', 'message'), [
    (['none.pth', 'out.onnx'], 'no file'), ([SHIPPED, 'out.tflite'], 'ends in .pt, .pt2, .onnx'),
    ([SHIPPED, 'out.pt', '--image'], 'with --image expected a name that ends in .onnx'),
    ([SHIPPED, 'out.onnx', '--half'], '--half: expected only with --image'),
    ([SHIPPED, 'out.onnx', '--size', '8', '64'], '--size: found 8'), ([SHIPPED, 'there.pt'], 'exists already')])
def test_bad_arguments_are_named(tmp_path, monkeypatch, arguments, message):
    (tmp_path / 'there.pt').write_text('mine')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['export_network.py', *map(str, arguments)])
    with pytest.raises(OptionError) as error:
        export_network.main()
    assert message in str(error.value)
    assert [path.read_text() for path in tmp_path.iterdir()] == ['mine']
