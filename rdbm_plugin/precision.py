"""The precision that networks work in. Needs torch only."""
from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

PRECISIONS = {'none': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}
"""Values of ``train: amp:``."""


def working_in(dtype: torch.dtype, device: torch.device | str) -> AbstractContextManager[object]:
    """A context in which networks compute in ``dtype``; float32: as they are."""
    if dtype == torch.float32:
        # torch < 2.4 refuses this on CPUs, even where autocast is switched off.
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype)
