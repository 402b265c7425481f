"""Checks of RDBMModel's options before anything is built. Needs BasicSR."""
import math
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from basicsr.models import lr_scheduler

from rdbm_plugin.archs.checkpoint import check_fits, find_network, read_parameters
from rdbm_plugin.archs.precision import PRECISIONS
from rdbm_plugin.basicsr_host.lookup import metric_arguments, registered
from rdbm_plugin.bridge import ResidualBridge, build_bridge
from rdbm_plugin.config.option_keys import check_values, unknown_keys
from rdbm_plugin.config.options import (
    OptionError,
    build,
    check_block,
    check_choice,
    check_int,
    check_keys,
    check_number,
    naming,
)
from rdbm_plugin.evaluation.protocols import check_protocol
from rdbm_plugin.inference.tiling import SMALLEST
from rdbm_plugin.inference.training_options import check_trained_bridge
from rdbm_plugin.losses.objective import Objective
from rdbm_plugin.models.capture import CAPTURES
from rdbm_plugin.models.optimizers import optimizer_class, try_optimizer
from rdbm_plugin.models.training_step import TrainingSettings
from rdbm_plugin.samplers import build_sampler

OBJECTIVE_KEYS = ('node_t_share', 'own_start_share', 'passes', 'pass_nodes')
"""Keys of ``train:`` for :class:`Objective`, in the order of its arguments."""


def check_training(train_opt: Mapping[str, Any], bridge: ResidualBridge) -> TrainingSettings:
    """Check the loss, the optimizer and RDBMModel's own keys of ``train:``; return the settings of the latter."""
    optimizer_class(check_block(train_opt, 'optim_g'))
    if not train_opt.get('pixel_opt') and not train_opt.get('perceptual_opt'):
        raise OptionError('train: pixel_opt: missing or empty, like perceptual_opt; set at least one of these losses.')
    if train_opt.get('pixel_opt'):
        build('train: pixel_opt', train_opt['pixel_opt'], registered('LOSS'))
    with naming('train'):
        Objective(bridge, None, *map(train_opt.get, OBJECTIVE_KEYS))
    amp = check_choice('train: amp', train_opt.get('amp') or 'none', (*PRECISIONS, 'auto'))
    if amp == 'fp16' and not hasattr(torch.amp, 'GradScaler'):
        raise OptionError(f'train: amp: fp16 needs torch 2.3 or later, found {torch.__version__}; use bf16.')
    clip = train_opt.get('grad_clip')
    clip = math.inf if clip is None else check_number('train: grad_clip', clip, above=0)
    capture = check_choice('train: capture', train_opt.get('capture') or 'auto', CAPTURES)
    return TrainingSettings(amp, clip, train_opt.get('micro_batches') or 1, train_opt.get('nonfinite_limit') or 10,
                            capture, bool(train_opt.get('compile')))


SCHEDULERS = {'MultiStepLR': lr_scheduler.MultiStepRestartLR, 'MultiStepRestartLR': lr_scheduler.MultiStepRestartLR,
              'CosineAnnealingRestartLR': lr_scheduler.CosineAnnealingRestartLR}
"""The schedulers of BasicSR's models by name."""


def check_schedule(opt: Mapping[str, Any]) -> None:
    """Check the optimizer and the scheduler for values that BasicSR rejects late or never."""
    if not opt.get('is_train'):
        return
    train = check_block(opt, 'train')
    for key, value in check_block(train, 'optim_g').items():
        if isinstance(value, str) and key != 'type':
            raise OptionError(f'train: optim_g: {key}: found the text {value!r}; write numbers as !!float 1e-4.')
        _check_optimizer_number(f'train: optim_g: {key}', key, value)
    try_optimizer(train['optim_g'])
    where, scheduler = 'train: scheduler', check_block(train, 'scheduler')
    cls = SCHEDULERS[check_choice(f'{where}: type', scheduler.pop('type', None), SCHEDULERS)]
    check_keys(where, {'optimizer': None, **scheduler}, cls)
    for key, lowest in (('periods', 1), ('milestones', 0), ('restarts', 0), ('restart_weights', 0)):
        values = scheduler.get(key, [])
        if type(values) is not list or any(type(v) not in (int, float) or not lowest <= v < math.inf for v in values):
            raise OptionError(f'{where}: {key}: found {values!r}; expected a list of numbers of at least {lowest}.')
    for key in ('eta_min', 'gamma'):
        check_number(f'{where}: {key}', scheduler.get(key, 0), 0)
    marks = 'periods' if 'periods' in scheduler else 'restarts'
    if len(scheduler.get(marks, [0])) != len(scheduler.get('restart_weights', [1])):
        raise OptionError(f'{where}: restart_weights: expected as many numbers as {marks} has.')
    if sum(scheduler.get('periods', [train['total_iter']])) < train['total_iter']:
        raise OptionError(f'{where}: periods: found {scheduler["periods"]}; expected a sum of at least total_iter, '
                          f'{train["total_iter"]}: BasicSR fails after the last period.')


def _check_optimizer_number(where: str, key: str, value: Any) -> None:
    # Not every optimizer checks these values: timm's Muon accepts betas of 1.
    if key == 'lr':
        check_number(where, value, above=0)
    elif key in ('weight_decay', 'eps', 'momentum'):
        check_number(where, value, 0)
    elif key == 'betas' and not (isinstance(value, (list, tuple))
                                 and all(0 <= check_number(where, beta) < 1 for beta in value)):
        raise OptionError(f'{where}: found {value!r}; expected a list of numbers >= 0 and < 1, such as [0.9, 0.99].')


def check_packages(opt: Mapping[str, Any]) -> None:
    """Raise OptionError if the logger needs a missing package; BasicSR notices only after it has created folders."""
    logger = (opt.get('logger') or {}) if opt.get('is_train') else {}
    board, wandb = logger.get('use_tb_logger'), (logger.get('wandb') or {}).get('project') is not None
    if wandb and not board:
        raise OptionError('logger: wandb: found without use_tb_logger; wandb shows the curves of TensorBoard, so set '
                          'use_tb_logger: true as well.')
    for wanted, key, package in ((board, 'use_tb_logger', 'tensorboard'), (wandb, 'wandb: project', 'wandb')):
        if wanted and find_spec(package) is None:
            raise OptionError(f'logger: {key}: needs {package}, which is not installed; run: pip install {package}')


def check_compiler(opt: Mapping[str, Any]) -> None:
    """Raise OptionError if ``train: compile`` is set, but torch.compile does not work here; takes seconds."""
    if not (opt.get('is_train') and opt['train'].get('compile')):
        return
    device = 'cpu' if opt.get('num_gpu') == 0 or not torch.cuda.is_available() else 'cuda'
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=device))
    except Exception as error:
        raise OptionError(f'train: compile: torch.compile does not work here: {str(error).strip().splitlines()[0]} It '
                          'needs a C++ compiler (on Debian and Ubuntu: sudo apt install g++) and, on a GPU, triton; '
                          'or write compile: false.') from None


def check_devices(opt: Mapping[str, Any]) -> None:
    """Raise OptionError if ``num_gpu`` is larger than the number of GPUs."""
    wanted, there = opt.get('num_gpu'), torch.cuda.device_count()
    if isinstance(wanted, int) and wanted > there:
        raise OptionError(f'num_gpu: found {wanted}, but torch {torch.__version__} sees {there} GPUs; write "num_gpu: '
                          f'auto" to use all' + ('.' if there else ', or "num_gpu: 0" for the CPU.'))


def check_metrics(opt: Mapping[str, Any]) -> None:
    """Raise OptionError if a metric under ``val: metrics:`` cannot be computed, which validation would notice late."""
    known = registered('METRIC')
    for name, metric in ((opt.get('val') or {}).get('metrics') or {}).items():
        where = f'val: metrics: {name}'
        options = check_block({where: metric}, where)
        kind = check_choice(f'{where}: type', options.pop('type', None), known)
        check_keys(where, metric_arguments(kind, options), known[kind], kind)
        check_int(f'{where}: crop_border', options.get('crop_border', 0), 0)
        check_choice(f'{where}: better', options.get('better', 'higher'), ('higher', 'lower'))
        with naming(where):
            check_protocol(kind, options)
    best = (opt.get('logger') or {}).get('keep_best')
    if best is not None:
        check_choice('logger: keep_best', best, (opt.get('val') or {}).get('metrics') or {})


def check_network(opt: Mapping[str, Any]) -> None:
    """Check network_g and that its checkpoint fits it; in a test, also that it was trained with this bridge."""
    path = opt.get('path') or {}
    state = path.get('resume_state')
    if state is not None and not Path(state).is_file():
        raise OptionError(f'path: resume_state: no file {state!r} (looked in {Path(state).absolute()}).')
    try:
        with torch.device('meta'):
            net = build('network_g', check_block(opt, 'network_g'), registered('ARCH'))
    except (RuntimeError, NotImplementedError):
        # Some networks compute values while they are built, which meta tensors do not have.
        net = build('network_g', check_block(opt, 'network_g'), registered('ARCH'))
    checkpoint = path.get('pretrain_network_g')
    if checkpoint is None:
        return
    if path.get('strict_load_g', True):
        check_fits(checkpoint, read_parameters(checkpoint, path.get('param_key_g', 'params')), net)
    if 'train' not in opt and not (opt.get('val') or {}).get('other_bridge'):
        check_trained_bridge(find_network(checkpoint), opt.get('bridge'), '"val: other_bridge: true"')


def check_bridge(opt: Mapping[str, Any]) -> None:
    """Check the bridge, the sampler, the tiles and, in a training, the keys of ``train:``."""
    bridge = build_bridge(opt.get('bridge'), registered('BRIDGE'))
    settings = opt.get('val') or {}
    build_sampler(settings.get('sampler'), bridge, registered('SAMPLER'))
    tile = settings.get('tile')
    if tile not in (None, 0, 'auto'):
        check_int('val: tile', tile, SMALLEST)
    check_int('val: tile_overlap', settings.get('tile_overlap', 0), 0)
    if opt.get('is_train'):
        check_training(check_block(opt, 'train'), bridge)


def check_unknown(opt: Mapping[str, Any]) -> None:
    """Raise OptionError at the first key that is certainly a mistake."""
    for key in unknown_keys(opt):
        if key.mistaken:
            raise OptionError(f'{key.block}: {key.message}' if key.block else key.message)


OF_ANY_MODEL = (check_values, check_packages, check_devices, check_schedule, check_metrics)
OF_OURS = (check_unknown, check_values, check_packages, check_devices, check_bridge, check_network, check_compiler,
           check_schedule, check_metrics)
"""All checks of an RDBMModel's options except those of its data; each raises OptionError if it fails."""


def check_model(opt: Mapping[str, Any], strict: bool = True) -> None:
    """Run all checks; unless ``strict``, allow unknown keys, which a model derived from RDBMModel may read."""
    for check in OF_OURS if strict else OF_OURS[1:]:
        check(opt)
