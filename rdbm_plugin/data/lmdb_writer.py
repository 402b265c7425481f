"""Writing of LMDBs that BasicSR can read. Needs lmdb only."""
import shutil
from collections.abc import Iterable
from pathlib import Path

import lmdb

from rdbm_plugin.config.atomic_write import write_atomically


def write_lmdb(path: str | Path, images: Iterable[tuple[str, bytes, tuple[int, int, int]]],
               map_size: int = 2**26) -> None:
    """Write encoded images into an LMDB in BasicSR's layout: ``data.mdb`` and ``meta_info.txt``.

    The LMDB is written beside ``path`` and renamed at the end, so it is never incomplete. An error leaves nothing.

    Args:
        path: The LMDB to create; BasicSR requires a name that ends in ``.lmdb``.
        images: Key, encoded image as in a file, and (height, width, channels) of each. Keys are paths without suffix
            and with sub-folders, so that equal names in different folders stay apart.
        map_size: Initial size of the memory map in bytes; the map grows when it is full.

    Raises:
        ValueError: ``path`` does not end in ``.lmdb``, or a key occurs twice or is longer than LMDB allows.
        FileExistsError: ``path`` exists.
    """
    path = Path(path)
    if path.suffix != '.lmdb':
        raise ValueError(f'{path}: the name of an LMDB must end in .lmdb.')
    if path.exists():
        raise FileExistsError(f'{path} exists; remove it or choose another name.')
    partial = path.with_name(f'.{path.name}.partial')
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with lmdb.open(str(partial), map_size=map_size, readahead=False, sync=False) as environment:
            lines: dict[str, str] = {}
            for key, content, shape in images:
                if key in lines:
                    raise ValueError(f'{path}: key {key!r} occurs twice.')
                if len(key.encode()) > environment.max_key_size():
                    raise ValueError(f'{path}: key {key!r} is longer than {environment.max_key_size()} bytes.')
                lines[key] = f'{key}.png ({",".join(map(str, shape))}) 1\n'
                _put(environment, key.encode(), content)
            environment.sync(True)
        meta_info = ''.join(line for _, line in sorted(lines.items()))
        write_atomically(partial / 'meta_info.txt', meta_info.encode(), lasting=True)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    (partial / 'lock.mdb').unlink(missing_ok=True)
    partial.rename(path)


def _put(environment: lmdb.Environment, key: bytes, content: bytes) -> None:
    while True:
        try:
            with environment.begin(write=True) as transaction:
                transaction.put(key, content)
            return
        except lmdb.MapFullError:
            environment.set_mapsize(2 * environment.info()['map_size'])
