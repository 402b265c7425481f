# The quickstart under mmengine's Runner: five restoration tasks on the photos that come with scikit-image. With AdamW
# and 3,000 iterations; dict(type='rdbm_plugin.Muon', lr=1.5e-3, ...) takes Muon, as options/train_rdbm_quickstart.yml.
#   python -m rdbm_plugin.mmengine options/mmengine/rdbm_quickstart.py
# Everything here can be changed on the command line, for example:
#   --cfg-options train_cfg.max_iters=300 param_scheduler.T_max=300
# ruff: noqa: C408
iterations = 3000
tasks = ['derain', 'lowlight', 'desnow', 'dehaze', 'deblur']

# What to learn -------------------------------------------------------------------------------------------------------
model = dict(
    type='rdbm_plugin.BridgeRestorer',
    network=dict(type='RDBMUNet', variant='T'),  # T, S, B or L, or any network that takes (x_t, mu, t)
    bridge=dict(type='ResidualBridge', modulation='residual', schedule='cosine', timesteps=100,
                stationary_variance='10/255', prediction='residual'),
    loss=dict(type='ResidualModulatedLoss', criterion='l1', measure='residual', balance=0.5),
    sampler=dict(type='BridgeSampler', steps=10),
    node_t_share=0.6,  # share of samples at t = T, where sampling starts; None: 1/T (the paper's)
    own_start_share=1.0,  # on-policy states: share of the others, made from the network's own estimate; 0: none
)

# Data ----------------------------------------------------------------------------------------------------------------
train_dataloader = dict(
    batch_size=14,  # a multiple of the number of tasks balances each batch
    num_workers=1,
    sampler=dict(type='InfiniteSampler'),
    collate_fn=dict(type='default_collate'),
    dataset=dict(type='rdbm_plugin.SyntheticUniversalDataset', phase='train', dataroot_gt='embedded',
                 tasks=[*tasks, 'deblur', 'deblur'], gt_size=64, min_scale=0.5),
)
val_dataloader = dict(
    batch_size=1,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(type='rdbm_plugin.SyntheticUniversalDataset', phase='val', dataroot_gt='embedded', tasks=tasks),
)
val_evaluator = [dict(type='rdbm_plugin.psnr_rgb')]  # any metric of the plugin or of BasicSR
test_dataloader, test_evaluator = val_dataloader, val_evaluator

load_from = None  # checkpoint to start from, or with --resume to resume instead of the last one

# Training ------------------------------------------------------------------------------------------------------------
train_cfg = dict(type='IterBasedTrainLoop', max_iters=iterations, val_interval=1500)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(type='OptimWrapper',  # --amp: rdbm_plugin.Bf16OptimWrapper
                     optimizer=dict(type='AdamW', lr=1e-3, weight_decay=1e-4, betas=(0.9, 0.99)))
param_scheduler = dict(type='CosineAnnealingLR', by_epoch=False, T_max=iterations, eta_min=1e-6)
randomness = dict(seed=0, diff_rank_seed=True)

# Hooks and logs ------------------------------------------------------------------------------------------------------
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=200),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=1500, max_keep_ckpts=3, save_best='psnr_rgb',
                    rule='greater'),
)
custom_hooks = [
    dict(type='rdbm_plugin.RepeatableHook'),
    dict(type='rdbm_plugin.PlainCheckpointHook'),
    dict(type='rdbm_plugin.PictureHook'),
    dict(type='EMAHook', ema_type='ExponentialMovingAverage', momentum=0.003),  # validation uses the average
]
log_processor = dict(by_epoch=False)
visualizer = dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')])
env_cfg = dict(dist_cfg=dict(backend='nccl'))  # without GPUs, the launcher uses gloo
default_scope = 'mmengine'
