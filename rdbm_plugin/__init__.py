"""Residual Diffusion Bridge Model (RDBM, arXiv 2510.23116) as a plugin for BasicSR.

``import rdbm_plugin`` loads only this file. The names below are imported on first use and need torch but not BasicSR;
``import rdbm_plugin.registration`` adds them to BasicSR's registries.
"""
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = '0.2.0'

_LAZY = {
    'build_bridge': 'rdbm_plugin.bridge',
    'ResidualBridge': 'rdbm_plugin.bridge',
    'BridgeSampler': 'rdbm_plugin.samplers',
    'RDBMUNet': 'rdbm_plugin.archs.rdbm_unet_arch',
    'ResidualModulatedLoss': 'rdbm_plugin.losses.residual_modulated_loss',
    'Restorer': 'rdbm_plugin.inference.restorer',
    'OptionError': 'rdbm_plugin.config.options',
}
REGISTERED = {
    'ARCH': ('rdbm_plugin.archs.rdbm_unet_arch:RDBMUNet', 'rdbm_plugin.archs.bridge_backbone_arch:BridgeBackbone',
             'rdbm_plugin.archs.conditional_unet_arch:ConditionalUNet'),
    'LOSS': ('rdbm_plugin.losses.residual_modulated_loss:ResidualModulatedLoss',),
    'DATASET': ('rdbm_plugin.data.synthetic_universal_dataset:SyntheticUniversalDataset',
                'rdbm_plugin.data.universal_paired_dataset:UniversalPairedDataset'),
    'METRIC': tuple(f'rdbm_plugin.evaluation.protocols:{name}' for name in (
        'psnr_rgb', 'ssim_rgb', 'psnr_y', 'ssim_y', 'psnr_gt_mean', 'ssim_gt_mean', 'fid', 'kid', 'lpips',
        'pyiqa_score')),
    'MODEL': ('rdbm_plugin.models.rdbm_model:RDBMModel',),
}
"""BasicSR registry -> 'module:name' of each entry that the plugin adds, in addition to all bridges and samplers."""
__all__ = ['BridgeSampler', 'OptionError', 'RDBMUNet', 'ResidualBridge', 'ResidualModulatedLoss', 'Restorer',
           '__version__', 'build_bridge']

if TYPE_CHECKING:
    from rdbm_plugin.archs.rdbm_unet_arch import RDBMUNet
    from rdbm_plugin.bridge import ResidualBridge, build_bridge
    from rdbm_plugin.config.options import OptionError
    from rdbm_plugin.inference.restorer import Restorer
    from rdbm_plugin.losses.residual_modulated_loss import ResidualModulatedLoss
    from rdbm_plugin.samplers import BridgeSampler


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(_LAZY[name]), name)
