"""Sets up .venv and runs the linter and the tests.

    python3 scripts/run_tests.py [more arguments of pytest]
"""
from __future__ import annotations

import subprocess
import sys

from environment import ROOT, prepare


def main() -> int:
    """Run both and return the first status that is not 0."""
    python = str(prepare('test'))
    for command in (['ruff', 'check', '.'], ['pytest', *sys.argv[1:]]):
        status = subprocess.run([python, '-m', *command], cwd=ROOT).returncode
        if status:
            return status
    return 0


if __name__ == '__main__':
    sys.exit(main())
