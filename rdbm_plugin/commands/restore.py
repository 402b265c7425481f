"""``rdbm restore``: restores image files with trained weights, without ground truth."""
import glob
import sys
import warnings
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from rdbm_plugin.data.image_source import SUFFIXES, ImageError, to_float
from rdbm_plugin.data.photo_file import MAX_MEGAPIXELS, WRITABLE, Photo, read_photo, write_photo
from rdbm_plugin.evaluation.pictures import strip
from rdbm_plugin.inference.restorer import DTYPES, Restorer
from rdbm_plugin.inference.tiling import OVERLAP
from rdbm_plugin.samplers.bridge_sampler import SOLVERS

BAR = '{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}'


def arguments() -> Namespace:
    """The command line."""
    parser = ArgumentParser(prog='rdbm restore', description='Restore images of any size with trained weights.')
    parser.add_argument('inputs', nargs='+', metavar='INPUT', help='files, folders (with sub-folders) or patterns')
    parser.add_argument('-o', '--out', required=True, help='folder for the restored images, or a file for one input')
    parser.add_argument('--checkpoint', help='weights of a training run, or its folder (default: those that come with '
                                             'the package)')
    parser.add_argument('--opt', help='its option file (default: found beside the weights)')
    parser.add_argument('--other-bridge', action='store_true', help='allow --opt with another bridge than the trained')
    parser.add_argument('--param-key', default='params_ema', help='params_ema or params')
    parser.add_argument('--steps', type=int, help='network evaluations (default: as in the option file)')
    parser.add_argument('--solver', choices=SOLVERS, help='default: as in the option file')
    parser.add_argument('--tile', default='auto', help='side of the tiles in pixels, auto, or 0 for whole images')
    parser.add_argument('--tile-overlap', type=int, default=OVERLAP, help='of neighbouring tiles in pixels')
    parser.add_argument('--memory', type=float, help='GiB that one evaluation may take, for --tile auto')
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda, cuda:1, mps')
    parser.add_argument('--dtype', default='float32', choices=DTYPES)
    parser.add_argument('--seed', type=int, default=0, help='of the noise, where the sampler adds any')
    parser.add_argument('--compare', action='store_true', help='also write NAME_compare.png with before and after')
    parser.add_argument('--max-megapixels', type=float, default=MAX_MEGAPIXELS, help='larger images are refused')
    args = parser.parse_args()
    if args.tile != 'auto':
        args.tile = int(args.tile) if args.tile.isdigit() else parser.error(f'--tile: found {args.tile!r}')
    return args


def plan(inputs: list[str], out: str) -> tuple[list[tuple[Path, Path]], list[str]]:
    """Input and output file of each image, and what is wrong with inputs that are left out."""
    files: dict[Path, Path] = {}
    faults = []
    single = Path(out).suffix.lower() in WRITABLE
    named = {given: list(_images(Path(given).expanduser(), Path(out))) for given in inputs}
    sources = {source.resolve() for found in named.values() for source, _ in found}
    for given, found in named.items():
        path = Path(given).expanduser()
        if not found:
            what = 'no image in the folder' if path.is_dir() else 'no such file, folder or pattern:'
            faults.append(f'{what} {given}')
        for source, name in found:
            target = Path(out) if single else Path(out) / _writable(name)
            if target.resolve() in sources:
                faults.append(f'{source}: the output would replace the input {target}; choose another folder with -o.')
            elif target in files:
                faults.append(f'{source}: would be written to {target} like {files[target]}; '
                              + ('name a folder with -o.' if single else 'restore it into another folder.'))
            else:
                files[target] = source
    return [(source, target) for target, source in files.items()], faults


def _images(path: Path, out: Path) -> Iterator[tuple[Path, Path]]:
    """Files that an input names, and what to call them below the output folder; not what was written there before."""
    if path.is_dir():
        inside = out.resolve() if path.resolve() in out.resolve().parents else None
        for each in sorted(path.rglob('*')):
            if each.suffix.lower() in SUFFIXES and each.is_file() and not each.name.startswith('.') \
                    and inside not in each.resolve().parents:
                yield each, each.relative_to(path)
        return
    for each in [path] if path.is_file() else map(Path, sorted(glob.glob(str(path), recursive=True))):
        if each.is_file():
            yield each, Path(each.name)


def _writable(name: Path) -> Path:
    return name if name.suffix.lower() in WRITABLE else name.with_suffix('.png')


def comparison(before: Photo, after: Photo, height: int = 720) -> Photo:
    """Before and after side by side, at most ``height`` pixels high, 8 bits."""
    pictures = [photo.rgb if photo.rgb.dtype == np.uint8 else (photo.rgb >> 8).astype(np.uint8)
                for photo in (before, after)]
    return Photo(strip(pictures, min(height, len(before.rgb))))


def beside_all(targets: list[Path]) -> list[Path]:
    """NAME_compare.png beside each output; with its suffix in the name where that is another's."""
    taken = set(targets)
    found = []
    for target in targets:
        path = target.with_name(f'{target.stem}_compare.png')
        while path in taken:
            path = path.with_name(f'{target.name}_{path.name}')
        taken.add(path)
        found.append(path)
    return found


def restore_file(restore: Restorer, source: Path, target: Path, beside: Path, args: Namespace, bar: tqdm) -> None:
    """Restore one file; ``beside`` is where --compare writes.

    Raises:
        ImageError: It cannot be read, or the result cannot be written.
    """
    begun = bar.n

    def show(share: float) -> None:
        bar.n = begun + share
        bar.refresh()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        before = read_photo(source, args.max_megapixels)
        after = before.with_rgb(restore(to_float(before.rgb), args.seed, show))
    for warning in caught:
        bar.write(f'{source}: {warning.message}', file=sys.stderr)
    write_photo(target, after)
    if args.compare:
        write_photo(beside, comparison(before, after))


def main() -> int:
    """Read the command line, restore, and return 1 if an image failed, else 0."""
    args = arguments()
    files, faults = plan(args.inputs, args.out)
    for fault in faults:
        print(f'rdbm restore: {fault}', file=sys.stderr)
    if files:
        restore = Restorer(args.checkpoint, args.opt, param_key=args.param_key, steps=args.steps, solver=args.solver,
                           tile=args.tile, overlap=args.tile_overlap, memory=args.memory, device=args.device,
                           dtype=args.dtype, other_bridge=args.other_bridge)
        if args.checkpoint and Path(args.checkpoint).is_dir():
            print(f'Weights: {restore.checkpoint}')
    restored = 0
    with tqdm(total=len(files), desc='Restoring', bar_format=BAR) as bar:
        for number, ((source, target), beside) in enumerate(zip(files, beside_all([each for _, each in files])), 1):
            bar.set_postfix_str(f'{number}/{len(files)} {source.name}')
            try:
                restore_file(restore, source, target, beside, args, bar)
                restored += 1
            except (ImageError, RuntimeError, MemoryError) as error:
                faults.append(str(error) if isinstance(error, ImageError) else f'{source}: {error}')
                bar.write(f'rdbm restore: {faults[-1]}', file=sys.stderr)
            bar.n = number
            bar.refresh()
    more = f' (and {len(faults) - 1} more)' if len(faults) > 1 else ''
    print(f'{restored} of {len(files)} images restored to {args.out}' + (f'; {faults[0]}{more}' if faults else ''))
    return int(bool(faults))
