"""Atomic writes: a file is replaced completely or not at all. Needs the standard library only."""
import os
from contextlib import suppress
from pathlib import Path

PARTIAL = '.*.partial'
"""Pattern of the files that a process leaves behind if it is killed while writing."""


def write_atomically(path: Path, content: bytes | memoryview, lasting: bool = False) -> None:
    """Write a file so that it has either its old or its new content, whenever the process dies.

    ``lasting`` waits for the disk, so that this holds after a power cut, too. An OSError leaves nothing behind.
    """
    partial = path.with_name(f'.{path.name}.{os.getpid()}.partial')
    try:
        with partial.open('wb') as file:
            file.write(content)
            if lasting:
                file.flush()
                os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from None
    if lasting:
        # A rename survives a power cut only once its folder is on the disk; not every system can open folders.
        with suppress(OSError):
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
