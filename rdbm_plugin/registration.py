"""Importing this module puts the plugin's classes into BasicSR's registries, and does nothing else.

An option file does it with one line, as BasicSR's YAML loader imports what the tag names::

    plugin: !!python/name:rdbm_plugin.registration.__version__
"""
from __future__ import annotations

from importlib import import_module

from rdbm_plugin import __version__, compat
from rdbm_plugin.bridge import BRIDGES
from rdbm_plugin.samplers import SAMPLERS

compat.provide_functional_tensor()
_registry = import_module('basicsr.utils.registry')

for _name in ('BRIDGE', 'SAMPLER'):
    if not hasattr(_registry, f'{_name}_REGISTRY'):
        setattr(_registry, f'{_name}_REGISTRY', _registry.Registry(_name.lower()))
BRIDGE_REGISTRY = _registry.BRIDGE_REGISTRY
SAMPLER_REGISTRY = _registry.SAMPLER_REGISTRY

REGISTERED = {
    'BRIDGE_REGISTRY': tuple(f'rdbm_plugin.bridge:{name}' for name in BRIDGES),
    'SAMPLER_REGISTRY': tuple(f'rdbm_plugin.samplers:{name}' for name in SAMPLERS),
    'ARCH_REGISTRY': ('rdbm_plugin.archs.rdbm_unet_arch:RDBMUNet',
                      'rdbm_plugin.archs.bridge_backbone_arch:BridgeBackbone'),
    'LOSS_REGISTRY': ('rdbm_plugin.losses.residual_modulated_loss:ResidualModulatedLoss',),
    'DATASET_REGISTRY': ('rdbm_plugin.data.synthetic_universal_dataset:SyntheticUniversalDataset',
                         'rdbm_plugin.data.universal_paired_dataset:UniversalPairedDataset'),
    'METRIC_REGISTRY': tuple(f'rdbm_plugin.metrics.protocols:{name}' for name in (
        'psnr_rgb', 'ssim_rgb', 'psnr_y', 'ssim_y', 'psnr_gt_mean', 'ssim_gt_mean', 'lpips', 'pyiqa_score')),
    'MODEL_REGISTRY': ('rdbm_plugin.models.rdbm_model:RDBMModel',),
}
"""Registry -> what this plugin puts there, as module:name. The one list of what is registered."""

for _registry_name, _entries in REGISTERED.items():
    for _module, _name in (entry.split(':') for entry in _entries):
        if _name not in getattr(_registry, _registry_name):
            getattr(_registry, _registry_name).register(getattr(import_module(_module), _name))

__all__ = ['BRIDGE_REGISTRY', 'REGISTERED', 'SAMPLER_REGISTRY', '__version__']
