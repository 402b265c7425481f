"""Sets up .venv beside this repository with everything the plugin needs. Standard library only; used by the scripts."""
import hashlib
import os
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / '.venv'
PYTHON = FOLDER / ('Scripts/python.exe' if os.name == 'nt' else 'bin/python')


def prepare(extra: str) -> Path:
    """Install the plugin with ``extra`` (``basicsr`` or ``test``) into .venv, unless that was done; return its python.

    torch and torchvision come first and together, because they must match; BasicSR is then built against them,
    because its own build would fetch torch a second time.
    """
    if not (3, 10) <= sys.version_info[:2] <= (3, 12):
        sys.exit(f'Python {sys.version.split()[0]} found; BasicSR from PyPI installs on 3.10, 3.11 and 3.12. '
                 'Run this script with one of them, e.g. python3.11 scripts/quickstart.py')
    done = FOLDER / f'{extra}.done'
    wanted = hashlib.sha256((ROOT / 'setup.py').read_bytes()).hexdigest()
    if done.is_file() and done.read_text() == wanted:
        return PYTHON
    start = time.time()
    if not PYTHON.exists():
        print(f'Making {FOLDER}', flush=True)
        try:
            venv.create(FOLDER, with_pip=True)
        except subprocess.CalledProcessError:
            sys.exit('Python cannot make virtual environments ; on Debian and Ubuntu: sudo apt install python3-venv')
    print('Installing torch, torchvision and BasicSR (2 to 5 minutes the first time)', flush=True)
    pip('--upgrade', 'pip', 'setuptools', 'wheel')
    pip('torch', 'torchvision')
    pip('--no-build-isolation', '--editable', f'{ROOT}[{extra}]')
    done.write_text(wanted)
    print(f'Set up in {time.time() - start:.0f} s', flush=True)
    return PYTHON


def pip(*arguments: str) -> None:
    """``pip install --quiet ...`` in .venv; ends the script with pip's own message if it fails."""
    command = [str(PYTHON), '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', *arguments]
    if subprocess.run(command).returncode:
        sys.exit(f'Setting up failed at: {" ".join(command)}')
