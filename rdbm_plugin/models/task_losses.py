"""The loss of each task for the log. Needs torch only."""
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from rdbm_plugin.models.ranks import Ranks


class TaskLosses:
    """Sums the losses of each task's samples on the device until the log asks for their means.

    ``tasks`` are in the log's order; samples of other tasks are ignored.
    """

    def __init__(self, tasks: Iterable[object], device: torch.device, ranks: Ranks) -> None:
        self.tasks = list(dict.fromkeys(map(str, tasks)))
        self.ranks = ranks
        self.sums = torch.zeros(2, len(self.tasks), device=device, dtype=torch.float64)
        """Sums of losses, and numbers of samples."""

    def members(self, tasks: Sequence[str], count: int) -> Tensor:
        """1 where one of ``count`` samples belongs to a task, else 0; (tasks, N) float32 on the CPU."""
        names = list(tasks) or [''] * count
        found = torch.tensor([[float(name == task) for name in names] for task in self.tasks])
        return found.reshape(len(self.tasks), count)

    def add(self, losses: Tensor | None, members: Tensor, taken: Tensor) -> None:
        """Add the losses of a step's samples, (N,), if ``taken`` is 1 rather than 0; does not wait for the device."""
        if losses is None:
            return
        each = torch.where(taken > 0, losses, 0.0)
        self.sums += torch.stack([members @ each, members.sum(1) * taken])

    def means(self) -> dict[str, float]:
        """``l_<task>`` -> mean over the samples of all ranks since the last call; every rank must call this."""
        sums = self.ranks.sum(self.sums).tolist()
        self.sums.zero_()
        return {f'l_{task}': total / count for task, total, count in zip(self.tasks, *sums) if count}

    def gather(self) -> None:
        """Move the sums of all ranks to rank 0, before it saves them; every rank must call this."""
        if self.ranks.group:
            self.sums = self.ranks.sum(self.sums)
            if self.ranks.rank != 0:
                self.sums.zero_()

    def state(self) -> list[list[float]]:
        """The sums, for a training state."""
        return self.sums.tolist()

    def load(self, state: list[list[float]]) -> None:
        """Continue from the result of :meth:`state`, unless the number of tasks has changed."""
        if state and len(state[0]) == len(self.tasks) and self.ranks.rank == 0:
            self.sums.copy_(torch.tensor(state, dtype=torch.float64))
