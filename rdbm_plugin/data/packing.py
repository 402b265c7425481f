"""The form of an item of all data sets, turning, and the keys that BasicSR adds to their blocks. Needs torch only."""
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

BASICSR_KEYS = frozenset({
    'name', 'type', 'phase', 'scale', 'io_backend', 'num_worker_per_gpu', 'batch_size_per_gpu',
    'dataset_enlarge_ratio', 'prefetch_mode', 'num_prefetch_queue', 'pin_memory', 'persistent_workers',
    'iters', 'gt_sizes', 'mini_batch_sizes'})
"""Keys of a dataset block that BasicSR's loader reads or adds; the last three are Restormer's loop's."""


def turn(image: NDArray[Any], flip: bool, turns: int) -> NDArray[Any]:
    """Mirror left to right if ``flip``, then turn by ``turns`` quarter turns; (H, W, C)."""
    return np.rot90(image[:, ::-1] if flip else image, turns)


def centre(image: NDArray[Any], size: int | None) -> NDArray[Any]:
    """The central square of ``size`` pixels, or what there is of it; None: the whole image; (H, W, C)."""
    if size is None:
        return image
    top, left = ((length - min(size, length)) // 2 for length in image.shape[:2])
    return image[top:top + size, left:left + size]


def pack(gt: NDArray[np.float32], lq: NDArray[np.float32], task: str, gt_path: str, lq_path: str,
         name: str) -> dict[str, Any]:
    """An item as BasicSR's models take it; images (H, W, C) in [0, 1] become (C, H, W) tensors.

    ``name`` is what results are saved as: it has no suffix, may have ``/`` in it, and occurs once in a data set.
    """
    to_tensor = [torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))) for image in (lq, gt)]
    return {'lq': to_tensor[0], 'gt': to_tensor[1], 'task': task, 'lq_path': lq_path, 'gt_path': gt_path,
            'name': name}
