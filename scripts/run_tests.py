"""Sets up .venv and runs the linter and the tests: files side by side, then the tests that measure time.

    python3 scripts/run_tests.py [arguments of pytest instead]
"""
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
    """Run all and return the first status that is not 0."""
    python = str(prepare('test'))
    install_browser()
    processes = str(max(2, min(4, os.cpu_count() or 1)))
    rounds = [sys.argv[1:]] if sys.argv[1:] else [['-m', 'not alone', '-n', processes, '--dist', 'loadfile'],
                                                  ['-m', 'alone']]
    for command in (['ruff', 'check', '.'], *(['pytest', *arguments] for arguments in rounds)):
        status = subprocess.run([python, '-m', *command], cwd=ROOT).returncode
        if status:
            return status
    return 0


if __name__ == '__main__':
    sys.exit(main())
