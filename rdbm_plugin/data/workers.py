"""How data loading processes behave when the run is interrupted and when it ends. Needs torch only."""
import multiprocessing
import signal
from functools import cache
from multiprocessing.util import Finalize

from torch.utils.data import get_worker_info


def leave_signals_to_parent() -> None:
    """Make a data loading process ignore SIGINT and SIGTERM to the whole job, so that its parent can finish a step."""
    if get_worker_info():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


@cache
def end_workers_at_exit() -> None:
    """Kill data loading processes when this process ends, as they ignore the SIGTERM that Python then sends them."""
    # Runs before multiprocessing's own hook, which waits for them. Processes that it starts do not run atexit hooks.
    Finalize(None, _kill_workers, exitpriority=100)


def _kill_workers() -> None:
    if hasattr(signal, 'SIGCHLD'):
        # torch's handler would report the killed processes as an error.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()
