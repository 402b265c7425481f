"""The cost of restoring an image: parameters, multiply-adds, time and memory. Needs torch only."""
import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode


class Cost(NamedTuple):
    """The cost of restoring one image."""

    parameters: float
    """Of the network, in millions."""
    evaluations: float
    """Number of network evaluations (NFE)."""
    multiply_adds: float
    """Of one evaluation at 3x256x256, in 1e9."""
    milliseconds: float
    """Median over the timed images, several runs each."""
    memory: float | None
    """Peak above the memory in use before, in MiB; None where it cannot be measured."""


def measure(model: Any, images: list[Tensor], repeats: int = 3) -> Cost:
    """Measure a BasicSR model on degraded images, (1, C, H, W) in [0, 1]."""
    def run(lq: Tensor) -> float:
        model.feed_data({'lq': lq})
        wait(model.device)
        start = perf_counter()
        model.test()
        wait(model.device)
        return perf_counter() - start

    square = torch.rand(1, images[0].shape[1], 256, 256, generator=torch.Generator().manual_seed(0))
    run(square)
    evaluations = getattr(model, 'evaluations', 1)
    with FlopCounterMode(display=False) as counter:
        run(square)
    seconds, memory = [], []
    for lq in images:
        run(lq)
        with peak_memory(model.device) as peak:
            seconds += [run(lq) for _ in range(repeats)]
        memory.append(peak.mib)
    parameters = sum(p.numel() for p in model.get_bare_model(model.net_g).parameters())
    return Cost(parameters / 1e6, evaluations, counter.get_total_flops() / 2e9 / evaluations,
                1e3 * float(np.median(seconds)), None if None in memory else max(memory))


def wait(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


@contextmanager
def peak_memory(device: torch.device) -> Iterator[SimpleNamespace]:
    """Measure the peak memory of a ``with`` block above that at its start, as ``mib`` of the yielded object.

    On a GPU this is the memory of tensors. On a CPU under Linux it is the resident memory of the process, after the
    allocator has released what earlier work left behind. Elsewhere ``mib`` is None.
    """
    peak = SimpleNamespace(mib=None)
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        peak.mib = (torch.cuda.max_memory_allocated(device) - before) / 2**20
    elif _CLEAR.exists():
        gc.collect()
        # Few C libraries other than glibc have this function.
        with suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        # This resets the peak of the resident memory.
        _CLEAR.write_text('5')
        before = _resident('VmRSS')
        yield peak
        peak.mib = (_resident('VmHWM') - before) / 2**20
    else:
        yield peak


_CLEAR = Path('/proc/self/clear_refs')


def _resident(kind: str) -> float:
    line = next(line for line in Path('/proc/self/status').read_text().splitlines() if line.startswith(kind))
    return int(line.split()[1]) * 2**10
