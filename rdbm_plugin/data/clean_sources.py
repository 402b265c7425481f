"""Where clean images come from: a folder, or the colour photos that scikit-image ships."""
from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from rdbm_plugin.options import OptionError

EMBEDDED = {
    'train': ('astronaut.png', 'motorcycle_left.png', 'motorcycle_right.png', 'rocket.jpg'),
    'val': ('chelsea.png', 'coffee.png'),
}
"""Colour photos inside scikit-image, which BasicSR depends on. Those under ``val`` are never trained on.

Its colour images of other kinds (retina, stained tissue, deep sky) are left out: training on them too costs about
1 dB on the held-out photos.
"""
SUFFIXES = {'.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.webp'}


def list_clean(root: str, phase: str) -> list[Path]:
    """Paths of the clean images under ``root``, sub-folders included, in a fixed order.

    Args:
        root: A folder, or ``embedded``.
        phase: ``train``, ``val`` or ``test``; chooses among the embedded photos and has no effect on a folder.

    Raises:
        OptionError: The folder does not exist or holds no image.
    """
    if root == 'embedded':
        try:
            folder = files('skimage.data')
        except ModuleNotFoundError:
            raise OptionError("dataroot_gt: 'embedded' needs scikit-image, which is not installed; "
                              'run: pip install scikit-image') from None
        return [Path(str(folder / name)) for name in EMBEDDED['train' if phase == 'train' else 'val']]
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise OptionError(f"dataroot_gt: no folder {root!r} (looked in {folder.absolute()}); expected a folder of "
                          "clean images, or 'embedded' for the photos that come with scikit-image.")
    paths = sorted(path for path in folder.rglob('*') if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise OptionError(f'dataroot_gt: no image in {folder.absolute()}; expected files ending in '
                          f'{", ".join(sorted(SUFFIXES))}.')
    return paths


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """Read an image as RGB, (H, W, 3) uint8.

    Raises:
        OSError: The file cannot be read or decoded; the message names it.
    """
    image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR) if path.stat().st_size else None
    if image is None:
        raise OSError(f'{path}: not a readable image (empty, truncated or of another format); replace or remove it.')
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
