"""Find the option file that a checkpoint was trained with, and check other options against it. Needs torch only."""
from collections.abc import Mapping
from copy import deepcopy
from inspect import signature
from pathlib import Path
from typing import Any

from rdbm_plugin.archs.checkpoint import read_options
from rdbm_plugin.bridge import ResidualBridge
from rdbm_plugin.config.option_file import read_option_file
from rdbm_plugin.config.options import OptionError, check_number


def find_options(checkpoint: Path) -> Path:
    """Return the option file of a checkpoint: beside it under its name, or in the folder of its experiment.

    Raises:
        OptionError: There is none, or several.
    """
    beside = checkpoint.with_suffix('.yml')
    if beside.is_file():
        return beside
    found = sorted(checkpoint.parent.parent.glob('*.yml')) if checkpoint.parent.name == 'models' else []
    if len(found) != 1:
        names = ', '.join(path.name for path in found) or 'none'
        raise OptionError(f'opt: found {names} for {checkpoint}; name the option file of its training (--opt).')
    return found[0]


def running_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Copy from the content of an option file what running a trained network needs: network, bridge and sampler."""
    sampler = (options.get('val') or {}).get('sampler')
    # Code bases modify blocks when they build from them.
    return deepcopy({'network_g': options['network_g'], 'bridge': options.get('bridge'), 'val': {'sampler': sampler}})


def options_of(checkpoint: Path, opt: str | Path | None = None) -> dict[str, Any]:
    """Return :func:`running_options` of ``opt`` if given, else those stored in a checkpoint, else of its option file.

    Raises:
        OptionError: There are no options, or the file is damaged.
    """
    # The option file in the folder of an experiment lacks changes by --force_yml.
    if not opt and (stored := read_options(checkpoint)) is not None:
        return stored
    file = opt or find_options(checkpoint)
    return running_options(read_option_file(file, plugins=False, needed=('network_g',)))


def check_trained_bridge(checkpoint: Path, bridge: Any, instead: str) -> None:
    """Raise OptionError if a ``bridge:`` block differs from the one that a checkpoint was trained with.

    A network's output is meaningless on states of another bridge. Without options of the training, nothing is checked.

    Args:
        checkpoint: Checkpoint of the network.
        bridge: The block.
        instead: What allows the other bridge nevertheless, for the message.
    """
    try:
        trained = options_of(checkpoint).get('bridge')
    except OptionError:
        return
    blocks = [{**_DEFAULTS, **dict(each or {})} for each in (trained, bridge)]
    for key in sorted(blocks[0].keys() | blocks[1].keys()):
        was, found = (block.get(key) for block in blocks)
        if was != found and not _same_number(was, found):
            raise OptionError(f'bridge: {key}: found {found!r}, but {checkpoint.name} was trained with {was!r}; the '
                              f'network does not work with another bridge. Change the option file, or allow the '
                              f'difference with {instead}.')


_DEFAULTS = {'type': 'ResidualBridge', **{
    name: each.default for name, each in signature(ResidualBridge).parameters.items()}}


def _same_number(first: Any, second: Any) -> bool:
    try:
        return check_number('', first) == check_number('', second)
    except OptionError:
        return False
