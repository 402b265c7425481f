"""Download, check and unpack photo sets into the layout that our option files read. Needs tqdm only."""
import hashlib
import shutil
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from itertools import islice
from pathlib import Path, PurePosixPath
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from tqdm import tqdm

from rdbm_plugin.config.options import OptionError

TRIES = 4
"""Attempts at a download; each resumes the previous one."""
LARGEST_IMAGE = 2**26
"""Largest size of an image in bytes; a larger file is not a photo."""


@dataclass(frozen=True)
class Part:
    """One folder of a set: its number of images, and their digest.

    ``digest`` is the SHA-256 of one line ``NAME SHA-256\\n`` per image, ordered by name.
    """

    count: int
    digest: str


@dataclass(frozen=True)
class PhotoSet:
    """A photo set; each of ``urls`` is an archive with the same images."""

    urls: tuple[str, ...]
    parts: Mapping[str, Part]
    terms: str
    cite: str
    suffix: str = '.jpg'


SETS = {
    'bsds500': PhotoSet(
        ('https://github.com/BIDS/BSDS500/archive/97b1e2210e99cd77224d58dd69aa65c4aa70b0ee.zip',
         'http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/BSR/BSR_bsds500.tgz'),
        {'train': Part(200, 'd11b47a6ba844165ee2b83967b6ad02642713627e839c1d81ec319b256e4384e'),
         'val': Part(100, '9d061d5664e72c068ecf3f5652d31aaa8a4bc4b2cfcf0aa84ce65740ddc7603c'),
         'test': Part(200, '4c86e4cce33a730f38bc8ca8405f310af5b69fa90f12ebaf4112d5f56081d774')},
        'Photos for non-commercial research and education; see the page of the Berkeley Segmentation Data Set.',
        'P. Arbelaez, M. Maire, C. Fowlkes, J. Malik: Contour Detection and Hierarchical Image Segmentation. IEEE '
        'TPAMI 33(5), 2011.'),
}


def fetch(name: str, root: Path, source: str | None = None) -> Path:
    """Fetch a set into ``root/NAME/PART``, completely or not at all, and return the folder ``root/NAME``.

    Args:
        name: One of SETS.
        root: Folder of all data sets, created if it does not exist.
        source: An existing archive or folder, or another URL; default: the URLs of the set.

    Raises:
        OptionError: The folder has other content, no URL answers, or the images are not those of the set.
    """
    wanted, folder = SETS[name], root / name
    if folder.exists():
        check(folder, wanted)
        return folder
    root.mkdir(parents=True, exist_ok=True)
    archive = _archive(name, wanted, root, source)
    partial = root / f'.{name}.partial'
    shutil.rmtree(partial, ignore_errors=True)
    try:
        total = sum(each.count for each in wanted.parts.values())
        # One image too many is enough to refuse the archive, however many it contains.
        images = islice(images_in(archive, wanted), total + 1)
        for part, file, content in tqdm(images, desc=f'Unpack {name}', unit='image', leave=False, total=total):
            (partial / part).mkdir(parents=True, exist_ok=True)
            (partial / part / file).write_bytes(content)
        check(partial, wanted, archive)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    if source is None or not Path(source).exists():
        archive.unlink()
    return folder


def _archive(name: str, wanted: PhotoSet, root: Path, source: str | None) -> Path:
    if source is not None and Path(source).exists():
        return Path(source)
    if source is not None and urlsplit(source).scheme not in ('http', 'https'):
        raise OptionError(f'--from: found {source!r}; expected an existing file or folder, or a URL that begins with '
                          'http:// or https://.')
    faults = []
    for url in wanted.urls if source is None else (source,):
        # A download must not be resumed from another URL.
        target = root / f'{name}-{hashlib.sha256(url.encode()).hexdigest()[:8]}{PurePosixPath(url).suffix}'
        try:
            return download(url, target)
        except OptionError as error:
            faults.append(str(error))
    raise OptionError(' '.join(faults) + ' If you have the archive or its folder, pass it with --from.')


def download(url: str, target: Path) -> Path:
    """Download a file, resuming an earlier attempt that was interrupted.

    Raises OptionError if the server refuses, or every attempt fails.
    """
    if target.is_file():
        return target
    partial = target.with_name(target.name + '.partial')
    fault = ''
    for attempt in range(TRIES):
        try:
            _download_rest(url, partial)
            return partial.rename(target)
        except HTTPError as error:
            fault = f'the server answered {error.code} {error.reason}'
            if error.code == 416:
                # The partial download is longer than the file, so it belongs to another file.
                partial.unlink(missing_ok=True)
            elif error.code < 500:
                raise OptionError(f'{url}: {fault}.') from None
        except (OSError, HTTPException) as error:
            fault = str(getattr(error, 'reason', error)) or type(error).__name__
        time.sleep(min(attempt, 2) / 2)
    kept = f' {partial} is kept; the next attempt resumes it.' if partial.exists() else ''
    raise OptionError(f'{url}: could not be downloaded: {fault}.{kept}')


def _download_rest(url: str, partial: Path) -> None:
    begun = partial.stat().st_size if partial.exists() else 0
    headers = {'User-Agent': 'rdbm_plugin', **({'Range': f'bytes={begun}-'} if begun else {})}
    with urlopen(Request(url, headers=headers), timeout=60) as answer:
        begun = begun if answer.status == 206 else 0
        length = answer.headers.get('Content-Length')
        total = int(length) + begun if length else None
        with partial.open('ab' if begun else 'wb') as file, tqdm.wrapattr(
                answer, 'read', total, desc=PurePosixPath(urlsplit(url).path).name, initial=begun, leave=False) as body:
            shutil.copyfileobj(body, file)
    if total is not None and partial.stat().st_size < total:
        raise OSError(f'the connection ended after {partial.stat().st_size} of {total} bytes')


def images_in(archive: Path, wanted: PhotoSet) -> Iterator[tuple[str, str, bytes]]:
    """Yield part, file name and content of the images of a set in an archive or a folder.

    An image belongs to the part that its folder is named after. Only the last two names of a path in an archive are
    read, so that nothing can be written elsewhere. Links and files that are too large are skipped.

    Raises OptionError if the file is not an archive, or is damaged.
    """
    try:
        for name, size, read in _files_in(archive):
            path = PurePosixPath(name.replace('\\', '/'))
            if (path.suffix.lower() == wanted.suffix and path.parent.name in wanted.parts
                    and not path.name.startswith('.') and size <= LARGEST_IMAGE):
                yield path.parent.name, path.name, read()
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, RuntimeError, ValueError) as error:
        raise OptionError(f'{archive}: not a complete .zip or .tar archive ({error}); remove it and try again.'
                          ) from None


def _files_in(archive: Path) -> Iterator[tuple[str, int, Callable[[], bytes]]]:
    """Yield name, size and reader of each file; a reader is valid until the next file is requested."""
    if archive.is_dir():
        for path in sorted(archive.rglob('*')):
            if path.is_file():
                yield path.as_posix(), path.stat().st_size, path.read_bytes
    elif zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            for each in packed.infolist():
                yield each.filename, each.file_size, lambda each=each: packed.read(each)
    else:
        with tarfile.open(archive) as packed:
            for each in packed:
                if each.isreg():
                    yield each.name, each.size, packed.extractfile(each).read


def check(folder: Path, wanted: PhotoSet, source: Path | None = None) -> None:
    """Raise OptionError unless a folder contains exactly the images of a set."""
    for name, part in wanted.parts.items():
        files = sorted(path for path in (folder / name).glob(f'*{wanted.suffix}') if path.is_file())
        if len(files) != part.count:
            raise OptionError(f'{source or folder}: {name}: found {len(files)} images; expected {part.count}.')
        lines = [f'{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n' for file in files]
        digest = hashlib.sha256(''.join(lines).encode()).hexdigest()
        if digest != part.digest:
            raise OptionError(f'{source or folder}: {name}: its {part.count} images are not those of the set (SHA-256 '
                              f'{digest}; expected {part.digest}).')
