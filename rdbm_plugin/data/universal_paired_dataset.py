"""Pairs of several restoration tasks from folders or LMDBs, mixed in exact shares."""
from bisect import bisect_right
from collections.abc import Mapping
from itertools import accumulate, product
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

    Shares in training are set by ``quota`` in every task (the number of its pairs in a batch, or a multiple of it if
    the batch is larger), by ``weight`` in every task, or by ``temperature`` for all: in proportion to
    size^(1/temperature), so 1 means by size and a large value equal shares. By default, shares are equal. Pairs of a
    task are drawn in shuffled rounds: none repeats before all have been drawn.

    A pair cannot be used if an image is unreadable, truncated, not of its partner's size, or smaller than ``gt_size``;
    see :class:`MixedDataset` for what happens then.

    Args:
        opt: The dataset block of the option file:

            - ``tasks``: name -> ``{dataroot_gt, dataroot_lq, io_backend, pairing, gt_border, quota or weight}``.
              ``io_backend`` is ``{type: disk}`` or ``{type: lmdb}``; by default the root's suffix decides. ``pairing``:
              see :func:`rdbm_plugin.data.pairing.find_pairs`, default ``same``. Lists of folders are paired in order.
              ``gt_border``: pixels to cut from each side of the clean images, 10 for SOTS indoor, default 0.
            - ``temperature``: see above.
            - ``gt_size``: crop size in pixels, required in training; validation crops the centre, default whole images.
            - ``use_hflip``, ``use_rot``: random flips and quarter turns (training), default true.
            - ``skip_unpaired``: skip degraded images without a clean one instead of raising an error, default false.
              Clean images without a degraded one are always skipped.
            - ``max_bad_share``: share of pairs that may be unusable before training ends, default 0.01.

    Items are RGB in [0, 1], (3, H, W) float32, with ``task``, ``lq_path`` and ``gt_path``.

    Raises:
        OptionError: A key is unknown or its value is out of range, or a root is missing or has no pairs.
    """

    def read_options(self, tasks: Mapping[str, Mapping[str, Any]], gt_size: int | None = None,
                     use_hflip: bool = True, use_rot: bool = True, temperature: float | None = None,
                     skip_unpaired: bool = False, max_bad_share: float = 0.01) -> None:
        self.read_crop(gt_size, use_hflip, use_rot, max_bad_share)
        self.temperature = None if temperature is None else check_number('temperature', temperature, above=0)
        if not isinstance(tasks, Mapping) or not tasks:
            raise OptionError(f'tasks: found {tasks!r}; expected "name: {{dataroot_gt: ..., dataroot_lq: ...}}" lines.')
        self.tasks = [read_task(name, block, skip_unpaired) for name, block in tasks.items()]
        self.task_names = [task.name for task in self.tasks]
        sizes = [len(task.pairs.lq) for task in self.tasks]
        self._starts = [0, *accumulate(sizes)]
        if self.train:
            self.start_order(sizes, self._counts(sizes), self._starts[:-1])

    def _counts(self, sizes: list[int]) -> list[int]:
        ways = [way for way in ('quota', 'weight') if any(getattr(task, way) is not None for task in self.tasks)]
        if len(ways) + (self.temperature is not None) > 1:
            raise OptionError('quota, weight and temperature exclude one another; keep one of them.')
        for way, task in product(ways, self.tasks):
            if getattr(task, way) is None:
                raise OptionError(f'tasks: {task.name}: {way} is missing; set it in all tasks or in none.')
        if self.temperature is not None:
            return counts_of_weights(np.asarray(sizes, np.float64) ** (1 / self.temperature))
        if ways == ['weight']:
            return counts_of_weights([task.weight for task in self.tasks])
        counts = [task.quota or 1 for task in self.tasks]
        batch = self.opt.get('batch_size_per_gpu')
        if ways and batch is not None and batch % sum(counts):
            raise OptionError(f'batch_size_per_gpu: found {batch}, but the quotas {" + ".join(map(str, counts))} sum '
                              f'to {sum(counts)}; set it to this sum or a multiple of it.')
        return counts

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self.train:
            return super().__getitem__(index)
        task = bisect_right(self._starts, index) - 1
        pair = index - self._starts[task]
        return self._pack(task, pair, *(centre(image, self.gt_size) for image in self._read(task, pair)))

    def training_item(self, task: int, image: int, rng: Generator) -> dict[str, Any]:
        gt, lq = self._read(task, image)
        size = self.gt_size
        if min(gt.shape[:2]) < size:
            raise ImageError(f'{self._paths(task, image)[0]}: is {gt.shape[1]}x{gt.shape[0]}, smaller than gt_size '
                             f'{size}.')
        top, left = (int(rng.integers(length - size + 1)) for length in gt.shape[:2])
        flip = self.use_hflip and rng.random() < 0.5
        turns = int(rng.integers(4)) if self.use_rot else 0
        crops = (turn(side[top:top + size, left:left + size], flip, turns) for side in (gt, lq))
        return self._pack(task, image, *crops)

    def _paths(self, task: int, pair: int) -> tuple[str, str]:
        source = self.tasks[task]
        return source.gt.path(source.pairs.gt[pair]), source.lq.path(source.pairs.lq[pair])

    def _read(self, task: int, pair: int) -> tuple[NDArray[Any], NDArray[Any]]:
        source = self.tasks[task]
        gt, lq = source.gt.decode(source.pairs.gt[pair]), source.lq.decode(source.pairs.lq[pair])
        if source.gt_border:
            gt = gt[source.gt_border:-source.gt_border, source.gt_border:-source.gt_border]
        if gt.shape != lq.shape:
            gt_path, lq_path = self._paths(task, pair)
            raise ImageError(f'{lq_path}: is {lq.shape[1]}x{lq.shape[0]}, but its clean image {gt_path} is '
                             f'{gt.shape[1]}x{gt.shape[0]}; pairs must be of equal size.')
        return gt, lq

    def _pack(self, task: int, pair: int, gt: NDArray[Any], lq: NDArray[Any]) -> dict[str, Any]:
        source = self.tasks[task]
        name = source.lq.stem(source.pairs.lq[pair])
        return pack(to_float(gt), to_float(lq), source.name, *self._paths(task, pair),
                    name if len(self.tasks) == 1 else f'{source.name}/{name}')


def read_task(name: str, block: Mapping[str, Any], skip_unpaired: bool = False) -> Task:
    """Open the sources of one task and pair them; raises OptionError that names the task and the key."""
    if not isinstance(block, Mapping):
        raise OptionError(f'tasks: {name}: found {block!r}; expected {{dataroot_gt: ..., dataroot_lq: ...}}.')
    check_keys(f'tasks: {name}', block, _read_task)
    with naming(f'tasks: {name}'):
        task = _read_task(**block)
    lonely = task.pairs.lonely_lq
    if not len(task.pairs.lq):
        raise OptionError(f'tasks: {name}: no pairs by {block.get("pairing", "same")!r}: degraded images have names '
                          f'like {task.lq.name(0)!r}, clean ones like {task.gt.name(len(task.gt) - 1)!r}; '
                          f'{better_rule(task.gt, task.lq, 0)}.')
    if lonely and not skip_unpaired:
        raise OptionError(f'tasks: {name}: {len(lonely)} of {len(task.lq)} degraded images have no clean one: '
                          f'{", ".join(lonely[:3])}{", ..." if len(lonely) > 3 else ""}; '
                          f'{better_rule(task.gt, task.lq, len(task.pairs.lq))}, or skip them: "skip_unpaired: true".')
    return task._replace(name=name)


def _read_task(dataroot_gt: str | list[str], dataroot_lq: str | list[str], io_backend: Mapping[str, Any] | None = None,
               pairing: str | Mapping[str, Any] = 'same', gt_border: int = 0, quota: int | None = None,
               weight: float | None = None) -> Task:
    backend = None if not io_backend else check_choice('io_backend: type', io_backend.get('type'), ('disk', 'lmdb'))
    gt, lq = ([ImageSource(root, backend, key) for root in (roots if isinstance(roots, list) else [roots])]
              for key, roots in (('dataroot_gt', dataroot_gt), ('dataroot_lq', dataroot_lq)))
    if len(gt) != len(lq) or not gt:
        raise OptionError(f'dataroot_lq: found {len(lq)} folders, and {len(gt)} in dataroot_gt; expected equally many.')
    pairs = joined([find_pairs(*each, pairing) for each in zip(gt, lq)], gt, lq)
    return Task('', below_one_root(gt, 'dataroot_gt'), below_one_root(lq, 'dataroot_lq'), pairs,
                None if quota is None else check_int('quota', quota, 1),
                None if weight is None else check_number('weight', weight, above=0),
                check_int('gt_border', gt_border, 0))
