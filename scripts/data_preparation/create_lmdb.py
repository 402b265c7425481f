"""Makes an LMDB that BasicSR and UniversalPairedDataset read, from a folder of images.

    python scripts/data_preparation/create_lmdb.py datasets/GoPro/train/gt datasets/GoPro/train/gt.lmdb

Files are stored as they are, under their path without suffix. Sub-folders stay part of the key.
"""
import sys
from argparse import ArgumentParser
from io import BytesIO
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from rdbm_plugin.__main__ import run
from rdbm_plugin.config.options import OptionError
from rdbm_plugin.data.image_source import ImageError, ImageSource, decode_rgb, same_stems
from rdbm_plugin.data.lmdb_writer import write_lmdb


def create(folder: str | Path, target: str | Path, check: bool = True) -> int:
    """Write all images under ``folder`` into the LMDB ``target`` and return how many there are.

    Raises:
        OptionError: The folder is missing or empty, or two names differ in their suffix only.
        ImageError: An image cannot be read; nothing is written then.
        FileExistsError: The target exists.
    """
    source = ImageSource(folder, 'disk', 'folder')
    if twice := same_stems(source):
        raise OptionError(f'{folder}: {len(twice)} names occur with several suffixes, first {twice[0]!r}; '
                          'remove one of each.')

    def read(index: int) -> tuple[str, bytes, tuple[int, int, int]]:
        content = source.read(index)
        if check:
            decode_rgb(content, source.path(index))
        try:
            with Image.open(BytesIO(content)) as image:
                return source.stem(index), content, (image.height, image.width, len(image.getbands()))
        except (UnidentifiedImageError, OSError) as error:
            raise ImageError(f'{source.path(index)}: {error}') from None

    write_lmdb(target, map(read, tqdm(range(len(source)), desc=Path(target).name, unit='image')))
    return len(source)


def main() -> None:
    """Read the command line and write."""
    parser = ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('folder', help='images, sub-folders included')
    parser.add_argument('target', help='the LMDB to write, e.g. gt.lmdb')
    parser.add_argument('--no-check', action='store_true', help='do not decode every image first')
    args = parser.parse_args()
    print(f'{args.target}: {create(args.folder, args.target, not args.no_check)} images')


if __name__ == '__main__':
    sys.exit(run(main))
