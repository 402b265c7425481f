"""Saving of a run's networks and training states. Needs torch; BasicSR for its log."""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from basicsr.utils.logger import get_root_logger
from torch import nn

from rdbm_plugin.models.state_files import delete_older, save_whole


@contextmanager
def surviving(what: str) -> Iterator[None]:
    """Let training go on if ``what`` cannot be saved; what is saved at its end must be, and is not under this."""
    try:
        yield
    except OSError as error:
        get_root_logger().warning(f'{what} could not be saved: {error}. Training goes on; older checkpoints are as '
                                  'they were.')


class Checkpoints:
    """Writes the files of a run, each atomically, in BasicSR's layout and under BasicSR's names.

    Args:
        paths: ``path:`` of the options, with ``models`` and ``training_states``.
        keep_last: Number of training states, and of the networks that belong to them, that are kept; None: all.
    """

    def __init__(self, paths: Mapping[str, Any], keep_last: int | None) -> None:
        self.paths, self.keep_last = paths, keep_last

    def save_network(self, nets: Mapping[str, nn.Module], label: str, iteration: int | str) -> None:
        """Write ``<label>_<iteration>.pth``; ``nets``: key in the file, such as params_ema -> network.

        Raises:
            OSError: It could not be written; what was there is still there.
        """
        content = {key: {name: value.detach().cpu() for name, value in net.state_dict().items()}
                   for key, net in nets.items()}
        name = 'latest' if iteration == -1 else iteration
        save_whole(content, Path(self.paths['models'], f'{label}_{name}.pth'))

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Write ``<iter>.state``; see :meth:`save_network`."""
        save_whole(dict(state), Path(self.paths['training_states'], f'{state["iter"]}.state'))

    def tidy(self, iteration: int) -> None:
        """Delete what ``keep_last`` does not keep, after ``iteration`` was saved."""
        if self.keep_last:
            delete_older(Path(self.paths['models']), Path(self.paths['training_states']), self.keep_last, iteration)
