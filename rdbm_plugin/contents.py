"""The one list of what the plugin registers, by BasicSR's registry; each as module:name. Needs torch, not BasicSR."""
from __future__ import annotations

from rdbm_plugin.bridge import BRIDGES
from rdbm_plugin.samplers import SAMPLERS

REGISTERED = {
    'BRIDGE_REGISTRY': tuple(f'rdbm_plugin.bridge:{name}' for name in BRIDGES),
    'SAMPLER_REGISTRY': tuple(f'rdbm_plugin.samplers:{name}' for name in SAMPLERS),
    'ARCH_REGISTRY': ('rdbm_plugin.archs.rdbm_unet_arch:RDBMUNet',
                      'rdbm_plugin.archs.bridge_backbone_arch:BridgeBackbone',
                      'rdbm_plugin.archs.conditional_unet_arch:ConditionalUNet'),
    'LOSS_REGISTRY': ('rdbm_plugin.losses.residual_modulated_loss:ResidualModulatedLoss',),
    'DATASET_REGISTRY': ('rdbm_plugin.data.synthetic_universal_dataset:SyntheticUniversalDataset',
                         'rdbm_plugin.data.universal_paired_dataset:UniversalPairedDataset'),
    'METRIC_REGISTRY': tuple(f'rdbm_plugin.metrics.protocols:{name}' for name in (
        'psnr_rgb', 'ssim_rgb', 'psnr_y', 'ssim_y', 'psnr_gt_mean', 'ssim_gt_mean', 'lpips', 'pyiqa_score')),
    'MODEL_REGISTRY': ('rdbm_plugin.models.rdbm_model:RDBMModel',),
}
