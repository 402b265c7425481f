"""What to do about a step whose loss or gradient is not finite: report its batch, and end a training that is lost."""
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from basicsr.utils.logger import get_root_logger
from torch import Tensor, nn

from rdbm_plugin.models.checkpoints import save_atomically
from rdbm_plugin.models.ranks import Ranks

_NAMED = 8
"""Images of a batch that the log names; the dump has them all."""


class NonFiniteLoss(RuntimeError):
    """Too many steps in a row had a loss or gradient that is not finite."""


class StepGuard:
    """Counts steps that must not be taken.

    Args:
        limit: So many in a row end the training.
        folder: Where the dump of the last of these goes, one file of each rank.
        ranks: All processes of the run.
    """

    def __init__(self, limit: int, folder: Path, ranks: Ranks) -> None:
        self.limit, self.folder, self.ranks = limit, folder, ranks
        self.in_a_row = self.in_all = 0

    def report(self, iteration: int, losses: Mapping[str, float], norm: float, batch: Mapping[str, Any]) -> None:
        """Log a step that was not taken, and end the training at the limit; every rank has to call this.

        Args:
            iteration: Current iteration.
            losses: Name -> value.
            norm: Of the gradient.
            batch: ``names`` and ``tasks`` of the samples and what is needed to repeat the step.

        Raises:
            NonFiniteLoss: This is the ``limit``-th in a row; the batch has been written to ``folder``.
        """
        self.in_a_row += 1
        self.in_all += 1
        values = ', '.join(f'{name} {value:g}' for name, value in (*losses.items(), ('norm of the gradient', norm)))
        where = self._where(batch)
        get_root_logger().warning(f'Iteration {iteration}: {values}: step skipped ({self.in_a_row} in a row, '
                                  f'{self.in_all} in all). Batch: {where}')
        if self.in_a_row < self.limit:
            return
        dump = self.folder / f'nonfinite_{iteration}_rank{self.ranks.rank}.pth'
        save_atomically({'iteration': iteration, 'losses': dict(losses), 'norm': norm, **batch}, dump)
        raise NonFiniteLoss(
            f'{self.in_a_row} steps in a row were not finite (train: nonfinite_limit), the last one at iteration '
            f'{iteration}: {values}. Its batch and weights are in {dump}; see where they arise: python '
            f'scripts/replay_step.py {dump}. A smaller lr, grad_clip: 1 or amp: none often help.')

    def _where(self, batch: Mapping[str, Any]) -> str:
        found = self.ranks.gather(_described(batch['tasks'], batch['names']))
        return found[0] if len(found) == 1 else '; '.join(f'rank {rank}: {each}' for rank, each in enumerate(found))


def _described(tasks: Sequence[str], names: Sequence[str]) -> str:
    each = [f'{task} {name}'.strip() for task, name in zip([*tasks] or [''] * len(names), names)]
    more = f' and {len(each) - _NAMED} more' if len(each) > _NAMED else ''
    return ', '.join(each[:_NAMED]) + more


def gradient_norm(parameters: Sequence[Tensor], limit: float) -> Tensor:
    """Norm of all gradients together, which are scaled down to ``limit`` if it is larger."""
    if limit < float('inf') or not hasattr(torch.nn.utils, 'get_total_norm'):
        return torch.nn.utils.clip_grad_norm_(parameters, limit)
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def buffers_of(net: nn.Module) -> Callable[[], None]:
    """Note what a forward pass may change beside the weights, such as running means; the result puts it back."""
    noted = [(buffer, buffer.clone()) for buffer in net.buffers()]

    def put_back() -> None:
        for buffer, before in noted:
            buffer.copy_(before)
    return put_back
