"""RDBM as a BasicSR model. Needs BasicSR.

RDBMModel implements the interface of BasicSR's training, validation and test loops and delegates the work to its parts:
training step, checkpoints, progress, interruption and validator.
"""
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from os import path as osp
from pathlib import Path
from signal import Signals
from time import perf_counter
from typing import Any

import torch
from basicsr.utils.dist_util import master_only
from basicsr.utils.logger import get_root_logger
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn

from rdbm_plugin.archs.checkpoint import check_fits, find_network, read_parameters
from rdbm_plugin.archs.precision import computes_bf16
from rdbm_plugin.basicsr_host.lookup import registered
from rdbm_plugin.bridge import build_bridge
from rdbm_plugin.config.options import OptionError
from rdbm_plugin.data.degradations import TASKS
from rdbm_plugin.data.task_mixture import count_batches
from rdbm_plugin.evaluation import cost
from rdbm_plugin.evaluation.results import SetScore, with_average
from rdbm_plugin.inference.tiling import OVERLAP, SMALLEST, tile_for, tiled
from rdbm_plugin.inference.training_options import running_options
from rdbm_plugin.losses.objective import Objective
from rdbm_plugin.models.basicsr_model import BasicSRModel
from rdbm_plugin.models.checkpoints import Checkpoints, surviving
from rdbm_plugin.models.interruption import Interruption
from rdbm_plugin.models.optimizers import make_optimizer
from rdbm_plugin.models.option_checks import OBJECTIVE_KEYS, check_model, check_training
from rdbm_plugin.models.ranks import Ranks
from rdbm_plugin.models.resuming import Loop, Progress, progress_of, replay, with_settings
from rdbm_plugin.models.step_guard import StepGuard
from rdbm_plugin.models.task_losses import TaskLosses
from rdbm_plugin.models.training_step import Batch, MovingAverage, TrainingStep
from rdbm_plugin.models.validator import Restoration, Validator
from rdbm_plugin.samplers import build_sampler


class RDBMModel(BasicSRModel):
    """Restores degraded images by a diffusion bridge to the clean image.

    The option file configures everything: ``bridge:``, ``network_g:``, ``train: pixel_opt:`` and ``val: sampler:``.
    Batches and results are BasicSR's: ``lq`` and ``gt`` of shape (N, C, H, W), RGB in [0, 1]. In addition to BasicSR's
    keys, ``train:`` takes

    - ``node_t_share``, ``own_start_share``, ``passes``, ``pass_nodes``: the states that a step trains on, as for
      :class:`rdbm_plugin.losses.objective.Objective`. Default: one pass over nodes that are uniform from 1 to T.
    - ``amp``: precision of the network in training: ``none``, ``bf16``, ``fp16`` or ``auto`` (bf16 where the device
      computes in it, else none). Validation is always float32.
    - ``grad_clip``: largest norm of the gradient. Default: no limit.
    - ``micro_batches``: number of parts of a batch that are processed one by one, accumulating gradients. Default 1.
    - ``capture``: ``auto``, ``none`` or ``cuda_graph``: record a step once and replay it as a CUDA graph. ``auto``
      (default) does so where possible; the log says if not, and why.
    - ``compile``: whether torch.compile compiles the network for training. Default false.
    - ``nonfinite_limit``: number of consecutive steps with non-finite loss or gradient that ends training. Default 10.

    and ``logger:`` takes

    - ``keep_last``: number of states to keep, with their networks. Default: all.
    - ``keep_best``: name of a metric; the network with its best average is kept as ``net_g_best.pth``.

    ``optim_g: type`` may be any class of torch.optim or timm.optim. A BasicSR loss under ``pixel_opt`` (L1Loss, ...)
    compares the estimate of x0 with ``gt``. All random numbers of a step depend only on ``manual_seed``, the iteration
    and the place in the batch of all ranks, so a resumed run equals an uninterrupted one.

    Raises:
        OptionError: Naming the option key or file, what was found and what is allowed.
    """

    GO_ON = 'Resume with --auto_resume.'
    """Advice to the user after a stop."""

    def __init__(self, opt: dict[str, Any]) -> None:
        check_model(opt, strict=type(self).__module__.startswith('rdbm_plugin.'))
        self.bridge = build_bridge(opt.get('bridge'), registered('BRIDGE'))
        settings = opt.get('val') or {}
        self.sampler = build_sampler(settings.get('sampler'), self.bridge, registered('SAMPLER'))
        self.tile, self.tile_overlap = settings.get('tile'), settings.get('tile_overlap', OVERLAP)
        self.ranks = Ranks(opt['dist'])
        self.progress = Progress(opt)
        if len(set(self.ranks.gather(self.progress.seed))) > 1:
            # Without a seed in the option file, BasicSR draws a different one in each process.
            raise OptionError('manual_seed: missing; all processes need the same seed, such as 0.')
        self.interruption = Interruption(self.ranks.group)
        self.checkpoints = Checkpoints(opt['path'], (opt.get('logger') or {}).get('keep_last'), running_options(opt))
        self.validator = Validator(opt, self.ranks)
        self.loop: Loop | None = None
        self.warm = False
        self.seconds, self.evaluations = 0.0, 0
        self.trajectory: list[Tensor] = []
        super().__init__(opt)

    def attach(self, loop: Loop) -> None:
        """Set the training loop, which is needed to resume within an epoch and to repeat an interrupted validation."""
        self.loop = loop

    # ------------------------------------------------------------------ network and optimizer

    def model_to_device(self, net: nn.Module) -> nn.Module:
        net = net.to(memory_format=torch.channels_last)
        if self.opt['dist'] and self.device.type == 'cpu':
            # BasicSR passes the id of a GPU.
            return DistributedDataParallel(net)
        return super().model_to_device(net)

    def init_training_settings(self) -> None:
        train = self.opt['train']
        # First, because BasicSR removes keys from the blocks.
        settings = check_training(train, self.bridge)
        super().init_training_settings()
        average = MovingAverage()
        if self.ema_decay > 0:
            self.net_g_ema.to(memory_format=torch.channels_last)
            average = MovingAverage([p.detach() for p in self.net_g_ema.parameters()], self.ema_decay)
        guard = StepGuard(settings.nonfinite_limit, Path(self.opt['path'].get('experiments_root', '.')), self.ranks)
        tasks = (self.opt.get('datasets') or {}).get('train', {}).get('tasks') or TASKS
        self.task_losses = TaskLosses(tasks, self.device, self.ranks)
        objective = Objective(self.bridge, self.cri_pix, *map(train.get, OBJECTIVE_KEYS))
        self.step = TrainingStep(self.net_g, self.optimizer_g, objective, settings, guard, self.task_losses,
                                 self.progress, average, self.cri_perceptual)
        if self.step.dtype == torch.bfloat16 and not computes_bf16(self.device):
            get_root_logger().warning(f'train: amp: bf16: this {self.device.type} has no bfloat16 instructions; '
                                      'training is many times slower than with "amp: auto".')
        count_batches(0)

    def get_optimizer(self, optim_type: str, params: list[Tensor], lr: float, **kwargs: Any) -> torch.optim.Optimizer:
        # BasicSR 1.4.2 knows only Adam.
        return make_optimizer(optim_type, params, lr, **kwargs)

    def model_ema(self, decay: float = 0.999) -> None:
        # Faster than BasicSR's version, which updates the parameters one by one.
        averages, values = (list(net.parameters()) for net in (self.net_g_ema, self.get_bare_model(self.net_g)))
        get_ema_multi_avg_fn(decay)(averages, values, 0)

    # ------------------------------------------------------------------ a training step

    def feed_data(self, data: Mapping[str, Any]) -> None:
        self.lq = data['lq'].to(self.device, memory_format=torch.channels_last, non_blocking=True)
        vars(self).pop('gt', None)
        if 'gt' in data:
            self.gt = data['gt'].to(self.device, memory_format=torch.channels_last, non_blocking=True)
        self.batch_tasks = data.get('task', [])
        self.batch_names = data.get('lq_path', [''] * len(self.lq))
        # The noise of an image depends only on the run's seed and the image's name.
        seed = self.opt.get('manual_seed')
        self.seeds = [zlib.crc32(f'{seed}:{osp.basename(path)}'.encode()) for path in self.batch_names]

    def optimize_parameters(self, current_iter: int) -> None:
        self.step.run(current_iter, Batch(self.lq, self.gt, self.batch_tasks, self.batch_names))
        count_batches(current_iter)

    def get_current_log(self) -> OrderedDict[str, float]:
        # BasicSR calls this on every rank, at every print_freq. Losses of tasks are means since the last call.
        self.log_dict = self.step.read()
        return OrderedDict({**self.log_dict, **self.task_losses.means()})

    # ------------------------------------------------------------------ stopping

    def update_learning_rate(self, current_iter: int, warmup_iter: int = -1) -> None:
        # BasicSR's loop calls this first in every iteration.
        self.interruption.listen()
        if self.interruption.asked_before():
            self.stop(current_iter - 1)
        super().update_learning_rate(current_iter, warmup_iter)

    def stop(self, iteration: int) -> None:
        """Save the training up to the end of ``iteration`` and exit; every rank must call this."""
        # Not saved_iter, which only rank 0 knows.
        if self.progress.tried_iter < iteration <= int(self.opt['train']['total_iter']):
            self.save(self.loop.train_sampler.epoch if self.loop else self.progress.epoch, iteration)
        number = self.interruption.signal or 0
        get_root_logger().info(f'Stopped by {Signals(number).name if number else "another rank"} after iteration '
                               f'{iteration}; saved up to {self.progress.saved_iter}. {self.GO_ON}')
        self.ranks.part()
        raise SystemExit(128 + number)

    # ------------------------------------------------------------------ saving

    def save(self, epoch: int, current_iter: int) -> None:
        if current_iter == -1:
            super().save(epoch, current_iter)
            return
        self.progress.begin_saving(epoch, current_iter, self.validator.due(current_iter))
        self.task_losses.gather()
        with surviving(f'Iteration {current_iter}'):
            super().save(epoch, current_iter)
            self.progress.saved_iter = current_iter
            if self.opt['rank'] == 0:
                self.checkpoints.tidy(current_iter)

    def save_networks(self, current_iter: int | str) -> None:
        """Save the network and its moving average, if there is one, as ``net_g_<current_iter>.pth``."""
        nets = [self.net_g, self.net_g_ema] if hasattr(self, 'net_g_ema') else [self.net_g]
        self.save_network(nets, 'net_g', current_iter, ['params', 'params_ema'])

    @master_only
    def save_network(self, net: nn.Module | list[nn.Module], net_label: str, current_iter: int | str,
                     param_key: str | list[str] = 'params') -> None:
        nets, keys = (each if isinstance(each, list) else [each] for each in (net, param_key))
        self.checkpoints.save_network(dict(zip(keys, map(self.get_bare_model, nets))), net_label, current_iter)

    @master_only
    def save_training_state(self, epoch: int, current_iter: int) -> None:
        if current_iter == -1:
            return
        self.checkpoints.save_state({
            'epoch': epoch, 'iter': current_iter, 'optimizers': [each.state_dict() for each in self.optimizers],
            'schedulers': list(map(progress_of, self.schedulers)),
            'best_metric_results': getattr(self, 'best_metric_results', {}), **self.progress.state(),
            **self.further_state()})

    def further_state(self) -> dict[str, Any]:
        """Return the other entries of a training state: tensors and plain values."""
        return self.step.state()

    # ------------------------------------------------------------------ loading

    def load_network(self, net: nn.Module, load_path: str, strict: bool = True,
                     param_key: str | None = 'params') -> None:
        # BasicSR's error only lists keys, and torch < 2.6 would run code in the pickle.
        net = self.get_bare_model(net)
        parameters = read_parameters(load_path, param_key)
        if strict:
            check_fits(load_path, parameters, net)
        get_root_logger().info(f'Loading {type(net).__name__} from {find_network(load_path)}, {param_key}.')
        self._print_different_keys_loading(net, parameters, strict)
        net.load_state_dict(parameters, strict=strict)

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        changes = list(self.progress.resume(resume_state))
        for warning in changes:
            get_root_logger().warning(warning)
        super().resume_training(self._as_options_have_it(resume_state) if changes else resume_state)
        self.step.load(resume_state)
        for name, record in resume_state.get('best_metric_results', {}).items():
            self._initialize_best_metric_results(name)
            known = self.best_metric_results[name]
            known.update({metric: best for metric, best in record.items() if metric in known})
        count_batches(resume_state['iter'])
        self._go_on_within_epoch(resume_state['epoch'], resume_state['iter'])

    def _as_options_have_it(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return a state whose optimizer settings and schedules, which BasicSR takes from it, follow the options."""
        train, step = self.opt['train'], super().update_learning_rate
        replay(lambda iteration: step(iteration, train.get('warmup_iter', -1)), min(state['iter'], train['total_iter']))
        optimizers = zip(state['optimizers'], self.optimizers)
        return {**state, 'optimizers': [with_settings(saved, fresh.state_dict()) for saved, fresh in optimizers],
                'schedulers': list(map(progress_of, self.schedulers))}

    def _go_on_within_epoch(self, epoch: int, iteration: int) -> None:
        logger = get_root_logger()
        if self.loop is None:
            logger.warning('The training set restarts its epoch, unless it is a data set of rdbm_plugin; "rdbm train" '
                           'resumes any data set where it stopped.')
            return
        self.loop.skip_to(epoch, iteration)
        if not self.progress.validated:
            logger.info(f'Repeating the interrupted validation of iteration {iteration}.')
            for loader in self.loop.val_loaders:
                self.validation(loader, iteration, self.loop.tb_logger, self.opt['val']['save_img'])

    # ------------------------------------------------------------------ validation and test

    def dist_validation(self, dataloader: Any, current_iter: int | str, tb_logger: Any, save_img: bool) -> None:
        # In BasicSR's version rank 0 works alone, and the next collective call of the others times out.
        self.nondist_validation(dataloader, current_iter, tb_logger, save_img)

    def nondist_validation(self, dataloader: Any, current_iter: int | str, tb_logger: Any, save_img: bool) -> None:
        # BasicSR's version scores neither the input nor the average over the sets, and saves no pictures.
        if self.is_train:
            # At the end of a training, BasicSR validates again, with an iteration beyond the last one.
            current_iter = min(int(current_iter), int(self.opt['train']['total_iter']))
            if current_iter == self.progress.validated_iter:
                return
        name = dataloader.dataset.opt['name']
        scores = self.validator.run(dataloader.dataset, self.restore, current_iter, tb_logger, save_img,
                                    lambda: self.interruption.signal is not None)
        if self.is_train and self.interruption.asked_by_any():
            self.stop(int(current_iter))
        self._log_scores(name, SetScore.of(scores).restored, current_iter, tb_logger)
        finished = self.validator.collect(name, scores)
        if finished is None:
            return
        sets = with_average({dataset: SetScore.of(each) for dataset, each in finished.items()})
        if len(sets) > 1:
            self._log_scores('average', sets['average'].restored, current_iter, tb_logger)
        if self.is_train:
            self._validation_finished('average' if len(sets) > 1 else name, current_iter)
        self.validator.report(finished)

    def _log_scores(self, name: str, scores: dict[str, float], current_iter: int | str, tb_logger: Any) -> None:
        if scores:
            self._initialize_best_metric_results(name)
            for metric, value in scores.items():
                self._update_best_metric_result(name, metric, value, current_iter)
            self.metric_results = scores
            self._log_validation_metric_values(current_iter, name, tb_logger)

    def _validation_finished(self, name: str, current_iter: int | str) -> None:
        """Add the scores to the state of this iteration, and save the network if its score is the best so far."""
        self.progress.validated_iter = current_iter
        metric = self.opt['logger'].get('keep_best')
        with surviving('The results of a validation'):
            if metric is not None and self.best_metric_results[name][metric]['iter'] == current_iter:
                self.save_networks('best')
            if current_iter == self.progress.saved_iter and not self.progress.validated:
                self.progress.validated = True
                self.save_training_state(self.progress.epoch, self.progress.saved_iter)

    def restore(self, data: Mapping[str, Any], keep_trajectory: bool = False) -> Restoration:
        """Restore a batch of one image from a data loader."""
        self.feed_data(data)
        if not self.is_train and not self.warm:
            # Loads libraries and kernels before time is measured.
            whole = self.lq
            self.lq = whole[..., :SMALLEST, :SMALLEST]
            self.test()
            self.lq, self.warm = whole, True
        self.test(keep_trajectory)
        return Restoration(self.get_current_visuals(), self.seconds, self.evaluations, self.trajectory)

    def test(self, keep_trajectory: bool = False) -> None:
        """Restore ``self.lq`` into ``self.output``; both (N, C, H, W) in [0, 1]."""
        net = self.net_g_ema if hasattr(self, 'net_g_ema') else self.get_bare_model(self.net_g)
        net.eval()
        if self.tile == 'auto':
            self.tile = tile_for(net)
        network = tiled(net, self.tile, self.tile_overlap)
        cost.wait(self.device)
        start = perf_counter()
        with torch.inference_mode():
            result = self.sampler(network, 2 * self.lq - 1, self.seeds, keep_trajectory)
        cost.wait(self.device)
        self.seconds = perf_counter() - start
        self.evaluations = result.nfe
        # Adding half the residual to the input, instead of mapping x0 back, keeps untouched pixels bit-identical.
        self.output = self.lq + result.residual / 2
        self.trajectory = [(point.x_t + 1) / 2 for point in result.trajectory]
        if self.is_train:
            self.net_g.train()
