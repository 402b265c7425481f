"""Reading and writing of users' photos: bit depth, alpha, orientation and colour profile survive."""
import struct
import warnings
import zlib
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from rdbm_plugin.config.atomic_write import write_atomically
from rdbm_plugin.data.image_source import ImageError, decode_rgb

MAX_MEGAPIXELS = 100.0
WRITABLE = ('.png', '.jpg', '.jpeg', '.webp', '.tif', '.tiff', '.bmp')
DEEP = ('.png', '.tif', '.tiff')
"""Formats that hold 16 bits."""
CLEAR = ('.png', '.webp', '.tif', '.tiff')
"""Formats that hold alpha."""


@dataclass(frozen=True)
class Photo:
    """A decoded image, upright.

    Attributes:
        rgb: (H, W, 3) uint8 or uint16.
        gray: Whether the file held one channel.
        alpha: (H, W) of the dtype of ``rgb``, or None.
        profile: ICC profile, or None.
    """

    rgb: NDArray[np.uint8] | NDArray[np.uint16]
    gray: bool = False
    alpha: NDArray[np.uint8] | NDArray[np.uint16] | None = None
    profile: bytes | None = None

    @property
    def shown(self) -> NDArray[np.uint8]:
        """The colours in 8 bits."""
        return self.rgb if self.rgb.dtype == np.uint8 else (self.rgb >> 8).astype(np.uint8)

    def with_rgb(self, rgb: NDArray[np.float32]) -> 'Photo':
        """The same with other colours, (H, W, 3) in [0, 1], in the bit depth of this."""
        top = np.iinfo(self.rgb.dtype).max
        return replace(self, rgb=np.rint(np.clip(rgb, 0, 1) * top).astype(self.rgb.dtype))


def read_photo(path: str | Path, max_megapixels: float = MAX_MEGAPIXELS) -> Photo:
    """Read an image file of any common format; warns if it has further pages or frames, which are not read.

    Raises:
        ImageError: It cannot be read or decoded, or is larger than ``max_megapixels``.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ImageError(f'{path}: cannot be read ({error.strerror}).') from None
    # Pillow's decoders raise whatever Python raises at a damaged file.
    try:
        # It opens lazily: sizes are known before anything is decoded. There is a limit of our own.
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', Image.DecompressionBombWarning)
            image = Image.open(BytesIO(content))
    except Image.DecompressionBombError as error:
        raise ImageError(f'{path}: {error}') from None
    except Exception:
        # OpenCV reads a few formats that Pillow does not.
        return Photo(decode_rgb(content, str(path)))
    with image:
        megapixels = image.width * image.height / 1e6
        if megapixels > max_megapixels:
            raise ImageError(f'{path}: has {megapixels:.0f} megapixels, more than the limit of {max_megapixels:g}; '
                             'raise it with --max-megapixels if that is meant.')
        decode_rgb(content, str(path))
        pages = getattr(image, 'n_frames', 1)
        if pages > 1:
            warnings.warn(f'{path}: has {pages} pages or frames, of which the first alone is read; split the file to '
                          'restore the others.', stacklevel=2)
        try:
            return _decoded(content, image)
        except Exception as error:
            raise ImageError(f'{path}: not a readable image: {error}. Replace or remove it.') from None


def _decoded(content: bytes, image: Image.Image) -> Photo:
    # A profile of other colours would be wrong for the RGB that is made of them.
    profile = None if image.mode in ('CMYK', 'LAB', 'YCbCr', 'HSV') else image.info.get('icc_profile')
    # Pillow and OpenCV turn TIFF upright by themselves.
    orientation = 1 if image.format == 'TIFF' else image.getexif().get(0x0112, 1)
    stored = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if stored.dtype == np.uint16:
        # Pillow has no colours of 16 bits.
        stored = np.ascontiguousarray(upright(stored, orientation))
        channels = 1 if stored.ndim == 2 else stored.shape[2]
        rgb = cv2.cvtColor(stored, {1: cv2.COLOR_GRAY2RGB, 3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGB}[channels])
        return Photo(rgb, channels == 1, stored[..., 3].copy() if channels == 4 else None, profile)
    clear = 'A' in image.mode or 'transparency' in image.info
    pixels = np.ascontiguousarray(upright(np.asarray(image.convert('RGBA' if clear else 'RGB')), orientation))
    alpha = pixels[..., 3].copy() if clear else None
    return Photo(pixels[..., :3].copy(), image.mode in ('1', 'L', 'LA'), alpha, profile)


def upright(image: NDArray, orientation: int) -> NDArray:
    """Undo an EXIF orientation, 1 to 8."""
    if orientation in (2, 4, 5, 7):
        image = image[:, ::-1] if orientation in (2, 5, 7) else image[::-1]
    if orientation == 3:
        return np.rot90(image, 2)
    if orientation in (6, 7):
        return np.rot90(image, -1)
    return np.rot90(image) if orientation in (5, 8) else image


def write_photo(path: str | Path, photo: Photo) -> None:
    """Write an image file in the format of its suffix, whole or not at all.

    What the format cannot hold is reduced: 16 to 8 bits, alpha dropped.

    Raises:
        ImageError: The suffix is unknown, or the file cannot be written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in WRITABLE:
        raise ImageError(f'{path}: cannot write {path.suffix!r}; expected one of {", ".join(WRITABLE)}.')
    pixels = np.rint(photo.rgb.mean(axis=2)).astype(photo.rgb.dtype) if photo.gray else photo.rgb
    if photo.alpha is not None and suffix in CLEAR:
        pixels = np.dstack([pixels] * (3 if photo.gray else 1) + [photo.alpha])
    if pixels.dtype == np.uint16 and suffix not in DEEP:
        pixels = np.rint(pixels / np.float32(257)).astype(np.uint8)
    content = _encode(pixels, suffix, photo.profile)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        raise ImageError(f'{path}: cannot be written ({error.strerror}).') from None


def _encode(pixels: NDArray, suffix: str, profile: bytes | None) -> bytes:
    """Encode (H, W), RGB or RGBA; with the ICC profile, where the format has a place for it."""
    out = BytesIO()
    if suffix in ('.tif', '.tiff'):
        kind = 'minisblack' if pixels.ndim == 2 else 'rgb'
        extra = ['unassalpha'] if pixels.ndim == 3 and pixels.shape[2] == 4 else None
        # Tag 34675, of type "undefined"; older versions of tifffile have no argument for it.
        tags = [(34675, 7, len(profile), profile, True)] if profile else []
        tifffile.imwrite(out, pixels, photometric=kind, extrasamples=extra, compression='zlib', extratags=tags)
        return out.getvalue()
    if pixels.dtype == np.uint8:
        formats = {'.jpg': 'JPEG', '.jpeg': 'JPEG', '.webp': 'WEBP', '.png': 'PNG', '.bmp': 'BMP'}
        quality = {} if suffix in ('.png', '.bmp') else {'quality': 95}
        Image.fromarray(pixels).save(out, formats[suffix], icc_profile=profile, **quality)
        return out.getvalue()
    # Pillow knows no colours of 16 bits.
    ordered = pixels if pixels.ndim == 2 else pixels[..., [2, 1, 0, 3][:pixels.shape[2]]]
    content = cv2.imencode('.png', ordered)[1].tobytes()
    if profile is None:
        return content
    body = b'iCCPprofile\0\0' + zlib.compress(profile)
    chunk = struct.pack('>I', len(body) - 4) + body + struct.pack('>I', zlib.crc32(body))
    return content[:33] + chunk + content[33:]  # after the signature and the header chunk
