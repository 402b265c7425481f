"""Images in a folder or an LMDB: listing, reading and decoding."""
import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path, PurePosixPath

import cv2
import lmdb
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rdbm_plugin.config.options import OptionError

SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.webp', '.ppm')


class ImageError(OSError):
    """An image cannot be used; the message names the image and the reason."""


class ImageSource:
    """The images under one root.

    Names are stored in one byte array. A list of strings would gradually be copied into every worker, as reading a
    string changes its reference count.

    Args:
        root: A folder, searched with its sub-folders, or an LMDB in BasicSR's layout (a folder with ``data.mdb`` and
            ``meta_info.txt``, whose name ends in ``.lmdb``).
        backend: ``disk`` or ``lmdb``; by default, the suffix of ``root`` decides.
        key: Option key that errors name.
        names: Only these images of a folder.

    Raises OptionError if the root does not exist or has no image.
    """

    def __init__(self, root: str | Path, backend: str | None = None, key: str = 'dataroot',
                 names: Sequence[str] | None = None) -> None:
        self.root = Path(root).expanduser()
        self.is_lmdb = backend == 'lmdb' or (backend is None and self.root.suffix == '.lmdb')
        if not self.root.is_dir():
            raise OptionError(f'{key}: no {"LMDB" if self.is_lmdb else "folder"} {str(root)!r} '
                              f'(looked in {self.root.absolute()}).')
        if names is None:
            names = self._lmdb_names(key) if self.is_lmdb else sorted(
                path.relative_to(self.root).as_posix() for path in self.root.rglob('*')
                if path.suffix.lower() in SUFFIXES and not path.name.startswith('.'))
        if not names:
            raise OptionError(f'{key}: no image in {self.root.absolute()}; expected '
                              + ('keys in it.' if self.is_lmdb else f'files ending in {", ".join(SUFFIXES)}.'))
        self._names = np.array([name.encode() for name in names])

    def _lmdb_names(self, key: str) -> list[str]:
        if not (self.root / 'data.mdb').is_file():
            raise OptionError(f'{key}: {self.root} is not an LMDB: data.mdb is missing.')
        meta = self.root / 'meta_info.txt'
        if meta.is_file():
            # BasicSR's line is "name.png (h,w,c) level"; the key in the LMDB has no suffix.
            lines = meta.read_text(encoding='utf-8').splitlines()
            return sorted(_stem(line.rsplit(' (', 1)[0]) for line in lines if line.strip())
        with _environment(str(self.root)).begin() as transaction:
            return [bytes(name).decode() for name in transaction.cursor().iternext(values=False)]

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        """Return the path below the root, with ``/`` between its parts; in an LMDB, the key."""
        return self._names[index].decode()

    def stems(self) -> list[str]:
        """Return all names without suffix, in order."""
        return [self.stem(index) for index in range(len(self))]

    def stem(self, index: int) -> str:
        """Return a name without suffix."""
        return self.name(index) if self.is_lmdb else _stem(self.name(index))

    def path(self, index: int) -> str:
        """Return the path of an image, for messages and for the names of results."""
        return str(self.root / self.name(index))

    def read(self, index: int) -> bytes:
        """Return the encoded image; raises ImageError if it cannot be read."""
        if self.is_lmdb:
            with _environment(str(self.root)).begin() as transaction:
                content = transaction.get(self._names[index])
            if content is None:
                raise ImageError(f'{self.path(index)}: listed in meta_info.txt, but not in the LMDB; write it again.')
            return content
        try:
            return (self.root / self.name(index)).read_bytes()
        except OSError as error:
            raise ImageError(f'{self.path(index)}: cannot be read ({error.strerror}).') from None

    def decode(self, index: int) -> NDArray[np.uint8] | NDArray[np.uint16]:
        """Read and decode an image; see :func:`decode_rgb`."""
        return decode_rgb(self.read(index), self.path(index))


def below_one_root(sources: Sequence[ImageSource], key: str) -> ImageSource:
    """Concatenate folders into one source whose root is their common parent; a single LMDB is returned as it is."""
    if len(sources) == 1:
        return sources[0]
    if any(source.is_lmdb for source in sources):
        raise OptionError(f'{key}: found an LMDB in a list; expected a list of folders, or one LMDB.')
    root = Path(os.path.commonpath([source.root.absolute() for source in sources]))
    return ImageSource(root, 'disk', key, [(source.root.absolute() / name).relative_to(root).as_posix()
                                           for source in sources for name in map(source.name, range(len(source)))])


def decode_rgb(content: bytes, name: str) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Decode to RGB, (H, W, 3), in 8 or 16 bits as stored; gray is repeated, alpha is dropped.

    Raises ImageError with a message that begins with ``name`` if the content is empty, truncated or not an image.
    """
    fault = 'is empty' if not content else 'is truncated' if _is_truncated(content) else None
    image = None
    if fault is None:
        with suppress(cv2.error):
            image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
        if image is None:
            fault = 'is damaged or of another format'
        elif image.dtype not in (np.uint8, np.uint16):
            fault = f'holds {image.dtype} values; only 8 and 16 bits are supported'
    if fault:
        raise ImageError(f'{name}: not a readable image: it {fault}. Replace or remove it.')
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def has_end(start: bytes, end: bytes) -> bool:
    """Return whether a PNG or JPEG file has its end mark; True for other formats."""
    mark = b'IEND' if start.startswith(b'\x89PNG') else b'\xff\xd9' if start.startswith(b'\xff\xd8') else b''
    return mark in end


def _is_truncated(content: bytes) -> bool:
    # OpenCV silently fills missing parts with gray.
    if has_end(content, content.rstrip(b'\0')[-4096:]):
        return False
    # Phones append videos to their photos; Pillow knows whether the photo itself is complete.
    try:
        with Image.open(BytesIO(content)) as image:
            image.load()
    # On a damaged file, Pillow's decoders can raise any exception.
    except Exception:
        return True
    return False


def to_float(image: NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.float32]) -> NDArray[np.float32]:
    """Convert 8 or 16 bits to float32 in [0, 1]; floats stay as they are."""
    if image.dtype.kind == 'f':
        return image
    return image.astype(np.float32) / np.float32(np.iinfo(image.dtype).max)


def same_stems(source: ImageSource) -> Sequence[str]:
    """Return the names that occur more than once, with different suffixes."""
    return sorted(stem for stem, count in Counter(source.stems()).items() if count > 1)


_environments: dict[str, lmdb.Environment] = {}


def _environment(path: str) -> lmdb.Environment:
    """Return this process's only handle of an LMDB: two on one path are forbidden."""
    if path not in _environments:
        _environments[path] = lmdb.open(path, readonly=True, lock=False, readahead=False, meminit=False)
    return _environments[path]


def _close_inherited() -> None:
    # Handles must not be used after a fork, and inherited ones count as open.
    for environment in _environments.values():
        environment.close()
    _environments.clear()


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_close_inherited)


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(''))
