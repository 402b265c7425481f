"""What CPUs cannot show: checks training, sampling and restoring on a GPU, in a few minutes, with nothing to download.

    python scripts/study/check_gpu.py                   # on the GPU; prints a table, writes check_gpu.json
    python scripts/study/check_gpu.py --parts speed sampler
    python scripts/study/check_gpu.py --dry             # the same code on a CPU with tiny sizes; speeds are not judged

Ends with status 1 if a check fails. Times of what is compared are taken in turn in one process.
"""
import json
import math
import os
import re
import sys
import tempfile
import warnings
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import mean, median
from time import perf_counter, sleep
from typing import Any, NamedTuple

import numpy as np
import torch
from benchmark import OPTIONS, SIZES, in_turn, inference, model_step, options_of, sampler_overhead
from suites import in_process
from torch import Tensor, nn

from rdbm_plugin import BridgeSampler, RDBMUNet, Restorer, build_bridge
from rdbm_plugin.archs.precision import computes_bf16
from rdbm_plugin.evaluation.cost import peak_memory, wait
from rdbm_plugin.evaluation.results import aligned
from rdbm_plugin.losses.draws import Draws
from rdbm_plugin.losses.objective import Objective
from rdbm_plugin.losses.residual_modulated_loss import ResidualModulatedLoss

# What cuBLAS needs to give the same bits in every run; read when it starts.
os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
import_module('rdbm_plugin.registration')
RDBMModel = import_module('rdbm_plugin.models.rdbm_model').RDBMModel
capture = import_module('rdbm_plugin.models.capture')

FAST_CARDS = ('H100', 'H200')
"""Where the bounds in milliseconds hold."""


class Row(NamedTuple):
    """A line of the table."""

    what: str
    value: float
    unit: str
    low: float = -math.inf
    high: float = math.inf

    @property
    def bound(self) -> str:
        """In words."""
        parts = [f'>= {self.low:g}'] * (self.low > -math.inf) + [f'<= {self.high:g}'] * (self.high < math.inf)
        return ' and '.join(parts)

    @property
    def verdict(self) -> str:
        """Whether the bound holds, if there is one."""
        return '' if not self.bound else 'pass' if self.low <= self.value <= self.high else 'FAIL'


def arguments() -> Namespace:
    """The command line."""
    parser = ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--parts', nargs='+', choices=list(PARTS), default=list(PARTS))
    parser.add_argument('--dry', action='store_true', help='on a CPU, with tiny sizes')
    parser.add_argument('--rounds', type=int, default=7, help='measurements of each time')
    parser.add_argument('--out', type=Path, default=Path('check_gpu.json'))
    args = parser.parse_args()
    if not args.dry and not torch.cuda.is_available():
        parser.error('torch sees no GPU; to try the script without one: --dry')
    args.device = 'cpu' if args.dry else 'cuda'
    args.rounds = 1 if args.dry else args.rounds
    args.batch, args.size = (2, 16) if args.dry else (20, 256)
    args.amp = 'bf16' if computes_bf16(args.device) else 'none'
    args.fast = not args.dry and any(card in torch.cuda.get_device_name() for card in FAST_CARDS)
    return args


def pairs(args: Namespace, count: int, size: int) -> dict[str, Any]:
    """Random clean images and darker ones, (N, 3, H, W) in [0, 1]."""
    gt = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0)).to(args.device)
    return {'gt': gt, 'lq': gt / 2, 'task': ['derain'] * count}


def model_of(args: Namespace, variant: str, dist: bool = False, **train: Any) -> Any:
    """RDBMModel with on-policy states."""
    settings = {'amp': args.amp, 'node_t_share': 0.6, 'own_start_share': 1, **train}
    opt = options_of(Namespace(variant=variant, device=args.device),
                     *(f'train:{key}={value}' for key, value in settings.items()))
    opt['path']['experiments_root'] = args.folder
    opt['dist'] = dist
    torch.manual_seed(0)
    return RDBMModel(opt)


def bare_loop(args: Namespace, network: nn.Module, captured: bool) -> Callable[[], object]:
    """The least that trains a network in a bridge: its forward passes, backward, AdamW; as a CUDA graph or not."""
    network.to(args.device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True, capturable=captured)
    objective = Objective(build_bridge(), ResidualModulatedLoss(), 0.6, 1.0)
    batch = pairs(args, args.batch, args.size)
    lq, gt = (batch[key].to(memory_format=torch.channels_last) for key in ('lq', 'gt'))
    plan = objective.plan(Draws(0, 1, 0, 1, args.batch), lq)

    def predict(x_t: Tensor, mu: Tensor, t: Tensor) -> Tensor:
        with torch.autocast(args.device, torch.bfloat16, enabled=args.amp == 'bf16'):
            return network(x_t, mu, t).float()

    def step() -> Tensor:
        optimizer.zero_grad()
        states = objective.states(lq, gt, plan, predict)
        loss = objective.loss(objective.output(states, predict), states).mean()
        loss.backward()
        optimizer.step()
        return loss
    if not captured:
        return step
    with capture.aside(torch.device(args.device)):
        repeat(3, step)
    optimizer.zero_grad()
    return capture.record(step)[0].replay


def speed(args: Namespace) -> Iterator[Row]:
    """Training steps of T and L, captured and not, against bare loops."""
    what = f'{args.batch} x {args.size}x{args.size}, amp {args.amp}'
    bounds = {'T': 32.0, 'L': 65.0} if args.fast else {}
    batch = pairs(args, args.batch, args.size)
    for variant in ('T',) if args.dry else ('T', 'L'):
        modes = {'plain': 'none'} if args.dry else {'plain': 'none', 'captured': 'cuda_graph'}
        names, calls = [], []
        for mode, value in modes.items():
            names += [f'{mode} step', f'{mode} bare loop']
            calls += [model_step(model_of(args, variant, capture=value), batch),
                      bare_loop(args, RDBMUNet(variant), mode == 'captured')]
        for call in calls * 4:
            call()
        # Ten calls, so that the resolution of the clock does not matter.
        seconds = in_turn(args, *(partial(repeat, 10, call) for call in calls))
        found = {name: 1e3 * median(each) for name, each in zip(names, seconds)}
        for name, time in found.items():
            high = bounds.get(variant, math.inf) if name == 'captured step' else math.inf
            yield Row(f'{variant}, {name}, {what}', time / 10, 'ms', high=high)
        for mode, high in (('plain', 1.05), ('captured', 1.15)):
            if mode in modes:
                yield Row(f'{variant}, {mode} step / bare loop', found[f'{mode} step'] / found[f'{mode} bare loop'], '',
                          high=math.inf if args.dry else high)


def repeat(count: int, call: Callable[[], object]) -> None:
    """Call it so often."""
    for _ in range(count):
        call()


def sampler(args: Namespace) -> Iterator[Row]:
    """Ten steps of sampling against ten evaluations."""
    variant, sizes = ('T', [(1, 16)]) if args.dry else ('L', SIZES)
    for row in sampler_overhead(Namespace(variant=variant, device=args.device, rounds=args.rounds), sizes):
        yield Row(row['what'], row['ratio'], '', high=math.inf if args.dry else 1.03)


def waits(args: Namespace) -> Iterator[Row]:
    """Steps and sampling that wait for the device though nobody reads anything."""
    batch, most = pairs(args, args.batch, args.size), math.inf if args.dry else 0
    for mode in ('none',) if args.dry else ('none', 'cuda_graph'):
        step = model_step(model_of(args, 'T', capture=mode), batch)
        yield Row(f'waits in 10 training steps, capture: {mode}', counted_waits(args, step, 5, 10), '', high=most)
    network = RDBMUNet('T').eval().to(args.device)
    run = inference(lambda: BridgeSampler(build_bridge(), steps=10)(network, 2 * batch['lq'] - 1))
    yield Row('waits in 10 evaluations of sampling', counted_waits(args, run, 1, 1), '', high=most)


def counted_waits(args: Namespace, call: Callable[[], object], before: int, count: int) -> float:
    """Synchronisations in ``count`` calls, after some that do not count; nan on a CPU, where none can be counted."""
    repeat(before, call)
    if args.dry:
        return math.nan
    torch.cuda.set_sync_debug_mode('warn')
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter('always')
            repeat(count, call)
    finally:
        torch.cuda.set_sync_debug_mode('default')
    found = [each for each in found if 'synchroniz' in str(each.message)]
    for each in found[:3]:
        print(f'   {each.filename}:{each.lineno}: {str(each.message).splitlines()[0]}')
    return len(found)


def resuming(args: Namespace) -> Iterator[Row]:
    """Ten steps at once against four, a state, and six more: the largest difference of any weight."""
    batch = pairs(args, 4, min(args.size, 64))
    with repeatable():
        for mode in ('none',) if args.dry else ('none', 'auto'):
            whole, first, second = (model_of(args, 'T', capture=mode) for _ in range(3))
            repeat(10, model_step(whole, batch))
            repeat(4, model_step(first, batch))
            path = Path(args.folder) / 'state.pth'
            torch.save({'net': first.net_g.state_dict(), 'ema': first.net_g_ema.state_dict(),
                        'optimizer': first.optimizer_g.state_dict(), 'more': first.further_state()}, path)
            state = torch.load(path, weights_only=True, map_location=args.device)
            second.net_g.load_state_dict(state['net'])
            second.net_g_ema.load_state_dict(state['ema'])
            second.optimizer_g.load_state_dict(state['optimizer'])
            second.step.load(state['more'])
            repeat(6, model_step(second, batch, first=5))
            apart = max(float((a - b).detach().abs().max()) for name in ('net_g', 'net_g_ema') for a, b in zip(
                getattr(whole, name).parameters(), getattr(second, name).parameters()))
            yield Row(f'resumed against at once, largest difference, capture: {mode}', apart, '', high=0)


@contextmanager
def repeatable() -> Iterator[None]:
    """Kernels that give the same bits in every run."""
    # Bilinear upsampling adds up its gradients in any order otherwise.
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False):
            yield
    finally:
        torch.use_deterministic_algorithms(False)


def precisions(args: Namespace) -> Iterator[Row]:
    """Mean loss of the last 20 of 100 steps in half precision against float32, and captured against plain."""
    batch, found = pairs(args, 4, min(args.size, 64)), {}
    cases = {'none': {'amp': 'none'}, 'bf16': {'amp': 'bf16'}, 'fp16': {'amp': 'fp16'}}
    if not args.dry:
        cases['captured'] = {'amp': 'none', 'capture': 'cuda_graph'}
    for name, changes in cases.items():
        model = model_of(args, 'T', **{'capture': 'none', **changes})
        step = model_step(model, batch)
        repeat(8 if args.dry else 80, step)
        # Means since the last call.
        model.get_current_log()
        repeat(20, step)
        found[name] = model.get_current_log()['l_derain']
    for name in list(found)[1:]:
        yield Row(f'loss of the last 20 steps, {name} / float32', found[name] / found['none'], '', 0.8, 1.25)


def ranks(args: Namespace) -> Iterator[Row]:
    """A step as one rank of a job of one, by NCCL."""
    backend = 'gloo' if args.dry else 'nccl'
    batch = pairs(args, 4, min(args.size, 64))
    alone = model_of(args, 'T', amp='none', capture='none')
    model_step(alone, batch)()
    torch.distributed.init_process_group(backend, init_method=f'file://{args.folder}/ranks', rank=0, world_size=1)
    try:
        model = model_of(args, 'T', dist=True, amp='none')
        model_step(model, batch)()
        losses = [each.get_current_log()['l_pix'] for each in (model, alone)]
    finally:
        torch.distributed.destroy_process_group()
    yield Row(f'loss as one rank of {backend} / alone', losses[0] / losses[1], '', 0.999, 1.001)


def memory(args: Namespace) -> Iterator[Row]:
    """Peak memory of a training step, and what happens where there is too little."""
    batch, device = pairs(args, args.batch, args.size), torch.device(args.device)
    for variant, parts in (('T', 1),) if args.dry else (('T', 1), ('T', 4), ('L', 1)):
        step = model_step(model_of(args, variant, micro_batches=parts, capture='none'), batch)
        step()
        with peak_memory(device) as peak:
            step()
            wait(device)
        yield Row(f'{variant}, peak of a plain step, micro_batches: {parts}', peak.mib or 0, 'MiB')
    if args.dry:
        return
    image = np.random.default_rng(0).random((2160, 3840, 3), np.float32)
    restore = Restorer(tile=0, steps=1, device='cuda')
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(2**30 / torch.cuda.get_device_properties(0).total_memory)
    try:
        made = restore(image)
    except (RuntimeError, MemoryError) as error:
        print(f'   {error}')
        made = None
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    named = made is None or bool(np.isfinite(made).all())
    yield Row('a 4K picture, whole, with 1 GiB: restored or refused in words', float(named), '', low=1)


def large(args: Namespace) -> Iterator[Row]:
    """A 4K picture in float32 and half precision, in tiles that the card's memory allows."""
    height, width = (48, 80) if args.dry else (2160, 3840)
    image, made = np.random.default_rng(0).random((height, width, 3), np.float32), {}
    for dtype in ('float32', args.amp.replace('none', 'fp16')):
        restore = Restorer(steps=2, device=args.device, dtype=dtype)
        restore(image[:64, :64])
        with peak_memory(torch.device(args.device)) as peak:
            start = perf_counter()
            made[dtype] = restore(image)
            seconds = perf_counter() - start
        yield Row(f'{width}x{height}, 2 evaluations, {dtype}, tiles of {restore.tile}', seconds, 's')
        yield Row('   its peak memory', peak.mib or 0, 'MiB')
    yield Row('   largest difference of the two', float(np.abs(np.subtract(*made.values())).max()), '', high=0.1)


def loop(args: Namespace) -> Iterator[Row]:
    """Training as a command, with workers: captured, interrupted and resumed, against plain and whole."""
    steps, captured = (12, 'auto') if args.dry else (60, 'cuda_graph')
    for prefetch in ('cpu',) if args.dry else ('cpu', 'cuda'):
        (whole, first), (resumed, log) = (trained(args, prefetch, mode, steps) for mode in ('none', captured))
        losses = [[float(loss) for loss in re.findall(r'iter: +\d+, lr.*?l_pix: (\S+)', each)] for each in (first, log)]
        what = f'train, prefetch_mode: {prefetch}'
        done = 'Stopped by SIGTERM' in log and [*map(len, losses)] == [steps, steps]
        yield Row(f'{what}, interrupted and resumed to its end', float(done), '', low=1)
        if args.dry:
            apart = max(float((whole[name] - value).abs().max()) for name, value in resumed.items())
            yield Row(f'{what}, resumed against whole, largest difference', apart, '', high=0)
        else:
            yield Row(f'{what}, recordings of the step', log.count('Steps are captured'), '', 2, 2)
            last = [mean(each[-20:]) for each in losses]
            yield Row(f'{what}, loss of the last 20 steps, resumed / whole', last[1] / last[0], '', 0.8, 1.25)


def trained(args: Namespace, prefetch: str, captured: str, steps: int) -> tuple[dict[str, Tensor], str]:
    """Weights and log of a training with a validation and a checkpoint in its middle.

    What is captured gets SIGTERM after two thirds, and is resumed.
    """
    name, half = f'loop_{prefetch}_{captured}', steps // 2
    changes = {'name': name, 'num_gpu': int(not args.dry), 'train:capture': captured, 'train:total_iter': steps,
               'val:val_freq': half, 'val:sampler:steps': 2, 'logger:save_checkpoint_freq': half,
               'logger:print_freq': 1, 'logger:use_tb_logger': 'false', **{f'datasets:train:{key}': value for key, value
               in {'num_worker_per_gpu': 2, 'pin_memory': 'true', 'prefetch_mode': prefetch, 'num_prefetch_queue': 2,
                   'gt_size': 16 if args.dry else 64}.items()},
               **{f'datasets:val_{number}:gt_size': 24 for number in range(1, 6) if args.dry}}
    words = ['train', '-opt', OPTIONS, '--auto_resume', '--force_yml', *(f'{k}={v}' for k, v in changes.items())]
    log = Path(args.folder, f'{name}.log')

    def interrupt(process: Any) -> None:
        while process.is_alive() and not (log.is_file() and f'iter:{2 * steps // 3:8,d},' in log.read_text('utf-8')):
            sleep(0.02)
        process.terminate()
    if captured != 'none':
        in_process('rdbm_plugin.__main__:main', words, log, meanwhile=interrupt)
    if in_process('rdbm_plugin.__main__:main', words, log):
        raise RuntimeError(f'the training failed: {log.read_text("utf-8")[-2000:]}')
    found = torch.load(Path('experiments', name, 'models/net_g_latest.pth'), weights_only=True)
    return found['params'], log.read_text('utf-8')


PARTS = {'speed': speed, 'sampler': sampler, 'waits': waits, 'resuming': resuming, 'loop': loop,
         'precisions': precisions, 'ranks': ranks, 'memory': memory, 'large': large}


def main() -> int:
    """Check, print the table, write it."""
    args = arguments()
    rows, args.out = [], args.out.absolute()
    with tempfile.TemporaryDirectory() as args.folder:
        # Where trainings make experiments/.
        os.chdir(args.folder)
        for part in args.parts:
            print(f'{part}: {PARTS[part].__doc__.splitlines()[0]}', flush=True)
            try:
                rows += PARTS[part](args)
            except Exception as error:
                # The other parts are worth their minutes all the same.
                print(f'   {type(error).__name__}: {error}', flush=True)
                rows.append(Row(f'{part}: {type(error).__name__}', 0, '', low=1))
        os.chdir(args.out.parent)
    card = 'CPU, dry run' if args.dry else torch.cuda.get_device_name()
    print(f'\n{card}, torch {torch.__version__}\n')
    print(aligned([['check', 'value', '', 'bound', ''],
                   *([row.what, f'{row.value:.4g}', row.unit, row.bound, row.verdict] for row in rows)]))
    found = [{'what': row.what, 'value': row.value if math.isfinite(row.value) else None, 'unit': row.unit,
              'bound': row.bound, 'verdict': row.verdict} for row in rows]
    args.out.write_text(json.dumps({'card': card, 'torch': torch.__version__, 'rows': found}, indent=1),
                        encoding='utf-8')
    return int(any(row.verdict == 'FAIL' for row in rows))


if __name__ == '__main__':
    sys.exit(main())
