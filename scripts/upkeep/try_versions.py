"""Tries versions of Python, torch, BasicSR and the like: a virtual environment, an installation and tests for each row.

    python scripts/upkeep/try_versions.py [--rows lowest 3.13 ...] [--pythons FOLDER ...] [--checkout FOLDER]

Needs the interpreters python3.10 ... on PATH or in --pythons, 7 GB of disk at a time, and 5 to 10 minutes a row. On
Python 3.13 and later BasicSR cannot be built: --checkout names the folder of one (that basicsr/ lies in) instead.
Standard library only.
"""
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
TESTS = ('bridge', 'family', 'arch', 'loss', 'tiling', 'photo_file', 'lmdb', 'metrics', 'weights', 'registration',
         'training', 'restore', 'basicsr_checkout', 'export', 'mmengine')
TOOLS = ('pytest', 'hypothesis', 'safetensors', 'matplotlib')
NEWEST = ('mmengine', 'onnx', 'onnxscript', 'onnxruntime')
"""Needed for the last two tests, which are left out without; tried with the newest torch."""
OF_BASICSR = ('addict', 'future', 'requests', 'scikit-image', 'scipy', 'tensorboard', 'yapf')
"""What BasicSR's setup.py would install."""


class Row(NamedTuple):
    """One combination; versions that are not pinned are the newest that pip finds."""

    name: str
    python: str
    torch: tuple[str, str]
    """Of torch and torchvision; empty: the newest."""
    pins: tuple[str, ...] = ()
    basicsr: str = '1.4.2'


LOWEST = ('numpy==1.23.5', 'opencv-python==4.5.5.64', 'pillow==10.1.0', 'tifffile==2021.8.30', 'lmdb==1.4.1',
          'pyyaml==6.0.1', 'scikit-image==0.20.0', 'tqdm==4.60.0', 'matplotlib==3.6.0', 'safetensors==0.4.0',
          'pytest==7.0.0')
ROWS = (
    Row('lowest', '3.10', ('2.1.0', '0.16.0'), LOWEST),
    Row('2.2', '3.11', ('2.2.2', '0.17.2'), ('numpy<2', 'opencv-python<4.11')),
    Row('2.6', '3.12', ('2.6.0', '0.21.0'), ('opencv-python<5',)),
    Row('1.3.4.9', '3.11', ('', ''), basicsr='1.3.4.9'),
    Row('3.10', '3.10', ('', '')),
    Row('3.11', '3.11', ('', '')),
    Row('3.12', '3.12', ('', '')),
    Row('3.13', '3.13', ('', '')),
)


def main() -> int:
    """Try the rows, write what was found after each, and return 1 if one failed."""
    args = arguments()
    found = []
    for row in (row for row in ROWS if not args.rows or row.name in args.rows):
        print(f'=== {row.name}: Python {row.python}, torch {row.torch[0] or "newest"} {" ".join(row.pins)}', flush=True)
        with tempfile.TemporaryDirectory(prefix='rdbm_versions_') as folder:
            found.append(attempt(row, args, Path(folder)))
        print(json.dumps(found[-1]), flush=True)
        Path(args.out).write_text(json.dumps({'platform': platform.platform(), 'rows': found}, indent=1))
    for each in found:
        print(f'{each["name"]:<8} {"passed" if each["passed"] else "FAILED"}  {each["summary"]}  {each["versions"]}')
    return int(not all(each['passed'] for each in found))


def arguments() -> Namespace:
    """The command line."""
    parser = ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--rows', nargs='+', choices=[row.name for row in ROWS])
    parser.add_argument('--pythons', nargs='+', default=[], metavar='FOLDER', help='that hold interpreters')
    parser.add_argument('--checkout', metavar='FOLDER', help='that basicsr/ lies in, for Python 3.13 and later')
    parser.add_argument('--out', default='versions.json')
    return parser.parse_args()


def attempt(row: Row, args: Namespace, folder: Path) -> dict[str, object]:
    """Install a row into ``folder`` and run the tests there."""
    start = time.time()
    result = {'name': row.name, 'python': row.python, 'passed': False, 'versions': {}, 'summary': ''}
    interpreter = shutil.which(f'python{row.python}', path=os.pathsep.join([*args.pythons, os.environ['PATH']]))
    if interpreter is None:
        return {**result, 'summary': f'python{row.python} is not on PATH'}
    modern = tuple(map(int, row.python.split('.'))) >= (3, 13)
    if modern and not args.checkout:
        return {**result, 'summary': '--checkout is needed'}
    python = folder / 'venv/bin/python'
    constraints = folder / 'constraints.txt'
    constraints.write_text('\n'.join(row.pins))

    def pip(*what: str) -> None:
        subprocess.run([python, '-m', 'pip', 'install', '-q', '-c', constraints, *what], check=True)
    try:
        subprocess.run([interpreter, '-m', 'venv', folder / 'venv'], check=True)
        subprocess.run([python, '-m', 'pip', 'install', '-q', '--upgrade', 'pip', 'setuptools', 'wheel'], check=True)
        pip(*(f'{name}=={version}' if version else name
              for name, version in zip(('torch', 'torchvision'), row.torch)), 'numpy')
        pip('--no-build-isolation', *(OF_BASICSR if modern else (f'basicsr=={row.basicsr}',)))
        pip('--no-build-isolation', '-e', str(ROOT), *TOOLS, *(() if row.torch[0] else NEWEST))
    except subprocess.CalledProcessError as error:
        return {**result, 'summary': f'could not be installed: {" ".join(map(str, error.cmd))}'}
    path = os.pathsep.join(filter(None, [args.checkout if modern else '', os.environ.get('PYTHONPATH', '')]))
    tests = [path for name in TESTS for path in sorted(ROOT.glob(f'tests/**/test_{name}.py'))]
    process = subprocess.run(
        [python, '-m', 'pytest', '-p', 'no:cacheprovider', *tests], cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': path}, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if process.returncode:
        print(process.stdout[-8000:], flush=True)
    return {**result, 'passed': process.returncode == 0, 'versions': versions(python),
            'summary': process.stdout.strip().splitlines()[-1], 'seconds': round(time.time() - start)}


def versions(python: Path) -> dict[str, str]:
    """What has been installed in the end."""
    program = ('import importlib.metadata as m, json, platform\n'
               'names = ["torch", "torchvision", "numpy", "opencv-python", "pillow", "basicsr", "onnxruntime"]\n'
               'have = {d.metadata["Name"].lower(): d.version for d in m.distributions()}\n'
               'found = {n: have.get(n, "none") for n in names}\n'
               'print(json.dumps({"python": platform.python_version(), **found}))')
    return json.loads(subprocess.run([python, '-c', program], capture_output=True, text=True, check=True).stdout)


if __name__ == '__main__':
    sys.exit(main())
