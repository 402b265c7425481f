# The quickstart with parameters, gradients and optimizer state sharded over all ranks (FSDP).
#   torchrun --nproc_per_node=2 -m rdbm_plugin.mmengine options/mmengine/rdbm_fsdp.py --launcher pytorch
# Our networks fit on every GPU; this config is for larger ones. It has no EMAHook, which needs unsharded parameters.
# For DeepSpeed (pip install deepspeed; untested):
#   strategy = dict(type='DeepSpeedStrategy', zero_optimization=dict(stage=2), bf16=dict(enabled=True))
#   optim_wrapper = dict(type='DeepSpeedOptimWrapper', optimizer=dict(type='AdamW', lr=1e-3))
# ruff: noqa: C408
_base_ = ['rdbm_quickstart.py']

strategy = dict(
    type='rdbm_plugin.ResumableFSDPStrategy',
    state_dict_cfg='full',  # checkpoints like those of one process
    model_wrapper=dict(type='MMFullyShardedDataParallel', use_orig_params=True),
)
custom_hooks = [
    dict(type='rdbm_plugin.RepeatableHook'),
    dict(type='rdbm_plugin.PlainCheckpointHook'),
    dict(type='rdbm_plugin.PictureHook'),
]
