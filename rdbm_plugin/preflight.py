"""Checks an option file's objects before anything is built or written. Needs BasicSR."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from basicsr.utils import registry

from rdbm_plugin.bridge import build_bridge
from rdbm_plugin.models.checkpoint import check_fits, read_parameters
from rdbm_plugin.options import OptionError, build, check_choice, check_keys
from rdbm_plugin.samplers import build_sampler


def registered(name: str) -> dict[str, Any]:
    """Name -> class of one of BasicSR's registries, such as ``registered('ARCH')``."""
    return dict(iter(getattr(registry, f'{name}_REGISTRY')))


def _block(opt: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = opt.get(key)
    if not isinstance(found, Mapping):
        raise OptionError(f'{key}: found {found!r}; expected a block of "key: value" lines.')
    return dict(found)


def check_model(opt: Mapping[str, Any]) -> None:
    """Check bridge, sampler, network, checkpoint and loss of an RDBMModel.

    Raises:
        OptionError: Naming the key or file, what was found and what is allowed.
    """
    bridge = build_bridge(opt.get('bridge'), registered('BRIDGE'))
    build_sampler((opt.get('val') or {}).get('sampler'), bridge, registered('SAMPLER'))
    with torch.device('meta'):
        net = build('network_g', _block(opt, 'network_g'), registered('ARCH'))
    path = opt.get('path') or {}
    checkpoint = path.get('pretrain_network_g')
    if checkpoint is not None and path.get('strict_load_g', True):
        check_fits(checkpoint, read_parameters(checkpoint, path.get('param_key_g', 'params')), net)
    if opt.get('is_train') and (opt.get('train') or {}).get('pixel_opt'):
        build('train: pixel_opt', opt['train']['pixel_opt'], registered('LOSS'))


def check_options(opt: Mapping[str, Any]) -> None:
    """Check what :func:`check_model` checks if the model is ours, and the data sets and types of any model.

    Raises:
        OptionError: Naming the key or file, what was found and what is allowed.
    """
    model = registered('MODEL')[check_choice('model_type', opt.get('model_type'), registered('MODEL'))]
    if model.__module__.startswith('rdbm_plugin.'):
        check_model(opt)
    else:
        network = _block(opt, 'network_g')
        check_keys('network_g', {k: v for k, v in network.items() if k != 'type'},
                   registered('ARCH')[check_choice('network_g: type', network.get('type'), registered('ARCH'))])
    for phase, dataset in _block(opt, 'datasets').items():
        where = f'datasets: {phase}'
        cls = registered('DATASET')[check_choice(f'{where}: type', dataset.get('type'), registered('DATASET'))]
        if cls.__module__.startswith('rdbm_plugin.'):
            cls(dataset)
            continue
        for key, value in dataset.items():
            if value is not None and key.startswith(('dataroot', 'meta_info_file')):
                for root in value if isinstance(value, list) else [value]:
                    if not Path(root).expanduser().exists():
                        raise OptionError(f'{where}: {key}: no such file or folder {root!r} '
                                          f'(looked in {Path(root).absolute()}).')
