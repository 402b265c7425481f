"""Sets up .venv and runs the linter and the tests.

    python3 scripts/run_tests.py [more arguments of pytest]
"""
from __future__ import annotations

import os
import shutil
import subprocess
import sys

from environment import ROOT, prepare


def install_browser() -> None:
    """Debian's Chromium for the tests of the comparison's page, where it can be had; without, they are skipped."""
    if any(map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))):
        return
    if not shutil.which('apt-get') or not hasattr(os, 'geteuid') or os.geteuid() != 0:
        print('No Chromium: the tests of the comparison page are skipped.', flush=True)
        return
    print('Installing Chromium for the tests of the comparison page', flush=True)
    for command in (['update'], ['install', '-y', '--no-install-recommends', 'chromium']):
        if subprocess.run(['apt-get', '-q', *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode:
            print('Chromium could not be installed: the tests of the comparison page are skipped.', flush=True)
            return


def main() -> int:
    """Run both and return the first status that is not 0."""
    python = str(prepare('test'))
    install_browser()
    for command in (['ruff', 'check', '.'], ['pytest', *sys.argv[1:]]):
        status = subprocess.run([python, '-m', *command], cwd=ROOT).returncode
        if status:
            return status
    return 0


if __name__ == '__main__':
    sys.exit(main())
