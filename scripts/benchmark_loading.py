"""Measures how fast training data come, and whether the memory of workers grows.

    python scripts/benchmark_loading.py

makes photos of 1280x720 from dead leaves in a temporary folder, their sub-images and LMDBs, and loads random crops
with two workers: by BasicSR's PairedImageDataset, by UniversalPairedDataset on the same files, and degraded on the
fly. Prints images a second (median of the repeats, with their range) and writes loading.json.
"""
import json
import statistics
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from create_lmdb import create
from prepare_universal import tiles
from torch.utils.data import DataLoader
from tqdm import tqdm

from rdbm_plugin.data.dead_leaves import DeadLeaves
from rdbm_plugin.data.degradations import TASKS, degrade, draw
from rdbm_plugin.data.image_source import to_float

build_dataset = import_module('basicsr.data').build_dataset
EnlargedSampler = import_module('basicsr.data.data_sampler').EnlargedSampler
import_module('rdbm_plugin.registration')


def arguments() -> Namespace:
    """The command line."""
    parser = ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--photos', type=int, default=40)
    parser.add_argument('--crop', type=int, default=256)
    parser.add_argument('--batch', type=int, default=20)
    parser.add_argument('--workers', type=int, default=2)
    parser.add_argument('--batches', type=int, default=40, help='of one measurement')
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--memory-batches', type=int, default=2000, help='over which memory is watched; 0: not at all')
    parser.add_argument('--out', type=Path, default=Path('loading.json'))
    return parser.parse_args()


def make_files(root: Path, photos: int) -> None:
    """Whole photos, sub-images of 480 pixels and LMDBs of both; one degraded version of each photo."""
    leaves = DeadLeaves(photos, size=1280)
    for number in tqdm(range(photos), desc='Making photos', unit='image'):
        clean = to_float(leaves.decode(number)[:720])
        rng = np.random.default_rng(number)
        degraded = degrade(clean, draw(tuple(TASKS)[number % len(TASKS)], rng), rng)
        for side, image in (('gt', clean), ('lq', degraded)):
            pixels = np.rint(image[..., ::-1] * 255).astype(np.uint8)
            (root / 'whole' / side).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(root / f'whole/{side}/{number:04d}.png'), pixels)
            (root / 'sub' / side).mkdir(parents=True, exist_ok=True)
            for part, (top, left) in enumerate(tiles(720, 1280, 480, 240)):
                cv2.imwrite(str(root / f'sub/{side}/{number:04d}_s{part:03d}.png'),
                            pixels[top:top + 480, left:left + 480])
    for kind in ('whole', 'sub'):
        for side in ('gt', 'lq'):
            create(root / kind / side, root / kind / f'{side}.lmdb', check=False)


def blocks(root: Path, crop: int) -> dict[str, dict[str, Any]]:
    """Name of each measurement -> dataset block."""
    common = {'phase': 'train', 'scale': 1, 'gt_size': crop, 'use_hflip': True, 'use_rot': True, 'name': 'x'}
    found = {}
    for kind, title in (('whole', 'whole photos'), ('sub', 'sub-images')):
        for ending, form in (('', 'PNG'), ('.lmdb', 'LMDB')):
            roots = {f'dataroot_{side}': str(root / kind / f'{side}{ending}') for side in ('gt', 'lq')}
            found[f'{title}, {form}, BasicSR PairedImageDataset'] = {
                **common, **roots, 'type': 'PairedImageDataset', 'io_backend': {'type': 'lmdb' if ending else 'disk'}}
            found[f'{title}, {form}, UniversalPairedDataset'] = {
                **common, 'type': 'UniversalPairedDataset', 'tasks': {'x': roots}}
    for kind, title in (('whole', 'whole photos'), ('sub', 'sub-images')):
        found[f'{title}, PNG, degraded on the fly'] = {
            **common, 'type': 'SyntheticUniversalDataset', 'dataroot_gt': str(root / kind / 'gt')}
    return found


def loader(block: dict[str, Any], args: Namespace, batches: int) -> DataLoader:
    """As BasicSR builds it for training."""
    dataset = build_dataset(dict(block))
    ratio = -(-batches * args.batch // len(dataset))
    return DataLoader(dataset, args.batch, sampler=EnlargedSampler(dataset, 1, 0, ratio), num_workers=args.workers,
                      drop_last=True)


def rate(block: dict[str, Any], args: Namespace) -> float:
    """Images a second after the first two batches."""
    source = iter(loader(block, args, args.batches + 2))
    for _ in range(2):
        next(source)
    start = time.perf_counter()
    for _ in range(args.batches):
        next(source)
    return args.batches * args.batch / (time.perf_counter() - start)


def memory_growth(block: dict[str, Any], args: Namespace) -> list[float]:
    """MiB of memory that the workers have for themselves, at ten moments over ``memory_batches`` batches."""
    batches = args.memory_batches
    source = iter(loader(block, Namespace(**{**vars(args), 'batch': 4}), batches))
    found = []
    for number in tqdm(range(batches), desc='Watching memory', unit='batch', leave=False):
        next(source)
        if number % (batches // 10) == batches // 10 - 1:
            found.append(sum(private_mebibytes(worker.pid) for worker in source._workers))
    return found


def private_mebibytes(process: int) -> float:
    """Memory of a process that no other shares; Linux only."""
    lines = Path(f'/proc/{process}/smaps_rollup').read_text(encoding='ascii').splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith('Private_')) / 1024


def measure(titles: dict[str, dict[str, Any]], args: Namespace,
            what: Callable[[dict[str, Any], Namespace], float]) -> dict[str, list[float]]:
    """Repeats in turn, so that whatever else slows the machine hits all alike."""
    found: dict[str, list[float]] = {title: [] for title in titles}
    for _ in tqdm(range(args.repeats), desc='Measuring', unit='round'):
        for title, block in titles.items():
            found[title].append(what(block, args))
    return found


def main() -> int:
    """Measure, print a table, write the JSON file."""
    args = arguments()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        make_files(Path(folder), args.photos)
        titles = blocks(Path(folder), args.crop)
        rates = measure(titles, args, rate)
        memory = {}
        if args.memory_batches and sys.platform == 'linux':
            for title in ('sub-images, LMDB, UniversalPairedDataset', 'sub-images, PNG, UniversalPairedDataset',
                          'sub-images, PNG, degraded on the fly'):
                memory[title] = memory_growth(titles[title], args)
    print(f'\nImages a second, {args.crop}x{args.crop} crops, {args.workers} workers')
    for title, values in rates.items():
        print(f'{title:<50} {statistics.median(values):7.1f}  ({min(values):.1f} to {max(values):.1f})')
    for title, values in memory.items():
        print(f'Memory of workers over {args.memory_batches} batches, {title}: '
              f'{values[0]:.0f} MiB after a tenth, {values[-1]:.0f} MiB at the end')
    args.out.write_text(json.dumps({'arguments': {**vars(args), 'out': str(args.out)}, 'images_per_second': rates,
                                    'worker_mebibytes': memory}, indent=1), encoding='utf-8')
    return 0


if __name__ == '__main__':
    sys.exit(main())
