"""Any BasicSR data set in an order that can resume in the middle of an epoch, augmentations included."""
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from basicsr.data.data_sampler import EnlargedSampler
from torch.utils.data import Dataset

from rdbm_plugin.data.workers import end_workers_at_exit, leave_signals_to_parent


class ResumableSampler(EnlargedSampler):
    """BasicSR's order, except that one epoch can start in the middle and that each place has a seed of its own."""

    def __init__(self, dataset: Dataset, num_replicas: int, rank: int, ratio: int = 1, seed: int = 0) -> None:
        super().__init__(dataset, num_replicas, rank, ratio)
        self.seed = seed
        self.skipped = (-1, 0)

    def skip(self, epoch: int, samples: int) -> None:
        """Skip the first ``samples`` of ``epoch``, which an earlier process has already used."""
        self.skipped = epoch, samples

    def __iter__(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        first = self.skipped[1] if self.skipped[0] == self.epoch else 0
        for place, index in enumerate(super().__iter__()):
            if place >= first:
                yield index, (self.seed, self.epoch, place * self.num_replicas + self.rank)


class SeededDataset(Dataset):
    """A data set whose random crops and flips depend only on the place in the run, not on the worker's history.

    BasicSR gives its workers the same seeds in every epoch, so that each image is cropped in only a few ways.
    """

    def __init__(self, dataset: Dataset) -> None:
        end_workers_at_exit()
        self.dataset = dataset
        self.opt = getattr(dataset, 'opt', {})

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: tuple[int, tuple[int, ...]]) -> Any:
        index, place = item
        leave_signals_to_parent()
        seed = int(np.random.SeedSequence(place).generate_state(1)[0])
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        return self.dataset[index]
