"""``rdbm restore``: restore image files with trained weights, without ground truth."""
import glob
import os
import sys
import warnings
from argparse import ArgumentParser, Namespace
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from rdbm_plugin.data.image_source import ImageError, to_float
from rdbm_plugin.data.photo_file import MAX_MEGAPIXELS, MISSING, READABLE, WRITABLE, Photo, read_photo, write_photo
from rdbm_plugin.evaluation.pictures import strip
from rdbm_plugin.inference.restorer import DTYPES, Restorer
from rdbm_plugin.inference.tiling import OVERLAP
from rdbm_plugin.samplers.bridge_sampler import SOLVERS

THREADS = 2
"""Threads that read, and as many that write."""
GPU_BATCH = 8
COMPARED = 720
"""Maximum height in pixels of the images that --compare writes."""
BAR = '{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}'


def arguments() -> Namespace:
    """Parse the command line."""
    parser = ArgumentParser(prog='rdbm restore', description='Restore images of any size with trained weights.')
    parser.add_argument('inputs', nargs='+', metavar='INPUT', help='files, folders (with sub-folders) or patterns')
    parser.add_argument('-o', '--out', required=True, help='folder for the restored images, or a file for one input')
    parser.add_argument('--checkpoint', default='shipped',
                        help='weights or folder of a training run (default: shipped, the weights of the package)')
    parser.add_argument('--opt', help='option file (default: the options in the weights, else the file beside them)')
    parser.add_argument('--other-bridge', action='store_true', help='allow --opt to differ from the trained bridge')
    parser.add_argument('--param-key', default='params_ema', help='params_ema or params')
    parser.add_argument('--steps', type=int, help='network evaluations (default: as in the option file)')
    parser.add_argument('--solver', choices=SOLVERS, help='default: as in the option file')
    parser.add_argument('--tile', default='auto', help='side of a tile in pixels, auto, or 0 for whole images')
    parser.add_argument('--tile-overlap', type=int, default=OVERLAP, help='overlap of neighbouring tiles in pixels')
    parser.add_argument('--memory', type=float, help='GiB that one evaluation may take, for --tile auto')
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda, cuda:1, mps')
    parser.add_argument('--dtype', default='float32', choices=DTYPES)
    parser.add_argument('--seed', type=int, default=0, help='seed of the noise, if the sampler adds any')
    parser.add_argument('--compare', action='store_true', help='also write NAME_compare.png with before and after')
    parser.add_argument('--batch', type=int, help='images of equal size per batch (default: 8 on a GPU, 1 on a CPU)')
    parser.add_argument('--skip-existing', action='store_true', help='skip images that the output folder already has')
    parser.add_argument('--max-megapixels', type=float, default=MAX_MEGAPIXELS, help='refuse images larger than this')
    args = parser.parse_args()
    if args.tile != 'auto':
        args.tile = int(args.tile) if args.tile.isdigit() else parser.error(f'--tile: found {args.tile!r}')
    return args


class Job(NamedTuple):
    """One image: its file, its output file, and the file that --compare writes."""

    source: Path
    target: Path
    beside: Path


def plan(inputs: list[str], out: str) -> tuple[list[Job], list[str], Counter[str]]:
    """Return the jobs, the faults of the inputs, and the number of files left out by suffix.

    A file in a folder is left out if it is not an image, or if its format needs a package that is not installed.
    """
    files: dict[Path, Path] = {}
    faults = []
    left_out: Counter[str] = Counter()
    single = Path(out).suffix.lower() in WRITABLE
    named = {given: list(_images(Path(given).expanduser(), Path(out), left_out)) for given in inputs}
    sources = {source.resolve() for found in named.values() for source, _ in found}
    for given, found in named.items():
        if not found:
            what = 'no image in the folder' if Path(given).expanduser().is_dir() else 'no such file, folder or pattern:'
            faults.append(f'{what} {given}')
        for source, name in found:
            name = name if name.suffix.lower() in WRITABLE else name.with_suffix('.png')
            target = Path(out) if single else Path(out) / name
            if target.resolve() in sources:
                faults.append(f'{source}: the output would replace the input {target}; choose another folder with -o.')
            elif target in files:
                faults.append(f'{source}: would be written to {target}, as would {files[target]}; '
                              + ('name a folder with -o.' if single else 'restore it into another folder.'))
            else:
                files[target] = source
    jobs = [Job(source, target, beside) for (target, source), beside in zip(files.items(), beside_all(list(files)))]
    return jobs, faults, left_out


def _images(path: Path, out: Path, left_out: Counter[str]) -> Iterator[tuple[Path, Path]]:
    """Yield the files that an input names, each with its name below the output folder; skip earlier outputs."""
    if path.is_dir():
        inside = out.resolve() if path.resolve() in out.resolve().parents else None
        for each in sorted(path.rglob('*')):
            if not each.is_file() or each.name.startswith('.') or inside in each.resolve().parents:
                continue
            suffix = each.suffix.lower()
            if suffix in READABLE and suffix not in MISSING:
                yield each, each.relative_to(path)
            else:
                left_out[suffix] += 1
        return
    for each in [path] if path.is_file() else map(Path, sorted(glob.glob(str(path), recursive=True))):
        if each.is_file():
            yield each, Path(each.name)


def beside_all(targets: list[Path]) -> list[Path]:
    """Return NAME_compare.png beside each output; where that file is taken, prepend the full name of the output."""
    taken = set(targets)
    found = []
    for target in targets:
        path = target.with_name(f'{target.stem}_compare.png')
        while path in taken:
            path = path.with_name(f'{target.name}_{path.name}')
        taken.add(path)
        found.append(path)
    return found


def restore_all(restore: Restorer, jobs: Sequence[Job], args: Namespace, bar: tqdm) -> list[str]:
    """Restore all images, and return the faults of those that failed.

    Threads read images before the network needs them, and write results in the background. Consecutive images of
    equal size form a batch, in which each gets the noise that it would get alone.
    """
    faults: list[str] = []

    def failed(job: Job, error: BaseException) -> None:
        faults.append(str(error) if isinstance(error, ImageError) else f'{job.source}: {error}')
        bar.write(f'rdbm restore: {faults[-1]}', file=sys.stderr)

    def settle(job: Job, future: Future[None]) -> None:
        if future.exception() is not None:
            failed(job, future.exception())

    batch = args.batch or (1 if restore.device.type == 'cpu' else GPU_BATCH)
    done, reads, writes = 0, deque(), deque()
    left = iter(jobs)
    with ThreadPoolExecutor(THREADS) as readers, ThreadPoolExecutor(THREADS) as writers:
        while True:
            for job in islice(left, batch + THREADS - len(reads)):
                reads.append((job, readers.submit(read_photo, job.source, args.max_megapixels)))
            if not reads:
                break
            group = [reads.popleft()]
            try:
                first = group[0][1].result()
                while len(group) < batch and reads and reads[0][1].exception() is None \
                        and reads[0][1].result().rgb.shape == first.rgb.shape:
                    group.append(reads.popleft())
                bar.set_postfix_str(f'{done + len(group)}/{len(jobs)} {group[-1][0].source.name}')
                photos = [future.result() for _, future in group]
                for (job, _), before, after in zip(group, photos, _restored(restore, photos, args.seed, done, bar)):
                    writes.append((job, writers.submit(_write, job, before, after, args.compare)))
            except (ImageError, RuntimeError, MemoryError) as error:
                for job, _ in group:
                    failed(job, error)
            done += len(group)
            bar.n = done
            bar.refresh()
            while len(writes) > THREADS + batch:
                settle(*writes.popleft())
        for written in writes:
            settle(*written)
    return faults


def _restored(restore: Restorer, photos: Sequence[Photo], seed: int, done: int, bar: tqdm) -> list[Photo]:
    def show(share: float) -> None:
        bar.n = done + share * len(photos)
        bar.refresh()

    batch = torch.from_numpy(np.stack([to_float(photo.rgb) for photo in photos])).permute(0, 3, 1, 2)
    out = restore(batch, [seed] * len(photos), show).permute(0, 2, 3, 1).numpy()
    return [photo.with_rgb(each) for photo, each in zip(photos, out)]


def _write(job: Job, before: Photo, after: Photo, compare: bool) -> None:
    write_photo(job.target, after)
    if compare:
        sides = strip([before.bytes_rgb(), after.bytes_rgb()], min(COMPARED, len(before.rgb)))
        write_photo(job.beside, Photo(sides))


def own_share(jobs: Sequence[Job]) -> list[Job]:
    """Return the jobs of this process if torchrun or Slurm started several processes, else all."""
    for rank, ranks in (('RANK', 'WORLD_SIZE'), ('SLURM_PROCID', 'SLURM_NTASKS')):
        if rank in os.environ and ranks in os.environ:
            return list(jobs[int(os.environ[rank])::int(os.environ[ranks])])
    return list(jobs)


def own_device(device: str) -> str:
    """Return ``device``, where ``auto`` is one GPU per process if torchrun or Slurm started several on a machine."""
    local = os.environ.get('LOCAL_RANK', os.environ.get('SLURM_LOCALID'))
    count = torch.cuda.device_count()
    return f'cuda:{int(local) % count}' if device == 'auto' and local is not None and count else device


def main() -> int:
    """Restore the inputs, and return 1 if any of them failed, else 0."""
    args = arguments()
    jobs, faults, left_out = plan(args.inputs, args.out)
    share = own_share(jobs)
    jobs = [job for job in share if not (args.skip_existing and job.target.is_file())]
    there, failed = len(share) - len(jobs), []
    for fault in faults:
        print(f'rdbm restore: {fault}', file=sys.stderr)
    if jobs:
        restore = Restorer(args.checkpoint, args.opt, param_key=args.param_key, steps=args.steps, solver=args.solver,
                           tile=args.tile, overlap=args.tile_overlap, memory=args.memory, dtype=args.dtype,
                           device=own_device(args.device), other_bridge=args.other_bridge)
        if Path(args.checkpoint).is_dir():
            print(f'Weights: {restore.checkpoint}')
        with tqdm(total=len(jobs), desc='Restoring', bar_format=BAR) as bar, warnings.catch_warnings():
            warnings.simplefilter('always')
            warnings.showwarning = lambda message, *rest: bar.write(str(message), file=sys.stderr)
            failed = restore_all(restore, jobs, args, bar)
    faults += failed
    more = f' (and {len(faults) - 1} more)' if len(faults) > 1 else ''
    others = ', '.join(f'{count} {suffix or "without suffix"}'
                       + (f' (pip install {MISSING[suffix]})' if suffix in MISSING else '')
                       for suffix, count in sorted(left_out.items()))
    print(f'{len(jobs) - len(failed)} of {len(jobs)} images restored to {args.out}'
          + (f'; {there} were there already' if there else '') + (f'; left out: {others}' if others else '')
          + (f'; {faults[0]}{more}' if faults else ''))
    return int(bool(faults))
