"""How much slower than bare torch the plugin is, and how its network compares: ratios with their spread, not times.

    python scripts/study/benchmark.py                                  # all parts, on the GPU if there is one
    python scripts/study/benchmark.py --parts sampler trainer --variant T --rounds 9

What is compared runs in turn in one process, so that whatever else slows the machine hits both. Writes benchmark.json.
"""
import json
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
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
from rdbm_plugin.archs.precision import computes_bf16
from rdbm_plugin.archs.rdbm_unet_arch import VARIANTS
from rdbm_plugin.basicsr_host import compat

compat.keep_freed_memory()
import_module('rdbm_plugin.registration')
RDBMModel = import_module('rdbm_plugin.models.rdbm_model').RDBMModel
cost = import_module('rdbm_plugin.evaluation.cost')
pipeline = import_module('rdbm_plugin.commands.pipeline')

OPTIONS = Path(__file__).resolve().parents[2] / 'options/train_rdbm_quickstart.yml'
MUON, ADAMW = 'train:optim_g:type=Muon', 'train:optim_g:type=AdamW'
inference = torch.inference_mode()
SIZES = (1, 256), (8, 128)   # number of images of the sampler's, height and width


def arguments() -> Namespace:
    """The command line."""
    parser = ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--parts', nargs='+', choices=list(PARTS), default=list(PARTS))
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--variant', choices=VARIANTS, default='T')
    parser.add_argument('--rounds', type=int, default=7, help='measurements of each ratio')
    parser.add_argument('--out', type=Path, default=Path('benchmark.json'))
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error(f'--rounds: found {args.rounds}; expected at least 1.')
    return args


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


def ratio(what: str, upper: list[float], lower: list[float], bound: str = '') -> dict[str, Any]:
    """Median and quartiles over the rounds of upper / lower."""
    values = [a / b for a, b in zip(upper, lower)]
    low, middle, high = np.percentile(values, [25, 50, 75])
    row = {'what': what, 'ratio': float(middle), 'low': float(low), 'high': float(high), 'bound': bound}
    print(f'{what:<74} {middle:7.3f}  ({low:.3f} to {high:.3f})  {bound}', flush=True)
    return row


def images(args: Namespace, count: int, size: int) -> Tensor:
    """Random images in [0, 1], (N, 3, H, W)."""
    return torch.rand(count, 3, size, size, device=args.device).contiguous(memory_format=torch.channels_last)


def network_of(args: Namespace, variant: str | None = None) -> RDBMUNet:
    """An untrained network for evaluation; what it computes takes as long as of a trained one."""
    return RDBMUNet(variant or args.variant).eval().to(args.device, memory_format=torch.channels_last)


def sampler_overhead(args: Namespace, sizes: Sequence[tuple[int, int]] = SIZES) -> Iterator[dict[str, Any]]:
    """Ten steps of sampling against ten evaluations of the network."""
    network = network_of(args)
    sampler = BridgeSampler(build_bridge(), steps=10)
    for count, size in sizes:
        mu = 2 * images(args, count, size) - 1
        t = torch.full((count,), 50, device=args.device)
        sampling = inference(lambda mu=mu: sampler(network, mu))
        forward = inference(lambda mu=mu, t=t: [network(mu, mu, t) for _ in range(10)])
        yield ratio(f'10-step sampling / 10 evaluations, {count} x {size}x{size}', *in_turn(args, sampling, forward),
                    '<= 1.03')


def options_of(args: Namespace, *changes: str) -> dict[str, Any]:
    """The quickstart's, as RDBMModel gets them from BasicSR."""
    given = [f'network_g:variant={args.variant}', f'num_gpu={0 if args.device == "cpu" else 1}', ADAMW, *changes]
    return pipeline.read_options(OPTIONS, given, is_train=True)


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
    for amp, count, size in ('none', 14, 64), ('none', 4, 128), *[('bf16', 14, 64)][:computes_bf16(args.device)]:
        batch = {'gt': images(args, count, size), 'lq': images(args, count, size), 'task': ['derain'] * count}
        calls = [model_step(RDBMModel(options_of(args, f'train:amp={amp}', *changes)), batch) for changes in (
            ['train:own_start_share=0'], ['train:own_start_share=1'], ['train:own_start_share=0', MUON])]
        network = RDBMUNet(args.variant).to(args.device, memory_format=torch.channels_last)
        step, own, muon, bare = in_turn(args, *calls, bare_step(network, args, batch, amp == 'bf16'))
        yield ratio(f'training step / bare step, {count} x {size}x{size}, amp {amp}', step, bare, '<= 1.08')
        yield ratio('   with own_start_share: 1, which evaluates part of the batch twice', own, bare)
        yield ratio('   with Muon / with AdamW', muon, step, '<= 1.15')


def model_step(model: Any, batch: dict[str, Any], first: int = 1) -> Callable[[], object]:
    """What BasicSR's loop calls in an iteration, from iteration ``first`` on."""
    iterations = iter(range(first, 10**9))

    def step() -> None:
        model.feed_data(batch)
        model.optimize_parameters(next(iterations))
    return step


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


PARTS = {'sampler': sampler_overhead, 'trainer': trainer_overhead, 'networks': networks}


def main() -> None:
    """Measure, print, write."""
    args = arguments()
    rows = [row for part in args.parts for row in PARTS[part](args)]
    about = {'torch': torch.__version__, 'device': args.device, 'variant': args.variant,
             'threads': torch.get_num_threads(), 'rounds': args.rounds}
    args.out.write_text(json.dumps({**about, 'rows': rows}, indent=1), encoding='utf-8')
    print(args.out)


if __name__ == '__main__':
    main()
