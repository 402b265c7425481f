"""Stopping a run between two iterations when it is asked to: Ctrl-C, kill, or the end of a Slurm job's time."""
import signal
import threading
from time import monotonic
from typing import Any

import torch
from torch import distributed
from torch.distributed import ProcessGroup

GRACE = 5
"""Seconds in which more signals count as the same one: torchrun passes on what a terminal sends to all already."""


class Interruption:
    """Notes SIGINT and SIGTERM, and lets all ranks agree on the iteration to stop at.

    A second signal after :data:`GRACE` seconds ends the process at once. ``group`` is all ranks, if there are several.
    """

    def __init__(self, group: ProcessGroup | None) -> None:
        self.group = group
        self.signal: int | None = None
        self._since = 0.0
        self._pending: tuple[Any, torch.Tensor] | None = None

    def listen(self) -> None:
        """Start noting signals, which is possible in the main thread alone; does nothing the second time."""
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
        """Whether any rank was asked to stop; every rank has to call this."""
        self.asked_before()
        return self.asked_before()

    def asked_before(self) -> bool:
        """Whether any rank was asked to stop before the last call of this, the same on all ranks, without waiting."""
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
