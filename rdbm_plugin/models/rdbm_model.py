"""RDBM as a BasicSR model: BasicSR's training, checkpoints and logs around the bridge."""
from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from inspect import signature
from math import isfinite
from os import path as osp
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from basicsr.utils.logger import get_root_logger
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn

from rdbm_plugin.archs.precision import computes_bf16, precision, working_in
from rdbm_plugin.basicsr_host.lookup import registered
from rdbm_plugin.bridge import build_bridge
from rdbm_plugin.data.degradations import TASKS
from rdbm_plugin.data.task_mixture import count_batches
from rdbm_plugin.evaluation import cost
from rdbm_plugin.inference.tiling import OVERLAP, tile_for, tiled
from rdbm_plugin.losses.draws import Draws, seed_step
from rdbm_plugin.losses.objective import Objective, States
from rdbm_plugin.models import option_checks
from rdbm_plugin.models.step_guard import StepGuard, gradient_norm
from rdbm_plugin.models.validating_model import ValidatingModel
from rdbm_plugin.samplers import build_sampler


class RDBMModel(ValidatingModel):
    """Restores by a diffusion bridge from the degraded to the clean image.

    Everything is chosen in the option file: ``bridge:``, ``network_g:``, ``train: pixel_opt:`` and ``val: sampler:``.
    Batches and results are BasicSR's: ``lq`` and ``gt`` of shape (N, C, H, W), RGB in [0, 1]. Beside BasicSR's keys
    ``train:`` takes

    - ``node_t_share``: share of the samples drawn at node T, where x_t = mu; the others are uniform over the nodes
      1 to T-1. Default 1/T (uniform over all).
    - ``own_start_share``: share of the samples at nodes below T whose state is made from the network's own estimate
      at node T, as in sampling, instead of the true residual. Default 0 (the bridge's own states).
    - ``amp``: ``none``, ``bf16``, ``fp16`` or ``auto`` (bf16 where the device computes in it, else none): precision of
      the network in training; validation is always float32.
    - ``grad_clip``: largest norm of the gradient. Default: no limit.
    - ``micro_batches``: each batch is worked on in so many parts whose gradients add up. Default 1.
    - ``nonfinite_limit``: so many steps in a row whose loss or gradient is not finite end the training. Default 10.

    Any torch.optim class may stand under ``optim_g: type``. A BasicSR loss under ``pixel_opt`` (L1Loss, ...) compares
    the estimate of x0 with ``gt``.

    Raises:
        OptionError: Naming the option key or file, what was found and what is allowed.
    """

    def __init__(self, opt: dict[str, Any]) -> None:
        option_checks.check_model(opt, strict=type(self).__module__.startswith('rdbm_plugin.'))
        self.bridge = build_bridge(opt.get('bridge'), registered('BRIDGE'))
        settings = opt.get('val') or {}
        self.sampler = build_sampler(settings.get('sampler'), self.bridge, registered('SAMPLER'))
        self.tile, self.tile_overlap = settings.get('tile'), settings.get('tile_overlap', OVERLAP)
        super().__init__(opt)

    # ------------------------------------------------------------------ networks

    def model_to_device(self, net: nn.Module) -> nn.Module:
        net = net.to(memory_format=torch.channels_last)
        if self.opt['dist'] and self.device.type == 'cpu':
            # BasicSR names a GPU.
            return DistributedDataParallel(net)
        return super().model_to_device(net)

    # ------------------------------------------------------------------ training

    def init_training_settings(self) -> None:
        self.settings = option_checks.check_training(self.opt['train'], self.bridge)
        self.dtype = precision(self.settings.amp, self.device)
        if self.dtype == torch.bfloat16 and not computes_bf16(self.device):
            get_root_logger().warning(f'train: amp: bf16: this {self.device.type} has no instructions for it and will '
                                      'be many times slower than with "amp: auto".')
        self.scaler = torch.amp.GradScaler(self.device.type) if self.settings.amp == 'fp16' else None
        super().init_training_settings()
        train = self.opt['train']
        self.objective = Objective(self.bridge, self.cri_pix, train.get('node_t_share'), train.get('own_start_share'))
        if self.ema_decay > 0:
            self.net_g_ema.to(memory_format=torch.channels_last)
        self.trained = [p for p in self.net_g.parameters() if p.requires_grad]
        self.guard = StepGuard(self.settings.nonfinite_limit, Path(self.opt['path'].get('experiments_root', '.')),
                               self.across_ranks)
        tasks = (self.opt.get('datasets') or {}).get('train', {}).get('tasks') or TASKS
        self.tasks = list(dict.fromkeys(map(str, tasks)))
        self.task_losses = torch.zeros(2, len(self.tasks), device=self.device, dtype=torch.float64)
        count_batches(0)

    def get_optimizer(self, optim_type: str, params: list[Tensor], lr: float, **kwargs: Any) -> torch.optim.Optimizer:
        # BasicSR 1.4.2 knows Adam alone.
        cls = option_checks.optimizer_class({'type': optim_type, 'lr': lr, **kwargs})
        if 'foreach' not in kwargs and 'fused' in signature(cls).parameters and self.device.type in ('cpu', 'cuda'):
            try:
                return cls(params, lr=lr, **{'fused': True, **kwargs})
            except RuntimeError:
                # Older torch has fused optimizers on GPUs alone.
                pass
        return cls(params, lr=lr, **kwargs)

    def model_ema(self, decay: float = 0.999) -> None:
        # BasicSR's version goes through the parameters one by one.
        averages, values = (list(net.parameters()) for net in (self.net_g_ema, self.get_bare_model(self.net_g)))
        get_ema_multi_avg_fn(decay)(averages, values, 0)

    def feed_data(self, data: Mapping[str, Any]) -> None:
        self.lq = data['lq'].to(self.device, memory_format=torch.channels_last, non_blocking=True)
        if hasattr(self, 'gt'):
            del self.gt
        if 'gt' in data:
            self.gt = data['gt'].to(self.device, memory_format=torch.channels_last, non_blocking=True)
        self.batch_tasks = data.get('task', [])
        self.batch_names = data.get('lq_path', [''] * len(self.lq))
        self.seeds = [_seed(self.opt.get('manual_seed'), path) for path in self.batch_names]

    def optimize_parameters(self, current_iter: int) -> None:
        seed_step(self.seed, current_iter, self.opt['rank'])
        states = self.draw_states(current_iter)
        if self.resumed:
            self.rehearse(states)
        put_back = buffers_of(self.net_g)
        self.optimizer_g.zero_grad()
        losses = self.add_gradients(states)
        if self.scaler:
            self.scaler.unscale_(self.optimizer_g)
        norm = gradient_norm(self.trained, self.settings.grad_clip)
        # Read from the device at once.
        numbers = torch.stack([*losses.values(), norm]).tolist()
        values = dict(zip(losses, numbers))
        if not self.take_step(current_iter, values, numbers[-1], states):
            put_back()
        elif self.ema_decay > 0:
            self.model_ema(decay=self.ema_decay)
        self.log_dict = values
        count_batches(current_iter)

    def rehearse(self, states: States) -> None:
        """Let ranks order their gradients as they did before they were broken off: by the first backward pass."""
        self.resumed = False
        if isinstance(self.net_g, DistributedDataParallel):
            put_back = buffers_of(self.net_g)
            self.objective.output(states, self.predict).sum().backward()
            put_back()

    def draw_states(self, current_iter: int) -> States:
        """Nodes, noise and states of the batch, the same ones whatever number of ranks shares it."""
        draws = Draws(self.seed, current_iter, self.opt['rank'], self.opt['world_size'], len(self.lq))
        return self.objective.draw(self.lq, self.gt, draws, self.predict, self.mean_of_ranks)

    def add_gradients(self, states: States) -> OrderedDict[str, Tensor]:
        """Losses of the batch, means over all ranks; their gradients are added up part by part."""
        parts = torch.arange(len(self.lq)).tensor_split(self.settings.micro_batches)
        total: OrderedDict[str, Tensor] = OrderedDict()
        for number, rows in enumerate(parts):
            part = states.part(slice(int(rows[0]), int(rows[-1]) + 1)) if len(parts) > 1 else states
            share = len(rows) / len(self.lq)
            # Ranks need to share gradients only once they are complete.
            shared = number == len(parts) - 1 or not isinstance(self.net_g, DistributedDataParallel)
            with nullcontext() if shared else self.net_g.no_sync():
                output = self.objective.output(part, self.predict)
                losses = self.losses(output, part, self.batch_tasks[int(rows[0]):int(rows[-1]) + 1])
                loss = sum(losses.values()) * share
                (self.scaler.scale(loss) if self.scaler else loss).backward()
            for name, value in losses.items():
                total[name] = total.get(name, 0) + value.detach() * share
        means = self.mean_of_ranks(torch.stack(list(total.values())))
        return OrderedDict(zip(total, means))

    def take_step(self, current_iter: int, losses: dict[str, float], norm: float, states: States) -> bool:
        """Let the optimizer step if losses and gradient, which are those of all ranks, are finite; tell whether."""
        sound_losses = all(map(isfinite, losses.values()))
        sound = sound_losses and isfinite(norm)
        # A gradient beyond the range of fp16 is how the scaler finds its scale, unless that is down to 1.
        expected = sound_losses and self.scaler is not None and self.scaler.get_scale() > 1
        if sound:
            self.scaler.step(self.optimizer_g) if self.scaler else self.optimizer_g.step()
            self.guard.in_a_row = 0
        if self.scaler:
            self.scaler.update()
        if not sound and not expected:
            self.task_losses.nan_to_num_(0, 0, 0)
            self.guard.report(current_iter, losses, norm, {
                'names': list(self.batch_names), 'tasks': list(self.batch_tasks), 'options': self.remembered,
                'states': states._asdict(), 'params': self.get_bare_model(self.net_g).state_dict()})
        return sound

    def mean_of_ranks(self, value: Tensor) -> Tensor:
        """Mean of a tensor over all ranks."""
        if self.opt['dist']:
            value = value.clone()
            torch.distributed.all_reduce(value)
            value /= self.opt['world_size']
        return value

    def note_task_losses(self, losses: Tensor, tasks: Sequence[str]) -> None:
        """Add the losses of samples, (N,), to the sums of their tasks, which the log shows the means of."""
        known = [(row, self.tasks.index(name)) for row, name in enumerate(tasks) if name in self.tasks]
        if known:
            rows, columns = torch.tensor(known).T.to(self.device)
            each = losses.detach()[rows].to(self.task_losses)
            self.task_losses.index_add_(1, columns, torch.stack([each, torch.ones_like(each)]))

    def get_current_log(self) -> OrderedDict[str, float]:
        # BasicSR calls this on every rank, at every print_freq. Tasks are shown as means since the last call.
        if self.opt['dist']:
            torch.distributed.all_reduce(self.task_losses)
        log = OrderedDict(self.log_dict)
        for task, total, count in zip(self.tasks, *self.task_losses.tolist()):
            if count:
                log[f'l_{task}'] = total / count
        self.task_losses.zero_()
        return log

    def predict(self, x_t: Tensor, mu: Tensor, t: Tensor) -> Tensor:
        """The training network's output in float32, whatever precision it works in; (N, C, H, W)."""
        with working_in(self.dtype, self.device):
            return self.net_g(x_t, mu, t).float()

    def losses(self, output: Tensor, states: States, tasks: Sequence[str]) -> OrderedDict[str, Tensor]:
        """All terms of the loss: ours compares in the bridge, BasicSR's compare the estimate of x0 with gt."""
        terms = OrderedDict()
        if self.cri_pix:
            found = self.objective.loss(output, states)
            if found.dim():
                self.note_task_losses(found, tasks)
            terms['l_pix'] = found.mean()
        if self.cri_perceptual:
            found = self.cri_perceptual(self.objective.estimate(output, states), states.gt)
            terms.update((name, value) for name, value in zip(('l_percep', 'l_style'), found) if value is not None)
        return terms

    # ------------------------------------------------------------------ resuming

    def before_saving(self) -> None:
        if self.opt['dist']:
            torch.distributed.all_reduce(self.task_losses)
            if self.opt['rank'] != 0:
                self.task_losses.zero_()

    def further_state(self) -> dict[str, Any]:
        return {'task_losses': self.task_losses.tolist(), 'scaler': self.scaler.state_dict() if self.scaler else {},
                'nonfinite': [self.guard.in_a_row, self.guard.in_all]}

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        if len(resume_state.get('task_losses', [[]])[0]) == len(self.tasks) and self.opt['rank'] == 0:
            self.task_losses.copy_(torch.tensor(resume_state['task_losses'], dtype=torch.float64))
        if self.scaler and resume_state.get('scaler'):
            self.scaler.load_state_dict(resume_state['scaler'])
        self.guard.in_a_row, self.guard.in_all = resume_state.get('nonfinite', (0, 0))
        super().resume_training(resume_state)

    # ------------------------------------------------------------------ validation and test

    def test(self, keep_trajectory: bool = False) -> None:
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
        # Adding half the residual to the input, not mapping x0 back, keeps untouched pixels bit-identical.
        self.output = self.lq + result.residual / 2
        self.trajectory = [(point.x_t + 1) / 2 for point in result.trajectory]
        if self.is_train:
            self.net_g.train()


def buffers_of(net: nn.Module) -> Callable[[], None]:
    """Note what a forward pass may change beside the weights, such as running means; the result puts it back."""
    noted = [(buffer, buffer.clone()) for buffer in net.buffers()]

    def put_back() -> None:
        for buffer, before in noted:
            buffer.copy_(before)
    return put_back


def _seed(manual_seed: int | None, path: str) -> int:
    """A seed that depends on the run's seed and the image's name alone."""
    return zlib.crc32(f'{manual_seed}:{osp.basename(path)}'.encode())
