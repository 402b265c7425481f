"""Trains option files and rows of suite files under one budget and compares the results.

    python scripts/study/run_suite.py options/suites/baselines.yml --rows rdbm_t edsr_t --iters 3000

trains each that has not been trained (``experiments/NAME/models/net_g_latest.pth``), one after the other, and ends in
``rdbm compare``. Interrupted, it goes on where it stopped. A training that fails does not stop the others. Rows are
written out as option files to ``OUT/options``; ``--write FOLDER`` does that alone, for other commands.
"""
import sys
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path

from suites import in_process, is_suite, read_suite, rows_of, write_row
from tqdm import tqdm

from rdbm_plugin.__main__ import run
from rdbm_plugin.commands import pipeline
from rdbm_plugin.config.options import OptionError

RDBM = 'rdbm_plugin.__main__:main'


def arguments() -> Namespace:
    """The command line."""
    parser = ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('files', nargs='+', metavar='FILE', help='suites, and option files of training, of any model')
    parser.add_argument('--rows', nargs='+', help='only these rows or groups of the suites (default: all)')
    parser.add_argument('--write', type=Path, metavar='FOLDER', help='only write the rows as option files')
    parser.add_argument('--iters', type=int, help='iterations of every training (default: as in the files)')
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


def length(iterations: int) -> list[str]:
    """Changes that make a training as long, schedule included; checkpoints at every tenth."""
    every = max(1, iterations // 10)
    return [f'train:total_iter={iterations}', f'train:scheduler:periods=[{iterations}]', f'val:val_freq={iterations}',
            f'logger:save_checkpoint_freq={every}', f'logger:print_freq={every}']


def train(file: str, args: Namespace, bar: tqdm) -> str | None:
    """Train one file unless that was done; return what went wrong, or None."""
    name = pipeline.read_options(file, args.force_yml)['name']
    if Path('experiments', name, 'models', 'net_g_latest.pth').is_file():
        bar.write(f'{name}: trained already')
        return None
    log = Path(args.out, 'logs', f'{name}.log')
    changes = [*args.force_yml, *(length(args.iters) if args.iters else [])]
    begin = time.time()
    forced = ['--force_yml', *changes] if changes else []
    status = in_process(RDBM, ['train', '-opt', file, '--auto_resume', *forced], log)
    bar.write(f'{name}: {"trained" if not status else "failed"} in {time.time() - begin:.0f} s')
    return f'training ended with status {status}; see {log}' if status else None


def main() -> int:
    """Train, compare, and return 1 if anything failed, else 0."""
    args = arguments()
    files = [each for file in args.files for each in written(file, args)]
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
    status = in_process(RDBM, ['compare', *files, *sets, '-o', args.out, *forced])
    return int(bool(faults or status))


if __name__ == '__main__':
    sys.exit(run(main))
