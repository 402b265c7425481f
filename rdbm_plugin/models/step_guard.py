"""What to do about a step whose loss or gradient is not finite: report its batch, and end a training that is lost."""
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from basicsr.utils.logger import get_root_logger
from torch import Tensor

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

    @property
    def lost(self) -> bool:
        """Whether the last steps, as many as the limit, were not taken."""
        return self.in_a_row >= self.limit

    def report(self, iteration: int, losses: Mapping[str, float], norm: float, names: Sequence[str],
               tasks: Sequence[str]) -> None:
        """Log a step that was not taken, with names and tasks of its samples; every rank has to call this."""
        self.in_a_row += 1
        self.in_all += 1
        get_root_logger().warning(f'Iteration {iteration}: {_values(losses, norm)}: step skipped ({self.in_a_row} in '
                                  f'a row, {self.in_all} in all). Batch: {self._where(names, tasks)}')

    def end(self, iteration: int, losses: Mapping[str, float], norm: float, batch: Mapping[str, Any]) -> NoReturn:
        """End the training; ``batch`` is what is needed to repeat the last step.

        Raises:
            NonFiniteLoss: Always; the batch has been written to ``folder``.
        """
        dump = self.folder / f'nonfinite_{iteration}_rank{self.ranks.rank}.pth'
        save_atomically({'iteration': iteration, 'losses': dict(losses), 'norm': norm, **batch}, dump)
        raise NonFiniteLoss(
            f'{self.in_a_row} steps in a row were not finite (train: nonfinite_limit), the last one at iteration '
            f'{iteration}: {_values(losses, norm)}. Its batch and weights are in {dump}; see where they arise: python '
            f'scripts/upkeep/replay_step.py {dump}. A smaller lr, grad_clip: 1 or amp: none often help.')

    def _where(self, names: Sequence[str], tasks: Sequence[str]) -> str:
        found = self.ranks.gather(_described(tasks, names))
        return found[0] if len(found) == 1 else '; '.join(f'rank {rank}: {each}' for rank, each in enumerate(found))


def _values(losses: Mapping[str, float], norm: float) -> str:
    return ', '.join(f'{name} {value:g}' for name, value in (*losses.items(), ('norm of the gradient', norm)))


def _described(tasks: Sequence[str], names: Sequence[str]) -> str:
    each = [f'{task} {name}'.strip() for task, name in zip([*tasks] or [''] * len(names), names)]
    more = f' and {len(each) - _NAMED} more' if len(each) > _NAMED else ''
    return ', '.join(each[:_NAMED]) + more


def gradient_norm(parameters: Sequence[Tensor], limit: float) -> Tensor:
    """Norm of all gradients together, which are scaled down to ``limit`` if it is larger."""
    if limit < float('inf') or not hasattr(torch.nn.utils, 'get_total_norm'):
        return torch.nn.utils.clip_grad_norm_(parameters, limit)
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def noted(tensors: Iterable[Tensor]) -> Callable[[Tensor], None]:
    """Note what a step may change; result(0) puts it back, result(1) does not, and nothing waits for the device."""
    before = [(tensor, tensor.clone()) for tensor in tensors]

    def put_back(taken: Tensor) -> None:
        for tensor, value in before:
            tensor.copy_(torch.where(taken > 0, tensor, value))
    return put_back
