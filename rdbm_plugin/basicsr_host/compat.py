"""Workarounds for quirks of BasicSR and torchvision, one function each, with the reason.

None of them changes what BasicSR does for other models. All act only in the process of our own command, except
:func:`provide_functional_tensor`, which adds a module that would otherwise be missing.
"""
import ctypes
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from math import ceil
from types import ModuleType
from typing import Any

_REMOVED = 'torchvision.transforms.functional_tensor'
_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1


class _FunctionalTensor(MetaPathFinder, Loader):
    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return spec_from_loader(name, self) if name == _REMOVED else None

    def exec_module(self, module: ModuleType) -> None:
        from torchvision.transforms import functional
        module.rgb_to_grayscale = functional.rgb_to_grayscale


def provide_functional_tensor() -> None:
    """Make BasicSR 1.4.2 importable under torchvision >= 0.17.

    BasicSR 1.4.2 imports ``rgb_to_grayscale`` from a module that torchvision has removed. The finder comes last, so
    that the module of an older torchvision takes precedence, and does nothing until the module is imported.
    """
    if not any(isinstance(finder, _FunctionalTensor) for finder in sys.meta_path):
        sys.meta_path.append(_FunctionalTensor())


def mend_prefetcher() -> None:
    """Make PyTorch's own workers read ahead under ``prefetch_mode: cpu``.

    BasicSR uses a thread, which hangs when a worker fails, and aborts a process that ends before it.
    """
    from basicsr.data.prefetch_dataloader import PrefetchDataLoader
    from torch.utils.data import DataLoader

    def start(loader: PrefetchDataLoader) -> Iterator[Any]:
        if loader.num_workers:
            # Per worker; together they hold as many batches as the thread's queue would.
            loader.prefetch_factor = max(2, ceil(loader.num_prefetch_queue / loader.num_workers))
        return DataLoader.__iter__(loader)

    PrefetchDataLoader.__iter__ = start


def keep_freed_memory() -> None:
    """Make glibc reuse the memory of freed tensors, which saves a third of the time for large images.

    By default glibc returns blocks of more than 128 KiB to the system, which must clear them before their next use.
    """
    with suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 64 * 2**20)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def end_distributed() -> None:
    """End the process group once all ranks are done; a rank that leaves earlier makes some of the others abort."""
    import torch
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def distribute_on_cpus() -> None:
    """Make ``--launcher pytorch`` and ``slurm`` work without GPUs, and more than once in one process.

    BasicSR divides by the number of GPUs, always uses NCCL, and fails if the process group already exists.
    """
    import torch
    from basicsr.utils import options

    start = options.init_dist

    def init_dist(launcher: str, backend: str = 'nccl', **kwargs: object) -> None:
        if torch.distributed.is_initialized():
            return
        if torch.cuda.is_available():
            start(launcher, backend, **kwargs)
        else:
            start_gloo(launcher, kwargs.get('port') or 29500)

    options.init_dist = init_dist


def start_gloo(launcher: str, port: object = 29500) -> None:
    """Join the Gloo process group of the ranks that torchrun or, for launcher 'slurm', Slurm started."""
    import torch
    if launcher == 'slurm':
        hosts = subprocess.run(['scontrol', 'show', 'hostnames', os.environ['SLURM_NODELIST']], check=True,
                               capture_output=True, text=True).stdout
        os.environ.update(RANK=os.environ['SLURM_PROCID'], WORLD_SIZE=os.environ['SLURM_NTASKS'],
                          LOCAL_RANK=os.environ.get('SLURM_LOCALID', '0'), MASTER_ADDR=hosts.split()[0])
        os.environ.setdefault('MASTER_PORT', str(port))
    torch.distributed.init_process_group('gloo')


def new_log() -> None:
    """Make the next run in this process write its own log file; BasicSR keeps writing to the first one."""
    from basicsr.utils import logger
    logging.getLogger('basicsr').handlers.clear()
    logger.initialized_logger.clear()
