"""The keys of an option file, block by block, and what may stand there. Needs the standard library only."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePath
from typing import Any, NamedTuple

from rdbm_plugin.config.options import OptionError, check_choice, check_int, check_number, suggest

Kind = Callable[[str, Any], Any]


def _whole(low: int) -> Kind:
    return lambda key, value: check_int(key, value, low)


def _seed(key: str, value: Any) -> None:
    # numpy takes 32 bits, and every rank and worker adds its number.
    check_int(key, value, 0, 2**32 - 2**16)


def _ratio(key: str, value: Any) -> None:
    if isinstance(value, str):
        raise OptionError(f'{key}: found the text {value!r}; expected a number.')
    check_number(key, value, above=0)


def _interval(key: str, value: Any) -> None:
    # BasicSR's own files write !!float 5e3.
    if isinstance(value, str) or check_number(key, value, 1) % 1:
        raise OptionError(f'{key}: found {value!r}; expected a whole number of iterations.')


def _fraction(key: str, value: Any) -> None:
    if isinstance(value, str) or check_number(key, value, 0) >= 1:
        raise OptionError(f'{key}: found {value!r}; expected a number >= 0 and < 1, such as 0.999.')


def _switch(key: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise OptionError(f'{key}: found {value!r}; expected true or false.')


def _text(key: str, value: Any) -> None:
    if not isinstance(value, str) or not value:
        raise OptionError(f'{key}: found {value!r}; expected text; put in quotes what YAML takes for something else.')


def _name(key: str, value: Any) -> None:
    _text(key, value)
    if '..' in PurePath(value).parts or PurePath(value).is_absolute() or '\0' in value:
        raise OptionError(f'{key}: found {value!r}; expected the name of a folder within experiments/.')


def _block(key: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        raise OptionError(f'{key}: found {value!r}; expected a block of "key: value" lines.')


def _gpus(key: str, value: Any) -> None:
    if value != 'auto':
        check_int(key, value, 0)


def _any(key: str, value: Any) -> None:
    pass


def _maybe(kind: Kind) -> Kind:
    return lambda key, value: value is None or kind(key, value)


KEYS: dict[str, dict[str, Kind]] = {
    '': {'name': _name, 'model_type': _text, 'scale': _whole(1), 'num_gpu': _gpus, 'manual_seed': _maybe(_seed),
         'plugin': _any, 'bridge': _maybe(_block), 'datasets': _block, 'network_g': _block, 'path': _block,
         'train': _block, 'val': _maybe(_block), 'logger': _block, 'dist_params': _block,
         'find_unused_parameters': _switch, 'auto_resume': _switch, 'is_train': _switch, 'dist': _switch,
         'rank': _any, 'world_size': _any, 'root_path': _any},
    'train': {'ema_decay': _fraction, 'node_t_share': _any, 'own_start_share': _any, 'amp': _any,
              'grad_clip': _any, 'micro_batches': _maybe(_whole(1)), 'nonfinite_limit': _maybe(_whole(1)),
              'optim_g': _block, 'scheduler': _block, 'total_iter': _interval, 'warmup_iter': _whole(-1),
              'pixel_opt': _maybe(_block), 'perceptual_opt': _maybe(_block)},
    'val': {'val_freq': _interval, 'save_img': _switch, 'pbar': _switch, 'suffix': _maybe(_text),
            'sampler': _maybe(_block), 'metrics': _maybe(_block), 'tile': _any, 'tile_overlap': _any,
            'rgb2bgr': _switch, 'use_image': _switch},
    'logger': {'print_freq': _interval, 'save_checkpoint_freq': _interval, 'keep_last': _maybe(_whole(1)),
               'keep_best': _maybe(_text), 'use_tb_logger': _maybe(_switch), 'wandb': _maybe(_block)},
    'path': {'pretrain_network_g': _maybe(_text), 'param_key_g': _maybe(_text), 'strict_load_g': _maybe(_switch),
             'resume_state': _maybe(_text), 'ignore_resume_networks': _any, 'root': _any, 'experiments_root': _any,
             'models': _any, 'training_states': _any, 'log': _any, 'visualization': _any, 'results_root': _any},
}
"""Block -> the keys that BasicSR and RDBMModel read there, and their check; '' is the top of the file."""

NEEDED = {'': ('name', 'num_gpu', 'datasets', 'path', 'train', 'logger'),
          'train': ('optim_g', 'scheduler', 'total_iter'),
          'logger': ('print_freq', 'save_checkpoint_freq', 'use_tb_logger'), 'val': ('val_freq', 'save_img')}
"""Block -> the keys without which BasicSR's training fails, some of them days after its start."""

_LOADED = {'batch_size_per_gpu': _whole(1), 'num_worker_per_gpu': _whole(0), 'dataset_enlarge_ratio': _ratio,
           'dataroot_gt': _maybe(_text), 'dataroot_lq': _maybe(_text),
           'prefetch_mode': _maybe(lambda key, value: check_choice(key, value, ('cpu', 'cuda'))),
           'num_prefetch_queue': _whole(1), 'pin_memory': _switch, 'persistent_workers': _switch}
_PAIRED = {'name', 'type', 'phase', 'scale', 'filename_tmpl', 'meta_info_file',
           'io_backend', 'gt_size', 'use_hflip', 'use_rot', 'use_shuffle', 'color', 'mean', 'std', *_LOADED}
"""What BasicSR's PairedImageDataset, SingleImageDataset and their loaders read."""


class UnknownKey(NamedTuple):
    """A key that nobody is known to read."""

    block: str
    message: str
    mistaken: bool
    """At the top of the file a lab may have keys of its own; those that resemble no known one are not refused."""


def unknown_keys(opt: Mapping[str, Any]) -> Iterator[UnknownKey]:
    """The keys that neither BasicSR nor RDBMModel reads, with the nearest that they do."""
    for name, known in KEYS.items():
        content = opt.get(name) if name else opt
        for key in content if isinstance(content, Mapping) else ():
            if key in known:
                continue
            homes = [other or 'the top of the file' for other in KEYS if key in KEYS[other]]
            hint = f' It belongs under {homes[0]}; check its indentation.' if homes else suggest(str(key), known)
            yield UnknownKey(name, f'key {key!r} is not known to be read by anyone.{hint}', bool(name or hint))
    for phase, dataset in _datasets(opt):
        if dataset.get('type') in ('PairedImageDataset', 'SingleImageDataset'):
            for key in dataset:
                if key not in _PAIRED:
                    message = f'key {key!r} is not known to be read by anyone.{suggest(str(key), _PAIRED)}'
                    yield UnknownKey(f'datasets: {phase}', message, True)


def check_values(opt: Mapping[str, Any]) -> None:
    """Raise OptionError at the first value that is not what its key holds, or a key that training needs."""
    for name, kinds in KEYS.items():
        content = opt.get(name) if name else opt
        if not isinstance(content, Mapping):
            continue
        for key in NEEDED.get(name, ()) if opt.get('is_train') else ():
            if key not in content:
                raise OptionError(f'{f"{name}: " if name else ""}key {key!r} is missing.{suggest(key, content)}')
        for key, value in content.items():
            if key in kinds:
                kinds[key](f'{name}: {key}' if name else key, value)
    for phase, dataset in _datasets(opt):
        for key, value in dataset.items():
            if key in _LOADED:
                _LOADED[key](f'datasets: {phase}: {key}', value)
    if opt.get('is_train'):
        _check_training_set(opt)


def _check_training_set(opt: Mapping[str, Any]) -> None:
    train = opt['datasets'].get('train')
    if train is None:
        raise OptionError(f"datasets: key 'train' is missing; found {', '.join(map(str, opt['datasets'])) or 'none'}.")
    for key in ('batch_size_per_gpu', 'num_worker_per_gpu'):
        if key not in train:
            raise OptionError(f'datasets: train: key {key!r} is missing.{suggest(key, train)}')
    if train.get('prefetch_mode') == 'cpu' and not train['num_worker_per_gpu']:
        raise OptionError('datasets: train: prefetch_mode: cpu with num_worker_per_gpu: 0 would let two threads read '
                          'one data set, and runs would not repeat; use workers.')
    if train.get('prefetch_mode') == 'cuda' and (opt.get('num_gpu') == 0 or train.get('pin_memory') is not True):
        raise OptionError('datasets: train: prefetch_mode: cuda needs a GPU and pin_memory: true.')
    for phase in opt['datasets']:
        if phase != 'train' and phase.split('_')[0] != 'val':
            raise OptionError(f'datasets: {phase}: expected train, val, val_1, val_2, ... in a training.')
    if len(opt['datasets']) > 1 and not opt.get('val'):
        raise OptionError('val: missing or empty, but there are validation sets; nothing would be validated.')
    parts = opt['train'].get('micro_batches') or 1
    if parts > train['batch_size_per_gpu']:
        raise OptionError(f'train: micro_batches: found {parts}; batch_size_per_gpu is {train["batch_size_per_gpu"]}.')


def _datasets(opt: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    datasets = opt.get('datasets')
    if isinstance(datasets, Mapping):
        for phase, dataset in datasets.items():
            _block(f'datasets: {phase}', dataset)
            yield str(phase), dataset
