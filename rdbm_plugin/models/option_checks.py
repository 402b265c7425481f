"""What RDBMModel demands of its options, checked before anything is built. Needs BasicSR."""
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
"""Keys of ``train:`` that :class:`Objective` takes, in its order."""


def check_training(train_opt: Mapping[str, Any], bridge: ResidualBridge) -> TrainingSettings:
    """Check loss, optimizer and our own keys of ``train:``, and return the latter."""
    optimizer_class(check_block(train_opt, 'optim_g'))
    if not train_opt.get('pixel_opt') and not train_opt.get('perceptual_opt'):
        raise OptionError('train: pixel_opt: missing or empty, and so is perceptual_opt; there is no loss.')
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
"""What BasicSR's models know."""


def check_schedule(opt: Mapping[str, Any]) -> None:
    """Check optimizer and scheduler of a training for what BasicSR would stumble over later, or not at all."""
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
    for key in ('periods', 'milestones', 'restarts', 'restart_weights'):
        values = scheduler.get(key, [])
        lowest = 1 if key == 'periods' else 0
        if type(values) is not list or any(type(v) not in (int, float) or not lowest <= v < math.inf for v in values):
            raise OptionError(f'{where}: {key}: found {values!r}; expected a list of numbers of at least {lowest}.')
    for key in ('eta_min', 'gamma'):
        check_number(f'{where}: {key}', scheduler.get(key, 0), 0)
    marks = 'periods' if 'periods' in scheduler else 'restarts'
    if len(scheduler.get(marks, [0])) != len(scheduler.get('restart_weights', [1])):
        raise OptionError(f'{where}: restart_weights: expected as many as {marks}.')
    if sum(scheduler.get('periods', [train['total_iter']])) < train['total_iter']:
        raise OptionError(f'{where}: periods: found {scheduler["periods"]}, which end before total_iter '
                          f'{train["total_iter"]}; BasicSR would fail there.')


def _check_optimizer_number(where: str, key: str, value: Any) -> None:
    # Not all optimizers look at all of these; timm's Muon takes betas of 1.
    if key == 'lr':
        check_number(where, value, above=0)
    elif key in ('weight_decay', 'eps', 'momentum'):
        check_number(where, value, 0)
    elif key == 'betas':
        if not isinstance(value, (list, tuple)):
            raise OptionError(f'{where}: found {value!r}; expected a list such as [0.9, 0.99].')
        for beta in value:
            if check_number(where, beta, 0, 1) == 1:
                raise OptionError(f'{where}: found {value!r}; expected numbers >= 0 and < 1.')


def check_packages(opt: Mapping[str, Any]) -> None:
    """Raise OptionError if the logger needs what is not installed; BasicSR asks after folders are made."""
    logger = (opt.get('logger') or {}) if opt.get('is_train') else {}
    board, wandb = logger.get('use_tb_logger'), (logger.get('wandb') or {}).get('project') is not None
    if wandb and not board:
        raise OptionError('logger: wandb: it shows what TensorBoard gets; set use_tb_logger: true as well.')
    for wanted, key, package in ((board, 'use_tb_logger', 'tensorboard'), (wandb, 'wandb: project', 'wandb')):
        if wanted and find_spec(package) is None:
            raise OptionError(f'logger: {key}: needs {package}, which is not installed; run: pip install {package}')


def check_compiler(opt: Mapping[str, Any]) -> None:
    """Raise OptionError if ``train: compile`` is asked for where torch.compile does not work; takes seconds."""
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
    """Raise OptionError if more GPUs are asked for than there are."""
    wanted, there = opt.get('num_gpu'), torch.cuda.device_count()
    if isinstance(wanted, int) and wanted > there:
        raise OptionError(f'num_gpu: found {wanted}, but torch {torch.__version__} sees {there} GPUs; write "num_gpu: '
                          f'auto" for all there are' + ('.' if there else ', or "num_gpu: 0" for the CPU.'))


def check_metrics(opt: Mapping[str, Any]) -> None:
    """Raise OptionError if ``val: metrics:`` names what cannot be computed: it would fail only after training."""
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
    """Check network_g, that the checkpoint to start from fits it, and in a test that it knows the bridge."""
    state = (opt.get('path') or {}).get('resume_state')
    if state is not None and not Path(state).is_file():
        raise OptionError(f'path: resume_state: no file {state!r} (looked in {Path(state).absolute()}).')
    try:
        with torch.device('meta'):
            net = build('network_g', check_block(opt, 'network_g'), registered('ARCH'))
    except (RuntimeError, NotImplementedError):
        # Some networks compute while they are built.
        net = build('network_g', check_block(opt, 'network_g'), registered('ARCH'))
    path = opt.get('path') or {}
    checkpoint = path.get('pretrain_network_g')
    if checkpoint is None:
        return
    if path.get('strict_load_g', True):
        check_fits(checkpoint, read_parameters(checkpoint, path.get('param_key_g', 'params')), net)
    if 'train' not in opt and not (opt.get('val') or {}).get('other_bridge'):
        check_trained_bridge(find_network(checkpoint), opt.get('bridge'), '"val: other_bridge: true"')


def check_bridge(opt: Mapping[str, Any]) -> None:
    """Check bridge, sampler, tiles and the keys of ``train:`` that need them."""
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
    """Raise OptionError at the first key that is certainly mistaken."""
    for key in unknown_keys(opt):
        if key.mistaken:
            raise OptionError(f'{key.block}: {key.message}' if key.block else key.message)


OF_ANY_MODEL = (check_values, check_packages, check_devices, check_schedule, check_metrics)
OF_OURS = (check_unknown, check_values, check_packages, check_devices, check_bridge, check_network, check_compiler,
           check_schedule, check_metrics)
"""All checks of the options of an RDBMModel but those of its data; each raises OptionError if it fails."""


def check_model(opt: Mapping[str, Any], strict: bool = True) -> None:
    """Make all checks; unless ``strict``, keys that RDBMModel does not know may be those of a model derived from it."""
    for check in OF_OURS if strict else OF_OURS[1:]:
        check(opt)
