"""One training step: bridge states, gradients, and the optimizer's step. Needs torch; BasicSR for the guard's log."""
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from math import isfinite
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rdbm_plugin.archs.precision import precision, working_in
from rdbm_plugin.losses.draws import Draws, seed_step
from rdbm_plugin.losses.objective import Objective, Plan, States, to_device
from rdbm_plugin.models.capture import step_taker
from rdbm_plugin.models.step_guard import StepGuard, gradient_norm, noted
from rdbm_plugin.models.task_losses import TaskLosses

READ_EVERY = 100
"""Largest number of steps on a GPU before their losses are read, so that a diverged run ends soon."""


class TrainingSettings(NamedTuple):
    """The keys of ``train:`` that RDBMModel adds to BasicSR's; see there."""

    amp: str
    grad_clip: float
    micro_batches: int
    nonfinite_limit: int
    capture: str
    compile: bool


class Batch(NamedTuple):
    """Pairs of images, (N, C, H, W) in [0, 1], with the task and name of each sample; both may be empty."""

    lq: Tensor
    gt: Tensor
    tasks: Sequence[str]
    names: Sequence[str]


class MovingAverage:
    """Moving averages of a network's parameters.

    Args:
        values: The averages, in the order of the parameters; empty: none are kept.
        decay: Share of an average that a step keeps.
    """

    def __init__(self, values: Sequence[Tensor] = (), decay: float = 0.0) -> None:
        self.values, self.decay = list(values), decay

    def follow(self, weights: Sequence[Tensor], taken: Tensor) -> None:
        """Update the averages with ``weights`` if ``taken`` is 1 rather than 0; does not wait for the device."""
        if self.values:
            gaps = torch._foreach_sub(weights, self.values)
            torch._foreach_mul_(gaps, (1 - self.decay) * taken)
            torch._foreach_add_(self.values, gaps)


class TrainingStep:
    """Trains a network on batches; the result does not depend on how many ranks share a batch.

    On a GPU nothing waits for the device until :meth:`read` is called or READ_EVERY steps are unread: the device itself
    skips steps that are not finite.

    Args:
        net: Takes (x_t, mu, t); may be wrapped in DistributedDataParallel.
        optimizer: Optimizer of the parameters of ``net``.
        objective: Draws states and compares outputs with targets.
        settings: Precision, clipping, micro-batches, capture, compilation.
        guard: Reports skipped steps of all ranks.
        task_losses: Receives the loss of every sample.
        progress: Its seed determines all random numbers; its options go into the guard's dump.
        average: Moving averages of the parameters of ``net``.
        perceptual: BasicSR's PerceptualLoss on the estimate of x0.
    """

    def __init__(self, net: nn.Module, optimizer: torch.optim.Optimizer, objective: Objective,
                 settings: TrainingSettings, guard: StepGuard, task_losses: TaskLosses, progress: Any,
                 average: MovingAverage, perceptual: nn.Module | None = None) -> None:
        self.net, self.optimizer, self.objective, self.perceptual = net, optimizer, objective, perceptual
        self.settings, self.guard, self.task_losses = settings, guard, task_losses
        self.ranks, self.progress, self.average = guard.ranks, progress, average
        # Only for training: validation has images of many sizes, and each would need a compilation.
        self.compiled = torch.compile(net) if settings.compile else net
        self.weights = [p.detach() for p in net.parameters()]
        self.parameters = [p for p in net.parameters() if p.requires_grad]
        self.device = self.parameters[0].device
        self.dtype = precision(settings.amp, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type) if settings.amp == 'fp16' else None
        # Fused optimizers read from the device whether to step; the steps of capturable ones can be undone there.
        self.fused = self.scaler is None and getattr(optimizer, '_step_supports_amp_scaling', False)
        capturable = self.scaler is None and all(group.get('capturable') for group in optimizer.param_groups)
        self.waits = not (self.fused or capturable)
        self.work = step_taker(settings.capture, self._work, optimizer, self._changed, self._obstacle())
        self.read_every = 1 if self.waits or self.device.type == 'cpu' else READ_EVERY
        self.resumed = False
        """Whether the next step is the first one after a training state was loaded."""
        self._unread: list[tuple[int, list[str], list[str], Tensor]] = []
        self._losses_read: dict[str, float] = {}

    def _obstacle(self) -> str:
        """Why the step cannot be captured; empty if it can."""
        if self.device.type != 'cuda':
            return f'the network is on the {self.device.type}'
        if self.ranks.group is not None:
            return 'several processes share the run'
        if self.scaler:
            return 'amp: fp16 reads from the device'
        if self.waits or 'capturable' not in self.optimizer.defaults:
            return f'{type(self.optimizer).__name__} cannot be captured'
        return 'perceptual_opt is set' if self.perceptual else ''

    def run(self, iteration: int, batch: Batch) -> None:
        """Take a step; :meth:`read` returns its losses.

        Raises:
            NonFiniteLoss: The guard's limit of consecutive skipped steps is reached.
        """
        seed_step(self.progress.seed, iteration, self.ranks.rank)
        draws = Draws(self.progress.seed, iteration, self.ranks.rank, self.ranks.count, len(batch.lq))
        plan = self.objective.plan(draws, batch.lq)
        members = to_device(self.task_losses.members(batch.tasks, len(batch.lq)), self.device)
        if self.resumed:
            self._rehearse(batch, plan)
        # Without the images: those of a hundred steps would fill a GPU.
        self._unread.append((iteration, list(batch.names), list(batch.tasks),
                             self.work(batch.lq, batch.gt, members, *plan)))
        if len(self._unread) >= self.read_every:
            self.read()

    def read(self) -> dict[str, float]:
        """Report all steps skipped since the last call; return the losses of the last step, means over all ranks.

        Raises:
            NonFiniteLoss: See :meth:`run`.
        """
        if not self._unread:
            return self._losses_read
        steps, self._unread = self._unread, []
        read = torch.stack([step[-1] for step in steps]).tolist()
        for (iteration, names, tasks, _), (*values, norm) in zip(steps, read):
            losses = self._losses_read = dict(zip(self._names, values))
            finite = all(map(isfinite, values))
            # The scaler finds its scale through gradients that overflow fp16, but at scales below 1 those are a fault.
            expected = finite and self.scaler is not None and self.scaler.get_scale() >= 1
            if finite and isfinite(norm):
                self.guard.in_a_row = 0
            elif not expected:
                self.guard.report(iteration, losses, norm, names, tasks)
        # The weights and states are still those of the last step.
        if self.guard.lost:
            net = self.net.module if isinstance(self.net, DistributedDataParallel) else self.net
            self.guard.end(iteration, losses, norm, {
                'names': names, 'tasks': tasks, 'options': self.progress.options,
                'states': self._states._asdict(), 'params': net.state_dict()})
        return self._losses_read

    def predict(self, x_t: Tensor, mu: Tensor, t: Tensor) -> Tensor:
        """The network's output in float32, whatever its working precision; (N, C, H, W)."""
        with working_in(self.dtype, self.device):
            return self.compiled(x_t, mu, t).float()

    def _rehearse(self, batch: Batch, plan: Plan) -> None:
        """Run a backward pass after resuming: the first one fixes the order in which ranks reduce later gradients."""
        self.resumed = False
        if isinstance(self.net, DistributedDataParallel):
            put_back = noted(self.net.buffers())
            states = self.objective.states(batch.lq, batch.gt, plan, self.predict)
            self.objective.output(states, self.predict).sum().backward()
            put_back(torch.zeros((), device=self.device))

    def _work(self, lq: Tensor, gt: Tensor, members: Tensor, *plan: Tensor) -> Tensor:
        """Take the step without waiting for the device; return the losses and the norm of the gradient, (K,).

        All arguments are tensors whose shapes are the same in every step, so that the step can be captured.
        """
        put_back = noted(self.net.buffers())
        self._states = self.objective.states(lq, gt, Plan(*plan), self.predict, self.ranks.mean)
        self.optimizer.zero_grad()
        losses, each = self._add_gradients(self._states)
        if self.scaler:
            self.scaler.unscale_(self.optimizer)
        norm = gradient_norm(self.parameters, self.settings.grad_clip)
        self._names = list(losses)
        found = torch.stack([*losses.values(), norm])
        taken = found.isfinite().all().float()
        self._advance(taken)
        put_back(taken)
        self.task_losses.add(each, members, taken)
        self.average.follow(self.weights, taken)
        return found

    def _changed(self) -> list[Tensor]:
        """Everything that a step changes."""
        return [*self._stepped(), *self.net.buffers(), *self.average.values, self.task_losses.sums]

    def _stepped(self) -> list[Tensor]:
        """Everything that the optimizer changes."""
        return [*self.weights, *(value for state in self.optimizer.state.values() for value in state.values()
                                 if isinstance(value, Tensor))]

    def _add_gradients(self, states: States) -> tuple[dict[str, Tensor], Tensor | None]:
        """Accumulate gradients part by part; return losses of the batch, means over all ranks, and of each sample."""
        count, passes = len(states.mu), self.objective.passes
        parts = torch.arange(count).tensor_split(self.settings.micro_batches)
        total: dict[str, Tensor] = {}
        samples = torch.zeros(count, device=self.device)
        for number, rows in enumerate(parts):
            here = slice(int(rows[0]), int(rows[-1]) + 1)
            part = states.part(here) if len(parts) > 1 else states
            share = len(rows) / count / passes
            output = None
            for turn in range(passes):
                part = part if output is None else self.objective.next_pass(part, output)
                # Ranks reduce gradients only once these are complete.
                alone = not isinstance(self.net, DistributedDataParallel)
                with nullcontext() if alone or (number + 1, turn + 1) == (len(parts), passes) else self.net.no_sync():
                    output = self.objective.output(part, self.predict)
                    losses, each = self._losses(output, part)
                    loss = sum(losses.values()) * share
                    (self.scaler.scale(loss) if self.scaler else loss).backward()
                if each is not None:
                    samples[here] += each.detach() / passes
                for name, value in losses.items():
                    total[name] = total.get(name, 0) + value.detach() * share
        means = dict(zip(total, self.ranks.mean(torch.stack(list(total.values())))))
        return means, None if each is None else samples

    def _losses(self, output: Tensor, states: States) -> tuple[dict[str, Tensor], Tensor | None]:
        """All terms of the loss, and the loss of each sample if the criterion gives it."""
        terms, each = {}, None
        if self.objective.criterion:
            found = self.objective.loss(output, states)
            each = found if found.dim() else None
            terms['l_pix'] = found.mean()
        if self.perceptual:
            found = self.perceptual(self.objective.estimate(output, states), states.gt)
            terms.update((name, value) for name, value in zip(('l_percep', 'l_style'), found) if value is not None)
        return terms, each

    def _advance(self, taken: Tensor) -> None:
        """Let the optimizer step if the losses and gradients, which are those of all ranks, are finite."""
        if self.fused:
            self.optimizer.grad_scale, self.optimizer.found_inf = None, 1 - taken
            self.optimizer.step()
        elif not self.waits and self.optimizer.state:
            put_back = noted(self._stepped())
            self.optimizer.step()
            put_back(taken)
        elif bool(taken):
            self.scaler.step(self.optimizer) if self.scaler else self.optimizer.step()
        if self.scaler:
            self.scaler.update()

    def state(self) -> dict[str, Any]:
        """The entries of a training state that :meth:`load` reads."""
        self.read()
        return {'task_losses': self.task_losses.state(), 'scaler': self.scaler.state_dict() if self.scaler else {},
                'nonfinite': [self.guard.in_a_row, self.guard.in_all]}

    def load(self, state: Mapping[str, Any]) -> None:
        """Resume from a training state; one of BasicSR's own models lacks the entries of :meth:`state`."""
        self.task_losses.load(state.get('task_losses', []))
        if self.scaler and state.get('scaler'):
            self.scaler.load_state_dict(state['scaler'])
        self.guard.in_a_row, self.guard.in_all = state.get('nonfinite', (0, 0))
        self.resumed = True
