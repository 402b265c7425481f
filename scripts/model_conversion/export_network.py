"""Exports a network as ONNX from image to image, or one evaluation of it as TorchScript, torch.export or ONNX.

    python scripts/model_conversion/export_network.py rdbm_plugin/inference/weights/rdbm_t.pth restore.onnx --image
    python scripts/model_conversion/export_network.py net_g_latest.pth restore.onnx --image --steps 4 --half
    python scripts/model_conversion/export_network.py rdbm_plugin/inference/weights/rdbm_t.pth rdbm.onnx
    python scripts/model_conversion/export_network.py experiments/NAME/models/net_g_latest.pth rdbm.pt --steps 10

With --image the file takes "input", (N, 3, H, W) RGB in [0, 1], and gives "output", the same restored, as chaiNNer and
vs-mlrt expect: all evaluations are inside. Its metadata has name, version, bridge (JSON) and evaluations.

Without --image the file takes the state x_t and the degraded image mu, (N, 3, H, W) float32 in about [-1, 1], and the
node t, (N,) int64. It returns the estimate of x0 - mu that the sampler uses, whatever the network itself predicts. The
plan of the sampler, a JSON list of [t, z_weight, residual_weight], is the metadata entry "plan" of an .onnx and the
extra file "plan.json" of a .pt or .pt2; scripts/examples/example_onnx.py samples with it.
"""
import json
import sys
import warnings
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rdbm_plugin import Restorer, __version__
from rdbm_plugin.__main__ import run
from rdbm_plugin.archs.conditional_unet_arch import ConditionalUNet
from rdbm_plugin.archs.precision import working_in
from rdbm_plugin.archs.rdbm_unet_arch import DARKEST, STRIP, WINDOW, Context, RDBMUNet, standardise
from rdbm_plugin.bridge import ResidualBridge
from rdbm_plugin.config.atomic_write import write_atomically
from rdbm_plugin.config.options import OptionError, check_int
from rdbm_plugin.samplers.bridge_sampler import BridgeSampler

INPUTS, OUTPUT = ('x_t', 'mu', 't'), 'residual'
LEAST = 32
"""Pixels that height and width of images for a .pt2 have at least: torch.export writes down that no side of the
smallest features is 1."""
TOLERANCE = 1e-4
"""Largest difference between file and network, on images in [-1, 1]."""
HALF_TOLERANCE = 0.05
"""The same in half precision: variant T has 0.02 on the noise that it is tried with, 0.003 on photos."""
OPSET, IR_VERSION = 18, 8
"""The oldest that torch writes, and what goes with it: chaiNNer has onnxruntime 1.17, which reads no later than 9."""
Evaluate = Callable[[Tensor, Tensor, Tensor], Tensor]


class Evaluation(nn.Module):
    """The residual as :class:`rdbm_plugin.samplers.sampler.Sampler` estimates it."""

    def __init__(self, network: nn.Module, bridge: ResidualBridge, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.network = network
        self.bridge = bridge
        self.dtype = dtype

    def forward(self, x_t: Tensor, mu: Tensor, t: Tensor) -> Tensor:
        """(N, C, H, W) both and (N,) int64 -> (N, C, H, W)."""
        with working_in(self.dtype, 'cpu'):
            output = self.network(x_t, mu, t).float()
        residual = self.bridge.to_residual(output, x_t - mu, mu, t)
        return (mu + residual).clamp(-1, 1) - mu


def traceable(restorer: Restorer, dtype: torch.dtype = torch.float32) -> Evaluation:
    """The evaluation of its network in ``dtype``, in a form that can be exported."""
    # Strides of channels_last would be compared, and that depends on the size.
    network = deepcopy(restorer.network).to(dtype, memory_format=torch.contiguous_format)
    ours = isinstance(network, (RDBMUNet, ConditionalUNet))
    return Evaluation(AnySize(network) if ours else network, restorer.bridge, dtype).eval()


class AnySize(nn.Module):
    """A network of ours without numbers that Python finds from the size: a trace would take those for constants."""

    def __init__(self, network: RDBMUNet | ConditionalUNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, x_t: Tensor, mu: Tensor, t: Tensor) -> Tensor:
        """(N, C, H, W) both and (N,) int64 -> (N, C, H, W)."""
        context = [whole_context(self.network.context, x_t, mu)] if isinstance(self.network, RDBMUNet) else []
        padded = pad(torch.cat([x_t, mu], dim=1), self.network.stride).chunk(2, dim=1)
        # No slices: whether these are contiguous would depend on the size.
        return self.network(*padded, t, *context).index_select(2, places(rows(mu))).index_select(3, places(columns(mu)))


def whole_context(context: Context, x_t: Tensor, mu: Tensor) -> Tensor:
    """What ``context(x_t, mu)`` gives, all strips at once."""
    # One more than there are windows: torch.export takes a number that may be 1 for a constant.
    most = tuple(F.pad(line, (0, WINDOW))[::WINDOW] for line in (rows(mu), columns(mu)))
    light = torch.cat([mu.mean(1, keepdim=True), mu.square().mean(1, keepdim=True)], dim=1)
    mean, std = windows(light, WINDOW, STRIP, most)
    std = std.clamp(min=DARKEST)
    fine = context.near(pad(standardise(torch.cat([x_t, mu], dim=1), mean[:, 0], std[:, 0]), 8, STRIP))
    coarse = context.far(fine)
    features = [*windows(torch.cat([fine, fine.square()], dim=1), WINDOW // 4, STRIP // 4, most),
            *windows(torch.cat([coarse, coarse.square()], dim=1), WINDOW // 8, STRIP // 8, most), mean, std.log()]
    return torch.cat([mean, std, context.out(torch.cat(features, dim=1))], dim=1)


def rows(x: Tensor) -> Tensor:
    """One value of each row, (H,): it stands for their number."""
    return x[0, 0, :, 0]


def columns(x: Tensor) -> Tensor:
    """One value of each column, (W,)."""
    return x[0, 0, 0, :]


def places(line: Tensor) -> Tensor:
    """0 ... length - 1, int64."""
    return torch.ones_like(line, dtype=torch.int64).cumsum(0) - 1


def pad(x: Tensor, multiple: int, strip: int | None = None) -> Tensor:
    """As the network extends the right and lower edge of a strip: by reflection, or repetition if a side is too short.

    Args:
        x: (N, C, H, W).
        multiple: That height and width are to be of.
        strip: Rows of a strip, a multiple of ``multiple``; default: all.
    """
    height, width = places(rows(x))[-1] + 1, places(columns(x))[-1] + 1
    last = (height - 1) % strip + 1 if strip else height
    wide = -width % multiple < width
    both = wide & (-height % multiple < last)
    x = x.index_select(2, sources(rows(x), multiple, both))
    below = x.index_select(3, sources(columns(x), multiple, both))
    if not strip:
        return below
    above = x.index_select(3, sources(columns(x), multiple, wide))
    return torch.where((places(rows(x)) < height - last)[:, None], above, below)


def sources(line: Tensor, multiple: int, reflect: Tensor) -> Tensor:
    """Which of the places of ``line`` those of the padded one are filled from."""
    within = torch.arange(multiple, device=line.device)
    wanted = (multiple * places(line[::multiple])[:, None] + within).flatten()
    end = places(line)[-1]
    return torch.where(wanted <= end, wanted, torch.where(reflect, 2 * end - wanted, end))


def windows(both: Tensor, size: int, strip: int, most: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation in windows of about ``size`` squared, averaged over them; each (N, C).

    Args:
        both: Values and their squares, (N, 2 C, H, W).
        size: Of a window.
        strip: Rows that are divided into windows for themselves.
        most: Two lines, as long as there may be windows down and across.
    """
    both = both.float()
    down, across = members(rows(both), size, most[0], strip), members(columns(both), size, most[1])
    area = torch.outer(across.sum(1), down.sum(1))
    with torch.autocast(both.device.type, enabled=False):
        sums = F.linear(F.linear(both, across).transpose(2, 3).contiguous(), down)
    mean, second = (sums / area.clamp(min=1)).chunk(2, dim=1)
    std = (second - mean.square()).clamp(min=1e-6).sqrt() * (area > 0)
    count = (area > 0).sum()
    return mean.sum((2, 3)) / count, std.sum((2, 3)) / count


def members(line: Tensor, size: int, most: Tensor, strip: int | None = None) -> Tensor:
    """(windows, length): 1 where a place is in a window. There may be windows without any."""
    place = places(line)
    start = place // strip * strip if strip else torch.zeros_like(place)
    length = place[-1] + 1 - start
    if strip:
        length = length.clamp(max=strip)
    count = (length / size).round().to(torch.int64).clamp(min=1)
    window = start // size + (place - start) * count // length
    return line.new_zeros(most.shape[0], line.shape[0]).scatter(0, window[None], 1.0)


def plan_of(sampler: object) -> list[tuple[int, float, float]]:
    """Node, weight of z and weight of the residual of each step.

    Raises:
        OptionError: The sampler does more than that.
    """
    if type(sampler) is not BridgeSampler:
        raise OptionError(f'val: sampler: type: found {type(sampler).__name__}; only BridgeSampler can be exported.')
    if sampler.bridge.reversion_level is not None:
        raise OptionError(f'bridge: found {type(sampler.bridge).__name__}, which reverts to a level; only bridges that '
                          'revert to mu can be exported.')
    for key, found, expected in (('start', sampler.start, 'mean'), ('eta', sampler.eta, 0.0),
                                 ('solver', sampler.solver, 'euler')):
        if found != expected:
            raise OptionError(f'val: sampler: {key}: found {found!r}; only {expected!r} can be exported. Set it in a '
                              'copy of the option file, and name that with --opt.')
    return [(move.t, move.step.z_weight, move.step.residual_weight) for move in sampler.plan]


def random_inputs(nodes: list[int], height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """A state, a degraded image and a node for each of ``nodes``."""
    generator = torch.Generator().manual_seed(0)
    mu = 2 * torch.rand(len(nodes), 3, height, width, generator=generator) - 1
    return mu + 0.1 * torch.randn(mu.shape, generator=generator), mu, torch.tensor(nodes)


def as_torchscript(evaluation: Evaluation, inputs: tuple[Tensor, ...], plan: str) -> tuple[bytes, Evaluate]:
    """The content of a .pt, and what it does when read."""
    buffer = BytesIO()
    torch.jit.save(torch.jit.trace(evaluation, inputs, check_trace=False), buffer, _extra_files={'plan.json': plan})
    script = torch.jit.load(BytesIO(buffer.getvalue()))

    def evaluate(*inputs: Tensor) -> Tensor:
        # To optimise it takes longer than to run it.
        with torch.jit.optimized_execution(False):
            return script(*inputs)
    return buffer.getvalue(), evaluate


def as_program(evaluation: Evaluation, inputs: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    """The evaluation as torch.export sees it, for any number and size."""
    height, width = (torch.export.Dim(name, min=LEAST) for name in ('height', 'width'))
    count = torch.export.Dim('batch')
    image = {0: count, 2: height, 3: width}
    return torch.export.export(evaluation, inputs, dynamic_shapes=(image, image, {0: count}))


def as_pt2(evaluation: Evaluation, inputs: tuple[Tensor, ...], plan: str) -> tuple[bytes, Evaluate]:
    """The content of a .pt2, and what it does when read."""
    buffer = BytesIO()
    torch.export.save(as_program(evaluation, inputs), buffer, extra_files={'plan.json': plan})
    return buffer.getvalue(), torch.export.load(BytesIO(buffer.getvalue())).module()


def as_onnx(evaluation: Evaluation, inputs: tuple[Tensor, ...], plan: str) -> tuple[bytes, Evaluate]:
    """The content of an .onnx, and what onnxruntime makes of it."""
    model = evaluation_model(evaluation, inputs)
    model.metadata_props.add(key='plan', value=plan)
    return model.SerializeToString(), running(model)


def evaluation_model(evaluation: Evaluation, inputs: tuple[Tensor, ...]) -> Any:
    """The evaluation as onnx.ModelProto.

    Raises:
        OptionError: A package is missing.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
        from onnx_ir.passes.common import ClearMetadataAndDocStringPass
    except ImportError as error:
        raise OptionError(f'an .onnx needs {error.name}: pip install onnx onnxscript onnxruntime') from None
    program = torch.onnx.export(as_program(evaluation, inputs), dynamo=True, input_names=INPUTS,
                                output_names=[OUTPUT], opset_version=OPSET, verbose=False)
    # Which lines of which files each operation comes from.
    ClearMetadataAndDocStringPass()(program.model)
    model = program.model_proto
    model.ir_version = IR_VERSION
    return model


def running(model: Any) -> Evaluate:
    """What onnxruntime makes of a model."""
    import onnxruntime
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])
    names = [each.name for each in session.get_inputs()]

    def evaluate(*inputs: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: value.numpy() for name, value in zip(names, inputs)})[0])
    return evaluate


def as_image_to_image(evaluation: Evaluation, inputs: tuple[Tensor, ...], plan: str,
                      metadata: dict[str, str]) -> tuple[bytes, Evaluate]:
    """The content of an .onnx that takes an image and gives the restored one, and what onnxruntime makes of it."""
    model = unrolled(evaluation_model(evaluation, inputs), json.loads(plan), evaluation.dtype == torch.float16)
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    return model.SerializeToString(), running(model)


def unrolled(evaluation: Any, plan: list[tuple[int, float, float]], half: bool) -> Any:
    """An onnx.ModelProto from image to image, with an evaluation for each step of a plan, all of the same weights."""
    from onnx import helper, inliner, parser
    steps = ''.join(f"""
        node{i} = Constant<value = int64[1] {{{t}}}>()
        z_weight{i} = Constant<value = float {{{z_weight:.9g}}}>()
        residual_weight{i} = Constant<value = float {{{residual_weight:.9g}}}>()
        x_t{i} = Add(mu, z{i})
        t{i} = Expand(node{i}, count)
        residual{i} = rdbm.Evaluate(x_t{i}, mu, t{i})
        kept{i} = Mul(z_weight{i}, z{i})
        moved{i} = Mul(residual_weight{i}, residual{i})
        z{i + 1} = Add(kept{i}, moved{i})""" for i, (t, z_weight, residual_weight) in enumerate(plan))
    image = f'{"float16" if half else "float"}[batch_size, 3, height, width]'
    # Added to the input at the end: programs infer from that how large the output is.
    model = parser.parse_model(f"""
        <ir_version: {IR_VERSION}, opset_import: ["": {OPSET}, "rdbm": 1]>
        restore ({image} input) => ({image} output) {{
        lq = Cast<to = 1>(input)
        zero = Constant<value = float {{0}}>()
        half = Constant<value = float {{0.5}}>()
        one = Constant<value = float {{1}}>()
        two = Constant<value = float {{2}}>()
        count = Shape<start = 0, end = 1>(input)
        doubled = Mul(two, lq)
        mu = Sub(doubled, one)
        z0 = Mul(zero, mu){steps}
        change = Mul(half, z{len(plan)})
        restored = Add(lq, change)
        clamped = Clip(restored, zero, one)
        output = Cast<to = {10 if half else 1}>(clamped) }}""")
    weights = evaluation.graph.initializer
    names = [each.name for each in weights]
    for call in (node for node in model.graph.node if node.domain == 'rdbm'):
        call.input.extend(names)
    model.graph.initializer.extend(weights)
    model.functions.append(helper.make_function(
        'rdbm', 'Evaluate', [*INPUTS, *names], [OUTPUT], evaluation.graph.node, evaluation.opset_import))
    return inliner.inline_local_functions(model)


FORMATS = {'.pt': as_torchscript, '.pt2': as_pt2, '.onnx': as_onnx}


def export(restorer: Restorer, suffix: str, size: tuple[int, int], image: bool = False,
           half: bool = False) -> tuple[bytes, float]:
    """The content of a file, and the largest difference between what it and what the network gives.

    Args:
        restorer: Network and sampler.
        suffix: A key of FORMATS.
        size: Height and width to trace with. Compared are these and larger ones, of more rows than a strip.
        image: Whether the file goes from image to image; .onnx alone.
        half: Whether it then is in half precision.

    Raises:
        OptionError: The network or the sampler cannot be exported.
    """
    plan, dtype = json.dumps(plan_of(restorer.sampler)), torch.float16 if half else torch.float32
    traced, expected = traceable(restorer, dtype), Evaluation(restorer.network, restorer.bridge).eval()
    name, last = type(restorer.network).__name__, restorer.bridge.timesteps
    first = random_inputs([last, last // 2 + 1], *size)
    trials = [first, random_inputs([1], size[0] + STRIP, size[1] + 9)]
    write = FORMATS[suffix]
    if image:
        write, expected = partial(as_image_to_image, metadata=metadata_of(restorer)), restorer
        trials = [((mu + 1).div(2).to(dtype),) for _, mu, _ in trials]
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            content, found = write(traced, first, plan)
            difference = max(float((found(*inputs) - expected(*inputs)).abs().max()) for inputs in trials)
    except OptionError:
        raise
    # Exporters raise whatever comes up at what they do not know.
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise OptionError(f'network_g: {name} cannot be exported as {suffix}: {reason}') from error
    tolerance = HALF_TOLERANCE if half else TOLERANCE
    if not difference <= tolerance:
        raise OptionError(f'network_g: {name} exported as {suffix} differs from itself by '
                          f'{difference:.1e}, more than {tolerance:g}; nothing was written.')
    return content, difference


def metadata_of(restorer: Restorer) -> dict[str, str]:
    """What an .onnx from image to image says of itself."""
    network, bridge = restorer.options['network_g'], restorer.options['bridge'] or {}
    return {'name': ' '.join(filter(None, (network['type'], network.get('variant')))), 'version': __version__,
            'bridge': json.dumps({'type': type(restorer.bridge).__name__, **bridge}),
            'evaluations': str(restorer.sampler.nfe)}


def main() -> None:
    """Read the command line, export, and write."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', help='.pth or .safetensors')
    parser.add_argument('out', type=Path, help='name that ends in .pt (TorchScript; runs on the CPU), .pt2 '
                        f'(torch.export; on the CPU, images of at least {LEAST} x {LEAST} pixels) or .onnx; must not '
                        'exist')
    parser.add_argument('--opt', help='option file of the training; default: what the checkpoint holds itself, else '
                        'the one beside it or in the folder of its experiment')
    parser.add_argument('--param_key', default='params_ema', help='weights to take: params_ema (default) or params')
    parser.add_argument('--steps', type=int, help='steps of the plan; default: as in the option file')
    parser.add_argument('--image', action='store_true', help='an .onnx from image to image, with all steps inside')
    parser.add_argument('--half', action='store_true', help='with --image: input, output and network in half precision')
    parser.add_argument('--size', type=int, nargs=2, default=(45, 61), metavar=('H', 'W'),
                        help='image to trace with; the file takes any other, too (default 45 61)')
    args = parser.parse_args()
    if args.out.suffix not in FORMATS:
        raise OptionError(f'{args.out}: expected a name that ends in {", ".join(FORMATS)}.')
    if args.image and args.out.suffix != '.onnx':
        raise OptionError(f'{args.out}: with --image expected a name that ends in .onnx.')
    if args.half and not args.image:
        raise OptionError('--half: expected only with --image.')
    if args.out.exists():
        raise OptionError(f'{args.out}: exists already; choose another name.')
    size = tuple(check_int('--size', side, LEAST) for side in args.size)
    restorer = Restorer(args.checkpoint, args.opt, param_key=args.param_key, steps=args.steps, tile=0, device='cpu')
    content, difference = export(restorer, args.out.suffix, size, args.image, args.half)
    write_atomically(args.out, content)
    print(f'{args.out}: {len(content) / 1e6:.1f} MB, {restorer.sampler.nfe} steps, largest difference to the network '
          f'{difference:.1e}')


if __name__ == '__main__':
    sys.exit(run(main))
