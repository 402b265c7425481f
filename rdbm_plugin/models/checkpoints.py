"""Networks and training states, saved atomically in BasicSR's layout and checked. Needs torch; BasicSR for its log."""
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from basicsr.utils.logger import get_root_logger
from torch import nn

from rdbm_plugin.archs.checkpoint import SELF_CONTAINED, read_parameters, read_safely, with_options
from rdbm_plugin.config.atomic_write import PARTIAL, write_atomically
from rdbm_plugin.config.options import OptionError

_STATE, _NETWORK = r'(\d+)\.state', r'net_\w+_(\d+)\.pth'


@contextmanager
def surviving(what: str) -> Iterator[None]:
    """Continue training if ``what`` cannot be saved. Not for the final checkpoint, whose failure must be an error."""
    try:
        yield
    except OSError as error:
        get_root_logger().warning(f'{what} could not be saved: {error}. Training continues; older checkpoints are '
                                  'unchanged.')


def save_atomically(content: Any, path: Path) -> None:
    """Save like torch.save; if the process or the machine dies, ``path`` holds either the old or the new content.

    Raises:
        OSError: The file cannot be written; no partial file is left.
    """
    # torch.save hides why it cannot write a file.
    buffer = BytesIO()
    torch.save(content, buffer)
    write_atomically(path, buffer.getbuffer(), lasting=True)


def check_intact(path: Path) -> None:
    """Raise OptionError if a file of torch.save is damaged, even by a single bit; torch verifies no checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise OptionError(f'{path}: damaged ({error}).') from None
    if damaged is not None:
        raise OptionError(f'{path}: damaged (checksum of {damaged}).')


def read_state(path: Path) -> dict[str, Any]:
    """Read a training state of RDBMModel or of BasicSR.

    Raises:
        OptionError: The file is damaged, is not a training state, or is not safe to load.
    """
    check_intact(path)
    state = read_safely(path)
    if not isinstance(state, dict) or not {'iter', 'epoch', 'optimizers', 'schedulers'} <= state.keys():
        raise OptionError(f'{path}: not a training state of BasicSR: iter, epoch, optimizers or schedulers is missing.')
    return state


class Checkpoints:
    """The checkpoint files of a run.

    Args:
        paths: The block ``path:`` of the options; in a training it has ``models`` and ``training_states``.
        keep_last: How many training states to keep, with their networks; None: all.
        options: Options to store with the network, see :func:`rdbm_plugin.archs.checkpoint.with_options`.
    """

    def __init__(self, paths: Mapping[str, Any], keep_last: int | None = None,
                 options: Mapping[str, Any] | None = None) -> None:
        self.models, self.states = Path(paths.get('models', '.')), Path(paths.get('training_states', '.'))
        self.keep_last, self.options = keep_last, options

    def save_network(self, nets: Mapping[str, nn.Module], label: str, iteration: int | str) -> None:
        """Write ``<label>_<iteration>.pth``; ``nets`` maps keys of the file, such as params_ema, to networks.

        Raises:
            OSError: The file cannot be written; an existing one is unchanged.
        """
        content = {key: {name: value.detach().cpu() for name, value in net.state_dict().items()}
                   for key, net in nets.items()}
        if self.options is not None:
            # torch.save writes shared tensors only once.
            content[SELF_CONTAINED] = with_options(content.get('params_ema') or content['params'], self.options)
        save_atomically(content, self.models / f'{label}_{"latest" if iteration == -1 else iteration}.pth')

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Write ``<iter>.state``; see :meth:`save_network`."""
        save_atomically(dict(state), self.states / f'{state["iter"]}.state')

    def iterations(self) -> list[int]:
        """The iterations that have a training state, oldest first."""
        names = [path.name for path in self.states.iterdir()] if self.states.is_dir() else []
        return sorted(int(match[1]) for match in (re.fullmatch(_STATE, name) for name in names) if match)

    def tidy(self, iteration: int) -> None:
        """Delete the files that ``keep_last`` drops at ``iteration``, ignoring later ones, left by a rewound run."""
        if not self.keep_last:
            return
        oldest = [each for each in self.iterations() if each <= iteration][-self.keep_last:][0]
        for folder, pattern in ((self.states, _STATE), (self.models, _NETWORK)):
            for path in folder.iterdir():
                match = re.fullmatch(pattern, path.name)
                if match and int(match[1]) < oldest:
                    path.unlink()

    def clear_partial(self) -> None:
        """Delete the partial files of a process that was killed while saving."""
        for folder in (self.models, self.states):
            for path in folder.glob(PARTIAL):
                path.unlink()

    def newest_first(self, networks: Sequence[str]) -> Iterator[tuple[Path, dict[str, Any] | OptionError]]:
        """Yield each training state with its content, or with the error of the state or of one of its networks.

        Args:
            networks: Labels of the networks that belong to a state, such as ``net_g``.
        """
        for iteration in reversed(self.iterations()):
            path = self.states / f'{iteration}.state'
            try:
                state = read_state(path)
                for network in networks:
                    weights = self.models / f'{network}_{iteration}.pth'
                    if weights.is_file():
                        check_intact(weights)
                    read_parameters(weights)
                yield path, state
            except OptionError as error:
                yield path, error
