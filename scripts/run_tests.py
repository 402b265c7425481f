"""Sets up .venv and runs the linter and the tests: side by side, then those that measure time.

    python3 scripts/run_tests.py             # under 8 minutes on two cores, and 2 to set up
    python3 scripts/run_tests.py --slow      # the proofs at length as well: series of kills, long fuzzing, a 4K image
    python3 scripts/run_tests.py ARGUMENTS   # of pytest, instead

Other versions of Python, torch and the like: .github/workflows/tests.yml.
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
    given = sys.argv[1:]
    slow, less = given == ['--slow'], '' if given == ['--slow'] else ' and not slow'
    processes = str(max(2, min(4, os.cpu_count() or 1)))
    rounds = [given] if given and not slow else [
        ['-m', f'not alone{less}', '-n', processes, '--dist', 'worksteal'], ['-m', f'alone{less}']]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', **({'RDBM_FUZZ': '10'} if slow else {})}
    for command in (['ruff', 'check', '.'], *(['pytest', *arguments] for arguments in rounds)):
        status = subprocess.run([python, '-m', *command], cwd=ROOT, env=environment).returncode
        if status:
            return status
    return 0


if __name__ == '__main__':
    sys.exit(main())
