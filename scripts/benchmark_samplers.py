"""Measures samplers with a trained network: quality, evaluations and time.

    python scripts/benchmark_samplers.py -opt options/train_rdbm_quickstart.yml \\
        --checkpoint experiments/train_rdbm_quickstart/models/net_g_latest.pth

restores the validation images of the option file with every solver at several numbers of evaluations, and with the
parallel sampler, whose result is compared with the sequential one. Prints a table and writes samplers.json.
"""
import json
import sys
import time
from argparse import ArgumentParser, Namespace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from rdbm_plugin.archs.checkpoint import load_weights
from rdbm_plugin.bridge import build_bridge
from rdbm_plugin.config.option_file import read_option_file
from rdbm_plugin.config.options import OptionError, build
from rdbm_plugin.samplers import Sampler, build_sampler
from rdbm_plugin.samplers.bridge_sampler import SOLVERS

lookup = import_module('rdbm_plugin.basicsr_host.lookup')
import_module('rdbm_plugin.registration')
build_dataset = import_module('basicsr.data').build_dataset


def arguments() -> Namespace:
    """The command line."""
    parser = ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('-opt', required=True, help='option file')
    parser.add_argument('--checkpoint', required=True)
    parser.add_argument('--param-key', default='params_ema')
    parser.add_argument('--steps', nargs='+', type=int, default=[1, 2, 3, 4, 5, 10, 20])
    parser.add_argument('--tolerances', nargs='+', type=float, default=[1e-2, 1e-3])
    parser.add_argument('--size', type=int, help='centre of the images to restore; default: whole images')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--out', type=Path, default=Path('samplers.json'))
    return parser.parse_args()


def load(args: Namespace) -> tuple[Any, torch.nn.Module, list[dict[str, Any]]]:
    """Bridge, network and validation items of the option file.

    Raises:
        OptionError: Naming the file or key.
    """
    opt = read_option_file(args.opt)
    bridge = build_bridge(opt.get('bridge'), lookup.registered('BRIDGE'))
    network = build('network_g', opt['network_g'], lookup.registered('ARCH'))
    load_weights(network, args.checkpoint, args.param_key)
    items = []
    for phase, block in opt['datasets'].items():
        if phase.startswith('val'):
            changes = {'phase': 'val', **({'gt_size': args.size} if args.size else {})}
            data = build_dataset({**block, **changes})
            items.extend(data[i] for i in range(len(data)))
    return bridge, network.to(args.device, memory_format=torch.channels_last).eval(), items


def psnr(image: Tensor, gt: Tensor) -> float:
    """RGB, of images in [0, 1]."""
    return float(-10 * torch.log10((image.clamp(0, 1) - gt).square().mean()))


def mean_psnr(images: list[Tensor], items: list[dict[str, Any]]) -> float:
    """Mean over the tasks of their mean PSNR."""
    scores: dict[str, list[float]] = {}
    for image, item in zip(images, items):
        scores.setdefault(item['task'], []).append(psnr(image, item['gt']))
    return float(np.mean([np.mean(each) for each in scores.values()]))


def run(sampler: Sampler, network: torch.nn.Module, items: list[dict[str, Any]], device: str) -> dict[str, Any]:
    """Restore all items; mean PSNR of the tasks, evaluations, seconds an image, and the images."""
    images, evaluations, rounds = [], [], []
    with torch.inference_mode():
        start = time.perf_counter()
        for number, item in enumerate(items):
            result = sampler(network, 2 * item['lq'][None].to(device) - 1, [number])
            images.append(item['lq'] + result.residual[0].cpu() / 2)
            evaluations.append(result.nfe)
            rounds.append(getattr(sampler, 'rounds', result.nfe))
        seconds = (time.perf_counter() - start) / len(items)
    return {'psnr': mean_psnr(images, items), 'seconds': seconds,
            'nfe': float(np.mean(evaluations)), 'rounds': float(np.mean(rounds)), 'images': images}


def main() -> int:
    """Measure, print, and return the exit status."""
    args = arguments()
    try:
        bridge, network, items = load(args)
        plan = [({'solver': solver}, steps) for solver in SOLVERS for steps in args.steps]
        plan += [({'start': 'stochastic'}, steps) for steps in args.steps]
        plan += [({'type': 'ParallelSampler', 'tolerance': tolerance, 'memory': memory}, steps)
                 for tolerance in args.tolerances for memory in (0, 3) for steps in args.steps if steps >= 5]
        samplers = [(keys, steps, build_sampler({**keys, 'steps': steps}, bridge)) for keys, steps in plan]
    except (OptionError, OSError) as error:
        print(f'benchmark_samplers: {error}', file=sys.stderr)
        return 1
    found, sequential = [], {}
    for keys, steps, sampler in tqdm(samplers, desc='Measuring', unit='sampler'):
        result = run(sampler, network, items, args.device)
        images = result.pop('images')
        if keys == {'solver': 'euler'}:
            sequential[steps] = images
        else:
            result['largest difference to euler'] = max(
                float((a - b).abs().max()) for a, b in zip(images, sequential[steps]))
        found.append({**keys, 'steps': steps, **result})
    degraded = mean_psnr([item['lq'] for item in items], items)
    print(f'\n{len(items)} images on {args.device}; degraded: {degraded:.2f} dB')
    print(f'{"sampler":<62}{"steps":>6}{"PSNR":>8}{"NFE":>7}{"rounds":>8}{"s/image":>9}')
    for each in found:
        keys = ', '.join(f'{key} {each[key]}' for key in ('type', 'solver', 'start', 'tolerance', 'memory')
                         if key in each)
        print(f'{keys:<62}{each["steps"]:>6}{each["psnr"]:>8.2f}{each["nfe"]:>7.1f}{each["rounds"]:>8.1f}'
              f'{each["seconds"]:>9.3f}')
    args.out.write_text(json.dumps({'degraded': degraded, 'samplers': found}, indent=1), encoding='utf-8')
    return 0


if __name__ == '__main__':
    sys.exit(main())
