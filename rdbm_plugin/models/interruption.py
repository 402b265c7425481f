"""Stopping a run between two iterations on request: by Ctrl-C, kill, or the time limit of a Slurm job."""
import signal
import threading
from time import monotonic
from typing import Any

import torch
from torch import distributed
from torch.distributed import ProcessGroup

GRACE = 5
"""Seconds in which repeated signals count as one: torchrun forwards signals that the terminal already sent to all."""


class Interruption:
    """Records SIGINT and SIGTERM, and lets all ranks agree on the iteration to stop at.

    A second signal after :data:`GRACE` seconds ends the process at once. ``group`` holds all ranks; None: one process.
    """

    def __init__(self, group: ProcessGroup | None) -> None:
        self.group = group
        self.signal: int | None = None
        self._since = 0.0
        self._pending: tuple[Any, torch.Tensor] | None = None

    def listen(self) -> None:
        """Install the signal handlers, which Python allows only in the main thread; repeated calls do nothing."""
        if self._note == signal.getsignal(signal.SIGTERM) or threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: object) -> None:
        if self.signal is None:
            self.signal, self._since = number, monotonic()
        elif monotonic() - self._since > GRACE:
            raise SystemExit(128 + number)

    def asked_by_any(self) -> bool:
        """Whether any rank was asked to stop; every rank must call this."""
        self.asked_before()
        return self.asked_before()

    def asked_before(self) -> bool:
        """Whether any rank was asked to stop before the previous call; the same on all ranks, and does not wait."""
        if self.group is None:
            return self.signal is not None
        flag = torch.tensor([self.signal or 0])
        work = distributed.all_reduce(flag, distributed.ReduceOp.MAX, self.group, async_op=True)
        pending, self._pending = self._pending, (work, flag)
        if pending is None:
            return False
        pending[0].wait()
        self.signal = self.signal or int(pending[1]) or None
        return bool(pending[1])
