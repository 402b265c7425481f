"""RDBM as a BasicSR model: BasicSR's training, checkpoints and logs around the bridge."""
from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Mapping
from os import path as osp
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from basicsr.models.sr_model import SRModel
from basicsr.utils.img_util import imwrite, tensor2img
from basicsr.utils.logger import get_root_logger
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import default_collate
from tqdm import tqdm

from rdbm_plugin import evaluation, preflight, report
from rdbm_plugin.bridge import build_bridge
from rdbm_plugin.data.degradations import TASKS
from rdbm_plugin.data.task_mixture import count_batches
from rdbm_plugin.losses.residual_modulated_loss import ResidualModulatedLoss
from rdbm_plugin.models.checkpoint import check_fits, read_parameters
from rdbm_plugin.models.ranks import in_turn, validation_group
from rdbm_plugin.results import ImageScore, SetScore, with_average, write_results
from rdbm_plugin.samplers import build_sampler
from rdbm_plugin.tiling import OVERLAP, SMALLEST, tile_for, tiled


class RDBMModel(SRModel):
    """Restores by a diffusion bridge from the degraded to the clean image.

    Everything is chosen in the option file: ``bridge:``, ``network_g:``, ``train: pixel_opt:`` and ``val: sampler:``.
    Batches and results are BasicSR's: ``lq`` and ``gt`` of shape (N, C, H, W), RGB in [0, 1]. Beside BasicSR's keys
    ``train:`` takes

    - ``node_t_share``: share of the samples drawn at node T, where x_t = mu; the others are uniform over the nodes
      1 to T-1. Default 1/T (uniform over all).
    - ``own_start_share``: share of the samples at nodes below T whose state is made from the network's own estimate
      at node T, as in sampling, instead of the true residual. Default 0 (the bridge's own states).
    - ``amp``: ``none`` or ``bf16``: precision of the network in training; validation is always float32.

    Any torch.optim class may stand under ``optim_g: type``. A BasicSR loss under ``pixel_opt`` (L1Loss, ...) compares
    the estimate of x0 with ``gt``.

    Raises:
        OptionError: Naming the option key or file, what was found and what is allowed.
    """

    def __init__(self, opt: dict[str, Any]) -> None:
        preflight.check_model(opt)
        self.bridge = build_bridge(opt.get('bridge'), preflight.registered('BRIDGE'))
        self.sampler = build_sampler((opt.get('val') or {}).get('sampler'), self.bridge,
                                     preflight.registered('SAMPLER'))
        self.validation_sets = [dataset['name'] for phase, dataset in opt.get('datasets', {}).items()
                                if not phase.startswith('train')]
        self.degraded_scores: dict[str, dict[str, float]] = {}
        self.finished: dict[str, list[ImageScore]] = {}
        self.examples: dict[str, list[report.Picture]] = {}
        self.warm = False
        settings = opt.get('val') or {}
        self.tile, self.tile_overlap = settings.get('tile'), settings.get('tile_overlap', OVERLAP)
        self.across_ranks = validation_group() if opt['dist'] else None
        super().__init__(opt)

    # ------------------------------------------------------------------ networks

    def model_to_device(self, net: nn.Module) -> nn.Module:
        net = net.to(memory_format=torch.channels_last)
        if self.opt['dist'] and self.device.type == 'cpu':
            # BasicSR names a GPU.
            return DistributedDataParallel(net)
        return super().model_to_device(net)

    def load_network(self, net: nn.Module, load_path: str, strict: bool = True, param_key: str = 'params') -> None:
        # BasicSR's own error is torch's list of keys, and torch < 2.6 would run what the pickle holds.
        parameters = read_parameters(load_path, param_key)
        if strict:
            check_fits(load_path, parameters, self.get_bare_model(net))
        super().load_network(net, load_path, strict, param_key)

    # ------------------------------------------------------------------ training

    def init_training_settings(self) -> None:
        settings = preflight.check_training(self.opt['train'], self.bridge.timesteps)
        self.node_t_share, self.own_start_share, self.amp = settings
        super().init_training_settings()
        if self.ema_decay > 0:
            self.net_g_ema.to(memory_format=torch.channels_last)
        tasks = (self.opt.get('datasets') or {}).get('train', {}).get('tasks') or TASKS
        self.tasks = list(dict.fromkeys(map(str, tasks)))
        self.task_losses = torch.zeros(2, len(self.tasks), device=self.device)
        count_batches(0)

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        super().resume_training(resume_state)
        count_batches(resume_state['iter'])

    def get_optimizer(self, optim_type: str, params: list[Tensor], lr: float, **kwargs: Any) -> torch.optim.Optimizer:
        # BasicSR 1.4.2 knows Adam alone.
        return preflight.optimizer_class({'type': optim_type, 'lr': lr, **kwargs})(params, lr=lr, **kwargs)

    def feed_data(self, data: Mapping[str, Any]) -> None:
        self.lq = data['lq'].to(self.device, memory_format=torch.channels_last, non_blocking=True)
        if hasattr(self, 'gt'):
            del self.gt
        if 'gt' in data:
            self.gt = data['gt'].to(self.device, memory_format=torch.channels_last, non_blocking=True)
        self.batch_tasks = data.get('task', [])
        self.seeds = [_seed(self.opt.get('manual_seed'), path) for path in data.get('lq_path', [''] * len(self.lq))]

    def draw_times(self, count: int) -> Tensor:
        """Nodes to train on, (count,) int64 on the CPU."""
        last = self.bridge.timesteps
        inner = torch.randint(1, max(last, 2), (count,))
        return torch.where(torch.rand(count) < self.node_t_share, last, inner)

    def optimize_parameters(self, current_iter: int) -> None:
        mu, residual = 2 * self.lq - 1, 2 * (self.gt - self.lq)
        t = self.draw_times(len(mu))
        eps = torch.randn_like(residual)
        n = self.bridge.modulate(residual, eps)
        z = self.bridge.marginal(residual, n, t)
        if self.own_start_share > 0:
            z, n = self.start_from_own_estimate(z, n, residual, eps, mu, t)
        output = self.predict(self.bridge.centre(mu, t) + z, mu, t)
        states = (z, self.bridge.target(residual, n, mu, t), mu, t, residual, self.gt)
        losses = self.losses(output, *states)

        self.optimizer_g.zero_grad()
        sum(losses.values()).backward()
        self.optimizer_g.step()
        self.log_dict = self.reduce_loss_dict(losses)
        if self.ema_decay > 0:
            self.model_ema(decay=self.ema_decay)
        self.note_task_losses(output.detach(), *states)
        count_batches(current_iter)

    @torch.no_grad()
    def note_task_losses(self, output: Tensor, *states: Tensor) -> None:
        """Add the loss of each task's part of the batch to the sums that the log shows the means of."""
        for index, task in enumerate(self.tasks):
            part = [place for place, name in enumerate(self.batch_tasks) if name == task]
            if part:
                losses = self.losses(*(tensor[part] for tensor in (output, *states)))
                self.task_losses[0, index] += sum(losses.values()) * len(part)
                self.task_losses[1, index] += len(part)

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
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp):
            return self.net_g(x_t, mu, t.to(self.device)).float()

    def start_from_own_estimate(self, z: Tensor, n: Tensor, residual: Tensor, eps: Tensor, mu: Tensor,
                                t: Tensor) -> tuple[Tensor, Tensor]:
        """Replace states (z, n) by those that sampling meets: of the network's own estimate at node T."""
        chosen = (torch.rand(len(t)) < self.own_start_share) & (t < self.bridge.timesteps)
        if not chosen.any():
            return z, n
        last = torch.full_like(t, self.bridge.timesteps)[chosen]
        mu, residual, eps, t = mu[chosen], residual[chosen], eps[chosen], t[chosen]
        with torch.no_grad():
            nothing = torch.zeros_like(mu)
            start = self.bridge.marginal(nothing, self.bridge.modulate(nothing, eps), last)
            output = self.predict(self.bridge.centre(mu, last) + start, mu, last)
            estimate = self.bridge.to_residual(output, start, mu, last)
        estimate = (mu + estimate).clamp(-1, 1) - mu
        z, n = z.clone(), n.clone()
        z[chosen] = self.bridge.marginal(estimate, self.bridge.modulate(estimate, eps), t)
        n[chosen] = self.bridge.noise_of(z[chosen], residual, t)
        return z, n

    def losses(self, output: Tensor, z: Tensor, target: Tensor, mu: Tensor, t: Tensor, residual: Tensor,
               gt: Tensor) -> OrderedDict[str, Tensor]:
        """The loss terms: ours compares in the bridge, BasicSR's compare the estimate of x0 with gt."""
        terms = OrderedDict()
        x0_hat = None
        if not isinstance(self.cri_pix, ResidualModulatedLoss) or self.cri_perceptual:
            x0_hat = (mu + 1 + self.bridge.to_residual(output, z, mu, t)) / 2
        if isinstance(self.cri_pix, ResidualModulatedLoss):
            terms['l_pix'] = self.cri_pix(output, target, t, self.bridge, residual)
        elif self.cri_pix:
            terms['l_pix'] = self.cri_pix(x0_hat, gt)
        if self.cri_perceptual:
            perceptual = zip(('l_percep', 'l_style'), self.cri_perceptual(x0_hat, gt))
            terms.update((name, value) for name, value in perceptual if value is not None)
        return terms

    # ------------------------------------------------------------------ validation and test

    def test(self, keep_trajectory: bool = False) -> None:
        net = self.net_g_ema if hasattr(self, 'net_g_ema') else self.get_bare_model(self.net_g)
        net.eval()
        if self.tile == 'auto':
            self.tile = tile_for(net)
        network = tiled(net, self.tile, self.tile_overlap)
        evaluation.wait(self.device)
        start = perf_counter()
        with torch.inference_mode():
            result = self.sampler(network, 2 * self.lq - 1, self.seeds, keep_trajectory)
        evaluation.wait(self.device)
        self.seconds = perf_counter() - start
        self.evaluations = result.nfe
        # Adding half the residual to the input, not mapping x0 back, keeps untouched pixels bit-identical.
        self.output = self.lq + result.residual / 2
        self.trajectory = [(point.x_t + 1) / 2 for point in result.trajectory]
        if self.is_train:
            self.net_g.train()

    def _warm_up(self) -> None:
        """Let the device load what it needs before a time is taken."""
        whole = self.lq
        self.lq = whole[..., :SMALLEST, :SMALLEST]
        self.test()
        self.lq, self.warm = whole, True

    def dist_validation(self, dataloader: Any, current_iter: int | str, tb_logger: Any, save_img: bool) -> None:
        # BasicSR's version lets rank 0 work alone, until the others' next collective call times out.
        self._validate(dataloader, current_iter, tb_logger, save_img, self.opt['rank'], self.opt['world_size'])

    def nondist_validation(self, dataloader: Any, current_iter: int | str, tb_logger: Any, save_img: bool) -> None:
        # BasicSR's version scores neither the input nor the average over the sets, and keeps no pictures.
        self._validate(dataloader, current_iter, tb_logger, save_img, 0, 1)

    def _validate(self, dataloader: Any, current_iter: int | str, tb_logger: Any, save_img: bool, rank: int,
                  ranks: int) -> None:
        """Restore and score every ``ranks``-th image, and share the scores."""
        dataset = dataloader.dataset
        name = dataset.opt['name']
        bar = tqdm(range(rank, len(dataset), ranks), desc=f'Validate {name}', unit='image', leave=False,
                   disable=rank > 0 or not self.opt['val'].get('pbar', False))

        def score(index: int) -> ImageScore:
            data = default_collate([dataset[index]])
            self.feed_data(data)
            if not self.is_train and not self.warm:
                self._warm_up()
            self.test(keep_trajectory=index == 0 and bool(tb_logger))
            visuals = self.get_current_visuals()
            if index == 0:
                self._show_example(name, visuals, current_iter, tb_logger)
            return self._score(name, evaluation.image_name(data), visuals, current_iter, save_img)

        scores = in_turn(lambda: [score(index) for index in bar], self.across_ranks)
        result = SetScore.of(scores)
        if result.restored:
            self._log_scores(name, result.restored, current_iter, tb_logger)
        self._finish(name, scores, current_iter, tb_logger)

    def _score(self, dataset: str, image: str, visuals: Mapping[str, Tensor], current_iter: int | str,
               save_img: bool) -> ImageScore:
        images = {key: tensor2img([image]) for key, image in visuals.items()}
        if save_img:
            imwrite(images['result'], self._image_path(dataset, image, current_iter))
        metrics, clean = self.opt['val'].get('metrics'), images.get('gt')
        restored = evaluation.scores(images['result'], clean, metrics, dataset)
        key = f'{dataset}/{image}'
        if key not in self.degraded_scores:
            self.degraded_scores[key] = evaluation.scores(images['lq'], clean, metrics, dataset)
        return ImageScore(image, restored, self.degraded_scores[key], self.seconds, self.evaluations)

    def _image_path(self, dataset: str, image: str, current_iter: int | str) -> str:
        folder = osp.join(self.opt['path']['visualization'], dataset)
        if self.is_train:
            return osp.join(folder, image, f'{osp.basename(image)}_{current_iter}.png')
        return osp.join(folder, f'{image}_{self.opt["val"].get("suffix") or self.opt["name"]}.png')

    def _show_example(self, name: str, visuals: Mapping[str, Tensor], current_iter: int | str, tb_logger: Any) -> None:
        self.examples[name] = [report.to_picture(visuals[key][0]) for key in ('lq', 'result', 'gt') if key in visuals]
        if tb_logger:
            columns = ('degraded', 'restored', 'clean')[:len(self.examples[name])]
            grid = report.picture_grid({name: self.examples[name]}, columns)
            tb_logger.add_image(f'validation/{name}', grid, current_iter, dataformats='HWC')
            if self.trajectory:
                states = [report.to_picture(state[0]) for state in self.trajectory]
                tb_logger.add_image(f'trajectory/{name}', report.strip(states), current_iter, dataformats='HWC')

    def _log_scores(self, name: str, scores: dict[str, float], current_iter: int | str, tb_logger: Any) -> None:
        self._initialize_best_metric_results(name)
        for metric, value in scores.items():
            self._update_best_metric_result(name, metric, value, current_iter)
        self.metric_results = scores
        self._log_validation_metric_values(current_iter, name, tb_logger)

    def _finish(self, name: str, scores: list[ImageScore], current_iter: int | str, tb_logger: Any) -> None:
        """After the last of the sets: their average, the tables, and the before/after picture."""
        self.finished[name] = scores
        if any(dataset not in self.finished for dataset in self.validation_sets):
            return
        finished, self.finished = self.finished, {}
        sets = {dataset: SetScore.of(each) for dataset, each in finished.items()}
        rows = with_average(sets)
        if len(rows) > 1 and rows['average'].restored:
            self._log_scores('average', rows['average'].restored, current_iter, tb_logger)
        if self.opt['rank'] != 0:
            return
        logger = get_root_logger()
        evaluations = SetScore.average(sets.values()).evaluations
        for metric in sets[name].restored:
            table = report.gain_table({dataset: (each.degraded[metric], each.restored[metric])
                                       for dataset, each in sets.items()}, metric)
            logger.info(f'Validation, {evaluations:g} network evaluations an image:\n{table}')
        picture = osp.join(self.opt['path']['visualization'], 'before_after.png')
        columns = ('degraded', 'restored', 'clean')[:max(map(len, self.examples.values()))]
        imwrite(report.picture_grid(self.examples, columns)[:, :, ::-1], picture)
        logger.info(f'Before and after: {picture}')
        if not self.is_train:
            folder = Path(self.opt['path']['results_root'])
            write_results(folder, finished, self.opt)
            logger.info(f'Tables, scores of every image, options and versions: {folder}')


def _seed(manual_seed: int | None, path: str) -> int:
    """A seed that depends on the run's seed and the image's name alone."""
    return zlib.crc32(f'{manual_seed}:{osp.basename(path)}'.encode())
