"""The keys of an option file, block by block, and their allowed values. Needs the standard library only."""
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePath
from typing import Any, NamedTuple

from rdbm_plugin.config.options import OptionError, check_block, check_choice, check_int, suggest

Kind = Callable[[str, Any], Any]


def _int(low: int, high: int | None = None) -> Kind:
    return lambda key, value: check_int(key, value, low, high)


def _is(right: Callable[[Any], Any], expected: str) -> Kind:
    def check(key: str, value: Any) -> None:
        if not right(value):
            raise OptionError(f'{key}: found {value!r}; expected {expected}.')
    return check


def _optional(kind: Kind, otherwise: Any = None) -> Kind:
    return lambda key, value: value == otherwise or kind(key, value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _block(key: str, value: Any) -> None:
    check_block({key: value}, key)


def _name(key: str, value: Any) -> None:
    _text(key, value)
    if '..' in PurePath(value).parts or PurePath(value).is_absolute() or '\0' in value:
        raise OptionError(f'{key}: found {value!r}; expected the name of a folder within experiments/.')


_text = _is(lambda value: value and isinstance(value, str), 'text; put it in quotes if YAML reads it as another type')
_roots = _is(lambda value: value and all(isinstance(root, str) and root for root in (
    value if isinstance(value, list) else [value])), 'a path, or a list of paths')
_switch = _is(lambda value: isinstance(value, bool), 'true or false')
_ratio = _is(lambda value: _is_number(value) and 0 < value < math.inf, 'a number > 0')
_fraction = _is(lambda value: _is_number(value) and 0 <= value < 1, 'a number >= 0 and < 1, such as 0.999')
# BasicSR's own files write !!float 5e3.
_interval = _is(lambda value: _is_number(value) and value >= 1 and value % 1 == 0, 'a whole number of iterations')
# numpy takes 32 bits, and every rank and worker adds its index.
_seed = _int(0, 2**32 - 2**16)


KEYS: dict[str, dict[str, Kind | None]] = {
    '': {'name': _name, 'model_type': _text, 'scale': _int(1), 'num_gpu': _optional(_int(0), 'auto'),
         'manual_seed': _optional(_seed), 'plugin': None, 'bridge': _optional(_block), 'datasets': _block,
         'network_g': _block, 'path': _block, 'train': _block, 'val': _optional(_block), 'logger': _block,
         'dist_params': _block, 'find_unused_parameters': _switch, 'auto_resume': _switch, 'is_train': _switch,
         'dist': _switch, 'rank': None, 'world_size': None, 'root_path': None},
    'train': {'ema_decay': _fraction, 'node_t_share': None, 'own_start_share': None, 'passes': None,
              'pass_nodes': None, 'amp': None, 'grad_clip': None, 'micro_batches': _optional(_int(1)),
              'nonfinite_limit': _optional(_int(1)), 'capture': None, 'compile': _optional(_switch),
              'optim_g': _block, 'scheduler': _block, 'total_iter': _interval, 'warmup_iter': _int(-1),
              'pixel_opt': _optional(_block), 'perceptual_opt': _optional(_block)},
    'val': {'val_freq': _interval, 'save_img': _switch, 'pbar': _switch, 'suffix': _optional(_text),
            'sampler': _optional(_block), 'metrics': _optional(_block), 'tile': None, 'tile_overlap': None,
            'other_bridge': _switch, 'rgb2bgr': _switch, 'use_image': _switch},
    'logger': {'print_freq': _interval, 'save_checkpoint_freq': _interval, 'keep_last': _optional(_int(1)),
               'keep_best': _optional(_text), 'use_tb_logger': _optional(_switch), 'wandb': _optional(_block)},
    'path': {'pretrain_network_g': _optional(_text), 'param_key_g': _optional(_text),
             'strict_load_g': _optional(_switch), 'resume_state': _optional(_text), 'ignore_resume_networks': None,
             'root': None, 'experiments_root': None, 'models': None, 'training_states': None, 'log': None,
             'visualization': None, 'results_root': None},
}
"""Block -> the keys that BasicSR and RDBMModel read there, with their checks, if any; '' is the top of the file."""

NEEDED = {'': ('name', 'num_gpu', 'datasets', 'path', 'train', 'logger'),
          'train': ('optim_g', 'scheduler', 'total_iter'),
          'datasets: train': ('batch_size_per_gpu', 'num_worker_per_gpu'),
          'logger': ('print_freq', 'save_checkpoint_freq', 'use_tb_logger'), 'val': ('val_freq', 'save_img')}
"""Block -> the keys without which BasicSR's training fails, for some of them only after days."""

_DATASET = {**dict.fromkeys(('name', 'type', 'phase', 'scale', 'filename_tmpl', 'meta_info_file', 'io_backend',
                             'gt_size', 'use_hflip', 'use_rot', 'use_shuffle', 'color', 'mean', 'std')),
            'batch_size_per_gpu': _int(1), 'num_worker_per_gpu': _int(0), 'dataset_enlarge_ratio': _ratio,
            'dataroot_gt': _optional(_roots), 'dataroot_lq': _optional(_roots),
            'prefetch_mode': _optional(lambda key, value: check_choice(key, value, ('cpu', 'cuda'))),
            'num_prefetch_queue': _int(1), 'pin_memory': _switch, 'persistent_workers': _switch}
"""The same for BasicSR's PairedImageDataset, SingleImageDataset and their loaders; other data sets read more keys."""


class UnknownKey(NamedTuple):
    """A key that nothing is known to read."""

    block: str
    message: str
    mistaken: bool
    """False for keys at the top of the file that resemble no known key: a lab may have its own keys there."""


def unknown_keys(opt: Mapping[str, Any]) -> Iterator[UnknownKey]:
    """Yield the keys that neither BasicSR nor RDBMModel reads, each with the nearest key that they do read."""
    for name, content, known in _blocks(opt):
        if known is _DATASET and content.get('type') not in ('PairedImageDataset', 'SingleImageDataset'):
            continue
        for key in content:
            if key not in known:
                homes = [other or 'the top of the file' for other in KEYS if key in KEYS[other]]
                hint = f' It belongs under {homes[0]}; check its indentation.' if homes else suggest(str(key), known)
                message = f'key {key!r} is unknown; neither BasicSR nor RDBMModel reads it.{hint}'
                yield UnknownKey(name, message, bool(name or hint))


def check_values(opt: Mapping[str, Any]) -> None:
    """Raise OptionError for the first value that its key does not allow, or key that training lacks."""
    for name, content, known in _blocks(opt):
        where = f'{name}: ' if name else ''
        for key in NEEDED.get(name, ()) if opt.get('is_train') else ():
            if key not in content:
                raise OptionError(f'{where}key {key!r} is missing.{suggest(key, content)}')
        for key, value in content.items():
            if check := known.get(key):
                check(f'{where}{key}', value)
    if opt.get('is_train'):
        _check_training_set(opt)


def _blocks(opt: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any], dict[str, Kind | None]]]:
    """Yield the name, content and known keys of each block."""
    for name, known in KEYS.items():
        content = opt.get(name) if name else opt
        if isinstance(content, Mapping):
            yield name, content, known
    datasets = opt.get('datasets')
    for phase, dataset in datasets.items() if isinstance(datasets, Mapping) else ():
        _block(f'datasets: {phase}', dataset)
        yield f'datasets: {phase}', dataset, _DATASET


def _check_training_set(opt: Mapping[str, Any]) -> None:
    train = opt['datasets'].get('train')
    if train is None:
        raise OptionError(f"datasets: key 'train' is missing; found {', '.join(map(str, opt['datasets'])) or 'none'}.")
    if train.get('prefetch_mode') == 'cpu' and not train['num_worker_per_gpu']:
        raise OptionError('datasets: train: prefetch_mode: found cpu with num_worker_per_gpu: 0; expected at least one '
                          'worker, because runs do not repeat if two threads read one data set.')
    if train.get('prefetch_mode') == 'cuda' and (opt.get('num_gpu') == 0 or train.get('pin_memory') is not True):
        raise OptionError('datasets: train: prefetch_mode: found cuda; it needs a GPU and pin_memory: true.')
    for phase in opt['datasets']:
        if phase != 'train' and phase.split('_')[0] != 'val':
            raise OptionError(f'datasets: {phase}: expected train, val, val_1, val_2, ... for training.')
    if len(opt['datasets']) > 1 and not opt.get('val'):
        raise OptionError('val: missing or empty, but there are validation sets; nothing would be validated.')
    parts = opt['train'].get('micro_batches') or 1
    if parts > train['batch_size_per_gpu']:
        raise OptionError(f'train: micro_batches: found {parts}; batch_size_per_gpu is {train["batch_size_per_gpu"]}.')
