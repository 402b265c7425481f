"""Makes paired data sets of five tasks from clean photos.

    python scripts/data_preparation/prepare_universal.py --clean /path/to/photos

writes datasets/universal/<task>/{train,val}/{gt,lq}, the parameters of every degraded image beside them in
parameters.jsonl, a picture overview.png, and says what to write into an option file. Started again, it goes on
where it stopped. The same photos, settings and seed give the same files on any number of cores.
"""
import json
import multiprocessing
import os
import sys
import zlib
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import asdict
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from create_lmdb import create
from tqdm import tqdm

from rdbm_plugin.__main__ import run
from rdbm_plugin.config.atomic_write import write_atomically
from rdbm_plugin.config.options import OptionError
from rdbm_plugin.data.clean_sources import CleanSource, open_clean
from rdbm_plugin.data.degradations import TASKS, degrade, draw
from rdbm_plugin.data.image_source import ImageError, ImageSource, same_stems, to_float
from rdbm_plugin.evaluation.pictures import picture_grid

SNIPPET = """
datasets:
  train:
    name: universal
    type: UniversalPairedDataset
    tasks:
{tasks}
"""


def arguments() -> Namespace:
    """The command line."""
    parser = ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--clean', default='embedded',
                        help='folder or LMDB of clean photos, embedded, or dead_leaves:COUNT (default: embedded)')
    parser.add_argument('--val-clean', help='the same for validation (default: the held-out embedded photos, or about '
                                            'every tenth photo of --clean, chosen by name)')
    parser.add_argument('--out', default='datasets/universal', type=Path)
    parser.add_argument('--tasks', nargs='+', default=list(TASKS), help='also chained, e.g. dehaze+derain')
    parser.add_argument('--copies', type=int, default=1, help='degraded versions of each training photo and task')
    parser.add_argument('--crop-size', type=int, default=480, help='sub-images of training photos; 0: whole photos')
    parser.add_argument('--step', type=int, default=240, help='distance of sub-images')
    parser.add_argument('--lmdb', action='store_true', help='write gt.lmdb and lq.lmdb too')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--workers', type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    if args.copies < 1 or args.crop_size < 0 or args.step < 1 or args.workers < 1 or args.seed < 0:
        parser.error('--copies, --step and --workers are at least 1, --crop-size and --seed at least 0')
    return args


def split(args: Namespace) -> dict[str, tuple[CleanSource, list[int]]]:
    """Part -> source and the indices in it that belong to the part."""
    train = open_clean(args.clean, 'train')
    if args.val_clean or args.clean == 'embedded' or args.clean.startswith('dead_leaves'):
        val = open_clean(args.val_clean or 'embedded', 'val')
        return {'train': (train, list(range(len(train)))), 'val': (val, list(range(len(val))))}
    if len(train) < 2:
        raise OptionError(f'--clean: {len(train)} photo in {args.clean}; give --val-clean, or more photos.')
    # By name, not by place, so that a photo stays on its side when others come or go.
    marks = [zlib.crc32(train.stem(i).encode()) for i in range(len(train))]
    held_out = [i for i, mark in enumerate(marks) if mark % 10 == 0]
    if not 0 < len(held_out) < len(train):
        held_out = [min(range(len(train)), key=marks.__getitem__)]
    return {'train': (train, sorted({*range(len(train))} - {*held_out})), 'val': (train, held_out)}


def check(parts: dict[str, tuple[CleanSource, list[int]]], workers: int) -> None:
    """Look at all photos before anything is written.

    Raises:
        OptionError: Naming all that cannot be used.
    """
    bad = []
    for source, indices in parts.values():
        twice = same_stems(source) if isinstance(source, ImageSource) else []
        bad += [f'{name}: occurs with several suffixes; remove one of each.' for name in twice]
        with ThreadPoolExecutor(workers) as pool:
            bad += filter(None, tqdm(pool.map(partial(fault, source), indices), total=len(indices), desc='Checking',
                                     unit='photo', leave=False))
    if bad := list(dict.fromkeys(bad)):
        raise OptionError(f'{len(bad)} photos cannot be used:\n  ' + '\n  '.join(bad))


def fault(source: CleanSource, index: int) -> str | None:
    """What is wrong with a photo, if anything is."""
    try:
        source.decode(index)
    except ImageError as error:
        return str(error)
    return None


def tiles(height: int, width: int, size: int, step: int) -> Iterator[tuple[int, int]]:
    """Upper left corners of sub-images that cover an image; one at (0, 0) if it is not larger than ``size``."""
    def starts(length: int) -> list[int]:
        return sorted({*range(0, max(length - size, 0) + 1, step), max(length - size, 0)})
    return ((top, left) for top in starts(height) for left in starts(width))


def write(path: Path, image: np.ndarray) -> None:
    """Write an RGB image, uint8, as PNG, whole or not at all; OpenCV compresses seven times as fast as Pillow."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, cv2.imencode('.png', image[..., ::-1])[1].tobytes())


def make_pair(source: CleanSource, index: int, folder: Path, task: str, copy: int, size: int, step: int,
              seed: int) -> dict:
    """Degrade one photo for one task, write its sub-images, and return the record of what was done."""
    stem = source.stem(index)
    seeds = [seed, zlib.crc32(f'{stem}:{task}:{copy}'.encode())]
    rng = np.random.default_rng(seeds)
    clean = to_float(source.decode(index))
    parameters = draw(task, rng)
    degraded = degrade(clean, parameters, rng)
    names = []
    for number, (top, left) in enumerate(tiles(*clean.shape[:2], size or max(clean.shape), step)):
        area = np.s_[top:top + size, left:left + size] if size else np.s_[:, :]
        name = stem + (f'_c{copy}' if copy else '') + (f'_s{number:03d}' if size else '') + '.png'
        for side, image in (('gt', clean), ('lq', degraded)):
            write(folder / side / name, np.rint(image[area] * 255).astype(np.uint8))
        names.append(name)
    return {'source': source.path(index), 'copy': copy, 'seeds': seeds, 'files': names,
            'degradations': [{'type': type(each).__name__, **asdict(each)} for each in parameters]}


def done_before(record_file: Path, folder: Path) -> set[tuple[str, int]]:
    """Photos and copies that an earlier run finished; drops records cut short by its end, or of files now missing."""
    if not record_file.is_file():
        return set()
    lines = record_file.read_text(encoding='utf-8').splitlines(keepends=True)
    kept = {line: json.loads(line) for line in lines if line.endswith('\n')}
    kept = {line: record for line, record in kept.items()
            if all((folder / side / name).is_file() for side in ('gt', 'lq') for name in record['files'])}
    if len(kept) < len(lines):
        record_file.write_text(''.join(kept), encoding='utf-8')
    return {(record['source'], record['copy']) for record in kept.values()}


def settle(args: Namespace) -> None:
    """Remember the settings in the output folder, and refuse to mix two sets of them."""
    settings = {key: value for key, value in vars(args).items() if key not in ('out', 'lmdb', 'workers')}
    file = args.out / 'settings.json'
    if file.is_file() and json.loads(file.read_text(encoding='utf-8')) != settings:
        raise OptionError(f'{args.out} was made with other settings ({file}); choose another --out or remove it.')
    args.out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(settings, indent=1), encoding='utf-8')


def prepare(args: Namespace) -> None:
    """Write everything."""
    parts = split(args)
    for task in args.tasks:
        draw(task, np.random.default_rng(0))
    check(parts, args.workers)
    settle(args)
    # Not forks of this process: a thread of it that is ending may hold a lock of OpenCV, for ever in the fork.
    fresh = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(args.workers, fresh) as pool:
        jobs = {}
        for task in args.tasks:
            for part, (source, indices) in parts.items():
                folder = args.out / task / part
                done = done_before(folder / 'parameters.jsonl', folder)
                copies, size = (args.copies, args.crop_size) if part == 'train' else (1, 0)
                for index in indices:
                    for copy in range(copies):
                        if (source.path(index), copy) not in done:
                            job = pool.submit(make_pair, source, index, folder, task, copy, size, args.step, args.seed)
                            jobs[job] = folder / 'parameters.jsonl'
        try:
            for job in tqdm(as_completed(jobs), total=len(jobs), desc='Degrading', unit='image'):
                record = job.result()
                with open(jobs[job], 'a', encoding='utf-8') as file:
                    file.write(json.dumps(record) + '\n')
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    overview(args)
    if args.lmdb:
        for folder in [args.out / task / part / side for task in args.tasks for part in parts for side in ('gt', 'lq')]:
            if not folder.with_suffix('.lmdb').exists():
                create(folder, folder.with_suffix('.lmdb'), check=False)


def overview(args: Namespace) -> None:
    """A picture with one row a task: clean, degraded, residual (gray is none)."""
    rows = {}
    for task in args.tasks:
        folder = args.out / task / 'val'
        name = min(path.relative_to(folder / 'gt') for path in (folder / 'gt').rglob('*.png'))
        clean, degraded = (cv2.imread(str(folder / side / name))[..., ::-1] for side in ('gt', 'lq'))
        residual = np.rint((clean.astype(np.float32) - degraded + 255) / 2).astype(np.uint8)
        rows[task] = [clean, degraded, residual]
    write(args.out / 'overview.png', picture_grid(rows, ('clean', 'degraded', 'residual'), 200))


def main() -> None:
    """Read the command line, prepare, and say what to write into an option file."""
    args = arguments()
    prepare(args)
    ending = '.lmdb' if args.lmdb else ''
    lines = [f'      {task}: {{dataroot_gt: {args.out}/{task}/train/gt{ending}, '
             f'dataroot_lq: {args.out}/{task}/train/lq{ending}, quota: 4}}' for task in args.tasks]
    print('Picture:', args.out / 'overview.png')
    print('For the option file:', SNIPPET.format(tasks='\n'.join(lines)), end='')


if __name__ == '__main__':
    sys.exit(run(main))
