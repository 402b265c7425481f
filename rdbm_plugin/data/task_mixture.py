"""The order of training data of several tasks: a function of seed, rank and place only, for any number of workers."""
import weakref
from collections.abc import Mapping, Sequence
from functools import lru_cache
from logging import getLogger
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import distributed
from torch.utils.data import Dataset, get_worker_info

from rdbm_plugin.config.options import OptionError, check_int, check_keys, check_number, naming
from rdbm_plugin.data.image_source import ImageError
from rdbm_plugin.data.packing import BASICSR_KEYS
from rdbm_plugin.data.workers import end_workers_at_exit, leave_signals_to_parent

WEIGHT_PERIOD = 1000
"""Number of samples after which the shares of tasks match their weights."""

training_sets: 'weakref.WeakSet[MixedDataset]' = weakref.WeakSet()
"""The training data sets that exist in this process."""


def count_batches(consumed: int) -> None:
    """Set the number of consumed batches of all training data sets; new workers start there."""
    for dataset in training_sets:
        dataset.consumed = consumed


class Draw(NamedTuple):
    """The sample at one place of a batch."""

    task: int
    number: int
    """Number of earlier samples of this task."""
    rng: Generator
    """For crop, flips and degradation of this sample only."""


class TaskMixture:
    """Draws tasks in fixed proportions and the images of each task in shuffled rounds.

    Over all ranks and workers together, no image of a task repeats before all images of the task have been drawn.

    Args:
        sizes: Number of images of each task.
        counts: Samples of each task in one period; batches of a multiple of their sum hold exactly these shares.
        seed: Determines everything that is random.
    """

    def __init__(self, sizes: Sequence[int], counts: Sequence[int], seed: int) -> None:
        self.sizes, self.counts, self.seed = tuple(sizes), tuple(counts), seed
        # The i-th of n samples is due at (i + 1/2) / n of the period, so that tasks alternate as evenly as possible.
        due = np.concatenate([(np.arange(count) + 0.5) / count for count in counts if count])
        self.pattern = np.repeat(np.arange(len(counts)), counts)[np.argsort(due, kind='stable')]
        self.earlier = [np.count_nonzero(self.pattern[:i] == task) for i, task in enumerate(self.pattern)]

    def draw(self, place: int) -> Draw:
        """Draw the sample at ``place``, counted over all batches, ranks and epochs."""
        round_, offset = divmod(place, len(self.pattern))
        task = int(self.pattern[offset])
        number = round_ * self.counts[task] + self.earlier[offset]
        return Draw(task, number, np.random.default_rng([self.seed, place]))

    def image(self, task: int, number: int) -> int:
        """Return the index of the image for sample ``number`` of a task."""
        round_, place = divmod(number, self.sizes[task])
        return int(_shuffled(self.seed, task, round_, self.sizes[task])[place])


@lru_cache(maxsize=32)
def _shuffled(seed: int, task: int, round_: int, size: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, task, round_, size]).permutation(size)


def counts_of_weights(weights: Sequence[float]) -> list[int]:
    """Return whole numbers in proportion to ``weights`` that sum to WEIGHT_PERIOD (largest remainder method)."""
    exact = np.asarray(weights, np.float64) / np.sum(weights) * WEIGHT_PERIOD
    counts = np.floor(exact).astype(int)
    counts[np.argsort(counts - exact, kind='stable')[:WEIGHT_PERIOD - counts.sum()]] += 1
    return counts.tolist()


class MixedDataset(Dataset):
    """Base class of data sets of several tasks, which in training choose the content of a batch themselves.

    The sampler only sets the length of an epoch, as BasicSR's EnlargedSampler knows neither tasks nor ``manual_seed``.
    Seed and rank are read when the data set is created; by then BasicSR has seeded torch with ``manual_seed + rank``.
    With a model that updates ``consumed``, such as RDBMModel, the data depend only on seed, rank and iteration,
    whatever the number of workers, and a run resumes where it stopped. With other models, each epoch is shuffled with
    the seed that the DataLoader draws for it.

    In training, an image that cannot be used is named in the log once and replaced, reproducibly, by the next image of
    its task. Validation and test raise an error instead, as scores on another set of images could not be compared.
    """

    task_names: Sequence[str]
    """Names of the tasks, each once, in the option file's order."""

    def __init__(self, opt: Mapping[str, Any]) -> None:
        super().__init__()
        self.opt = dict(opt)
        self.train = opt['phase'] == 'train'
        where = f'datasets: {opt.get("name", "?")}'
        ours = {key: value for key, value in opt.items() if key not in BASICSR_KEYS}
        check_keys(where, ours, self.read_options)
        with naming(where):
            self.read_options(**ours)

    def read_options(self, **ours: Any) -> None:
        """Read the keys of the dataset block that BasicSR does not; keys that are not parameters are refused."""
        raise NotImplementedError

    def read_crop(self, gt_size: int | None, use_hflip: bool, use_rot: bool, max_bad_share: float) -> None:
        """Read the keys that all data sets have: crop size, flips, quarter turns, share of unusable images."""
        if gt_size is None and self.train:
            raise OptionError('gt_size: missing; expected the crop size in pixels.')
        self.gt_size = None if gt_size is None else check_int('gt_size', gt_size, 8)
        self.use_hflip, self.use_rot = use_hflip, use_rot
        self.max_bad_share = check_number('max_bad_share', max_bad_share, 0, 1)

    def start_order(self, sizes: Sequence[int], counts: Sequence[int], firsts: Sequence[int]) -> None:
        """Fix the order of training, see :class:`TaskMixture`; ``firsts``: each task's first index into all images."""
        grouped = distributed.is_available() and distributed.is_initialized()
        self.rank, self.ranks = (distributed.get_rank(), distributed.get_world_size()) if grouped else (0, 1)
        self.order_seed = (torch.initial_seed() - self.rank) % 2**63
        self.mixture = TaskMixture(sizes, counts, self.order_seed)
        self.consumed: int | None = None
        self._next: int | None = None
        self._mixture_of_epoch = self.mixture
        self._firsts = firsts
        images = max(first + size for first, size in zip(firsts, sizes))
        self._bad = torch.zeros(images, dtype=torch.uint8).share_memory_()
        training_sets.add(self)
        end_workers_at_exit()

    def training_item(self, task: int, image: int, rng: Generator) -> dict[str, Any]:
        """Return one sample of a training batch; raises ImageError if the image cannot be used."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._usable_item(self.mixture, index)

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return a whole batch: PyTorch passes its indices together, so that shares are exact within the batch."""
        if not self.train:
            return [self[index] for index in indices]
        leave_signals_to_parent()
        batch = self._next_batch()
        first = (batch * self.ranks + self.rank) * len(indices)
        return [self._usable_item(self._mixture_of_epoch, first + place) for place in range(len(indices))]

    def _usable_item(self, mixture: TaskMixture, place: int) -> dict[str, Any]:
        draw = mixture.draw(place)
        for later in range(mixture.sizes[draw.task]):
            image = mixture.image(draw.task, draw.number + later)
            try:
                return self.training_item(draw.task, image, draw.rng)
            except ImageError as error:
                self._note_bad(self._firsts[draw.task] + image, error)
        raise ImageError(f'datasets: {self.opt["name"]}: task {self.task_names[draw.task]}: no image can be used.')

    def _note_bad(self, image: int, error: ImageError) -> None:
        # The flags are in shared memory, so that every worker and epoch knows the unusable images of all.
        if self._bad[image]:
            return
        self._bad[image] = 1
        count, total = int(self._bad.sum()), len(self._bad)
        if count > self.max_bad_share * total:
            raise ImageError(
                f'datasets: {self.opt["name"]}: {count} of {total} images cannot be used, more than max_bad_share '
                f'{self.max_bad_share:g} allows; last: {error} List all: rdbm doctor -opt FILE.')
        getLogger('basicsr').warning(
            f'{error} Replaced by the next image of its task; {count} of {total} images so far.')

    def _next_batch(self) -> int:
        worker = get_worker_info()
        if self._next is None:
            self._next = (self.consumed or 0) + (worker.id if worker else 0)
            if worker and self.consumed is None:
                epoch = (self.order_seed, (worker.seed - worker.id) % 2**63)
                seed = int(np.random.SeedSequence(epoch).generate_state(1, np.uint64)[0])
                self._mixture_of_epoch = TaskMixture(self.mixture.sizes, self.mixture.counts, seed)
        batch = self._next
        self._next += worker.num_workers if worker else 1
        return batch

