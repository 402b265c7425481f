"""Pairs of five restoration tasks, made from clean photos on the fly."""
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from rdbm_plugin.config.options import OptionError, check_int, check_keys, check_number
from rdbm_plugin.data.clean_sources import CleanSource, open_clean
from rdbm_plugin.data.degradations import DEGRADATIONS, TASKS, Ranges, degrade, draw
from rdbm_plugin.data.image_source import to_float
from rdbm_plugin.data.packing import centre, pack, turn
from rdbm_plugin.data.task_mixture import MixedDataset

KEPT_IN_MEMORY = 2**28
"""Bytes of decoded photos that a process caches, so that small sources are decoded once."""


class SyntheticUniversalDataset(MixedDataset):
    """Pairs (lq, gt) of rain, low light, snow, haze and blur, made from clean photos on the fly.

    In training, every item is a new random crop with a new random degradation, and all tasks are equally frequent in
    batches whose size is a multiple of the number of tasks. In validation and test, item i is always the same: a whole
    photo, or its centre with ``gt_size``, with a degradation fixed by ``seed`` and i.

    Args:
        opt: The dataset block of the option file:

            - ``dataroot_gt``: clean images, see :func:`rdbm_plugin.data.clean_sources.open_clean`.
            - ``tasks``: list of derain, lowlight, desnow, dehaze, deblur, ``intact`` (no damage) and chains such as
              ``dehaze+derain`` (left first). Tasks listed twice are drawn twice as often. Default: the first five.
            - ``degradations``: ranges of the drawn parameters, see
              :class:`rdbm_plugin.data.degradations.ranges.Ranges`; default the narrow ranges of versions up to 0.1.
            - ``gt_size``: crop size in pixels; required in training.
            - ``use_hflip``, ``use_rot``: random flips and quarter turns (training), default true.
            - ``min_scale``: training crops are shrunk from regions up to 1/min_scale times larger; default 1.
            - ``seed``: seed of the fixed degradations in validation and test, default 0.
            - ``max_bad_share``: share of images that may be unusable before training ends, default 0.01.

    Raises:
        OptionError: A key is unknown or its value is out of range, or there is no image.
    """

    def read_options(self, dataroot_gt: str, tasks: Sequence[str] = tuple(TASKS),
                     degradations: Mapping[str, Any] | None = None, gt_size: int | None = None,
                     use_hflip: bool = True, use_rot: bool = True, min_scale: float = 1.0, seed: int = 0,
                     max_bad_share: float = 0.01) -> None:
        if isinstance(tasks, str) or not tasks:
            raise OptionError(f'tasks: found {tasks!r}; expected a list with any of {", ".join(DEGRADATIONS)}.')
        self.tasks = [str(task) for task in tasks]
        self.task_names = list(dict.fromkeys(self.tasks))
        for task in self.task_names:
            draw(task, np.random.default_rng(0))
        check_keys('degradations', degradations or {}, Ranges)
        self.ranges = Ranges(**(degradations or {}))
        self.read_crop(gt_size, use_hflip, use_rot, max_bad_share)
        self.min_scale = check_number('min_scale', min_scale, 0.1, 1)
        self.seed = check_int('seed', seed, 0)
        self.clean: CleanSource = open_clean(dataroot_gt, self.opt['phase'])
        self._decoded: dict[int, NDArray[Any]] = {}
        self._decoded_bytes = 0
        if self.train:
            kinds = len(self.task_names)
            self.start_order([len(self.clean)] * kinds, list(map(self.tasks.count, self.task_names)), [0] * kinds)

    def __len__(self) -> int:
        return len(self.clean) * (1 if self.train else len(self.tasks))

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self.train:
            return super().__getitem__(index)
        photo, task = divmod(index, len(self.tasks))
        rng = np.random.default_rng([self.seed, index])
        clean = centre(to_float(self._photo(photo)), self.gt_size)
        degraded = degrade(clean, draw(self.tasks[task], rng, self.ranges), rng)
        return self._pack(clean, degraded, photo, self.tasks[task])

    def training_item(self, task: int, image: int, rng: Generator) -> dict[str, Any]:
        name = self.task_names[task]
        clean = to_float(self._crop(self._photo(image), rng))
        degraded = degrade(clean, draw(name, rng, self.ranges), rng)
        inner = slice(self.ranges.margin, self.ranges.margin + self.gt_size)
        return self._pack(clean[inner, inner], degraded[inner, inner], image, name)

    def _photo(self, index: int) -> NDArray[Any]:
        if index in self._decoded:
            return self._decoded[index]
        photo = self.clean.decode(index)
        if self._decoded_bytes + photo.nbytes <= KEPT_IN_MEMORY:
            self._decoded[index] = photo
            self._decoded_bytes += photo.nbytes
        return photo

    def _crop(self, photo: NDArray[Any], rng: Generator) -> NDArray[Any]:
        """Cut a random square of gt_size and the margin that blur and streaks reach in from; flip and turn it."""
        size = self.gt_size + 2 * self.ranges.margin
        region = round(size / rng.uniform(self.min_scale, 1))
        region = max(min(region, *photo.shape[:2]), 1)
        top, left = (int(rng.integers(length - region + 1)) for length in photo.shape[:2])
        crop = photo[top:top + region, left:left + region]
        if region != size:
            crop = cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA if region > size else cv2.INTER_CUBIC)
        return turn(crop, self.use_hflip and rng.random() < 0.5, int(rng.integers(4)) if self.use_rot else 0)

    def _pack(self, clean: NDArray[np.float32], degraded: NDArray[np.float32], photo: int,
              task: str) -> dict[str, Any]:
        path, name = self.clean.path(photo), self.clean.stem(photo)
        return pack(clean, degraded, task, path, path, name if len(self.task_names) == 1 else f'{task}/{name}')
