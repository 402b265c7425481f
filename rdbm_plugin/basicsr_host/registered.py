"""The one list of what the plugin registers: BasicSR's registry -> 'module:name' of each entry. Needs torch only."""
from rdbm_plugin.bridge import BRIDGES
from rdbm_plugin.samplers import SAMPLERS

REGISTERED = {
    'BRIDGE': tuple(f'rdbm_plugin.bridge:{name}' for name in BRIDGES),
    'SAMPLER': tuple(f'rdbm_plugin.samplers:{name}' for name in SAMPLERS),
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
