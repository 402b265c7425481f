"""The processes that share a run, and their collective operations. Needs torch only."""
from collections.abc import Callable
from datetime import timedelta
from itertools import zip_longest
from typing import Any, TypeVar

from torch import Tensor, distributed

Result = TypeVar('Result')
PATIENCE = timedelta(days=7)
"""How long a rank waits for the others' share of a validation; NCCL's own timeout is ten minutes."""


class Ranks:
    """All processes of a run; a single process is rank 0 of 1. If there are several, each must create this object."""

    def __init__(self, several: bool) -> None:
        # Python objects and barriers go through the CPUs, whichever backend the gradients use.
        self.group = distributed.new_group(backend='gloo', timeout=PATIENCE) if several else None
        self.rank = distributed.get_rank() if several else 0
        self.count = distributed.get_world_size() if several else 1

    def mean(self, value: Tensor) -> Tensor:
        """Mean of a tensor over all ranks."""
        return self.sum(value) / self.count if self.group else value

    def sum(self, value: Tensor) -> Tensor:
        """Sum of a tensor over all ranks."""
        if self.group is None:
            return value
        value = value.clone()
        distributed.all_reduce(value)
        return value

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks in rank order; the ranks exchange them as pickles."""
        if self.group is None:
            return [value]
        found: list[Any] = [None] * self.count
        distributed.all_gather_object(found, value, group=self.group)
        return found

    def in_turn(self, work: Callable[[], list[Result]]) -> list[Result]:
        """Run this rank's ``work`` and return the results of all ranks, interleaved: the first of each rank, and so on.

        Raises:
            RuntimeError: Another rank failed; the message quotes its error.
        """
        if self.group is None:
            return work()
        results, error = [], None
        try:
            results = work()
        except Exception as failure:
            error = failure
        found = self.gather((results, error and f'{type(error).__name__}: {error}'))
        if error is not None:
            raise error
        for rank, (_, failed) in enumerate(found):
            if failed:
                raise RuntimeError(f'rank {rank} failed: {failed}')
        turns = zip_longest(*(share for share, _ in found))
        return [each for turn in turns for each in turn if each is not None]

    def part(self) -> None:
        """Leave the run together; if one rank leaves while the others still work, some of them abort."""
        if self.group is not None:
            distributed.barrier(self.group)
            distributed.destroy_process_group()
