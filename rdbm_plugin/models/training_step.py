"""One step of training: states of the bridge, gradients, and the optimizer's step unless something is not finite.

Knows nothing of BasicSR's loop, files or validation. Needs torch; BasicSR for the guard's log.
"""
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from math import isfinite
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rdbm_plugin.archs.precision import precision, working_in
from rdbm_plugin.losses.draws import Draws, seed_step
from rdbm_plugin.losses.objective import Objective, States
from rdbm_plugin.models.ranks import Ranks
from rdbm_plugin.models.step_guard import StepGuard, buffers_of, gradient_norm
from rdbm_plugin.models.task_losses import TaskLosses


class TrainingSettings(NamedTuple):
    """What RDBMModel adds to BasicSR's keys of ``train:``; see there."""

    amp: str
    grad_clip: float
    micro_batches: int
    nonfinite_limit: int


class Batch(NamedTuple):
    """Pairs of images, (N, C, H, W) in [0, 1], with task and name of each sample, if they have any."""

    lq: Tensor
    gt: Tensor
    tasks: Sequence[str]
    names: Sequence[str]


class TrainingStep:
    """Trains a network on batches, the same way whatever number of ranks shares them.

    Args:
        net: Takes (x_t, mu, t); may be wrapped for several ranks.
        optimizer: Of its parameters.
        objective: Draws states and compares outputs.
        perceptual: BasicSR's PerceptualLoss on the estimate of x0, or None.
        settings: Precision, clipping, parts.
        guard: Reports steps that are not taken.
        task_losses: Takes the loss of every sample.
        ranks: All processes of the run.
        progress: Its seed decides about all that is random; its options go into the guard's dump.
    """

    def __init__(self, net: nn.Module, optimizer: torch.optim.Optimizer, objective: Objective,
                 perceptual: nn.Module | None, settings: TrainingSettings, guard: StepGuard, task_losses: TaskLosses,
                 ranks: Ranks, progress: Any) -> None:
        self.net, self.optimizer, self.objective, self.perceptual = net, optimizer, objective, perceptual
        self.settings, self.guard, self.task_losses = settings, guard, task_losses
        self.ranks, self.progress = ranks, progress
        self.parameters = [p for p in net.parameters() if p.requires_grad]
        self.device = self.parameters[0].device
        self.dtype = precision(settings.amp, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type) if settings.amp == 'fp16' else None
        self.resumed = False
        """Whether the next step is the first one after a training state was loaded."""

    def run(self, iteration: int, batch: Batch) -> tuple[dict[str, float], bool]:
        """Take a step.

        Returns:
            Name -> value of the losses, means over all ranks, and whether the step was taken.

        Raises:
            NonFiniteLoss: As many steps in a row as the guard allows were not taken.
        """
        seed_step(self.progress.seed, iteration, self.ranks.rank)
        draws = Draws(self.progress.seed, iteration, self.ranks.rank, self.ranks.count, len(batch.lq))
        states = self.objective.draw(batch.lq, batch.gt, draws, self.predict, self.ranks.mean)
        if self.resumed:
            self._rehearse(states)
        put_back = buffers_of(self.net)
        self.optimizer.zero_grad()
        losses = self._add_gradients(states, batch.tasks)
        if self.scaler:
            self.scaler.unscale_(self.optimizer)
        norm = gradient_norm(self.parameters, self.settings.grad_clip)
        # Read from the device at once.
        *values, norm = torch.stack([*losses.values(), norm]).tolist()
        found = dict(zip(losses, values))
        taken = self._step_if_finite(iteration, found, norm, states, batch)
        if not taken:
            put_back()
        return found, taken

    def predict(self, x_t: Tensor, mu: Tensor, t: Tensor) -> Tensor:
        """The network's output in float32, whatever precision it works in; (N, C, H, W)."""
        with working_in(self.dtype, self.device):
            return self.net(x_t, mu, t).float()

    def _rehearse(self, states: States) -> None:
        """Let ranks order their gradients as they did before they were broken off: by the first backward pass."""
        self.resumed = False
        if isinstance(self.net, DistributedDataParallel):
            put_back = buffers_of(self.net)
            self.objective.output(states, self.predict).sum().backward()
            put_back()

    def _add_gradients(self, states: States, tasks: Sequence[str]) -> dict[str, Tensor]:
        """Losses of the batch, means over all ranks; their gradients are added up part by part."""
        count = len(states.mu)
        parts = torch.arange(count).tensor_split(self.settings.micro_batches)
        total: dict[str, Tensor] = {}
        for number, rows in enumerate(parts):
            part = states.part(slice(int(rows[0]), int(rows[-1]) + 1)) if len(parts) > 1 else states
            share = len(rows) / count
            # Ranks need to share gradients only once they are complete.
            shared = number == len(parts) - 1 or not isinstance(self.net, DistributedDataParallel)
            with nullcontext() if shared else self.net.no_sync():
                output = self.objective.output(part, self.predict)
                losses = self._losses(output, part, tasks[int(rows[0]):int(rows[-1]) + 1])
                loss = sum(losses.values()) * share
                (self.scaler.scale(loss) if self.scaler else loss).backward()
            for name, value in losses.items():
                total[name] = total.get(name, 0) + value.detach() * share
        return dict(zip(total, self.ranks.mean(torch.stack(list(total.values())))))

    def _losses(self, output: Tensor, states: States, tasks: Sequence[str]) -> dict[str, Tensor]:
        """All terms of the loss: ours compares in the bridge, BasicSR's compare the estimate of x0 with gt."""
        terms = {}
        if self.objective.criterion:
            found = self.objective.loss(output, states)
            if found.dim():
                self.task_losses.add(found, tasks)
            terms['l_pix'] = found.mean()
        if self.perceptual:
            found = self.perceptual(self.objective.estimate(output, states), states.gt)
            terms.update((name, value) for name, value in zip(('l_percep', 'l_style'), found) if value is not None)
        return terms

    def _step_if_finite(self, iteration: int, losses: dict[str, float], norm: float, states: States,
                        batch: Batch) -> bool:
        """Let the optimizer step if losses and gradient, which are those of all ranks, are finite; whether it did."""
        finite_losses = all(map(isfinite, losses.values()))
        finite = finite_losses and isfinite(norm)
        # A gradient beyond the range of fp16 is how the scaler finds its scale, unless that is down to 1.
        expected = finite_losses and self.scaler is not None and self.scaler.get_scale() > 1
        if finite:
            self.scaler.step(self.optimizer) if self.scaler else self.optimizer.step()
            self.guard.in_a_row = 0
        if self.scaler:
            self.scaler.update()
        if not finite and not expected:
            self.task_losses.forget_nonfinite()
            net = self.net.module if isinstance(self.net, DistributedDataParallel) else self.net
            self.guard.report(iteration, losses, norm, {
                'names': list(batch.names), 'tasks': list(batch.tasks), 'options': self.progress.options,
                'states': states._asdict(), 'params': net.state_dict()})
        return finite

    def state(self) -> dict[str, Any]:
        """What a training state holds of it."""
        return {'task_losses': self.task_losses.state(), 'scaler': self.scaler.state_dict() if self.scaler else {},
                'nonfinite': [self.guard.in_a_row, self.guard.in_all]}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a training state, of BasicSR's models too, which lacks what :meth:`state` gives."""
        self.task_losses.load(state.get('task_losses', []))
        if self.scaler and state.get('scaler'):
            self.scaler.load_state_dict(state['scaler'])
        self.guard.in_a_row, self.guard.in_all = state.get('nonfinite', (0, 0))
        self.resumed = True
