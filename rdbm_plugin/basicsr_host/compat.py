"""Every quirk of BasicSR and torchvision that we work around, one function each, with the reason.

None of them changes what BasicSR does for other models. All act in the process of our own command only, except
:func:`provide_functional_tensor`, which adds a module that would otherwise be missing.
"""
import atexit
import ctypes
import os
import subprocess
import sys
from contextlib import suppress
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from queue import Empty
from time import monotonic
from types import ModuleType
from typing import Any

_REMOVED = 'torchvision.transforms.functional_tensor'


class _FunctionalTensor(MetaPathFinder, Loader):
    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return spec_from_loader(name, self) if name == _REMOVED else None

    def exec_module(self, module: ModuleType) -> None:
        from torchvision.transforms import functional
        module.rgb_to_grayscale = functional.rgb_to_grayscale


def provide_functional_tensor() -> None:
    """Let BasicSR 1.4.2 import under torchvision >= 0.17.

    BasicSR 1.4.2 imports ``rgb_to_grayscale`` from a module that torchvision has removed. The finder stands last,
    so that a torchvision that still has the module wins, and does nothing until somebody asks for that name.
    """
    if not any(isinstance(finder, _FunctionalTensor) for finder in sys.meta_path):
        sys.meta_path.append(_FunctionalTensor())


def mend_prefetcher() -> None:
    """Let ``prefetch_mode: cpu`` end: with the error of a worker, where BasicSR waits for ever, and before Python does.

    A thread that Python cuts off at its end, while torch reads a batch in it, aborts the process.
    """
    from basicsr.data import prefetch_dataloader

    class PrefetchGenerator(prefetch_dataloader.PrefetchGenerator):
        def __init__(self, generator: Any, num_prefetch_queue: int) -> None:
            self.ended = False
            atexit.register(self.end)
            super().__init__(generator, num_prefetch_queue)

        def end(self) -> None:
            self.ended = True
            deadline = monotonic() + 30
            while self.is_alive() and monotonic() < deadline:
                # Makes room for what the thread may be about to put there.
                with suppress(Empty):
                    self.queue.get_nowait()
                self.join(0.01)

        def run(self) -> None:
            try:
                for item in self.generator:
                    self.queue.put(item)
                    if self.ended:
                        return
                self.queue.put(None)
            except BaseException as error:
                self.queue.put(error)
            finally:
                atexit.unregister(self.end)

        def __next__(self) -> Any:
            item = super().__next__()
            if isinstance(item, BaseException):
                raise item
            return item

    prefetch_dataloader.PrefetchGenerator = PrefetchGenerator


def keep_freed_memory() -> None:
    """Let glibc keep the memory that tensors leave for the next ones: a third of the time of large images.

    By default it gives tensors of more than 128 KiB back to the system, which has to clear them for the next use.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    for option, value in ((_M_MMAP_THRESHOLD, 64 * 2**20), (_M_TRIM_THRESHOLD, 2**31 - 1)):
        mallopt(option, value)


_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1


def end_distributed() -> None:
    """Let ranks part in order; a rank that leaves while others still work makes some of them abort."""
    import torch
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def distribute_on_cpus() -> None:
    """Let ``--launcher pytorch`` and ``slurm`` work without GPUs.

    BasicSR divides by the number of GPUs and always takes NCCL. Nor can it be called twice in one process.
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
    """Join the process group of torchrun or, with launcher 'slurm', of Slurm's tasks, on CPUs."""
    import torch
    if launcher == 'slurm':
        hosts = subprocess.run(['scontrol', 'show', 'hostnames', os.environ['SLURM_NODELIST']], check=True,
                               capture_output=True, text=True).stdout
        os.environ.update(RANK=os.environ['SLURM_PROCID'], WORLD_SIZE=os.environ['SLURM_NTASKS'],
                          LOCAL_RANK=os.environ.get('SLURM_LOCALID', '0'), MASTER_ADDR=hosts.split()[0])
        os.environ.setdefault('MASTER_PORT', str(port))
    torch.distributed.init_process_group('gloo')


def new_log() -> None:
    """Let the next run in this process write a log file of its own, where BasicSR keeps to its first."""
    import logging

    from basicsr.utils import logger
    logging.getLogger('basicsr').handlers.clear()
    logger.initialized_logger.clear()
