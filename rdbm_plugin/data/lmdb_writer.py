"""Writing LMDBs that BasicSR reads."""
import os
import shutil
from pathlib import Path
from types import TracebackType

import lmdb

PENDING_BYTES = 64 * 2**20
"""Bytes written between two commits."""


class LmdbWriter:
    """Writes encoded images into an LMDB in BasicSR's layout: ``data.mdb`` and ``meta_info.txt``.

    Keys are paths without suffix, sub-folders included, so that equal names in different folders stay apart. The
    map grows when it is full. All is written beside the target and renamed at the end: there is no half LMDB.

    Use as a context; on an exception nothing is left behind.

    Args:
        path: The LMDB to be; its name ends in ``.lmdb``.
        map_size: Bytes to begin with.

    Raises:
        ValueError: The name does not end in ``.lmdb`` (BasicSR insists on it).
        FileExistsError: There is something at ``path``.
    """

    def __init__(self, path: str | Path, map_size: int = 2**26) -> None:
        self.path = Path(path)
        if self.path.suffix != '.lmdb':
            raise ValueError(f'{self.path}: the name of an LMDB must end in .lmdb.')
        if self.path.exists():
            raise FileExistsError(f'{self.path} exists; remove it or choose another name.')
        self._partial = self.path.with_name(f'.{self.path.name}.partial')
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir(parents=True)
        self._map_size = map_size
        self._lines: dict[str, str] = {}
        self._pending: dict[str, bytes] = {}

    def __enter__(self) -> 'LmdbWriter':
        self._environment = lmdb.open(str(self._partial), map_size=self._map_size, readahead=False)
        return self

    def put(self, key: str, content: bytes, shape: tuple[int, int, int]) -> None:
        """Add one encoded image.

        Args:
            key: Path without suffix.
            content: The encoded image, as in a file.
            shape: Height, width, channels.

        Raises:
            ValueError: The key is already there, or longer than LMDB allows.
        """
        if key in self._lines:
            raise ValueError(f'{self.path}: key {key!r} occurs twice.')
        if len(key.encode()) > self._environment.max_key_size():
            raise ValueError(f'{self.path}: key {key!r} is longer than {self._environment.max_key_size()} bytes.')
        self._lines[key] = f'{key}.png ({",".join(map(str, shape))}) 1'
        self._pending[key] = content
        if sum(map(len, self._pending.values())) >= PENDING_BYTES:
            self._commit()

    def _commit(self) -> None:
        while True:
            try:
                with self._environment.begin(write=True) as transaction:
                    for key, content in self._pending.items():
                        transaction.put(key.encode(), content)
                self._pending.clear()
                return
            except lmdb.MapFullError:
                self._map_size *= 2
                self._environment.set_mapsize(self._map_size)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        try:
            if kind is None:
                self._commit()
                self._environment.sync(True)
        finally:
            self._environment.close()
            if kind is not None:
                shutil.rmtree(self._partial, ignore_errors=True)
        if kind is not None:
            return
        with open(self._partial / 'meta_info.txt', 'w', encoding='utf-8') as file:
            file.writelines(f'{line}\n' for _, line in sorted(self._lines.items()))
            file.flush()
            os.fsync(file.fileno())
        (self._partial / 'lock.mdb').unlink(missing_ok=True)
        os.rename(self._partial, self.path)
