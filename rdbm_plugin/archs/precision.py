"""Precision in which a network computes. Needs torch only."""
import platform
from contextlib import AbstractContextManager, nullcontext

import torch

X86 = ('x86_64', 'AMD64', 'i386', 'i686')
HALVES = {'bf16': torch.bfloat16, 'fp16': torch.float16}
PRECISIONS = {'none': torch.float32, **HALVES}
"""Values of ``train: amp:`` besides ``auto``."""


def computes_bf16(device: torch.device | str) -> bool:
    """Whether a device has bfloat16 instructions; a CPU without them is several times slower than in float32.

    An x86 processor counts as one without where torch cannot tell (before 2.6).
    """
    kind = torch.device(device).type
    if kind == 'cuda':
        return torch.cuda.is_bf16_supported()
    if kind != 'cpu' or not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    # oneDNN supports it on every x86 with AVX-512, but computes in float32 and rounds where the instructions lack.
    return platform.machine() not in X86 or getattr(torch.cpu, '_is_avx512_bf16_supported', bool)()


def precision(amp: str, device: torch.device | str) -> torch.dtype:
    """Return the dtype for a value of ``train: amp:``; ``auto`` is bfloat16 if the device supports it, else float32."""
    if amp == 'auto':
        return torch.bfloat16 if computes_bf16(device) else torch.float32
    return PRECISIONS[amp]


def working_in(dtype: torch.dtype, device: torch.device | str) -> AbstractContextManager[object]:
    """Return a context in which networks compute in ``dtype``; for float32 it does nothing."""
    if dtype == torch.float32:
        # torch < 2.4 rejects autocast to float32 on CPUs, even with enabled=False.
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype)
