"""Reading network checkpoints in BasicSR's layout, without running what a pickle might hold."""
from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor, nn

from rdbm_plugin.archs.rdbm_unet_arch import VARIANTS, RDBMUNet
from rdbm_plugin.options import OptionError


def read_parameters(path: str | Path, param_key: str | None = 'params') -> dict[str, Tensor]:
    """The parameters in a checkpoint, on the CPU.

    Args:
        path: A file as BasicSR writes it, ``{'params': ..., 'params_ema': ...}``, or a plain state dict.
        param_key: ``params`` or ``params_ema``; as in BasicSR, ``params`` is taken if the file lacks the key.

    Raises:
        OptionError: There is no such file, it is damaged, or it holds anything but tensors and plain values.
    """
    if not Path(path).is_file():
        raise OptionError(f'path: no checkpoint {str(path)!r} (looked in {Path(path).absolute()}).')
    try:
        content = torch.load(path, map_location='cpu', weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = (str(error).splitlines() or ['it is empty'])[0]
        raise OptionError(f'path: {path}: not a checkpoint that is safe to load (damaged, or it holds more than '
                          f'tensors): {reason}') from None
    for key in (param_key, 'params'):
        if key is not None and isinstance(content, dict) and key in content:
            content = content[key]
            break
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise OptionError(f'path: {path}: no parameters under {param_key!r}; found {found}.')
    return {key.removeprefix('module.'): value for key, value in content.items()}


def check_fits(path: str | Path, parameters: dict[str, Tensor], net: nn.Module) -> None:
    """Raise OptionError if ``parameters`` are not exactly those of ``net``, saying what they are."""
    wanted = net.state_dict()
    missing, unknown = wanted.keys() - parameters.keys(), parameters.keys() - wanted.keys()
    reshaped = [key for key in wanted.keys() & parameters.keys() if wanted[key].shape != parameters[key].shape]
    if not (missing or unknown or reshaped):
        return
    key = min(reshaped or missing or unknown)
    detail = (f'{key} has shape {tuple(parameters[key].shape)}, not {tuple(wanted[key].shape)}' if reshaped
              else f'{key} is {"missing" if missing else "unknown"}')
    name = type(net).__name__ + (f' variant {net.variant}' if isinstance(net, RDBMUNet) else '')
    found = next((f' (RDBMUNet variant {variant})' for variant in VARIANTS if _is_variant(parameters, variant)), '')
    raise OptionError(
        f'path: {path}: holds {_millions(parameters)} parameters{found}, but network_g is {name} with '
        f'{_millions(wanted)}: {len(missing)} missing, {len(unknown)} unknown, {len(reshaped)} of another shape; '
        f'first: {detail}. Set network_g to the network that was trained, or choose its checkpoint.')


def _is_variant(parameters: dict[str, Tensor], variant: str) -> bool:
    with torch.device('meta'):
        expected = RDBMUNet(variant).state_dict()
    return {k: v.shape for k, v in expected.items()} == {k: v.shape for k, v in parameters.items()}


def _millions(parameters: dict[str, Tensor]) -> str:
    return f'{sum(value.numel() for value in parameters.values()) / 1e6:.2f} M'
