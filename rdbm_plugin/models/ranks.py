"""Work that the ranks of a distributed run share. Needs torch only."""
from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from itertools import chain, zip_longest
from typing import TypeVar

from torch import distributed
from torch.distributed import ProcessGroup

Result = TypeVar('Result')
PATIENCE = timedelta(days=7)
"""How long a rank waits for the others' share of a validation; NCCL itself gives up after ten minutes."""


def validation_group() -> ProcessGroup:
    """A group of all ranks that waits long, without the GPUs; every rank has to call this."""
    return distributed.new_group(backend='gloo', timeout=PATIENCE)


def in_turn(work: Callable[[], list[Result]], group: ProcessGroup | None) -> list[Result]:
    """Do this rank's work and return what all ranks found: of rank 0, 1, ..., again of rank 0, and so on.

    Args:
        work: Gives the results of this rank; they travel as pickles between the ranks of one run.
        group: None: there is one rank alone.

    Raises:
        RuntimeError: Another rank failed; its own error, which is raised there, is named.
    """
    if group is None:
        return work()
    results, error = [], None
    try:
        results = work()
    except Exception as failure:
        error = failure
    found = [None] * distributed.get_world_size(group)
    distributed.all_gather_object(found, (results, error and f'{type(error).__name__}: {error}'), group=group)
    if error is not None:
        raise error
    for rank, (_, failed) in enumerate(found):
        if failed:
            raise RuntimeError(f'rank {rank} failed: {failed}')
    missing = object()
    shares = [share for share, _ in found]
    return [each for each in chain.from_iterable(zip_longest(*shares, fillvalue=missing)) if each is not missing]
