"""Clean photos in, pairs of five restoration tasks out, degraded on the fly."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from rdbm_plugin.data.clean_sources import list_clean, read_rgb
from rdbm_plugin.data.degradations import MARGIN, TASKS, degrade
from rdbm_plugin.options import OptionError, check_choice, check_int, check_keys, check_number

_BASICSR_KEYS = {'name', 'type', 'phase', 'scale', 'io_backend', 'num_worker_per_gpu', 'batch_size_per_gpu',
                 'dataset_enlarge_ratio', 'prefetch_mode', 'num_prefetch_queue', 'pin_memory', 'persistent_workers'}


class SyntheticUniversalDataset(Dataset):
    """Pairs (lq, gt) of rain, low light, snow, haze and blur, made from clean photos on the fly.

    In training every item is a new random crop with a new random degradation; a batch holds every task equally often
    if its size is a multiple of the number of tasks. In validation and test item i is always the same: whole
    photos (or their centre, with ``gt_size``) with a degradation fixed by ``seed`` and i.

    Random numbers come from torch's generator of the process that loads, which the DataLoader seeds anew for every
    worker and epoch from ``manual_seed``; numpy's and Python's generators are left alone.

    Args:
        opt: The dataset block of the option file:

            - ``dataroot_gt``: folder of clean images (sub-folders included), or ``embedded``.
            - ``tasks``: some of derain, lowlight, desnow, dehaze, deblur; named twice, it is drawn twice as often;
              default all five once.
            - ``gt_size``: crop size in pixels; required in training.
            - ``use_hflip``, ``use_rot``: random flips and quarter turns (training), default true.
            - ``min_scale``: in training a crop comes from a region up to 1/min_scale times larger, shrunk; default 1.
            - ``seed``: of the fixed degradations in validation and test, default 0.

    Raises:
        OptionError: A key is unknown or its value out of range, or there is no image.
    """

    def __init__(self, opt: Mapping[str, Any]) -> None:
        super().__init__()
        self.opt = dict(opt)
        where = f'datasets: {opt.get("name", "?")}'
        ours = {key: value for key, value in opt.items() if key not in _BASICSR_KEYS}
        check_keys(where, ours, self._read_options)
        try:
            self._read_options(**ours)
            self.paths = list_clean(self.root, opt['phase'])
        except OptionError as error:
            raise OptionError(f'{where}: {error}') from None

    def _read_options(self, dataroot_gt: str, tasks: Sequence[str] = tuple(TASKS), gt_size: int | None = None,
                      use_hflip: bool = True, use_rot: bool = True, min_scale: float = 1.0, seed: int = 0) -> None:
        self.root = dataroot_gt
        self.train = self.opt['phase'] == 'train'
        if isinstance(tasks, str) or not tasks:
            raise OptionError(f'tasks: found {tasks!r}; expected a list of some of {", ".join(TASKS)}.')
        self.tasks = [check_choice('tasks', task, TASKS) for task in tasks]
        if gt_size is None and self.train:
            raise OptionError('gt_size: missing; expected the crop size in pixels.')
        self.gt_size = None if gt_size is None else check_int('gt_size', gt_size, 8)
        self.use_hflip, self.use_rot = use_hflip, use_rot
        self.min_scale = check_number('min_scale', min_scale, 0.1, 1)
        self.seed = check_int('seed', seed, 0)

    def __len__(self) -> int:
        return len(self.paths) * (1 if self.train else len(self.tasks))

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self.train:
            return self._train_item(index, self.tasks[int(torch.randint(len(self.tasks), ()))])
        photo, task = divmod(index, len(self.tasks))
        rng = np.random.default_rng([self.seed, index])
        clean = _read_cached(self.paths[photo]).astype(np.float32) / 255
        if self.gt_size is not None:
            top, left = ((length - min(self.gt_size, length)) // 2 for length in clean.shape[:2])
            clean = clean[top:top + self.gt_size, left:left + self.gt_size]
        return self._pack(clean, degrade(clean, self.tasks[task], rng), self.paths[photo], self.tasks[task])

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """A whole batch: PyTorch hands it over at once, so that the tasks can be balanced within it."""
        if not self.train:
            return [self[index] for index in indices]
        first = int(torch.randint(len(self.tasks), ()))
        return [self._train_item(index, self.tasks[(first + place) % len(self.tasks)])
                for place, index in enumerate(indices)]

    def _train_item(self, index: int, task: str) -> dict[str, Any]:
        rng = np.random.default_rng(int(torch.randint(2**62, ())))
        path = self.paths[index]
        clean = self._crop(_read_cached(path), rng).astype(np.float32) / 255
        degraded = degrade(clean, task, rng)
        inner = slice(MARGIN, MARGIN + self.gt_size)
        return self._pack(clean[inner, inner], degraded[inner, inner], path, task)

    def _crop(self, photo: NDArray[np.uint8], rng: Generator) -> NDArray[np.uint8]:
        """A random square of gt_size and the margin that blur and streaks reach in from, flipped and turned."""
        size = self.gt_size + 2 * MARGIN
        region = round(size / rng.uniform(self.min_scale, 1))
        shortest = min(photo.shape[:2])
        region = max(min(region, shortest), 1)
        top, left = (int(rng.integers(length - region + 1)) for length in photo.shape[:2])
        crop = photo[top:top + region, left:left + region]
        if region != size:
            crop = cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA if region > size else cv2.INTER_CUBIC)
        if self.use_hflip and rng.random() < 0.5:
            crop = crop[:, ::-1]
        return np.rot90(crop, int(rng.integers(4))) if self.use_rot else crop

    @staticmethod
    def _pack(clean: NDArray[np.float32], degraded: NDArray[np.float32], path: Path, task: str) -> dict[str, Any]:
        return {'lq': _to_tensor(degraded), 'gt': _to_tensor(clean), 'task': task,
                'lq_path': str(path), 'gt_path': str(path)}


def _to_tensor(image: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


@lru_cache(maxsize=64)
def _read_cached(path: Path) -> NDArray[np.uint8]:
    return read_rgb(path)
