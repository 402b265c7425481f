"""Photo sets by name: download, check and unpack them into the layout that our option files read.

Needs the standard library and tqdm only.
"""
import hashlib
import shutil
import tarfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
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
"""Times that a broken download is gone on with."""
LARGEST_IMAGE = 2**26
"""Bytes that one image of a set may have; more is no photo."""
BLOCK = 2**18


@dataclass(frozen=True)
class Part:
    """One folder of a set: how many images it has, and what they are.

    ``digest`` is the SHA-256 of a line ``NAME SHA-256\\n`` for each image, in the order of their names.
    """

    count: int
    digest: str


@dataclass(frozen=True)
class PhotoSet:
    """What is known of a set; ``urls`` are of one archive each, all with the same images."""

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
        'Photos for non-commercial research and education; see the Berkeley Segmentation Data Set\'s page.',
        'P. Arbelaez, M. Maire, C. Fowlkes, J. Malik: Contour Detection and Hierarchical Image Segmentation. IEEE '
        'TPAMI 33(5), 2011.'),
}


def fetch(name: str, root: Path, source: str | None = None) -> Path:
    """Put a set into ``root/NAME/PART``, whole or not at all; returns the folder ``root/NAME``.

    Args:
        name: One of SETS.
        root: Folder of all data sets, made if it is missing.
        source: An archive or a folder that is there already, or another address; default: the set's own addresses.

    Raises:
        OptionError: There is something else at that place, no address answers, or the images are not those of the set.
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
        # One more than there should be is enough to refuse the archive, however many are in it.
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
        raise OptionError(f'--from: no file or folder {source!r}, and no address that begins with http:// or https://.')
    faults = []
    for url in wanted.urls if source is None else (source,):
        # What one address gave may not be gone on with from another.
        target = root / f'{name}-{hashlib.sha256(url.encode()).hexdigest()[:8]}{PurePosixPath(url).suffix}'
        try:
            return download(url, target)
        except OptionError as error:
            faults.append(str(error))
    raise OptionError(' '.join(faults) + ' If you have the archive or its folder, name it with --from.')


def download(url: str, target: Path) -> Path:
    """Download a file; what an earlier attempt left beside it is gone on with.

    Raises:
        OptionError: The server refuses, or breaks off again and again.
    """
    if target.is_file():
        return target
    partial = target.with_name(target.name + '.partial')
    fault = ''
    for attempt in range(TRIES):
        try:
            _download_rest(url, partial)
            partial.rename(target)
            return target
        except HTTPError as error:
            if error.code == 416:
                # What is there is longer than the file, so it is of another one.
                partial.unlink(missing_ok=True)
            elif error.code < 500:
                raise OptionError(f'{url}: the server answered {error.code} {error.reason}.') from None
            fault = f'the server answered {error.code} {error.reason}'
        except (OSError, HTTPException) as error:
            fault = str(getattr(error, 'reason', error)) or type(error).__name__
        time.sleep(min(attempt, 2) / 2)
    kept = f' {partial} is kept; the next attempt goes on from there.' if partial.exists() else ''
    raise OptionError(f'{url}: could not be downloaded: {fault}.{kept}')


def _download_rest(url: str, partial: Path) -> None:
    begun = partial.stat().st_size if partial.exists() else 0
    headers = {'User-Agent': 'rdbm_plugin', **({'Range': f'bytes={begun}-'} if begun else {})}
    with urlopen(Request(url, headers=headers), timeout=60) as answer:
        goes_on = answer.status == 206
        begun = begun if goes_on else 0
        length = answer.headers.get('Content-Length')
        total = int(length) + begun if length else None
        with partial.open('ab' if goes_on else 'wb') as file, tqdm(
                total=total, initial=begun, unit='B', unit_scale=True, desc=PurePosixPath(urlsplit(url).path).name,
                leave=False) as bar:
            while block := answer.read(BLOCK):
                file.write(block)
                bar.update(len(block))
    if total is not None and partial.stat().st_size < total:
        raise OSError(f'the connection ended after {partial.stat().st_size} of {total} bytes')


def images_in(archive: Path, wanted: PhotoSet) -> Iterator[tuple[str, str, bytes]]:
    """Part, file name and content of the images of a set in an archive or a folder.

    An image belongs to the part that its folder is named after. Of paths in an archive only the last two names are
    looked at and none is used, so that nothing can be written elsewhere; links and what is too large are left out.

    Raises:
        OptionError: It is no archive, or damaged.
    """
    try:
        if archive.is_dir():
            for path in sorted(archive.rglob(f'*{wanted.suffix}')):
                if path.is_file() and _part(path.as_posix(), wanted):
                    yield path.parent.name, path.name, path.read_bytes()
        elif zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                for each in file.infolist():
                    part = _part(each.filename, wanted)
                    if part and each.file_size <= LARGEST_IMAGE:
                        with file.open(each) as member:
                            yield part, PurePosixPath(each.filename).name, member.read(LARGEST_IMAGE)
        else:
            with tarfile.open(archive) as file:
                for each in file:
                    part = _part(each.name, wanted)
                    member = file.extractfile(each) if part and each.isreg() and each.size <= LARGEST_IMAGE else None
                    if member:
                        yield part, PurePosixPath(each.name).name, member.read()
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, RuntimeError, ValueError) as error:
        raise OptionError(f'{archive}: not a whole .zip or .tar archive ({error}); remove it and try again.') from None


def _part(name: str, wanted: PhotoSet) -> str | None:
    path = PurePosixPath(name.replace('\\', '/'))
    fits = path.suffix.lower() == wanted.suffix and path.parent.name in wanted.parts and not path.name.startswith('.')
    return path.parent.name if fits else None


def check(folder: Path, wanted: PhotoSet, source: Path | None = None) -> None:
    """Raise OptionError unless a folder holds exactly the images of a set."""
    for name, part in wanted.parts.items():
        files = sorted((folder / name).glob(f'*{wanted.suffix}')) if (folder / name).is_dir() else []
        if len(files) != part.count:
            raise OptionError(f'{source or folder}: {name}: found {len(files)} images; expected {part.count}.')
        total = hashlib.sha256()
        for file in files:
            with suppress(OSError):
                total.update(f'{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n'.encode())
        if total.hexdigest() != part.digest:
            raise OptionError(f'{source or folder}: {name}: its {part.count} images are not those of the set (SHA-256 '
                              f'{total.hexdigest()}; expected {part.digest}).')
