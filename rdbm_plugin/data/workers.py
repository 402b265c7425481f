"""Processes that load data, when the run is interrupted and when it ends. Needs torch only."""
import multiprocessing
import signal
from functools import cache
from multiprocessing.util import Finalize

from torch.utils.data import get_worker_info


def leave_signals_to_parent() -> None:
    """Let a data loading process outlive a Ctrl-C or a kill of the whole job until its parent has finished a step."""
    if get_worker_info():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


@cache
def end_workers_at_exit() -> None:
    """Kill data loading processes when this one ends, as they do not heed the SIGTERM that Python sends them then."""
    # Before multiprocessing's own hook, which waits for them; atexit is not heard of in processes that it starts.
    Finalize(None, _kill_workers, exitpriority=100)


def _kill_workers() -> None:
    if hasattr(signal, 'SIGCHLD'):
        # torch's handler would call this an error.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()
