"""Precision of a network's computations. Needs torch only."""
from contextlib import AbstractContextManager, nullcontext

import torch

HALVES = {'bf16': torch.bfloat16, 'fp16': torch.float16}
PRECISIONS = {'none': torch.float32, **HALVES}
"""Values of ``train: amp:`` beside ``auto``."""


def computes_bf16(device: torch.device | str) -> bool:
    """Whether a device has instructions for bfloat16; a CPU without them is many times slower than in float32."""
    device = torch.device(device)
    if device.type == 'cuda':
        return torch.cuda.is_bf16_supported()
    if device.type != 'cpu' or not torch.backends.mkldnn.is_available():
        return False
    # What torch's own compiler asks: AVX-512 on x86, bf16 instructions on Arm.
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def precision(amp: str, device: torch.device | str) -> torch.dtype:
    """The dtype of a value of ``train: amp:``; ``auto`` is bfloat16 where the device computes it, else float32."""
    if amp == 'auto':
        return torch.bfloat16 if computes_bf16(device) else torch.float32
    return PRECISIONS[amp]


def working_in(dtype: torch.dtype, device: torch.device | str) -> AbstractContextManager[object]:
    """A context in which networks compute in ``dtype``; float32 changes nothing."""
    if dtype == torch.float32:
        # torch < 2.4 refuses this on CPUs, even where autocast is switched off.
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype)
