"""Trains option files and rows of suite files under one budget and compares the results.

    python scripts/study/run_suite.py options/suites/baselines.yml --rows rdbm_t edsr_t --iters 3000

trains each that has not been trained (``experiments/NAME/models/net_g_latest.pth``), one after the other, and ends in
``rdbm compare``. Interrupted, it goes on where it stopped. A training that fails does not stop the others. Rows are
written out as option files to ``OUT/options``; ``--write FOLDER`` does that alone, for other commands.

``--minutes M`` gives each the same wall time instead of the same iterations: a short run measures how long one
iteration takes, and the length of the schedule follows from that.

Whether the bridge pays, on hundreds of photos: scripts/study/study.py.
"""
import json
import re
import shutil
import sys
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path

from suites import in_process, is_suite, read_suite, rows_of, write_row
from tqdm import tqdm

from rdbm_plugin.commands import pipeline
from rdbm_plugin.config.options import OptionError

TRIAL = 40
"""Iterations of the run that measures the time of one."""


def arguments() -> Namespace:
    """The command line."""
    parser = ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('files', nargs='+', metavar='FILE', help='suites, and option files of training, of any model')
    parser.add_argument('--rows', nargs='+', help='only these rows or groups of the suites (default: all)')
    parser.add_argument('--write', type=Path, metavar='FOLDER', help='only write the rows as option files')
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument('--iters', type=int, help='iterations of every training (default: as in the files)')
    budget.add_argument('--minutes', type=float, help='wall time of every training')
    parser.add_argument('--sets', help='option file with the test sets, for rdbm compare')
    parser.add_argument('-o', '--out', default='comparison', help='folder of the comparison')
    parser.add_argument('--force_yml', nargs='+', default=[], help='changes to every option file')
    return parser.parse_args()


def written(file: str, args: Namespace) -> list[str]:
    """The option files that a file stands for: itself, or the rows of a suite."""
    if not is_suite(file):
        return [file]
    folder = args.write or Path(args.out, 'options')
    return [str(write_row(Path(file), name, row, folder)) for name, row in rows_of(read_suite(Path(file)),
                                                                                 args.rows).items()]


def rdbm(*command: str, log: Path | None = None) -> int:
    """Run ``rdbm ...``; its output goes to ``log`` if there is one."""
    return in_process('rdbm_plugin.__main__:main', command, log)


def length(iterations: int) -> list[str]:
    """Changes that make a training as long, schedule included; checkpoints at every tenth."""
    every = max(1, iterations // 10)
    return [f'train:total_iter={iterations}', f'train:scheduler:periods=[{iterations}]', f'val:val_freq={iterations}',
            f'logger:save_checkpoint_freq={every}', f'logger:print_freq={every}']


def seconds_per_iteration(file: str, name: str, changes: list[str], log: Path) -> float | None:
    """Of a short run without validation, which is removed again; None if it fails."""
    trial = f'{name}_trial'
    short = [*length(TRIAL), f'name={trial}', f'val:val_freq={10 * TRIAL}', f'logger:save_checkpoint_freq={10 * TRIAL}',
             'logger:use_tb_logger=false', 'logger:print_freq=1']
    if rdbm('train', '-opt', file, '--force_yml', *changes, *short, log=log):
        return None
    text = max(Path('experiments', trial).glob('train_*.log'), key=lambda path: path.stat().st_mtime).read_text()
    shutil.rmtree(Path('experiments', trial))
    times = [float(value) for value in re.findall(r'time \(data\): ([\d.]+)', text)]
    return sum(times[TRIAL // 2:]) / len(times[TRIAL // 2:])


def train(file: str, args: Namespace, bar: tqdm) -> str | None:
    """Train one file unless that was done; return what went wrong, or None."""
    name = pipeline.read_options(file, args.force_yml)['name']
    if Path('experiments', name, 'models', 'net_g_latest.pth').is_file():
        bar.write(f'{name}: trained already')
        return None
    log = Path(args.out, 'logs', f'{name}.log')
    changes = list(args.force_yml)
    if args.iters:
        changes += length(args.iters)
    if args.minutes:
        budget = Path(args.out, 'logs', f'{name}.json')
        if not budget.is_file():
            seconds = seconds_per_iteration(file, name, changes, log)
            if seconds is None:
                return f'its trial run ended with an error; see {log}'
            iterations = max(1, round(args.minutes * 60 / seconds))
            budget.write_text(json.dumps({'iterations': iterations, 'seconds an iteration': seconds}))
        changes += length(json.loads(budget.read_text())['iterations'])
    begin = time.time()
    status = rdbm('train', '-opt', file, '--auto_resume', *(['--force_yml', *changes] if changes else []), log=log)
    bar.write(f'{name}: {"trained" if not status else "failed"} in {time.time() - begin:.0f} s')
    return f'training ended with status {status}; see {log}' if status else None


def main() -> int:
    """Train, compare, and return 1 if anything failed, else 0."""
    args = arguments()
    try:
        files = [each for file in args.files for each in written(file, args)]
    except OptionError as error:
        print(f'run_suite: {error}', file=sys.stderr)
        return 2
    if args.write:
        print('\n'.join(files))
        return 0
    faults = {}
    with tqdm(files, unit='training') as bar:
        for file in bar:
            bar.set_description(Path(file).stem)
            try:
                fault = train(file, args, bar)
            except OptionError as error:
                fault = str(error)
            if fault:
                faults[file] = fault
                bar.write(f'{file}: {fault}')
    sets = ['--sets', args.sets] if args.sets else []
    forced = ['--force_yml', *args.force_yml] if args.force_yml else []
    status = rdbm('compare', *files, *sets, '-o', args.out, *forced)
    return int(bool(faults or status))


if __name__ == '__main__':
    sys.exit(main())
