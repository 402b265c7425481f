"""Processes that load data: beside one another, when the run is interrupted, and when it ends. Needs no BasicSR."""
import atexit
import multiprocessing
import signal
from functools import cache

import cv2
from torch.utils.data import get_worker_info


def settle_worker() -> None:
    """Make a data loading process a good neighbour; elsewhere nothing happens.

    It outlives a Ctrl-C or a kill of the whole job until its parent has finished a step, and OpenCV takes one thread:
    by default each of twelve workers would start as many as the machine has cores.
    """
    if get_worker_info():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        cv2.setNumThreads(1)


@cache
def end_workers_at_exit() -> None:
    """Kill data loading processes when this one ends, as they do not heed the SIGTERM that Python sends them then."""
    # Registered later, so called earlier, than multiprocessing's own hook, which waits for them.
    import multiprocessing.util  # noqa: F401
    atexit.register(_kill_workers)


def _kill_workers() -> None:
    if hasattr(signal, 'SIGCHLD'):
        # torch's handler would call this an error.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()
