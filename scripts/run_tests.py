"""Sets up .venv and runs the linter and the tests: side by side, then those that measure time or need a GPU.

    python3 scripts/run_tests.py             # 4 to 8 minutes on two cores, and 2 to 5 to set up
    python3 scripts/run_tests.py --slow      # the proofs at length as well: series of kills, long fuzzing, a 4K image
    python3 scripts/run_tests.py ARGUMENTS   # of pytest, instead

Other versions of Python, torch and the like: .github/workflows/tests.yml.
"""
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from environment import ROOT, prepare

GPUS = ('CUDA_VISIBLE_DEVICES', 'HIP_VISIBLE_DEVICES', 'ROCR_VISIBLE_DEVICES')
"""What torch asks which GPUs it may use."""
PROBE = 'import sys, torch; sys.exit(not torch.cuda.is_available())'


def install_browser() -> None:
    """Debian's Chromium for the tests of the comparison's page, where it can be had; without, they are skipped."""
    if any(map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))):
        return
    if shutil.which('apt-get') and hasattr(os, 'geteuid') and os.geteuid() == 0:
        print('Installing Chromium for the tests of the comparison page', flush=True)
        commands = ['update'], ['install', '-y', '--no-install-recommends', 'chromium']
        if not any(subprocess.run(['apt-get', '-q', *words], capture_output=True).returncode for words in commands):
            return
    print('No Chromium: the tests of the comparison page are skipped.', flush=True)


def rounds(given: list[str]) -> list[tuple[list[str], bool]]:
    """Arguments of every call of pytest, and whether its processes see GPUs."""
    if given and given != ['--slow']:
        return [(given, 'gpu' in given)]
    less, processes = '' if given else ' and not slow', str(max(2, min(4, os.cpu_count() or 1)))
    return [(['-m', f'not alone and not gpu{less}', '-n', processes, '--dist', 'worksteal'], False),
            (['-m', f'alone and not gpu{less}'], False), (['-m', f'gpu{less}'], True)]


def environment(gpus: bool) -> dict[str, str]:
    """Of the processes; one thread each, as they run side by side, unless the caller wants more."""
    found = {'OMP_NUM_THREADS': '1', **os.environ, **({'RDBM_FUZZ': '10'} if '--slow' in sys.argv else {})}
    return found if gpus else {**found, **dict.fromkeys(GPUS, '')}


def main() -> int:
    """Run all and return the first status that is not 0."""
    with ThreadPoolExecutor() as pool:
        browser = pool.submit(install_browser)
        python = str(prepare('test'))
    browser.result()
    calls = [(['ruff', 'check', '.'], False), *((['pytest', *words], gpus) for words, gpus in rounds(sys.argv[1:]))]
    for words, gpus in calls:
        if gpus and subprocess.run([python, '-c', PROBE]).returncode:
            print('torch sees no GPU: the tests that need one were left out.', flush=True)
            continue
        status = subprocess.run([python, '-m', *words], cwd=ROOT, env=environment(gpus)).returncode
        if status:
            return status
    return 0


if __name__ == '__main__':
    sys.exit(main())
