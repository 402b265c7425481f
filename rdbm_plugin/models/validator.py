"""Restoration and scoring of data sets on all ranks, with tables and pictures. Needs BasicSR."""
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from basicsr.utils.img_util import imwrite, tensor2img
from basicsr.utils.logger import get_root_logger
from torch import Tensor
from torch.utils.data import Dataset, default_collate
from tqdm import tqdm

from rdbm_plugin.evaluation import pictures, scoring
from rdbm_plugin.evaluation.results import ImageScore, SetScore, gain_table, write_results
from rdbm_plugin.models.checkpoints import surviving
from rdbm_plugin.models.ranks import Ranks


class Restoration(NamedTuple):
    """The restoration of one image, its duration in seconds and its number of network evaluations."""

    images: Mapping[str, Tensor]
    """``lq``, ``result`` and, with ground truth, ``gt``: each (1, C, H, W) in [0, 1]."""
    seconds: float
    evaluations: int
    trajectory: Sequence[Tensor] = ()
    """States from mu to x0, (1, C, H, W) in [0, 1], if requested."""


class Validator:
    """Scores the data sets of an option file one by one, and reports on all of them after the last.

    ``ranks`` are all processes of the run; each of them restores its share of the images.
    """

    def __init__(self, opt: Mapping[str, Any], ranks: Ranks) -> None:
        self.opt, self.ranks, self.training = opt, ranks, bool(opt.get('is_train'))
        self.settings: Mapping[str, Any] = opt.get('val') or {}
        self.sets = [dataset['name'] for phase, dataset in (opt.get('datasets') or {}).items()
                     if not phase.startswith('train')]
        self.degraded_scores: dict[str, dict[str, float]] = {}
        self.finished: dict[str, list[ImageScore]] = {}
        self.examples: dict[str, list[pictures.Picture]] = {}

    def due(self, iteration: int) -> bool:
        """Whether BasicSR's loop validates at the end of ``iteration``."""
        return bool(self.settings and self.sets) and iteration % self.settings['val_freq'] == 0

    def run(self, dataset: Dataset, restore: Callable[[dict[str, Any], bool], Restoration], iteration: int | str,
            board: Any, save_img: bool, stopping: Callable[[], bool] = lambda: False) -> list[ImageScore]:
        """Restore and score a data set; return the scores of all images. Every rank must call this.

        Args:
            dataset: A data set of BasicSR; its ``opt`` holds its name.
            restore: Called with a batch of one image, and with whether to keep the trajectory.
            iteration: Part of the names of pictures.
            board: A TensorBoard writer for examples, or None.
            save_img: Whether to write the restored images.
            stopping: Returns whether this rank should skip its remaining images.
        """
        name = dataset.opt['name']
        bar = tqdm(range(self.ranks.rank, len(dataset), self.ranks.count), desc=f'Validate {name}', unit='image',
                   leave=False, disable=self.ranks.rank > 0 or not self.settings.get('pbar', False))

        def score(index: int) -> ImageScore:
            data = default_collate([dataset[index]])
            found = restore(data, index == 0 and bool(board))
            if index == 0:
                self._show_example(name, found, iteration, board)
            return self._score(name, scoring.image_name(data), found, iteration, save_img)

        return self.ranks.in_turn(lambda: [score(index) for index in bar if not stopping()])

    def _score(self, dataset: str, image: str, found: Restoration, iteration: int | str, save_img: bool) -> ImageScore:
        images = {key: tensor2img([image]) for key, image in found.images.items()}
        if save_img:
            self._write_picture(images['result'], self._image_path(dataset, image, iteration))
        metrics, clean = self.settings.get('metrics'), images.get('gt')
        restored = scoring.scores(images['result'], clean, metrics, dataset)
        key = f'{dataset}/{image}'
        if key not in self.degraded_scores:
            self.degraded_scores[key] = scoring.scores(images['lq'], clean, metrics, dataset)
        return ImageScore(image, restored, self.degraded_scores[key], found.seconds, found.evaluations)

    def _write_picture(self, image: pictures.Picture, path: Path) -> None:
        with surviving('A picture') if self.training else nullcontext():
            imwrite(image, str(path))

    def _image_path(self, dataset: str, image: str, iteration: int | str) -> Path:
        folder = Path(self.opt['path']['visualization'], dataset)
        if self.training:
            return folder / image / f'{Path(image).name}_{iteration}.png'
        return folder / f'{image}_{self.settings.get("suffix") or self.opt["name"]}.png'

    def _show_example(self, name: str, found: Restoration, iteration: int | str, board: Any) -> None:
        self.examples[name] = [pictures.to_picture(found.images[key][0]) for key in ('lq', 'result', 'gt')
                               if key in found.images]
        if board:
            columns = ('degraded', 'restored', 'clean')[:len(self.examples[name])]
            grid = pictures.picture_grid({name: self.examples[name]}, columns)
            board.add_image(f'validation/{name}', grid, iteration, dataformats='HWC')
            if found.trajectory:
                states = [pictures.to_picture(state[0]) for state in found.trajectory]
                board.add_image(f'trajectory/{name}', pictures.strip(states), iteration, dataformats='HWC')

    def collect(self, name: str, scores: list[ImageScore]) -> dict[str, list[ImageScore]] | None:
        """Add the scores of one set; return those of all sets after the last one, else None."""
        self.finished[name] = scores
        if any(dataset not in self.finished for dataset in self.sets):
            return None
        finished, self.finished = self.finished, {}
        return finished

    def report(self, finished: Mapping[str, Sequence[ImageScore]]) -> None:
        """On rank 0, log the tables of all sets, draw the before/after picture and, in a test, write the results."""
        if self.ranks.rank != 0:
            return
        logger = get_root_logger()
        sets = {dataset: SetScore.of(each) for dataset, each in finished.items()}
        evaluations = SetScore.of([*sets.values()]).evaluations
        for metric in next(reversed(sets.values())).restored:
            logger.info(f'Validation, {evaluations:g} network evaluations per image:\n{gain_table(sets, metric)}')
        path = Path(self.opt['path']['visualization'], 'before_after.png')
        columns = ('degraded', 'restored', 'clean')[:max(map(len, self.examples.values()))]
        self._write_picture(pictures.picture_grid(self.examples, columns)[:, :, ::-1], path)
        logger.info(f'Before and after: {path}')
        if not self.training:
            folder = Path(self.opt['path']['results_root'])
            write_results(folder, finished, self.opt)
            logger.info(f'Tables, scores of each image, options and versions: {folder}')
