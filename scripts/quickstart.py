"""Sets up .venv and trains, validates and restores with options/train_rdbm_quickstart.yml.

    python3 scripts/quickstart.py                   # fine-tunes the shipped weights
    python3 scripts/quickstart.py --from-scratch    # trains as the file says
    python3 scripts/quickstart.py [...] [more arguments of rdbm train, such as --force_yml KEY=VALUE]
"""
import subprocess
import sys
import time
from argparse import ArgumentParser

from environment import ROOT, prepare

FILE = 'options/train_rdbm_quickstart.yml'
FINE_TUNING = ['name=finetune_rdbm_quickstart', 'path:pretrain_network_g=shipped', 'train:optim_g:lr=5e-4',
               'train:total_iter=500', 'train:scheduler:periods=[500]', 'val:val_freq=500', 'val:sampler:steps=2']


def training(words: list[str]) -> list[str]:
    """The arguments of rdbm for those of this script; changes by the user come after the changes of FINE_TUNING."""
    parser = ArgumentParser(description=__doc__.split('\n')[0], allow_abbrev=False)
    parser.add_argument('--from-scratch', action='store_true', help='instead of from the shipped weights')
    parser.add_argument('--force_yml', nargs='+', default=[], metavar='KEY=VALUE', help='changes of the option file')
    args, others = parser.parse_known_args(words)
    changes = [*([] if args.from_scratch else FINE_TUNING), *args.force_yml]
    return ['train', '-opt', FILE, *others, *(['--force_yml', *changes] if changes else [])]


def main() -> int:
    """Run, say how long it took, and return the exit status of the training."""
    words = training(sys.argv[1:])
    python = prepare('basicsr')
    start = time.time()
    status = subprocess.run([str(python), '-m', 'rdbm_plugin', *words], cwd=ROOT).returncode
    print(f'\nTrained and validated in {time.time() - start:.0f} s' if status == 0 else f'\nEnded with status {status}')
    return status


if __name__ == '__main__':
    sys.exit(main())
