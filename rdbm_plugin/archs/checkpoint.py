"""Reading network checkpoints in BasicSR's layout or as safetensors, without running what a pickle might hold."""
from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from rdbm_plugin.archs.mmengine_layout import is_of_mmengine, to_basicsr
from rdbm_plugin.archs.rdbm_unet_arch import VARIANTS, RDBMUNet
from rdbm_plugin.config.atomic_write import write_atomically
from rdbm_plugin.config.options import OptionError


def read_safely(path: str | Path) -> Any:
    """What torch.save has written to ``path``, on the CPU, if it is tensors and plain values alone.

    Raises:
        OptionError: It is damaged, or holds more than that.
    """
    try:
        return torch.load(path, map_location='cpu', weights_only=True)
    # torch raises any of these on damaged files, and UnpicklingError on what would run code.
    except (UnpicklingError, RuntimeError, EOFError, ValueError, OSError, LookupError, TypeError,
            AttributeError) as error:
        reason = (str(error).splitlines() or ['it is empty'])[0]
        raise OptionError(f'path: {path}: not a checkpoint that is safe to load (damaged, or it holds more than '
                          f'tensors): {reason}') from None


def read_parameters(path: str | Path, param_key: str | None = 'params') -> dict[str, Tensor]:
    """The parameters in a checkpoint, on the CPU.

    Args:
        path: A file as BasicSR writes it, ``{'params': ..., 'params_ema': ...}``, a plain state dict such as the
            ``*_G.pth`` and ``lastest_EMA.pth`` of IR-SDE and GOUB, the state of ema_pytorch's EMA, a checkpoint of
            BridgeRestorer under mmengine, or a ``.safetensors`` file.
        param_key: ``params`` or ``params_ema``; as in BasicSR, ``params`` is taken if the file lacks the key. Of
            EMA's two networks ``params`` is the online one, anything else the average.

    Raises:
        OptionError: There is no such file, it is damaged, or it holds anything but tensors and plain values.
    """
    if not Path(path).is_file():
        raise OptionError(f'path: no checkpoint {str(path)!r} (looked in {Path(path).absolute()}).')
    content = _read_safetensors(path) if Path(path).suffix == '.safetensors' else read_safely(path)
    if is_of_mmengine(content):
        content = to_basicsr(content)
    for key in (param_key, 'params'):
        if key is not None and isinstance(content, dict) and key in content:
            content = content[key]
            break
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise OptionError(f'path: {path}: no parameters under {param_key!r}; found {found}.')
    return {str(key).removeprefix('module.'): value for key, value in _of_ema(content, param_key).items()}


def _of_ema(state: dict[str, Tensor], param_key: str | None) -> dict[str, Tensor]:
    """One network of a state of github.com/lucidrains/ema-pytorch, which holds two and counters; others as they are."""
    if not {'initted', 'step'} <= state.keys():
        return state
    # EMA need not save the online network.
    for name in ('online_model.', 'ema_model.') if param_key == 'params' else ('ema_model.',):
        found = {str(key).removeprefix(name): value for key, value in state.items() if str(key).startswith(name)}
        if found:
            return found
    return state


def _read_safetensors(path: str | Path) -> dict[str, Any]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise OptionError(f'path: {path}: reading it needs safetensors: pip install safetensors') from None
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise OptionError(f'path: {path}: damaged, or no safetensors file: {error}') from None


def write_safetensors(parameters: dict[str, Tensor], path: str | Path) -> None:
    """Write parameters as a safetensors file, whole or not at all.

    Raises:
        OptionError: safetensors is not installed.
        OSError: It could not be written; nothing is left behind.
    """
    try:
        from safetensors.torch import save
    except ImportError:
        raise OptionError(f'{path}: writing it needs safetensors: pip install safetensors') from None
    write_atomically(Path(path), save({name: value.detach().cpu().contiguous() for name, value in parameters.items()}))


def load_weights(net: nn.Module, path: str | Path, param_key: str | None) -> None:
    """Load the weights of a file that must fit a network exactly.

    Raises:
        OptionError: As :func:`read_parameters` and :func:`check_fits`.
    """
    parameters = read_parameters(path, param_key)
    check_fits(path, parameters, net)
    net.load_state_dict(parameters)


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
