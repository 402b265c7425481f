"""``rdbm doctor --pace``: find out whether the loader or the network limits the training speed. Needs BasicSR."""
import os
from collections.abc import Callable, Mapping
from copy import deepcopy
from math import ceil
from typing import Any

import torch
from basicsr.data import build_dataset
from basicsr.models import build_model
from torch.utils.benchmark import Timer
from torch.utils.data import default_collate

from rdbm_plugin.data.inspection import Finding

SECONDS = 1.0
"""Minimum time for which each of the two is measured."""
WARM_UP = 5
"""Untimed first steps, in which convolutions are tuned and the step is captured."""


def pace(opt: Mapping[str, Any]) -> Finding:
    """Time batch loading in one process, and training steps on one batch; ``opt`` holds training options."""
    opt = deepcopy(dict(opt))
    block = opt['datasets']['train']
    count, workers = block['batch_size_per_gpu'], block.get('num_worker_per_gpu', 0)
    dataset = build_dataset(block)
    batch: dict[str, Any] = {}

    def seconds_of(call: Callable[[], None]) -> float:
        timer = Timer('call()', globals={'call': call}, num_threads=torch.get_num_threads())
        return timer.blocked_autorange(min_run_time=SECONDS).mean

    def load() -> None:
        # PyTorch's loader requests a whole batch at once where the data set supports it.
        items = dataset.__getitems__(range(count)) if hasattr(dataset, '__getitems__') else [
            dataset[index % len(dataset)] for index in range(count)]
        batch.update(default_collate(items))
    loading = seconds_of(load)
    model = build_model(opt)
    iterations = iter(range(1, 10**9))

    def step() -> None:
        model.feed_data(batch)
        model.optimize_parameters(next(iterations))
    for _ in range(WARM_UP):
        step()
    stepping = seconds_of(step)
    needed = ceil(loading / stepping)
    text = (f'one process makes {count / loading:.0f} samples a second, a batch in {1e3 * loading:.1f} ms; a step on '
            f'the {model.device.type} takes {1e3 * stepping:.1f} ms')
    if needed <= max(workers, 1) and workers:
        return Finding('ok', 'pace', f'{text}: the network sets the pace')
    cores = os.cpu_count() or 1
    lack = f', but this machine has {cores} cores' if needed > cores else ''
    return Finding('warning', 'pace', f'{text}: the loader sets the pace; num_worker_per_gpu: found {workers}, '
                                      f'{needed} would do{lack}')
