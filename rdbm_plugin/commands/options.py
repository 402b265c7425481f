"""``rdbm options``: list the option files of the package, and copy them to a folder for editing."""
import shutil
from argparse import ArgumentParser
from itertools import takewhile
from pathlib import Path
from textwrap import fill

SUFFIXES = ('.yml', '.py')


def shipped() -> Path:
    """Return the folder of the option files: inside an installed package, or beside it in a clone."""
    package = Path(__file__).resolve().parent.parent
    inside = package / 'option_files'
    return inside if inside.is_dir() else package.parent / 'options'


def purpose(file: Path) -> str:
    """Return the first sentence of the comment at the top of a file, which ends before its indented commands."""
    lines = takewhile(lambda line: line.startswith('# ') and not line.startswith('#  '),
                      file.read_text(encoding='utf-8').splitlines())
    return ' '.join(line[2:] for line in lines).split('. ')[0].rstrip('.') + '.'


def main() -> int:
    """List the option files, or copy them."""
    parser = ArgumentParser(prog='rdbm options', description=__doc__.split(': ', 1)[1])
    parser.add_argument('--copy', metavar='FOLDER', help='copy them to this folder; existing files are kept')
    args = parser.parse_args()
    folder = shipped()
    files = sorted((path.relative_to(folder) for path in folder.rglob('*') if path.suffix in SUFFIXES
                    and path.name != '__init__.py'), key=lambda path: (len(path.parts), path))
    if not args.copy:
        indent = max(len(str(path)) for path in files) + 2
        width = max(shutil.get_terminal_size().columns, indent + 20)
        for path in files:
            print(fill(str(path).ljust(indent) + purpose(folder / path), width, subsequent_indent=' ' * indent,
                       break_on_hyphens=False))
        print('\nrdbm options --copy FOLDER copies them.')
        return 0
    target = Path(args.copy)
    missing = [path for path in files if not (target / path).exists()]
    for path in missing:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / path, target / path)
    there = len(files) - len(missing)
    print(f'{len(missing)} of {len(files)} files copied to {target}' + (f'; {there} were there already' * (there > 0)))
    return 0
