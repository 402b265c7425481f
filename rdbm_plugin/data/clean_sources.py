"""Sources of clean images: folders, LMDBs, photos that packages ship, and dead leaves. Does not need BasicSR."""
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, Protocol

from numpy.typing import NDArray

from rdbm_plugin.config.options import OptionError
from rdbm_plugin.data.dead_leaves import DeadLeaves
from rdbm_plugin.data.image_source import ImageSource

EMBEDDED = {
    'train': ('astronaut.png', 'motorcycle_left.png', 'motorcycle_right.png', 'rocket.jpg'),
    'val': ('chelsea.png', 'coffee.png'),
}
"""Colour photos inside scikit-image, which BasicSR depends on. The photos under ``val`` are never trained on.

Images of other kinds (retina, stained tissue, deep sky) are left out: they cost about 1 dB on the held-out photos.
"""
PACKAGED = {'scikit-learn': ('sklearn.datasets.images', ('china.jpg', 'flower.jpg')),
            'matplotlib': ('matplotlib', ('mpl-data/sample_data/grace_hopper.jpg',))}
"""More photos that common packages ship, for training only: package -> the module that contains them, their names."""


class CleanSource(Protocol):
    """Clean images by index: RGB, (H, W, 3), uint8 or uint16; names without suffix; paths for messages."""

    def __len__(self) -> int: ...
    def decode(self, index: int) -> NDArray[Any]: ...
    def stem(self, index: int) -> str: ...
    def path(self, index: int) -> str: ...


class Several:
    """Concatenation of sources; see :class:`CleanSource`."""

    def __init__(self, sources: Sequence[CleanSource]) -> None:
        self.sources = tuple(sources)
        self.places = [(source, index) for source in sources for index in range(len(source))]

    def __len__(self) -> int:
        return len(self.places)

    def decode(self, index: int) -> NDArray[Any]:
        source, place = self.places[index]
        return source.decode(place)

    def stem(self, index: int) -> str:
        source, place = self.places[index]
        return source.stem(place)

    def path(self, index: int) -> str:
        source, place = self.places[index]
        return source.path(place)


def open_clean(root: str | Sequence[str], phase: str) -> CleanSource:
    """Open the clean images that ``dataroot_gt`` names.

    Args:
        root: A folder (sub-folders included), an LMDB, ``embedded``, the photos of ``scikit-learn`` (2) or
            ``matplotlib`` (1), or ``dead_leaves:COUNT``. Several are given as a list or, as BasicSR's own scripts do
            not allow a list here, joined by `` + ``: ``embedded + dead_leaves:8``.
        phase: ``train``, ``val`` or ``test``; chooses among the embedded photos and seeds the dead leaves.

    Raises OptionError if the root does not exist or has no image.
    """
    part = 'train' if phase == 'train' else 'val'
    if isinstance(root, list) and root:
        return Several([open_clean(each, phase) for each in root])
    if not isinstance(root, str):
        raise OptionError(f"dataroot_gt: found {root!r}; expected a folder, an LMDB, 'embedded', 'dead_leaves:COUNT', "
                          'or a list of these.')
    if ' + ' in root:
        return open_clean([each.strip() for each in root.split(' + ')], phase)
    if root == 'embedded':
        return _packaged(root, 'scikit-image', 'skimage.data', EMBEDDED[part])
    if root in PACKAGED:
        return _packaged(root, root, *PACKAGED[root])
    name, _, count = root.partition(':')
    if name == 'dead_leaves':
        return DeadLeaves(int(count) if count.isdigit() else count, seed=('train', 'val').index(part))
    try:
        return ImageSource(root, key='dataroot_gt')
    except OptionError as error:
        raise OptionError(f"{error} dataroot_gt is a folder or LMDB of clean images, 'embedded' for the photos that "
                          "come with scikit-image, or 'dead_leaves:COUNT'.") from None


def _packaged(root: str, package: str, module: str, names: Sequence[str]) -> ImageSource:
    try:
        folder = files(module)
    except ModuleNotFoundError:
        raise OptionError(f'dataroot_gt: {root!r} needs {package}, which is not installed; run: pip install {package}'
                          ) from None
    return ImageSource(str(folder), key='dataroot_gt', names=names)
