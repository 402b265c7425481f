"""The rows of options/suites/ablations.yml: trained, measured on held-out photos, and laid out as tables and plots.

Called by ``python scripts/run_suite.py ablations``; see there.
"""
import json
import os
import re
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ablation_report import CLEAN, write_report
from suites import changes_of, in_process, read_suite, rows_of
from torch import Tensor, nn
from tqdm import tqdm

from rdbm_plugin.archs.checkpoint import load_weights
from rdbm_plugin.config.atomic_write import write_atomically
from rdbm_plugin.config.option_file import read_option_file
from rdbm_plugin.config.options import OptionError, build, check_choice

ROOT = Path(__file__).resolve().parent.parent
SUITE = ROOT / 'options/suites/ablations.yml'
INTACT = 2.5 / 255
"""A pixel is intact where no channel of the degraded image is off by more than two of 255 levels."""
ONCE = {'solver': 'euler', 'steps': 1}
"""What a network without a bridge is listed as."""


def arguments(words: Sequence[str]) -> Namespace:
    """The command line."""
    parser = ArgumentParser(prog='run_suite.py ablations', description=__doc__.split('\n')[0])
    parser.add_argument('--suite', type=Path, default=SUITE, help='file with the rows')
    parser.add_argument('--scale', default='cpu', help='block of scales: in that file, such as cpu or gpu')
    parser.add_argument('--rows', nargs='+', help='only these rows or groups (default: all)')
    parser.add_argument('--seeds', nargs='+', type=int, help='instead of those of the scale')
    parser.add_argument('--jobs', type=int, help='trainings side by side (default: one for each core, or one on GPUs)')
    parser.add_argument('-o', '--out', type=Path, default=Path('ablations'), help='folder of tables, plots and logs')
    parser.add_argument('--force_yml', nargs='+', default=[], help='changes to every training')
    parser.add_argument('--report', action='store_true', help='train and measure nothing, only write the tables again')
    return parser.parse_args(words)


@dataclass
class Row:
    """One training: an option file with changes, and a seed."""

    name: str
    seed: int
    file: Path
    changes: list[str]
    samplers: list[dict[str, Any]] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        """Of its experiment."""
        return Path('experiments', self.experiment)

    @cached_property
    def experiment(self) -> str:
        """Name of its experiment."""
        return next(each.partition('=')[2] for each in reversed(self.changes) if each.startswith('name='))

    @property
    def weights(self) -> Path:
        """What the training ends with."""
        return self.folder / 'models/net_g_latest.pth'

    @property
    def scores(self) -> Path:
        """What measuring ends with."""
        return self.folder / 'ablation.json'

    def options(self) -> dict[str, Any]:
        """With changes made."""
        return read_option_file(self.file, self.changes)

    def measured(self) -> dict[str, Any] | None:
        """Content of the scores, if there are any."""
        return json.loads(self.scores.read_text(encoding='utf-8')) if self.scores.is_file() else None


@dataclass
class Suite:
    """What the suite file says for one scale."""

    content: dict[str, Any]
    path: Path
    scale: str

    @classmethod
    def read(cls, path: Path, scale: str) -> 'Suite':
        """Raises OptionError, naming what is wrong."""
        content = read_suite(path)
        check_choice('--scale', scale, content['scales'])
        return cls(content, path, scale)

    def rows(self, chosen: Sequence[str] | None, seeds: Sequence[int] | None, forced: Sequence[str]) -> list[Row]:
        """All trainings, the main rows first; raises OptionError if one that was chosen does not exist."""
        scale, main = self.content['scales'][self.scale], self.content['main']
        file = (self.path.parent / self.content['base']).resolve()
        found = []
        for name, row in rows_of(self.content, chosen).items():
            if self.scale not in row.get('scales', [self.scale]):
                continue
            changes = changes_of(scale['changes'], row.get('changes', {}))
            bridge = read_option_file(file, changes, plugins=False)['bridge']
            samplers = [{**sampler, 'steps': steps} for sampler in row.get('samplers', self.content['samplers'])
                        for steps in sampler.get('steps', scale['steps'])] if bridge else []
            for seed in seeds or scale['main_seeds' if name in main else 'seeds']:
                own = [f'manual_seed={seed}', f'name=ablations_{self.scale}_{name}_seed{seed}']
                found.append(Row(name, seed, file, [*changes, *forced, *own], samplers))
        return sorted(found, key=lambda row: (row.name not in main, row.seed))


# ---------------------------------------------------------------------------------------------------- measuring


def label(sampler: Mapping[str, Any]) -> str:
    """How a sampler is called in tables; the number of evaluations comes last."""
    words = [str(sampler[key]) for key in ('type', 'solver', 'start') if key in sampler]
    return ' '.join([*words, str(sampler['steps'])])


def test_images(content: Mapping[str, Any]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Task, degraded and clean image, (1, 3, H, W) in [0, 1]; and each photo undamaged."""
    from rdbm_plugin.data.synthetic_universal_dataset import SyntheticUniversalDataset
    for task in content['tasks']:
        for seed in content['seeds']:
            data = SyntheticUniversalDataset({
                'name': task, 'phase': 'test', 'dataroot_gt': content['dataroot_gt'], 'tasks': [task],
                'gt_size': content['gt_size'], 'seed': seed})
            for item in (data[i] for i in range(len(data))):
                yield task, item['lq'][None], item['gt'][None]
                if task == content['tasks'][0] and seed == content['seeds'][0]:
                    yield CLEAN, item['gt'][None], item['gt'][None]


class Scores:
    """Squared errors summed up: of all pixels image by image, and of intact and damaged pixels over all images."""

    def __init__(self) -> None:
        self.psnr: dict[str, list[float]] = {}
        self.sums: dict[str, np.ndarray] = {}

    def add(self, task: str, restored: Tensor, lq: Tensor, gt: Tensor) -> None:
        """Images (1, 3, H, W) in [0, 1]; the restored one is rounded to 8 bits, as a file of it would be."""
        error = ((restored.clamp(0, 1) * 255).round() / 255 - gt).square().mean(1)
        intact = (lq - gt).abs().amax(1) < INTACT
        self.psnr.setdefault(task, []).append(_psnr(float(error.mean())))
        parts = np.array([[float(error[where].sum()), float(where.sum())] for where in (intact, ~intact)])
        self.sums[task] = self.sums.get(task, 0) + parts

    def summary(self) -> dict[str, Any]:
        """PSNR in dB of each task; of intact and damaged pixels, and the share of the former."""
        found = {}
        for task, values in self.psnr.items():
            (intact, count), (damaged, others) = self.sums[task]
            found[task] = {'psnr': float(np.mean(values)), 'intact share': count / (count + others),
                           'intact': _psnr(intact / count) if count else None,
                           'damaged': _psnr(damaged / others) if others else None}
        return found


def _psnr(error: float) -> float:
    return float(-10 * np.log10(max(error, 1e-10)))


def load(row: Row, device: torch.device) -> nn.Module:
    """The trained network, moving average if there is one."""
    from rdbm_plugin.basicsr_host.lookup import registered
    opt = row.options()
    network = build('network_g', opt['network_g'], registered('ARCH'))
    load_weights(network, row.weights, 'params_ema' if opt['train'].get('ema_decay') else 'params')
    return network.to(device, memory_format=torch.channels_last).eval()


def restorers(row: Row, network: nn.Module, device: torch.device) -> Iterator[tuple[str, Any]]:
    """Name, and a function from degraded image and number to restored image, for each way to use the network."""
    from rdbm_plugin.bridge import build_bridge
    from rdbm_plugin.samplers import build_sampler
    if not row.samplers:
        yield label(ONCE), lambda lq, number: network(lq.to(device)).cpu()
        return
    bridge = build_bridge(row.options()['bridge'])

    def by(sampler: Any) -> Any:
        return lambda lq, number: lq + sampler(network, 2 * lq.to(device) - 1, [number]).residual.cpu() / 2

    for block in row.samplers:
        yield label(block), by(build_sampler(block, bridge))


def measure(row: Row, sets: Mapping[str, Any], device: torch.device) -> None:
    """Restore the held-out photos in every way; write scores and the first picture of each task to the experiment."""
    from basicsr.utils import imwrite

    from rdbm_plugin.evaluation.pictures import to_picture
    network = load(row, device)
    images = list(test_images(sets))
    pictures = row.folder / 'ablation'
    pictures.mkdir(exist_ok=True)
    with torch.inference_mode():
        found = {}
        for name, restore in restorers(row, network, device):
            scores = Scores()
            for number, (task, lq, gt) in enumerate(images):
                restored = restore(lq, number)
                if task not in scores.psnr:
                    for part, image in (('degraded', lq), (name, restored), ('clean', gt)):
                        imwrite(to_picture(image[0])[..., ::-1], str(pictures / f'{task} {part}.png'))
                scores.add(task, restored, lq, gt)
            found[name] = scores.summary()
    degraded = Scores()
    for task, lq, gt in images:
        degraded.add(task, lq, lq, gt)
    content = {'row': row.name, 'seed': row.seed, 'changes': row.changes, 'sets': dict(sets),
               'parameters': sum(p.numel() for p in network.parameters()),
               'folder': str(row.folder),
               'iterations': row.options()['train']['total_iter'], 'minutes': minutes(row),
               'degraded': degraded.summary(), 'restored': found}
    write_atomically(row.scores, json.dumps(content, indent=1).encode())


def minutes(row: Row) -> float | None:
    """How long the training took from its first to its last iteration, by its newest log."""
    logs = sorted(row.folder.glob('train_*.log'))
    text = logs[-1].read_text(encoding='utf-8') if logs else ''
    times = [datetime.fromisoformat(found) for found in
             re.findall(r'^([\d-]+ [\d:]+),\d+ INFO: (?:Start training|\[.*iter:)', text, re.MULTILINE)]
    return (times[-1] - times[0]).total_seconds() / 60 if len(times) > 1 else None


# ---------------------------------------------------------------------------------------------------- running


def run(row: Row, sets: Mapping[str, Any], args: Namespace, threads: int) -> str | None:
    """Train and measure in processes of their own, unless that was done; return what went wrong, or None."""
    before = row.measured()
    if before and before['changes'] != row.changes:
        other = [each for each in before['changes'] if each not in row.changes]
        return f'was trained with {", ".join(other) or "fewer changes"}; remove {row.folder} to train it anew'
    if before and (before['sets'] != sets or set(before['restored']) != set(map(label, row.samplers or [ONCE]))):
        row.scores.unlink()
    log = args.out / 'logs' / f'{row.experiment}.log'
    training = ['train', '-opt', row.file, '--auto_resume', '--force_yml', *row.changes]
    measuring = ['--suite', args.suite, '--scale', args.scale, '--rows', row.name, '--seeds', row.seed,
                 *(['--force_yml', *args.force_yml] if args.force_yml else [])]
    for done, target, command in ((row.weights, 'rdbm_plugin.__main__:main', training),
                                  (row.scores, 'ablations:measure_main', measuring)):
        if done.is_file():
            continue
        status = in_process(target, command, log, threads)
        if status or not done.is_file():
            return f'ended with status {status}; see {log}'
    return None


def main(words: Sequence[str]) -> int:
    """Run what is missing, write tables and plots, and return 1 if anything failed, else 0."""
    args = arguments(words)
    try:
        suite = Suite.read(args.suite, args.scale)
        rows = suite.rows(args.rows, args.seeds, args.force_yml)
    except OptionError as error:
        print(f'run_suite ablations: {error}', file=sys.stderr)
        return 2
    gpu = torch.cuda.is_available()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    jobs = args.jobs or (1 if gpu else cores)
    faults = {}
    with ThreadPoolExecutor(jobs) as pool, tqdm(total=len(rows), unit='training', disable=args.report) as bar:
        def work(row: Row) -> None:
            fault = run(row, suite.content['sets'], args, 0 if gpu else max(1, cores // jobs))
            if fault:
                faults[row.experiment] = fault
                bar.write(f'{row.experiment}: {fault}')
            bar.update()
        list(pool.map(work, [] if args.report else rows))
    write_report([row.measured() for row in rows if row.scores.is_file()], suite.content, args.out)
    return int(bool(faults))


def measure_main() -> int:
    """The process that measures one row."""
    args = arguments(sys.argv[1:])
    import rdbm_plugin.registration  # noqa: F401
    suite = Suite.read(args.suite, args.scale)
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    for row in suite.rows(args.rows, args.seeds, args.force_yml):
        measure(row, suite.content['sets'], device)
    return 0
