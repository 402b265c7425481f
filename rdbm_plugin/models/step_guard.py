"""Handling of steps whose loss or gradient is not finite: report the batch, and end a training that has diverged."""
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from basicsr.utils.logger import get_root_logger
from torch import Tensor

from rdbm_plugin.models.checkpoints import save_atomically
from rdbm_plugin.models.ranks import Ranks

_NAMED = 8
"""Number of images of a batch that the log names; the dump names all."""


class NonFiniteLoss(RuntimeError):
    """Too many consecutive steps had a non-finite loss or gradient."""


class StepGuard:
    """Counts and reports steps that are skipped because they are not finite.

    Args:
        limit: Number of consecutive skipped steps that ends the training.
        folder: Folder for dumps of the last step, one file per rank.
        ranks: All processes of the run.
    """

    def __init__(self, limit: int, folder: Path, ranks: Ranks) -> None:
        self.limit, self.folder, self.ranks = limit, folder, ranks
        self.in_a_row = self.in_all = 0

    @property
    def lost(self) -> bool:
        """Whether the number of consecutive skipped steps has reached the limit."""
        return self.in_a_row >= self.limit

    def report(self, iteration: int, losses: Mapping[str, float], norm: float, names: Sequence[str],
               tasks: Sequence[str]) -> None:
        """Log a skipped step with the names and tasks of its samples; every rank must call this."""
        self.in_a_row += 1
        self.in_all += 1
        batches = self.ranks.gather(_described(tasks, names))
        batch = batches[0] if len(batches) == 1 else '; '.join(f'rank {i}: {each}' for i, each in enumerate(batches))
        get_root_logger().warning(f'Iteration {iteration}: {_values(losses, norm)}: step skipped ({self.in_a_row} in '
                                  f'a row, {self.in_all} in all). Batch: {batch}')

    def end(self, iteration: int, losses: Mapping[str, float], norm: float, batch: Mapping[str, Any]) -> NoReturn:
        """Raise NonFiniteLoss, after dumping ``batch``, which has all that is needed to repeat the last step."""
        dump = self.folder / f'nonfinite_{iteration}_rank{self.ranks.rank}.pth'
        save_atomically({'iteration': iteration, 'losses': dict(losses), 'norm': norm, **batch}, dump)
        raise NonFiniteLoss(
            f'{self.in_a_row} steps in a row were not finite (train: nonfinite_limit), the last one at iteration '
            f'{iteration}: {_values(losses, norm)}. Its batch and weights are in {dump}; find the cause with: python '
            f'scripts/upkeep/replay_step.py {dump}. A smaller lr, grad_clip: 1 or amp: none often helps.')


def _values(losses: Mapping[str, float], norm: float) -> str:
    return ', '.join(f'{name} {value:g}' for name, value in (*losses.items(), ('norm of the gradient', norm)))


def _described(tasks: Sequence[str], names: Sequence[str]) -> str:
    each = [f'{task} {name}'.strip() for task, name in zip([*tasks] or [''] * len(names), names)]
    more = f' and {len(each) - _NAMED} more' if len(each) > _NAMED else ''
    return ', '.join(each[:_NAMED]) + more


def gradient_norm(parameters: Sequence[Tensor], limit: float) -> Tensor:
    """Return the total norm of all gradients; if it exceeds ``limit``, scale them down to it."""
    if limit < float('inf') or not hasattr(torch.nn.utils, 'get_total_norm'):
        return torch.nn.utils.clip_grad_norm_(parameters, limit)
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def noted(tensors: Iterable[Tensor]) -> Callable[[Tensor], None]:
    """Copy tensors that a step may change; result(0) restores them, result(1) does not. Never waits for the device."""
    before = [(tensor, tensor.clone()) for tensor in tensors]

    def put_back(taken: Tensor) -> None:
        for tensor, value in before:
            tensor.copy_(torch.where(taken > 0, tensor, value))
    return put_back
