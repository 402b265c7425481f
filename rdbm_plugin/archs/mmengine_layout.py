"""Converts weights between mmengine's checkpoints and BasicSR's. Needs torch only."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rdbm_plugin.config.options import OptionError

_NETWORK = 'network.'
"""Prefix of the network's parameters in BridgeRestorer."""


def is_of_mmengine(content: Any) -> bool:
    """Whether this is a checkpoint of BridgeRestorer."""
    return isinstance(content, Mapping) and bool(only(content.get('state_dict'), _NETWORK))


def to_basicsr(checkpoint: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """The network of BridgeRestorer as {'params': ...} and, if the checkpoint has an average, 'params_ema'.

    With EMAHook mmengine saves the average in ``state_dict``, and the weights themselves in ``ema_state_dict``.

    Raises:
        OptionError: It is no checkpoint of BridgeRestorer.
    """
    if not is_of_mmengine(checkpoint):
        found = sorted(map(str, checkpoint)) if isinstance(checkpoint, Mapping) else type(checkpoint).__name__
        raise OptionError(f'checkpoint: found {found}; expected a checkpoint of BridgeRestorer, as mmengine saves it, '
                          f'whose state_dict has names that begin with {_NETWORK!r}.')
    weights = only(checkpoint['state_dict'], _NETWORK)
    if 'ema_state_dict' not in checkpoint:
        return {'params': weights}
    return {'params': only(checkpoint['ema_state_dict'], f'module.{_NETWORK}'), 'params_ema': weights}


def from_basicsr(content: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint for ``load_from`` in a config or ``runner.load_checkpoint``; :func:`to_basicsr` is its inverse.

    Args:
        content: {'params': ...}, with or without 'params_ema', or parameters alone. mmengine starts from the average,
            if there is one.

    Raises:
        OptionError: It holds no parameters.
    """
    blocks = {key: content[key] for key in ('params', 'params_ema') if key in content} or {'params': content}
    if not all(isinstance(value, Tensor) for block in blocks.values() for value in block.values()):
        raise OptionError(f'content: found {sorted(map(str, content))}; expected params, params_ema or parameters.')
    checkpoint = {'meta': {}, 'state_dict': _named(blocks.get('params_ema', blocks.get('params')), _NETWORK)}
    if len(blocks) == 2:
        checkpoint['ema_state_dict'] = _named(blocks['params'], f'module.{_NETWORK}')
    return checkpoint


def only(state: Any, prefix: str) -> dict[str, Tensor]:
    """The entries of a state dict that begin with a prefix, without it; empty if it is no state dict."""
    named = state.items() if isinstance(state, Mapping) else ()
    return {key.removeprefix(prefix): value for key, value in named if str(key).startswith(prefix)}


def _named(parameters: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key.removeprefix('module.'): value for key, value in parameters.items()}
