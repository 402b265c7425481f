"""Reads and writes network weights, and never runs code in a pickle. Needs torch; safetensors for files of its own."""
import json
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from rdbm_plugin.archs.rdbm_unet_arch import VARIANTS, RDBMUNet
from rdbm_plugin.config.atomic_write import write_atomically
from rdbm_plugin.config.options import OptionError

SHIPPED = Path(__file__).parent.parent / 'inference/weights/rdbm_t.pth'
"""The weights that come with the package, ``shipped`` in options; their option file has the same name."""
OPTIONS = 'rdbm_options'
"""Name of the tensor, among the parameters, that holds the options to run the network with: JSON, one byte an element.
It is int32 because spandrel does not read tensors of bytes."""
SELF_CONTAINED = 'model_state_dict'
"""Key in a .pth file for parameters with their options. BasicSR's strict loading forbids the options in ``params`` and
``params_ema``; programs that use spandrel look for this key first."""
_OF_MMENGINE = 'network.'
"""Prefix of the network's parameters in BridgeRestorer."""


def read_safely(path: str | Path) -> Any:
    """Load a file of torch.save to the CPU; raise OptionError if it holds more than tensors and plain values."""
    try:
        return torch.load(path, map_location='cpu', weights_only=True)
    # torch raises any of these for damaged files, and UnpicklingError for pickles that would run code.
    except (UnpicklingError, RuntimeError, EOFError, ValueError, OSError, LookupError, TypeError,
            AttributeError) as error:
        reason = (str(error).splitlines() or ['it is empty'])[0]
        raise OptionError(f'path: {path}: not a checkpoint that is safe to load (damaged, or it holds more than '
                          f'tensors): {reason}') from None


def find_network(path: str | Path, key: str = 'path') -> Path:
    """Return a checkpoint: ``path`` itself or, in an experiment's folder, the best network, else the newest.

    Args:
        path: File or folder; ``shipped`` for the weights that come with the package.
        key: Option key that error messages name.

    Raises:
        OptionError: The file does not exist, or the folder has no network.
    """
    path = SHIPPED if path == 'shipped' else Path(path)
    if path.is_file():
        return path
    if not path.is_dir():
        raise OptionError(f'{key}: no file {str(path)!r} (looked in {path.absolute()}).')
    found = [each for each in (*path.glob('net_g_*.pth'), *path.glob('models/net_g_*.pth')) if each.is_file()]
    named = [each for name in ('net_g_best', 'net_g_latest') for each in found if each.stem == name]
    if named:
        return named[0]
    numbered = {int(number): each for each in found if (number := each.stem.removeprefix('net_g_')).isdigit()}
    if not numbered:
        raise OptionError(f'{key}: {path}: found no net_g_best.pth, net_g_latest.pth or net_g_NUMBER.pth there or in '
                          'its folder models.')
    return numbered[max(numbered)]


def read_parameters(path: str | Path, param_key: str | None = 'params') -> dict[str, Tensor]:
    """Return the parameters in a checkpoint, on the CPU.

    ==================  ============================================================================================
    layout              what the file holds
    ==================  ============================================================================================
    BasicSR             ``params``, ``params_ema`` or both
    plain               only names and tensors, as in ``*_G.pth`` and ``lastest_EMA.pth`` of IR-SDE and GOUB
    ema_pytorch         the state of an EMA (github.com/lucidrains/ema-pytorch): two networks and counters
    mmengine            a checkpoint of BridgeRestorer
    safetensors         only names and tensors, in a file that ends in ``.safetensors``
    ==================  ============================================================================================

    Args:
        path: See :func:`find_network`.
        param_key: ``params`` or ``params_ema``; as in BasicSR, ``params`` is used if the file lacks the key. In a
            state of ema_pytorch, ``params`` is the online network, anything else the average.

    Raises:
        OptionError: The file does not exist, is damaged, or has none of these layouts.
    """
    path = find_network(path)
    content = _read(path)
    if _is_of_mmengine(content):
        content = from_mmengine(content)
    if isinstance(content, dict):
        content = next((content[key] for key in (param_key, 'params') if key is not None and key in content), content)
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise OptionError(f'path: {path}: no parameters under {param_key!r}; found {found}.')
    if {'initted', 'step'} <= content.keys():
        # ema_pytorch need not save the online network.
        names = ('online_model.', 'ema_model.') if param_key == 'params' else ('ema_model.',)
        content = next(filter(None, (_only(content, name) for name in names)), content)
    return {str(key).removeprefix('module.'): value for key, value in content.items() if key != OPTIONS}


def with_options(parameters: Mapping[str, Tensor], options: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return ``parameters`` with ``options`` (plain values) as one more tensor, named OPTIONS."""
    return {**parameters, OPTIONS: torch.tensor(list(json.dumps(options, default=str).encode()), dtype=torch.int32)}


def options_in(state: Any) -> dict[str, Any] | None:
    """Return the options among the parameters of a network, or None; raise OptionError if they are damaged."""
    if not isinstance(state, Mapping) or OPTIONS not in state:
        return None
    try:
        return dict(json.loads(bytes(state[OPTIONS].tolist())))
    except (AttributeError, TypeError, ValueError, RecursionError) as error:
        raise OptionError(f'{OPTIONS}: damaged, or not options of rdbm_plugin: {error}') from None


def read_options(path: str | Path) -> dict[str, Any] | None:
    """Return the options that a checkpoint itself holds, or None; raises as :func:`read_parameters`."""
    content = _read(find_network(path))
    return options_in(content.get(SELF_CONTAINED, content) if isinstance(content, dict) else None)


def _safetensors(path: str | Path, doing: str) -> Any:
    try:
        import safetensors.torch
        return safetensors
    except ImportError:
        raise OptionError(f'path: {path}: {doing} it needs safetensors: pip install safetensors') from None


def _read(path: Path) -> Any:
    if path.suffix != '.safetensors':
        return read_safely(path)
    library = _safetensors(path, 'reading')
    try:
        return library.torch.load_file(path)
    except (library.SafetensorError, OSError, ValueError) as error:
        raise OptionError(f'path: {path}: damaged, or not a safetensors file: {error}') from None


def write_safetensors(parameters: dict[str, Tensor], path: str | Path) -> None:
    """Write parameters as a safetensors file, atomically.

    Raises:
        OptionError: safetensors is not installed.
        OSError: The file cannot be written; nothing is left behind.
    """
    content = {name: value.detach().cpu().contiguous() for name, value in parameters.items()}
    write_atomically(Path(path), _safetensors(path, 'writing').torch.save(content))


def from_mmengine(checkpoint: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """Return the network of BridgeRestorer as {'params': ...} and, if the checkpoint has an average, 'params_ema'.

    With EMAHook, mmengine saves the average in ``state_dict`` and the trained weights in ``ema_state_dict``.

    Raises:
        OptionError: It is not a checkpoint of BridgeRestorer.
    """
    if not _is_of_mmengine(checkpoint):
        found = sorted(map(str, checkpoint)) if isinstance(checkpoint, Mapping) else type(checkpoint).__name__
        raise OptionError(f'checkpoint: found {found}; expected a checkpoint of BridgeRestorer, as mmengine saves it, '
                          f'whose state_dict has names that start with {_OF_MMENGINE!r}.')
    weights = _only(checkpoint['state_dict'], _OF_MMENGINE)
    if 'ema_state_dict' not in checkpoint:
        return {'params': weights}
    return {'params': _only(checkpoint['ema_state_dict'], f'module.{_OF_MMENGINE}'), 'params_ema': weights}


def to_mmengine(parameters: Mapping[str, Tensor], average: Mapping[str, Tensor] | None = None) -> dict[str, Any]:
    """Return a checkpoint for ``load_from`` in an mmengine config; training starts from the average if there is one."""
    first = parameters if average is None else average
    checkpoint = {'meta': {}, 'state_dict': {f'{_OF_MMENGINE}{key}': value for key, value in first.items()}}
    if average is not None:
        checkpoint['ema_state_dict'] = {f'module.{_OF_MMENGINE}{key}': value for key, value in parameters.items()}
    return checkpoint


def _is_of_mmengine(content: Any) -> bool:
    return isinstance(content, Mapping) and bool(_only(content.get('state_dict'), _OF_MMENGINE))


def _only(state: Any, prefix: str) -> dict[str, Tensor]:
    """Return the entries of a state dict that start with a prefix, without it; empty if it is not a state dict."""
    named = state.items() if isinstance(state, Mapping) else ()
    return {key.removeprefix(prefix): value for key, value in named if str(key).startswith(prefix)}


def load_weights(net: nn.Module, path: str | Path, param_key: str | None) -> None:
    """Load weights that must fit the network exactly; raises as :func:`read_parameters` and :func:`check_fits`."""
    parameters = read_parameters(path, param_key)
    check_fits(path, parameters, net)
    net.load_state_dict(parameters)


def check_fits(path: str | Path, parameters: dict[str, Tensor], net: nn.Module) -> None:
    """Raise OptionError that describes the mismatch if ``parameters`` do not fit ``net`` exactly."""
    wanted = net.state_dict()
    missing, unknown = wanted.keys() - parameters.keys(), parameters.keys() - wanted.keys()
    reshaped = [key for key in wanted.keys() & parameters.keys() if wanted[key].shape != parameters[key].shape]
    if not (missing or unknown or reshaped):
        return
    key = min(reshaped or missing or unknown)
    detail = (f'{key} has shape {tuple(parameters[key].shape)}, not {tuple(wanted[key].shape)}' if reshaped
              else f'{key} is {"missing" if missing else "unknown"}')
    name = type(net).__name__ + (f' variant {net.variant}' if isinstance(net, RDBMUNet) else '')
    shapes = {key: value.shape for key, value in parameters.items()}
    with torch.device('meta'):
        states = {variant: RDBMUNet(variant).state_dict() for variant in VARIANTS}
    found = ''.join(f' (RDBMUNet variant {variant})' for variant, state in states.items()
                    if {key: value.shape for key, value in state.items()} == shapes)
    raise OptionError(
        f'path: {path}: holds {_millions(parameters)} parameters{found}, but network_g is {name} with '
        f'{_millions(wanted)}: {len(missing)} missing, {len(unknown)} unknown, {len(reshaped)} of another shape; '
        f'first: {detail}. Set network_g to the network that was trained, or choose a checkpoint of this network.')


def _millions(parameters: dict[str, Tensor]) -> str:
    return f'{sum(value.numel() for value in parameters.values()) / 1e6:.2f} M'
