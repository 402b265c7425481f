"""What restoring an image costs: parameters, multiply-adds, time and memory. Needs torch only."""
import ctypes
import gc
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode


class Cost(NamedTuple):
    """What restoring one image takes.

    Attributes:
        parameters: Of the network, in millions.
        evaluations: Of the network, for one image (NFE).
        multiply_adds: Of one evaluation at 3x256x256, in 1e9.
        milliseconds: Median over the timed images, several runs each.
        memory: Peak above what was held before, in MiB; None where it cannot be measured.
    """

    parameters: float
    evaluations: float
    multiply_adds: float
    milliseconds: float
    memory: float | None


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
        with PeakMemory(model.device) as peak:
            seconds += [run(lq) for _ in range(repeats)]
        memory.append(peak.mib)
    parameters = sum(p.numel() for p in model.get_bare_model(model.net_g).parameters())
    return Cost(parameters / 1e6, evaluations, counter.get_total_flops() / 2e9 / evaluations,
                1e3 * float(np.median(seconds)), None if None in memory else max(memory))


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


class PeakMemory:
    """Peak memory within a ``with`` block, above what was held at its start.

    On a GPU what tensors take; on a CPU under Linux resident memory of the process, after the allocator gave back what
    earlier work had left to it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.mib: float | None = None

    def __enter__(self) -> 'PeakMemory':
        if self.device.type == 'cuda':
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
        elif _CLEAR.exists():
            _give_back_memory()
            # Linux: makes the peak of resident memory start anew.
            _CLEAR.write_text('5')
            self.before = _resident('VmRSS')
        return self

    def __exit__(self, *exception: object) -> None:
        if self.device.type == 'cuda':
            self.mib = (torch.cuda.max_memory_allocated(self.device) - self.before) / 2**20
        elif _CLEAR.exists():
            self.mib = (_resident('VmHWM') - self.before) / 2**20


def _give_back_memory() -> None:
    """Have the C library return freed memory to the system, as glibc and few others can."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)
    if trim is not None:
        trim(0)


_CLEAR = Path('/proc/self/clear_refs')


def _resident(kind: str) -> float:
    line = next(line for line in Path('/proc/self/status').read_text().splitlines() if line.startswith(kind))
    return int(line.split()[1]) * 2**10
