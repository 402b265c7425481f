"""How much slower than bare torch the plugin is, and how its network compares: ratios with their spread, not times.

    python scripts/study/benchmark.py                                  # all parts, on the GPU if there is one
    python scripts/study/benchmark.py --parts sampler trainer --variant T --rounds 9

What is compared runs in turn in one process, so that whatever else slows the machine hits both. Writes benchmark.json,
and benchmark.png with matplotlib.
"""
import json
import statistics
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from plain_networks import attention_unet, naf_unet
from torch import Tensor, nn

from rdbm_plugin import BridgeSampler, RDBMUNet, build_bridge
from rdbm_plugin.archs.complexity import giga_multiply_adds
from rdbm_plugin.archs.rdbm_unet_arch import VARIANTS
from rdbm_plugin.basicsr_host import compat
from rdbm_plugin.config.option_file import read_option_file
from rdbm_plugin.config.options import OptionError
from rdbm_plugin.inference.tiling import TiledNetwork, tile_for

compat.keep_freed_memory()
import_module('rdbm_plugin.registration')
RDBMModel = import_module('rdbm_plugin.models.rdbm_model').RDBMModel
cost = import_module('rdbm_plugin.evaluation.cost')

OPTIONS = Path(__file__).resolve().parents[2] / 'options/train_rdbm_quickstart.yml'


def arguments() -> Namespace:
    """The command line."""
    parser = ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--parts', nargs='+', choices=list(PARTS), default=list(PARTS))
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--variant', choices=VARIANTS, default='T')
    parser.add_argument('--rounds', type=int, default=7, help='measurements of each ratio')
    parser.add_argument('--largest', type=int, default=4096, help='side in pixels of the largest image')
    parser.add_argument('--out', type=Path, default=Path('benchmark.json'))
    parser.add_argument('--steps-alone', action='store_true', help='print seconds of a training step; used by ranks')
    return parser.parse_args()


def in_turn(args: Namespace, *calls: Callable[[], object]) -> list[list[float]]:
    """Seconds of each call in each round, after one round that does not count."""
    found: list[list[float]] = [[] for _ in calls]
    for number in range(args.rounds + 1):
        for seconds, call in zip(found, calls):
            cost.wait(torch.device(args.device))
            start = perf_counter()
            call()
            cost.wait(torch.device(args.device))
            if number:
                seconds.append(perf_counter() - start)
    return found


def ratio(what: str, upper: list[float], lower: list[float], bound: str = '', factor: float = 1.0) -> dict[str, Any]:
    """Median and quartiles over the rounds of upper / (factor * lower)."""
    values = [a / (factor * b) for a, b in zip(upper, lower)]
    low, middle, high = np.percentile(values, [25, 50, 75])
    row = {'what': what, 'ratio': float(middle), 'low': float(low), 'high': float(high), 'bound': bound}
    print(f'{what:<74} {middle:7.3f}  ({low:.3f} to {high:.3f})  {bound}', flush=True)
    return row


def inference(call: Callable[[], object]) -> Callable[[], object]:
    """The same without gradients."""
    return torch.inference_mode()(call)


def images(args: Namespace, count: int, size: int) -> Tensor:
    """Random images in [0, 1], (N, 3, H, W)."""
    return torch.rand(count, 3, size, size, device=args.device).contiguous(memory_format=torch.channels_last)


def network_of(args: Namespace, variant: str | None = None) -> RDBMUNet:
    """An untrained network for evaluation; what it computes takes as long as of a trained one."""
    return RDBMUNet(variant or args.variant).eval().to(args.device, memory_format=torch.channels_last)


def sampler_overhead(args: Namespace) -> Iterator[dict[str, Any]]:
    """Ten steps of sampling against ten evaluations of the network."""
    network = network_of(args)
    sampler = BridgeSampler(build_bridge(), steps=10)
    for count, size in ((1, 256), (1, 512), (8, 128)):
        mu = 2 * images(args, count, size) - 1
        t = torch.full((count,), 50, device=args.device)
        sampling = inference(lambda mu=mu: sampler(network, mu))
        forward = inference(lambda mu=mu, t=t: [network(mu, mu, t) for _ in range(10)])
        yield ratio(f'10-step sampling / 10 evaluations, {count} x {size}x{size}', *in_turn(args, sampling, forward),
                    '<= 1.03')


def options_of(args: Namespace, *changes: str) -> dict[str, Any]:
    """The quickstart's, as RDBMModel gets them from BasicSR."""
    opt = read_option_file(OPTIONS, [f'network_g:variant={args.variant}',
                                     f'num_gpu={0 if args.device == "cpu" else 1}', *changes])
    opt.update(is_train=True, dist=False, rank=0, world_size=1)
    for phase, dataset in opt['datasets'].items():
        dataset['phase'] = phase.split('_')[0]
    return opt


def bare_step(network: nn.Module, args: Namespace, batch: dict[str, Any], amp: bool) -> Callable[[], object]:
    """Forward, L1 loss, backward and optimizer, and nothing else."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    gt, mu = (2 * batch[key].to(args.device, memory_format=torch.channels_last) - 1 for key in ('gt', 'lq'))
    t = torch.full((len(mu),), 50, device=args.device)
    residual = gt - mu
    x_t = mu + 0.5 * residual * (1 + 0.1 * torch.randn_like(mu))

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=amp):
            output = network(x_t, mu, t).float()
        (output - residual).abs().mean().backward()
        optimizer.step()
    return step


def trainer_overhead(args: Namespace) -> Iterator[dict[str, Any]]:
    """A training step of RDBMModel, average and log included, against a bare step of the same network."""
    for amp, count, size in (('none', 14, 64), ('bf16', 14, 64), ('none', 4, 128)):
        batch = {'gt': images(args, count, size), 'lq': images(args, count, size), 'task': ['derain'] * count}
        calls = []
        for share in (0, 1):
            model = RDBMModel(options_of(args, f'train:own_start_share={share}', f'train:amp={amp}'))
            calls.append(model_step(model, batch))
        network = RDBMUNet(args.variant).to(args.device, memory_format=torch.channels_last)
        step, own, bare = in_turn(args, *calls, bare_step(network, args, batch, amp == 'bf16'))
        yield ratio(f'training step / bare step, {count} x {size}x{size}, amp {amp}', step, bare, '<= 1.08')
        yield ratio('   with own_start_share: 1, which evaluates part of the batch twice', own, bare)


def model_step(model: Any, batch: dict[str, Any], first: int = 1) -> Callable[[], object]:
    """What BasicSR's loop calls in an iteration, from iteration ``first`` on."""
    iterations = iter(range(first, 10**9))

    def step() -> None:
        model.feed_data(batch)
        model.optimize_parameters(next(iterations))
    return step


def growth(args: Namespace) -> Iterator[dict[str, Any]]:
    """Seconds and peak memory of an evaluation against the size of the image, and of sampling against its steps."""
    network = network_of(args)
    tile = tile_for(network)
    sizes = [size for size in (256, 512, 1024, 2048, 4096) if size <= args.largest]
    for title, call in (('whole', network), (f'in tiles of {tile}', TiledNetwork(network, tile))):
        seconds, memory = [], []
        for size in sizes:
            mu = 2 * images(args, 1, size) - 1
            t = torch.full((1,), 50, device=args.device)
            run = inference(lambda call=call, mu=mu, t=t: call(mu, mu, t))
            rounds = Namespace(**{**vars(args), 'rounds': args.rounds if size <= 512 else 3 if size <= 1024 else 1})
            seconds.append(statistics.median(in_turn(rounds, run)[0]))
            with cost.PeakMemory(torch.device(args.device)) as peak:
                run()
            memory.append(peak.mib)
            print(f'   {title} {size}x{size}: {seconds[-1]:.3f} s, {memory[-1] or 0:.0f} MiB', flush=True)
        yield fitted(f'seconds against pixels, {title}', [size**2 for size in sizes], seconds, memory)
    mu, steps = 2 * images(args, 1, 256) - 1, [1, 2, 4, 8, 16]
    samplers = [BridgeSampler(build_bridge(), steps=each) for each in steps]
    calls = [inference(lambda sampler=sampler: sampler(network, mu)) for sampler in samplers]
    yield fitted('seconds against evaluations', steps, [statistics.median(each) for each in in_turn(args, *calls)])


def fitted(what: str, x: list[int], seconds: list[float], memory: list[float] | None = None) -> dict[str, Any]:
    """The exponent of seconds ~ x^exponent, by least squares of the logarithms."""
    exponent = float(np.polyfit(np.log(x), np.log(seconds), 1)[0])
    print(f'{what:<74} {exponent:7.3f}  exponent  0.95 to 1.05', flush=True)
    return {'what': what, 'exponent': exponent, 'x': x, 'seconds': seconds, 'mebibytes': memory,
            'bound': '0.95 to 1.05'}


def ranks(args: Namespace) -> Iterator[dict[str, Any]]:
    """One process with the whole batch against two with half of it each, on the same cores or on two GPUs."""
    if args.device != 'cpu' and torch.cuda.device_count() < 2:
        return
    own = [__file__, '--steps-alone', '--variant', args.variant, '--device', args.device, '--rounds', str(args.rounds)]
    launch = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    found = []
    for command in (own, [*launch, *own]):
        process = subprocess.run([sys.executable, *command], check=True, capture_output=True, text=True)
        found.append(json.loads(next(line for line in process.stdout.splitlines() if line.startswith('['))))
    yield ratio('training step of two processes / of one, the same batch', found[1], found[0])


def steps_alone(args: Namespace) -> None:
    """Print seconds of training steps as one rank, or as the only process, as JSON."""
    import os
    count = int(os.environ.get('WORLD_SIZE', '1'))
    rank = int(os.environ.get('RANK', '0'))
    if count > 1:
        if args.device != 'cpu':
            torch.cuda.set_device(rank)
        else:
            torch.set_num_threads(max(1, (os.cpu_count() or count) // count))
        torch.distributed.init_process_group('gloo' if args.device == 'cpu' else 'nccl')
    opt = options_of(args, f'datasets:train:batch_size_per_gpu={14 // count}')
    opt.update(dist=count > 1, rank=rank, world_size=count)
    batch = {'gt': images(args, 14 // count, 64), 'lq': images(args, 14 // count, 64)}
    seconds = in_turn(args, model_step(RDBMModel(opt), batch))[0]
    if rank == 0:
        print(json.dumps(seconds), flush=True)
    compat.end_distributed()


def matching(target: float, count: Callable[[nn.Module], float], make: Callable[[int], nn.Module]) -> nn.Module:
    """The network of the width whose cost is nearest to ``target``."""
    def distance(width: int) -> float:
        with torch.device('meta'):
            return abs(count(make(width)) - target)
    return make(min(range(4, 90), key=distance))


def millions(network: nn.Module) -> float:
    """Parameters in 1e6."""
    return sum(p.numel() for p in network.parameters()) / 1e6


def networks(args: Namespace) -> Iterator[dict[str, Any]]:
    """Plain U-Nets against ours: of equal parameters for T, of equal multiply-adds for L."""
    cases = [('T', 'attention U-Net', millions, attention_unet, '>= 3'), ('T', 'NAF U-Net', millions, naf_unet, ''),
             ('L', 'attention U-Net', giga_multiply_adds, attention_unet, '>= 1.5'),
             ('L', 'NAF U-Net', giga_multiply_adds, naf_unet, '')]
    for variant, title, cost, make, bound in cases:
        ours = network_of(args, variant)
        other = matching(cost(ours), cost, make).to(args.device, memory_format=torch.channels_last)
        equal = 'parameters' if cost is millions else 'multiply-adds'
        name = f'{title} / {variant} of equal {equal} ({millions(other):.2f} M, {giga_multiply_adds(other):.1f} G)'
        mu, t = 2 * images(args, 1, 256) - 1, torch.full((1,), 50, device=args.device)
        calls = [inference(lambda net=net, mu=mu, t=t: net(mu, mu, t)) for net in (other, ours)]
        yield ratio(f'{name}, forward', *in_turn(args, *calls), bound)
        batch = {'gt': images(args, 4, 64), 'lq': images(args, 4, 64)}
        steps = [bare_step(net, args, batch, amp=False) for net in (other, ours)]
        yield ratio(f'{name}, training step', *in_turn(args, *steps), bound)


def switches(args: Namespace) -> Iterator[dict[str, Any]]:
    """Forward pass and training step with one thing switched on, against the same without."""
    plain = RDBMUNet(args.variant).to(args.device)
    last = deepcopy(plain).to(memory_format=torch.channels_last)
    batch = {'gt': images(args, 14, 64), 'lq': images(args, 14, 64)}
    mu, t = 2 * images(args, 1, 256) - 1, torch.full((1,), 50, device=args.device)

    def forward(network: Callable[..., Tensor], bf16: bool = False, mu: Tensor = mu) -> Callable[[], object]:
        def run() -> None:
            with torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=bf16):
                network(mu, mu, t)
        return inference(run)

    contiguous = mu.contiguous(memory_format=torch.contiguous_format)
    yield ratio('channels_last on / off, forward', *in_turn(args, forward(last), forward(plain, mu=contiguous)))
    yield ratio('channels_last on / off, training step', *in_turn(
        args, bare_step(deepcopy(last), args, batch, False), bare_step(deepcopy(plain), args, batch, False)))
    yield ratio('bf16 on / off, forward', *in_turn(args, forward(last, True), forward(last)))
    yield ratio('bf16 on / off, training step', *in_turn(
        args, bare_step(deepcopy(last), args, batch, True), bare_step(deepcopy(last), args, batch, False)))
    try:
        compiled = torch.compile(deepcopy(last))
        forward(compiled)()
    except Exception as error:
        print(f'torch.compile cannot be had here: {str(error).splitlines()[0]}')
        return
    yield ratio('torch.compile on / off, forward', *in_turn(args, forward(compiled), forward(last)))
    steps = [bare_step(net, args, batch, False) for net in (torch.compile(deepcopy(last)), deepcopy(last))]
    yield ratio('torch.compile on / off, training step', *in_turn(args, *steps))


PARTS = {'sampler': sampler_overhead, 'trainer': trainer_overhead, 'growth': growth, 'ranks': ranks,
         'networks': networks, 'switches': switches}


def plot(rows: list[dict[str, Any]], path: Path) -> bool:
    """Ratios as bars, growth as lines; False if matplotlib is not there."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    ratios, fits = [row for row in rows if 'ratio' in row], [row for row in rows if 'exponent' in row]
    figure, axes = plt.subplots(1, 2, figsize=(14, 0.8 + 0.3 * max(10, len(ratios))), layout='constrained',
                                width_ratios=(3, 2))
    for place, row in enumerate(reversed(ratios)):
        axes[0].barh(place, row['ratio'], color='tab:blue', xerr=[[row['ratio'] - row['low']],
                                                                  [row['high'] - row['ratio']]])
        axes[0].text(row['ratio'], place, f'  {row["ratio"]:.2f}  {row["bound"]}', va='center', fontsize=8)
    axes[0].set_yticks(range(len(ratios)), [row['what'].strip() for row in reversed(ratios)], fontsize=8)
    axes[0].axvline(1, color='gray', lw=1)
    axes[0].set(xscale='log', title='ratios, with quartiles')
    axes[0].margins(x=0.15, y=0.02)
    for row in fits:
        axes[1].loglog(row['x'], row['seconds'], 'o-', label=f'{row["what"]}: exponent {row["exponent"]:.2f}')
    axes[1].set(xlabel='pixels or evaluations', ylabel='seconds')
    if fits:
        figure.legend(loc='outside lower right', fontsize=8)
    figure.savefig(path, dpi=110)
    return True


def main() -> int:
    """Measure, print, write."""
    args = arguments()
    if args.rounds < 1:
        raise OptionError(f'--rounds: found {args.rounds}; expected at least 1.')
    if args.steps_alone:
        steps_alone(args)
        return 0
    rows = [row for part in args.parts for row in PARTS[part](args)]
    about = {'torch': torch.__version__, 'device': args.device, 'variant': args.variant,
             'threads': torch.get_num_threads(), 'rounds': args.rounds}
    args.out.write_text(json.dumps({**about, 'rows': rows}, indent=1), encoding='utf-8')
    drawn = plot(rows, args.out.with_suffix('.png'))
    print(f'{args.out}' + (f', {args.out.with_suffix(".png")}' if drawn else ' (no plot: pip install matplotlib)'))
    return 0


if __name__ == '__main__':
    try:
        sys.exit(main())
    except OptionError as error:
        sys.exit(str(error))
