"""Pairs of several restoration tasks from folders or LMDBs, mixed in exact shares."""
from collections.abc import Mapping
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from rdbm_plugin.config.options import OptionError, check_choice, check_int, check_keys, check_number, naming
from rdbm_plugin.data.image_source import ImageError, ImageSource, below_one_root, to_float
from rdbm_plugin.data.packing import centre, pack, turn
from rdbm_plugin.data.pairing import Pairs, better_rule, find_pairs, joined
from rdbm_plugin.data.task_mixture import MixedDataset, counts_of_weights


class Task(NamedTuple):
    """One task: its pairs and its share of a batch."""

    name: str
    gt: ImageSource
    lq: ImageSource
    pairs: Pairs
    quota: int | None
    weight: float | None
    gt_border: int = 0
    """Pixels to cut from each side of clean images."""


class UniversalPairedDataset(MixedDataset):
    """Pairs (lq, gt) of several tasks, each from its own folders or LMDBs with its own pairing rule.

    Shares in training are set in one of three ways: ``quota`` in every task (a batch holds exactly so many of each,
    or a multiple if the batch is larger), ``weight`` in every task, or ``temperature`` for all: in proportion to
    size^(1/temperature), 1 by size, large for equal shares; with none of them shares are equal. Images of a task
    come in shuffled rounds, none twice before all came once.

    A pair cannot be used if an image is unreadable, truncated, of another size than its partner, or smaller than
    ``gt_size``; see :class:`MixedDataset` for what happens then.

    Args:
        opt: The dataset block of the option file:

            - ``tasks``: name -> ``{dataroot_gt, dataroot_lq, io_backend, pairing, gt_border, quota or weight}``.
              ``io_backend`` is ``{type: disk}`` or ``{type: lmdb}``, by default what the root is. ``pairing``: see
              :func:`rdbm_plugin.data.pairing.find_pairs`, default ``same``. Of lists of folders those at one place
              belong together. ``gt_border``: pixels to cut from each side of the clean images, 10 for SOTS indoor,
              default 0.
            - ``temperature``: see above.
            - ``gt_size``: crop size in pixels; required in training; in validation the centre, default whole images.
            - ``use_hflip``, ``use_rot``: random flips and quarter turns (training), default true.
            - ``skip_unpaired``: leave out images without a partner instead of refusing them, default false. Clean
              images without a degraded one never hurt.
            - ``max_bad_share``: share of pairs that may be unusable before training ends, default 0.01.

    Items are RGB in [0, 1], (3, H, W) float32, with ``task``, ``lq_path`` and ``gt_path``.

    Raises:
        OptionError: A key is unknown or its value out of range, a root is missing or holds no pairs.
    """

    def read_options(self, tasks: Mapping[str, Mapping[str, Any]], gt_size: int | None = None,
                     use_hflip: bool = True, use_rot: bool = True, temperature: float | None = None,
                     skip_unpaired: bool = False, max_bad_share: float = 0.01) -> None:
        self.read_crop(gt_size, use_hflip, use_rot, max_bad_share)
        self.temperature = None if temperature is None else check_number('temperature', temperature, above=0)
        if not isinstance(tasks, Mapping) or not tasks:
            raise OptionError(f'tasks: found {tasks!r}; expected "name: {{dataroot_gt: ..., dataroot_lq: ...}}" lines.')
        self.tasks = [read_task(name, block, skip_unpaired) for name, block in tasks.items()]
        sizes = [len(task.pairs.lq) for task in self.tasks]
        self._starts = np.concatenate([[0], np.cumsum(sizes)])
        if self.train:
            self.start_order(sizes, self._counts(sizes), sum(sizes))

    def _counts(self, sizes: list[int]) -> list[int]:
        ways = [way for way in ('quota', 'weight') if any(getattr(task, way) is not None for task in self.tasks)]
        if len(ways) + (self.temperature is not None) > 1:
            raise OptionError('quota, weight and temperature exclude one another; keep one of them.')
        for way, task in product(ways, self.tasks):
            if getattr(task, way) is None:
                raise OptionError(f'tasks: {task.name}: {way} is missing; other tasks have it, so all need it.')
        if self.temperature is not None:
            return counts_of_weights(np.asarray(sizes, np.float64) ** (1 / self.temperature))
        if ways == ['weight']:
            return counts_of_weights([task.weight for task in self.tasks])
        counts = [task.quota or 1 for task in self.tasks]
        batch = self.opt.get('batch_size_per_gpu')
        if ways and batch is not None and batch % sum(counts):
            raise OptionError(f'batch_size_per_gpu: found {batch}, but the quotas {" + ".join(map(str, counts))} sum '
                              f'to {sum(counts)}; make it that or a multiple.')
        return counts

    @property
    def task_names(self) -> list[str]:
        """Names of the tasks, in the option file's order."""
        return [task.name for task in self.tasks]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self.train:
            return super().__getitem__(index)
        task = int(np.searchsorted(self._starts, index, side='right')) - 1
        pair = index - int(self._starts[task])
        return self._pack(task, pair, *(centre(image, self.gt_size) for image in self._read(task, pair)))

    def image_id(self, task: int, image: int) -> int:
        return int(self._starts[task]) + image

    def training_item(self, task: int, image: int, rng: Generator) -> dict[str, Any]:
        gt, lq = self._read(task, image)
        if min(gt.shape[:2]) < self.gt_size:
            source = self.tasks[task]
            raise ImageError(f'{source.gt.path(int(source.pairs.gt[image]))}: is {gt.shape[1]}x{gt.shape[0]}, smaller '
                             f'than gt_size {self.gt_size}.')
        return self._pack(task, image, *self._crop(gt, lq, rng))

    def _read(self, task: int, pair: int) -> tuple[NDArray[Any], NDArray[Any]]:
        source = self.tasks[task]
        gt_index, lq_index = int(source.pairs.gt[pair]), int(source.pairs.lq[pair])
        gt, lq = source.gt.decode(gt_index), source.lq.decode(lq_index)
        if source.gt_border:
            gt = gt[source.gt_border:-source.gt_border, source.gt_border:-source.gt_border]
        if gt.shape != lq.shape:
            raise ImageError(f'{source.lq.path(lq_index)}: is {lq.shape[1]}x{lq.shape[0]}, but its clean image '
                             f'{source.gt.path(gt_index)} is {gt.shape[1]}x{gt.shape[0]}; pairs must be of equal size.')
        return gt, lq

    def _crop(self, gt: NDArray[Any], lq: NDArray[Any], rng: Generator) -> tuple[NDArray[Any], NDArray[Any]]:
        size = self.gt_size
        top, left = (int(rng.integers(length - size + 1)) for length in gt.shape[:2])
        flip = self.use_hflip and rng.random() < 0.5
        turns = int(rng.integers(4)) if self.use_rot else 0
        return tuple(turn(image[top:top + size, left:left + size], flip, turns) for image in (gt, lq))

    def _pack(self, task: int, pair: int, gt: NDArray[Any], lq: NDArray[Any]) -> dict[str, Any]:
        source = self.tasks[task]
        lq_index = int(source.pairs.lq[pair])
        name = source.lq.stem(lq_index)
        return pack(to_float(gt), to_float(lq), source.name, gt_path=source.gt.path(int(source.pairs.gt[pair])),
                    lq_path=source.lq.path(lq_index), name=name if len(self.tasks) == 1 else f'{source.name}/{name}')


def read_task(name: str, block: Mapping[str, Any], skip_unpaired: bool = False) -> Task:
    """Open the sources of one task and pair them; raises OptionError naming the task and the key."""
    if not isinstance(block, Mapping):
        raise OptionError(f'tasks: {name}: found {block!r}; expected {{dataroot_gt: ..., dataroot_lq: ...}}.')
    check_keys(f'tasks: {name}', block, _read_task)
    with naming(f'tasks: {name}'):
        task = _read_task(**block)
    lonely = task.pairs.lonely_lq
    if not len(task.pairs.lq):
        raise OptionError(f'tasks: {name}: no pairs by {block.get("pairing", "same")!r}: there are degraded images '
                          f'like {task.lq.name(0)!r} and clean ones like {task.gt.name(len(task.gt) - 1)!r}; '
                          f'{better_rule(task.gt, task.lq, 0)}.')
    if lonely and not skip_unpaired:
        raise OptionError(f'tasks: {name}: {len(lonely)} of {len(task.lq)} degraded images have no clean one: '
                          f'{", ".join(lonely[:3])}{", ..." if len(lonely) > 3 else ""}; '
                          f'{better_rule(task.gt, task.lq, len(task.pairs.lq))}, or '
                          '"skip_unpaired: true" leaves them out.')
    return task._replace(name=name)


def _read_task(dataroot_gt: str | list[str], dataroot_lq: str | list[str], io_backend: Mapping[str, Any] | None = None,
               pairing: str | Mapping[str, Any] = 'same', gt_border: int = 0, quota: int | None = None,
               weight: float | None = None) -> Task:
    backend = None if not io_backend else check_choice('io_backend: type', io_backend.get('type'), ('disk', 'lmdb'))
    gt, lq = ([ImageSource(root, backend, key) for root in (roots if isinstance(roots, list) else [roots])]
              for key, roots in (('dataroot_gt', dataroot_gt), ('dataroot_lq', dataroot_lq)))
    if len(gt) != len(lq) or not gt:
        raise OptionError(f'dataroot_lq: found {len(lq)} folders, and {len(gt)} in dataroot_gt; expected as many.')
    pairs = joined([find_pairs(*each, pairing) for each in zip(gt, lq)], gt, lq)
    return Task('', below_one_root(gt, 'dataroot_gt'), below_one_root(lq, 'dataroot_lq'), pairs,
                None if quota is None else check_int('quota', quota, 1),
                None if weight is None else check_number('weight', weight, above=0),
                check_int('gt_border', gt_border, 0))
