"""Sets up .venv and trains, validates and restores with options/train_rdbm_quickstart.yml.

    python3 scripts/quickstart.py [more arguments of rdbm train]
"""
import subprocess
import sys
import time

from environment import ROOT, prepare


def main() -> int:
    """Run, say how long it took, and return the exit status of the training."""
    python = prepare('basicsr')
    start = time.time()
    command = [str(python), '-m', 'rdbm_plugin', 'train', '-opt', 'options/train_rdbm_quickstart.yml', *sys.argv[1:]]
    status = subprocess.run(command, cwd=ROOT).returncode
    print(f'\nTrained and validated in {time.time() - start:.0f} s' if status == 0 else f'\nEnded with status {status}')
    return status


if __name__ == '__main__':
    sys.exit(main())
