"""Checkpoints and training states that are whole or not there at all, and which of them to keep or to go on from."""
from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from rdbm_plugin.archs.checkpoint import read_parameters, read_safely
from rdbm_plugin.config.atomic_write import PARTIAL, write_atomically
from rdbm_plugin.config.options import OptionError


def save_whole(content: Any, path: Path) -> None:
    """torch.save so that ``path`` holds the new content, or what it held before, whenever the process or machine dies.

    Raises:
        OSError: It could not be written; nothing is left behind.
    """
    # torch.save itself hides why a file could not be written.
    buffer = BytesIO()
    torch.save(content, buffer)
    write_atomically(path, buffer.getbuffer(), lasting=True)


def saved_iterations(folder: Path, pattern: str) -> dict[int, Path]:
    """Iteration -> file of those in ``folder`` whose names match, such as ``(\\d+).state``, oldest first."""
    found = {int(match[1]): path for path in (folder.iterdir() if folder.is_dir() else ())
             if (match := re.fullmatch(pattern, path.name))}
    return dict(sorted(found.items()))


def delete_older(models: Path, states: Path, keep: int, iteration: int) -> None:
    """Keep ``keep`` states up to ``iteration``, and their networks; delete those before. Later ones are not touched:
    they are of a run that was wound back."""
    kept = [each for each in saved_iterations(states, r'(\d+)\.state') if each <= iteration][-keep:]
    for folder, pattern in ((states, r'(\d+)\.state'), (models, r'net_\w+_(\d+)\.pth')):
        for path in folder.iterdir():
            match = re.fullmatch(pattern, path.name)
            if match and int(match[1]) < min(kept):
                path.unlink()


def clear_partial(*folders: Path) -> None:
    """Delete what a process that was killed while it saved has left."""
    for folder in folders:
        for path in folder.glob(PARTIAL):
            path.unlink()


def check_whole(path: Path) -> None:
    """Raise OptionError if a file of torch.save is damaged, down to single bits; torch itself checks no sums."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise OptionError(f'{path}: damaged ({error}).') from None
    if damaged is not None:
        raise OptionError(f'{path}: damaged (checksum of {damaged}).')


def read_state(path: Path) -> dict[str, Any]:
    """A training state of ours or of BasicSR.

    Raises:
        OptionError: It is damaged, no training state, or not safe to load.
    """
    check_whole(path)
    state = read_safely(path)
    if not isinstance(state, dict) or not {'iter', 'epoch', 'optimizers', 'schedulers'} <= state.keys():
        raise OptionError(f'{path}: no training state of BasicSR: it lacks iter, epoch, optimizers or schedulers.')
    return state


def newest_state(paths: Mapping[str, str], networks: list[str]) -> Iterator[tuple[Path, dict[str, Any] | OptionError]]:
    """The states of a run, newest first, each with its content or with what is wrong with it.

    Args:
        paths: ``path:`` of the options, with ``models`` and ``training_states``.
        networks: Labels of the networks that belong to a state, such as ``net_g``.
    """
    found = saved_iterations(Path(paths['training_states']), r'(\d+)\.state')
    for iteration, path in reversed(found.items()):
        try:
            state = read_state(path)
            for network in networks:
                weights = Path(paths['models'], f'{network}_{iteration}.pth')
                if weights.is_file():
                    check_whole(weights)
                read_parameters(weights)
            yield path, state
        except OptionError as error:
            yield path, error
