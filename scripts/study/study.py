"""Does the bridge pay? Trains the rows of a suite file on clean photos, scores them, and lays the figures out.

    python scripts/study/study.py datasets/bsds500                        # options/suites/study.yml, on two CPU cores
    python scripts/study/study.py datasets/bsds500 --scale gpu -o docs/results/study_gpu.json
    python scripts/study/study.py datasets/bsds500 --rows regression residual_passes --seeds 0
    python scripts/study/study.py datasets/bsds500 --darkness -o docs/results/darkness_cpu.json
    python scripts/study/study.py --tables docs/results/study.json        # tables and plots of figures that are there

The folder holds train, val and test. Trainings lie in experiments/ and are gone on with where they were broken off. On
CPUs one runs on each core. Figures are added to the file after -o as soon as they are there, with seed, iterations and
changes of each training; what is in that file is not done again. --darkness asks whether networks tell darkness by its
noise: dark pictures with and without it, one evaluation, and how much of the missing brightness comes back, as a share.
"""
import json
import os
import re
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from score_weights import Picture, damaged, darkened, psnr
from study_layout import SETS, Figures, figures_in, lay_out
from suites import changes_of, in_process, read_suite, rows_of
from tqdm import tqdm

from rdbm_plugin import Restorer
from rdbm_plugin.__main__ import run
from rdbm_plugin.archs.complexity import giga_multiply_adds
from rdbm_plugin.config.atomic_write import write_atomically
from rdbm_plugin.config.option_file import read_option_file
from rdbm_plugin.config.options import build, check_choice
from rdbm_plugin.data.clean_sources import open_clean
from rdbm_plugin.data.image_source import to_float
from rdbm_plugin.data.packing import centre
from rdbm_plugin.losses.draws import most_in
from rdbm_plugin.samplers import build_sampler

ROOT = Path(__file__).resolve().parents[2]
LATEST = Path('models/net_g_latest.pth')


def arguments() -> tuple[Namespace, list['Row']]:
    """The command line, and the trainings that it means, unless figures are only laid out; raises OptionError."""
    parser = ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('photos', nargs='?', type=Path, metavar='FOLDER', help='with train, val and test in it')
    parser.add_argument('--suite', type=Path, default=ROOT / 'options/suites/study.yml')
    parser.add_argument('--scale', default='cpu', help='block of scales: in that file')
    parser.add_argument('--rows', nargs='+', help='only these rows or groups (default: all)')
    parser.add_argument('--seeds', nargs='+', type=int, help='instead of those of the scale')
    parser.add_argument('--darkness', action='store_true', help='score on kinds of darkness instead')
    parser.add_argument('--jobs', type=int, help='trainings side by side (default: one a core, or one on a GPU)')
    parser.add_argument('-o', '--out', type=Path, default=Path('study.json'), help='file of the figures')
    parser.add_argument('--tables', type=Path, metavar='FILE', help='only lay out the figures of this file')
    args = parser.parse_args()
    if args.tables:
        return args, []
    if not args.photos or not all((args.photos / part).is_dir() for part in ('train', 'val', 'test')):
        parser.error(f'FOLDER: {args.photos}: no train, val and test in it; for a start: rdbm data fetch bsds500')
    return args, rows(args)


class Row(NamedTuple):
    """One training."""

    name: str
    seed: int
    base: Path
    iterations: int
    changes: list[str]
    samplers: list[dict[str, Any]]
    compute: float
    """Of a step and sample, in 1e9 multiply-adds for 256x256."""
    before: float = 0.0
    """The same of all steps of the training that it starts from."""
    start: Path | None = None
    """Weights of that training."""

    @property
    def folder(self) -> Path:
        """Of its experiment."""
        return Path('experiments') / next(each[5:] for each in reversed(self.changes) if each.startswith('name='))

    @property
    def recorded(self) -> list[str]:
        """Changes without the places of photos."""
        return [each for each in self.changes if 'dataroot' not in each]


def compute_of(options: Mapping[str, Any]) -> float:
    """Multiply-adds of a step for each sample: a backward pass counts two forward ones."""
    train, count = options['train'], options['datasets']['train']['batch_size_per_gpu']
    share = (1 - (train.get('node_t_share') or 0)) * (train.get('own_start_share') or 0)
    passes = 3 * (train.get('passes') or 1) + most_in(share, count) / count
    return passes * giga_multiply_adds(build('network_g', options['network_g'], networks()))


def networks() -> Any:
    """Name -> network: all that BasicSR knows, with the plain ones of this folder."""
    import plain_networks

    import rdbm_plugin.registration  # noqa: F401
    from basicsr.utils.registry import ARCH_REGISTRY  # isort: skip
    from rdbm_plugin.basicsr_host.lookup import registered
    for make in (plain_networks.naf_unet, plain_networks.attention_unet):
        if make.__name__ not in ARCH_REGISTRY:
            ARCH_REGISTRY.register(make)
    return registered('ARCH')


def rows(args: Namespace) -> list[Row]:
    """All trainings, those of the main rows first; raises OptionError if one that was chosen does not exist."""
    suite = read_suite(args.suite)
    scale = suite['scales'][check_choice('--scale', args.scale, suite['scales'])]
    base, found, every = (args.suite.parent / suite['base']).resolve(), [], rows_of(suite)
    # BasicSR validates at the end of every training; what counts is scored here.
    clean = ' + '.join(str((args.photos / part).resolve()) for part in ('train', 'val'))
    photos = {'datasets:train:dataroot_gt': clean, **{
        f'datasets:val_{i}:dataroot_gt': 'dead_leaves:1' for i in range(1, 6)}}

    def changed(name: str) -> list[str]:
        return changes_of(suite['changes'], scale['changes'], photos, every[name].get('changes', {}))

    @cache
    def compute(name: str) -> float:
        return compute_of(read_option_file(base, changed(name), plugins=False))

    def experiment(name: str, seed: int) -> str:
        return f'study_{args.scale}_{name}_seed{seed}'

    def lengths(name: str) -> tuple[int, float, float]:
        """Iterations, compute of one, and of all of the training that it starts from."""
        row, own = every[name], compute(name)
        start = lengths(row['start']) if 'start' in row else (0, 0.0, 0.0)
        before = start[0] * start[1] + start[2]
        return round((scale['iterations'] * compute(row.get('as', name)) - before) / own), own, before
    for name, row in rows_of(suite, args.rows).items():
        if args.scale not in row.get('scales', [args.scale]):
            continue
        iterations, own, before = lengths(name)
        samplers = [{'steps': [1]}] if args.darkness else row.get('samplers', suite['samplers'])
        samplers = [{**block, 'steps': [each for each in block['steps'] if each in scale.get('evaluations', [each])]}
                    for block in samplers]
        length = {'train:total_iter': iterations, 'train:scheduler:periods': [iterations], 'val:val_freq': iterations,
                  'logger:save_checkpoint_freq': max(1, iterations // 10)}
        for seed in args.seeds or scale['main_seeds' if name in suite['main'] else 'seeds']:
            start = Path('experiments', experiment(row['start'], seed), LATEST) if 'start' in row else None
            ending = {'manual_seed': seed, 'name': experiment(name, seed),
                      **({'path:pretrain_network_g': start} if start else {})}
            found.append(Row(name, seed, base, iterations, [*changed(name), *changes_of(length, ending)], samplers, own,
                             before, start))
    return sorted(found, key=lambda row: (row.name not in suite['main'], row.seed))


def pictures(args: Namespace) -> Iterator[tuple[str, Picture, Picture]]:
    """Kind, degraded and clean picture, (H, W, 3) float32 in [0, 1]."""
    scale = read_suite(args.suite)['scales'][args.scale]
    source = open_clean(str(args.photos / 'test'), 'test')
    for number in np.linspace(0, len(source) - 1, min(scale['photos'], len(source))).round().astype(int):
        clean = centre(to_float(source.decode(number)), scale['size'])
        kinds = darkened(clean, int(number)) if args.darkness else damaged(clean, int(number), list(SETS))
        yield from ((kind, picture, clean) for kind, picture in kinds)


def detail(image: Picture) -> float:
    """Power of the upper half of the spatial frequencies of the brightness, in dB; windowed by a cosine."""
    height, width = image.shape[:2]
    grey = image.mean(axis=2) * np.hanning(height)[:, None] * np.hanning(width)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    return float(10 * np.log10((np.abs(np.fft.fft2(grey))**2)[frequency > 0.25].mean() + 1e-12))


def ways(row: Row, bridge: Any) -> Iterator[tuple[str, Any, int]]:
    """Label, sampler, and how many samples of it are taken."""
    for block in row.samplers:
        for steps in block['steps']:
            own = {key: value for key, value in block.items() if key not in ('steps', 'samples')}
            label = ' '.join([*(f'{key} {value}' for key, value in own.items()), str(steps)])
            yield label, build_sampler({**own, 'steps': steps}, bridge), block.get('samples', 1)


def losses(row: Row) -> list[list[float]]:
    """Iteration and mean loss of all tasks since the line before, of each logged line, once; l_pix is one step's."""
    logs = ''.join(path.read_text(encoding='utf-8') for path in sorted(row.folder.glob('train_*.log')))
    found = dict(re.findall(r'iter: *([\d,]+), lr.*? l_pix: \S+ (.*)', logs))
    return sorted([int(iteration.replace(',', '')), np.array(tasks.split()[1::2], float).mean().item()]
                  for iteration, tasks in found.items())


def score(row: Row, args: Namespace) -> dict[str, Any]:
    """Of each kind the mean PSNR, and detail less that of the clean picture or, of darkness, share of brightness."""
    restore = Restorer(row.folder / LATEST, tile=0)
    degraded: dict[str, list[float]] = {}
    restored: dict[str, dict[str, list[list[float]]]] = {}
    for number, (kind, picture, clean) in enumerate(pictures(args)):
        degraded.setdefault(kind, []).append(psnr(picture, clean))
        for label, sampler, samples in ways(row, restore.bridge):
            restore.sampler = sampler
            made = [restore(picture, 1000 * number + each) for each in range(samples)]
            found = {label: made[0]}
            if samples > 1:
                found[f'{label}, mean of {samples}'] = np.mean(made, axis=0, dtype=np.float32)
            for name, image in found.items():
                second = (float((image.mean() - picture.mean()) / (clean.mean() - picture.mean())) if args.darkness
                          else detail(image) - detail(clean))
                restored.setdefault(name, {}).setdefault(kind, []).append([psnr(image, clean), second])
    return {'row': row.name, 'seed': row.seed, 'iterations': row.iterations, 'compute': row.compute,
            'before': row.before, 'parameters': sum(p.numel() for p in restore.network.parameters()),
            'changes': row.recorded, 'losses': losses(row),
            'degraded': {kind: round(float(np.mean(values)), 4) for kind, values in degraded.items()},
            'restored': {label: {kind: np.mean(values, axis=0).round(4).tolist() for kind, values in kinds.items()}
                         for label, kinds in restored.items()}}


def train_and_score(row: Row, args: Namespace, threads: int) -> Figures:
    """Train and score in processes of their own, and return the figures; raises RuntimeError if that fails."""
    if row.start and not row.start.is_file():
        raise RuntimeError(f'starts from {row.start}, which is not there; train that row first')
    figures, log = figures_of(row, args), Path('study_logs') / f'{row.folder.name}.log'
    training = ['train', '-opt', row.base, '--auto_resume', '--force_yml', *row.changes]
    scoring = [args.photos, '--suite', args.suite, '--scale', args.scale, '--rows', row.name, '--seeds', row.seed,
               *['--darkness'][:args.darkness]]
    for done, target, words in ((row.folder / LATEST, 'study:train_main', training),
                                (figures, 'study:score_main', scoring)):
        status = 0 if done.is_file() else in_process(target, words, log, threads)
        if status or not done.is_file():
            raise RuntimeError(f'{target} failed with status {status}; see {log}')
    return checked(json.loads(figures.read_text(encoding='utf-8')), row, row.folder)


def checked(figures: Figures, row: Row, place: Path) -> Figures:
    """The figures; raises RuntimeError if they are those of other changes."""
    if figures['changes'] != row.recorded:
        raise RuntimeError(f'{place} has it with other changes; remove that to train it anew')
    return figures


def figures_of(row: Row, args: Namespace) -> Path:
    """The file of one training's figures."""
    return row.folder / ('darkness.json' if args.darkness else 'study.json')


def train_main() -> int:
    """The process of one training."""
    from rdbm_plugin.__main__ import main as rdbm
    networks()
    return rdbm()


def score_main() -> int:
    """The process that scores one training."""
    args, wanted = arguments()
    for row in wanted:
        write_atomically(figures_of(row, args), json.dumps(score(row, args), indent=1).encode())
    return 0


def main() -> int:
    """Run what is missing, write figures, lay them out, and return 1 if anything failed, else 0."""
    args, wanted = arguments()
    if args.tables:
        lay_out(args.tables, args.suite)
        return 0
    gpu = torch.cuda.is_available()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    jobs = args.jobs or (1 if gpu else cores)
    found, faults = {(each['row'], each['seed']): each for each in figures_in(args.out)}, []
    with ThreadPoolExecutor(jobs) as pool, tqdm(total=len(wanted), unit='training') as bar:
        def work(row: Row) -> Figures | None:
            key = row.name, row.seed
            try:
                return checked(found[key], row, args.out) if key in found else train_and_score(
                    row, args, 0 if gpu else max(1, cores // jobs))
            except RuntimeError as error:
                faults.append(error)
                bar.write(f'{row.folder.name}: {error}')
                return None
            finally:
                bar.update()
        for figures in pool.map(work, wanted):
            if figures:
                keep(figures, args)
    if figures_in(args.out):
        lay_out(args.out, args.suite)
    return int(bool(faults))


def keep(figures: Figures, args: Namespace) -> None:
    """Add to the file of figures, in place of those of the same row and seed; the suite file has the order."""
    names = list(rows_of(read_suite(args.suite)))
    found = {(each['row'], each['seed']): each for each in [*figures_in(args.out), figures]}
    ordered = sorted(found.values(), key=lambda each: (
        names.index(each['row']) if each['row'] in names else len(names), each['seed']))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(args.out, json.dumps(ordered, indent=1).encode())


if __name__ == '__main__':
    sys.exit(run(main))
