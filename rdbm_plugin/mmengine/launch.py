"""Trains under mmengine from the command line: one process, torchrun or Slurm, on GPUs or CPUs. Needs mmengine."""
import os
from argparse import ArgumentParser, Namespace
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.runner import CheckpointLoader, FlexibleRunner, Runner

from rdbm_plugin.archs.checkpoint import read_safely
from rdbm_plugin.basicsr_host import compat
from rdbm_plugin.config.options import OptionError, suggest


def launch() -> None:
    """Read the command line and train."""
    parser = ArgumentParser('python -m rdbm_plugin.mmengine', description='Train under mmengine.')
    parser.add_argument('config', type=Path, help='Python config, such as options/mmengine/rdbm_quickstart.py')
    parser.add_argument('--work-dir', help='folder for logs and checkpoints; default: work_dirs/NAME OF THE CONFIG')
    parser.add_argument('--resume', action='store_true', help='resume from the last checkpoint in the work dir, if any')
    parser.add_argument('--launcher', choices=('none', 'pytorch', 'slurm'), default='none')
    parser.add_argument('--amp', action='store_true', help='train in bfloat16')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE')
    parser.add_argument('--local-rank', '--local_rank', help='ignored; older PyTorch launchers pass it')
    args = parser.parse_args()
    cfg = read_config(args)
    found = sorted(path.name for path in Path(cfg.work_dir).glob('*.pth'))
    if found and not cfg.resume:
        raise OptionError(f'work_dir: {cfg.work_dir} has checkpoints of an earlier run ({found[0]}); resume it with '
                          '--resume, or choose another folder with --work-dir.')
    compat.keep_freed_memory()
    key, command = {'pytorch': ('RANK', 'torchrun'), 'slurm': ('SLURM_PROCID', 'srun')}.get(args.launcher, ('', ''))
    if key and key not in os.environ:
        raise OptionError(f'--launcher {args.launcher}: {key} is not set; start this command with {command}.')
    if key and not torch.cuda.is_available():
        # On GPUs, mmengine starts the process group.
        compat.start_gloo(args.launcher)
    try:
        build_runner(cfg).train()
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def read_config(args: Namespace) -> Config:
    """Read the config and apply the changes of the command line."""
    if not args.config.is_file():
        raise OptionError(f'config: no file {str(args.config)!r} (looked in {args.config.absolute()}).')
    try:
        cfg = Config.fromfile(args.config)
    except Exception as error:
        # A config is a program and can raise anything.
        raise OptionError(f'config: {args.config}: {type(error).__name__}: {error}') from error
    for key in args.cfg_options:
        if (block := key.split('.')[0]) not in cfg:
            raise OptionError(f'--cfg-options: {key}: {args.config.name} has no {block!r}.{suggest(block, cfg)}')
    cfg.merge_from_dict(args.cfg_options)
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or str(Path('work_dirs', args.config.stem))
    cfg.launcher, cfg.resume = args.launcher, args.resume or cfg.get('resume', False)
    if args.amp:
        wrapper = cfg.get('optim_wrapper', {}).get('type')
        if wrapper != 'OptimWrapper':
            raise OptionError(f'--amp: optim_wrapper: type: found {wrapper!r}; --amp replaces only OptimWrapper.')
        cfg.optim_wrapper.type = 'rdbm_plugin.Bf16OptimWrapper'
    return cfg


def build_runner(cfg: Config) -> Runner | FlexibleRunner:
    """Build a Runner, or a FlexibleRunner for a config with a ``strategy``; neither runs code in a pickle."""
    def load_from_local(filename: str, map_location: object) -> object:
        return read_safely(Path(filename).expanduser())

    CheckpointLoader.register_scheme(prefixes='', loader=load_from_local, force=True)
    strategy = cfg.get('strategy')
    if cfg.launcher != 'none' and not torch.cuda.is_available():
        # By default mmengine passes the number of a GPU.
        if strategy is None:
            cfg.setdefault('model_wrapper_cfg', {'type': 'MMDistributedDataParallel', 'broadcast_buffers': False})
            cfg.model_wrapper_cfg.setdefault('device_ids', None)
        elif strategy.type == 'DDPStrategy':
            strategy.setdefault('model_wrapper', {})['device_ids'] = None
    return (Runner if strategy is None else FlexibleRunner).from_cfg(cfg)
