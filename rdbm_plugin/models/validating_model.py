"""A BasicSR model that scores degraded and restored images on all ranks, with tables and pictures."""
from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from os import path as osp
from pathlib import Path
from typing import Any

from basicsr.utils.img_util import imwrite, tensor2img
from basicsr.utils.logger import get_root_logger
from torch import Tensor
from torch.utils.data import default_collate
from tqdm import tqdm

from rdbm_plugin.evaluation import pictures, scoring
from rdbm_plugin.evaluation.results import ImageScore, SetScore, with_average, write_results
from rdbm_plugin.inference.tiling import SMALLEST
from rdbm_plugin.models.durable_model import DurableModel
from rdbm_plugin.models.ranks import in_turn


class ValidatingModel(DurableModel):
    """Validates and tests; a subclass gives ``test``, which sets output, trajectory, seconds and evaluations."""

    def __init__(self, opt: dict[str, Any]) -> None:
        self.validation_sets = [dataset['name'] for phase, dataset in opt.get('datasets', {}).items()
                                if not phase.startswith('train')]
        self.degraded_scores: dict[str, dict[str, float]] = {}
        self.finished: dict[str, list[ImageScore]] = {}
        self.examples: dict[str, list[pictures.Picture]] = {}
        self.trajectory: list[Tensor] = []
        self.seconds, self.evaluations, self.warm = 0.0, 0.0, False
        super().__init__(opt)

    def test(self, keep_trajectory: bool = False) -> None:
        """Restore ``self.lq`` into ``self.output``; both (N, C, H, W) in [0, 1]."""
        raise NotImplementedError

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
        if self.is_train:
            # At the end of a training BasicSR validates once more, with an iteration beyond the last.
            current_iter = min(int(current_iter), int(self.opt['train']['total_iter']))
            if current_iter == self.validated_iter:
                return
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
            return self._score(name, scoring.image_name(data), visuals, current_iter, save_img)

        scores = in_turn(lambda: [score(index) for index in bar if self.interruption.signal is None],
                         self.across_ranks)
        if self.is_train and self.interruption.asked_by_any():
            self.stop(int(current_iter))
        result = SetScore.of(scores)
        if result.restored:
            self._log_scores(name, result.restored, current_iter, tb_logger)
        self._finish(name, scores, current_iter, tb_logger)

    def _score(self, dataset: str, image: str, visuals: Mapping[str, Tensor], current_iter: int | str,
               save_img: bool) -> ImageScore:
        images = {key: tensor2img([image]) for key, image in visuals.items()}
        if save_img:
            self._write_picture(images['result'], self._image_path(dataset, image, current_iter))
        metrics, clean = self.opt['val'].get('metrics'), images.get('gt')
        restored = scoring.scores(images['result'], clean, metrics, dataset)
        key = f'{dataset}/{image}'
        if key not in self.degraded_scores:
            self.degraded_scores[key] = scoring.scores(images['lq'], clean, metrics, dataset)
        return ImageScore(image, restored, self.degraded_scores[key], self.seconds, self.evaluations)

    def _write_picture(self, image: pictures.Picture, path: str) -> None:
        with self.surviving('A picture') if self.is_train else nullcontext():
            imwrite(image, path)

    def _image_path(self, dataset: str, image: str, current_iter: int | str) -> str:
        folder = osp.join(self.opt['path']['visualization'], dataset)
        if self.is_train:
            return osp.join(folder, image, f'{osp.basename(image)}_{current_iter}.png')
        return osp.join(folder, f'{image}_{self.opt["val"].get("suffix") or self.opt["name"]}.png')

    def _show_example(self, name: str, visuals: Mapping[str, Tensor], current_iter: int | str, tb_logger: Any) -> None:
        self.examples[name] = [pictures.to_picture(visuals[key][0]) for key in ('lq', 'result', 'gt') if key in visuals]
        if tb_logger:
            columns = ('degraded', 'restored', 'clean')[:len(self.examples[name])]
            grid = pictures.picture_grid({name: self.examples[name]}, columns)
            tb_logger.add_image(f'validation/{name}', grid, current_iter, dataformats='HWC')
            if self.trajectory:
                states = [pictures.to_picture(state[0]) for state in self.trajectory]
                tb_logger.add_image(f'trajectory/{name}', pictures.strip(states), current_iter, dataformats='HWC')

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
        self.validation_finished(current_iter, self._is_best('average' if len(rows) > 1 else name, current_iter))
        if self.opt['rank'] != 0:
            return
        logger = get_root_logger()
        evaluations = SetScore.average(sets.values()).evaluations
        for metric in sets[name].restored:
            table = pictures.gain_table({dataset: (each.degraded[metric], each.restored[metric])
                                       for dataset, each in sets.items()}, metric)
            logger.info(f'Validation, {evaluations:g} network evaluations an image:\n{table}')
        picture = osp.join(self.opt['path']['visualization'], 'before_after.png')
        columns = ('degraded', 'restored', 'clean')[:max(map(len, self.examples.values()))]
        self._write_picture(pictures.picture_grid(self.examples, columns)[:, :, ::-1], picture)
        logger.info(f'Before and after: {picture}')
        if not self.is_train:
            folder = Path(self.opt['path']['results_root'])
            write_results(folder, finished, self.opt)
            logger.info(f'Tables, scores of every image, options and versions: {folder}')



    def _is_best(self, name: str, current_iter: int | str) -> bool:
        metric = self.opt['logger'].get('keep_best') if self.is_train else None
        return metric is not None and self.best_metric_results[name][metric]['iter'] == current_iter
