"""Reading and writing of users' photos; bit depth, alpha, orientation and colour profile are kept."""
import contextlib
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, features

from rdbm_plugin.config.atomic_write import write_atomically
from rdbm_plugin.data.image_source import SUFFIXES, ImageError, decode_rgb, to_float
from rdbm_plugin.data.packing import turn

with contextlib.suppress(ImportError):
    import pillow_heif
    pillow_heif.register_heif_opener()

MAX_MEGAPIXELS = 100.0
_OF_PILLOW = {'.png': 'PNG', '.jpg': 'JPEG', '.jpeg': 'JPEG', '.webp': 'WEBP', '.bmp': 'BMP', '.avif': 'AVIF',
              '.heic': 'HEIF', '.heif': 'HEIF'}
WRITABLE = (*_OF_PILLOW, '.tif', '.tiff', '.exr')
READABLE = (*dict.fromkeys((*SUFFIXES, *WRITABLE, '.gif', '.jp2', '.j2k')),)
DEEP = ('.png', '.tif', '.tiff')
FLOATING = ('.tif', '.tiff', '.exr')
FLAT = ('.jpg', '.jpeg', '.bmp')
"""Formats that hold 16 bits, that hold floats, and that have no alpha."""
MISSING = {suffix: package for suffix, package, there in (
    ('.avif', '-U pillow', 'avif' in features.get_supported()),
    ('.heic', 'pillow-heif', find_spec('pillow_heif')), ('.heif', 'pillow-heif', find_spec('pillow_heif')),
    ('.exr', '-U OpenEXR', find_spec('OpenEXR'))) if not there}
"""Suffix -> arguments of ``pip install`` for formats that cannot be read and written here yet."""


@dataclass(frozen=True)
class Photo:
    """A decoded image, upright."""

    rgb: NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.float32]
    """(H, W, 3) uint8, uint16, or float32 in [0, 1]."""
    gray: bool = False
    """Whether the file held one channel."""
    alpha: NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.float32] | None = None
    """(H, W) of the dtype of ``rgb``."""
    profile: bytes | None = None
    """ICC profile."""

    def with_rgb(self, rgb: NDArray[np.float32]) -> 'Photo':
        """Return this photo with other colours, (H, W, 3) in [0, 1], in its own bit depth."""
        return replace(self, rgb=_quantized(rgb, self.rgb.dtype))

    def bytes_rgb(self) -> NDArray[np.uint8]:
        """Return the colours in 8 bits, (H, W, 3)."""
        return _quantized(to_float(self.rgb), np.dtype(np.uint8))


def _quantized(image: NDArray[np.float32], dtype: np.dtype) -> NDArray:
    """Convert [0, 1] to another bit depth; values outside are clipped."""
    image = np.clip(image, 0, 1, dtype=np.float32)
    return image if dtype.kind == 'f' else np.rint(image * np.float32(np.iinfo(dtype).max)).astype(dtype)


def read_photo(path: str | Path, max_megapixels: float = MAX_MEGAPIXELS) -> Photo:
    """Read an image file of any common format; warns if there is more than one page or frame and reads the first.

    Raises ImageError if it cannot be read or decoded, is larger than ``max_megapixels``, or has floats beyond [0, 1].
    """
    def check_size(width: int, height: int) -> None:
        if width * height > max_megapixels * 1e6:
            raise ImageError(f'{path}: has {width * height / 1e6:.0f} megapixels, more than the limit of '
                             f'{max_megapixels:g}; if this is intended, raise the limit with --max-megapixels.')

    _check_installed(path)
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ImageError(f'{path}: cannot be read ({error.strerror}).') from None
    # On a damaged file, decoders can raise any exception.
    try:
        photo = _read_exr(content, check_size) if content.startswith(b'v/1\1') else None
        photo = photo or _read_by_pillow(content, str(path), check_size) or _read_by_opencv(content, check_size)
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(f'{path}: not a readable image: {error}. Replace or remove it.') from None
    photo = photo or Photo(decode_rgb(content, str(path)))
    if photo.rgb.dtype == np.float32 and not (photo.rgb.min() >= 0 and photo.rgb.max() <= 1):
        raise ImageError(f'{path}: holds values from {photo.rgb.min():g} to {photo.rgb.max():g}; floats must lie in '
                         '[0, 1], from black to white. Scale them or save the image in 16 bits.')
    return photo


def _check_installed(path: str | Path) -> None:
    if package := MISSING.get(Path(path).suffix.lower()):
        raise ImageError(f'{path}: this format needs a package that is missing or too old; run: pip install {package}')


def _read_exr(content: bytes, check_size: Callable[[int, int], None]) -> Photo:
    import OpenEXR
    first, last = OpenEXR.File(BytesIO(content), header_only=True).header()['dataWindow']
    check_size(*(int(length) for length in last - first + 1))
    channels = OpenEXR.File(BytesIO(content)).channels()
    pixels = next((channels[name].pixels.astype(np.float32) for name in ('RGBA', 'RGB', 'Y') if name in channels), None)
    if pixels is None:
        raise ValueError(f'it has the channels {", ".join(channels)}; expected RGB, RGBA or Y')
    return _photo(pixels)


def _read_by_pillow(content: bytes, name: str, check_size: Callable[[int, int], None]) -> Photo | None:
    """Return None if Pillow does not know the format (e.g. float colours) or OpenCV does not know its values."""
    try:
        # Pillow opens lazily, so the size is checked, against a limit of our own, before anything is decoded.
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', Image.DecompressionBombWarning)
            image = Image.open(BytesIO(content))
    except Image.DecompressionBombError as error:
        raise ImageError(f'{name}: {error}') from None
    except Exception:
        return None
    with image:
        check_size(*image.size)
        pages = getattr(image, 'n_frames', 1)
        if pages > 1:
            warnings.warn(f'{name}: has {pages} pages or frames, but only the first is read; split the file to '
                          'restore the others.', stacklevel=3)
        # The profile of another colour space would be wrong after the conversion to RGB.
        profile = None if image.mode in ('CMYK', 'LAB', 'YCbCr', 'HSV') else image.info.get('icc_profile')
        # Pillow and OpenCV apply the orientation of TIFF themselves.
        orientation = 1 if image.format == 'TIFF' else image.getexif().get(0x0112, 1)
        image.load()
        # Decoders of JPEG 2000 accept truncated files.
        if image.format == 'JPEG2000' and b'\xff\xd9' not in content:
            raise ValueError('it is truncated')
        if image.format in ('PNG', 'TIFF', 'PPM', 'JPEG2000'):
            stored = _stored(content)
            if stored is None:
                return None
            if stored.dtype == np.uint16 and image.format == 'JPEG2000':
                # OpenCV does not scale 9 to 15 bits; the SIZ segment has the number of bits.
                bits = (content[content.index(b'\xff\x4f\xff\x51') + 42] & 127) + 1
                stored = np.rint(stored * np.float32(65535 / (2**bits - 1))).astype(np.uint16)
            if stored.dtype != np.uint8:
                return _photo(_swapped(upright(stored, orientation)), profile)
        clear = 'A' in image.mode or 'transparency' in image.info
        pixels = upright(np.asarray(image.convert('RGBA' if clear else 'RGB')), orientation)
        return replace(_photo(pixels, profile), gray=image.mode in ('1', 'L', 'LA'))


def _read_by_opencv(content: bytes, check_size: Callable[[int, int], None]) -> Photo | None:
    """Return None if OpenCV does not know the format either."""
    profile = None
    if content[:4] in (b'II*\0', b'MM\0*'):
        with tifffile.TiffFile(BytesIO(content)) as file:
            page = file.pages[0]
            check_size(page.imagewidth, page.imagelength)
            profile = page.tags[34675].value if 34675 in page.tags else None
    stored = _stored(content)
    return None if stored is None else _photo(_swapped(stored), profile)


def _stored(content: bytes) -> NDArray | None:
    """Return the values in a file as uint8, uint16 or float32; None if OpenCV cannot read them."""
    with contextlib.suppress(cv2.error):
        stored = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
        if stored is not None and stored.dtype in (np.uint8, np.uint16, np.float32, np.float64):
            return stored.astype(np.float32) if stored.dtype.kind == 'f' else stored
    return None


def _swapped(pixels: NDArray) -> NDArray:
    """Convert RGB to BGR or back, with or without alpha; gray stays as it is."""
    return pixels if pixels.ndim == 2 else pixels[..., [2, 1, 0, 3][:pixels.shape[2]]]


def _photo(pixels: NDArray, profile: bytes | None = None) -> Photo:
    """Make a photo of (H, W), RGB or RGBA pixels."""
    if pixels.ndim == 2:
        return Photo(np.dstack([pixels] * 3), True, None, profile)
    return Photo(pixels[..., :3].copy(), False, pixels[..., 3].copy() if pixels.shape[2] == 4 else None, profile)


def upright(image: NDArray, orientation: int) -> NDArray:
    """Undo an EXIF orientation, 1 to 8."""
    mirrored, turns = {2: (True, 0), 3: (False, 2), 4: (True, 2), 5: (True, 1), 6: (False, -1), 7: (True, -1),
                       8: (False, 1)}.get(orientation, (False, 0))
    return turn(image, mirrored, turns)


def write_photo(path: str | Path, photo: Photo) -> None:
    """Write an image file in the format of its suffix, completely or not at all.

    Where the format requires it, floats are reduced to 16 bits, 16 bits to 8 bits, and alpha is dropped. Raises
    ImageError if the suffix is unknown or the file cannot be written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in WRITABLE:
        raise ImageError(f'{path}: cannot write {path.suffix!r}; expected one of {", ".join(WRITABLE)}.')
    _check_installed(path)
    pixels = to_float(photo.rgb)
    pixels = pixels.mean(axis=2) if photo.gray else pixels
    if photo.alpha is not None and suffix not in FLAT:
        pixels = np.dstack([pixels] * (3 if photo.gray else 1) + [to_float(photo.alpha)])
    content = _encode(_quantized(pixels, _depth(photo.rgb.dtype, suffix)), suffix, photo.profile)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        raise ImageError(f'{path}: cannot be written ({error.strerror}).') from None


def _depth(dtype: np.dtype, suffix: str) -> np.dtype:
    """Return the type to write: the deepest that the format holds and ``dtype`` needs; for EXR always float32."""
    if suffix == '.exr' or (dtype.kind == 'f' and suffix in FLOATING):
        return np.dtype(np.float32)
    return np.dtype(np.uint16 if dtype != np.uint8 and suffix in DEEP else np.uint8)


def _encode(pixels: NDArray, suffix: str, profile: bytes | None) -> bytes:
    """Encode (H, W), RGB or RGBA pixels, with the ICC profile where the format supports it."""
    out = BytesIO()
    if suffix == '.exr':
        import OpenEXR
        name = 'Y' if pixels.ndim == 2 else 'RGB' if pixels.shape[2] == 3 else 'RGBA'
        header = {'compression': OpenEXR.ZIP_COMPRESSION, 'type': OpenEXR.scanlineimage}
        OpenEXR.File(header, {name: pixels}).write(out)
        return out.getvalue()
    if suffix in ('.tif', '.tiff'):
        kind = 'minisblack' if pixels.ndim == 2 else 'rgb'
        extra = ['unassalpha'] if pixels.ndim == 3 and pixels.shape[2] == 4 else None
        # Tag 34675, of type "undefined"; older versions of tifffile have no argument for the profile.
        tags = [(34675, 7, len(profile), profile, True)] if profile else []
        tifffile.imwrite(out, pixels, photometric=kind, extrasamples=extra, compression='zlib', extratags=tags)
        return out.getvalue()
    if pixels.dtype == np.uint8:
        quality = {} if suffix in ('.png', '.bmp') else {'quality': 95}
        Image.fromarray(pixels).save(out, _OF_PILLOW[suffix], icc_profile=profile, **quality)
        return out.getvalue()
    # Pillow does not support 16-bit colours.
    content = cv2.imencode('.png', _swapped(pixels))[1].tobytes()
    if profile is None:
        return content
    body = b'iCCPprofile\0\0' + zlib.compress(profile)
    chunk = struct.pack('>I', len(body) - 4) + body + struct.pack('>I', zlib.crc32(body))
    return content[:33] + chunk + content[33:]  # after the signature and the header chunk
