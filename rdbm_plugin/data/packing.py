"""The item format of data sets, flips and crops, and the keys that BasicSR adds to their blocks. Needs torch only."""
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

BASICSR_KEYS = frozenset({
    'name', 'type', 'phase', 'scale', 'io_backend', 'num_worker_per_gpu', 'batch_size_per_gpu',
    'dataset_enlarge_ratio', 'prefetch_mode', 'num_prefetch_queue', 'pin_memory', 'persistent_workers',
    'iters', 'gt_sizes', 'mini_batch_sizes'})
"""Keys of a dataset block that BasicSR's loader reads or adds; the last three belong to Restormer's training loop."""


def turn(image: NDArray[Any], flip: bool, turns: int) -> NDArray[Any]:
    """Mirror an (H, W, C) image left to right if ``flip``, then rotate it by ``turns`` quarter turns."""
    return np.rot90(image[:, ::-1] if flip else image, turns)


def centre(image: NDArray[Any], size: int | None) -> NDArray[Any]:
    """Crop the central square of ``size`` pixels, less where an (H, W, C) image is smaller; None: the whole image."""
    if size is None:
        return image
    top, left = ((length - min(size, length)) // 2 for length in image.shape[:2])
    return image[top:top + size, left:left + size]


def pack(gt: NDArray[np.float32], lq: NDArray[np.float32], task: str, gt_path: str, lq_path: str,
         name: str) -> dict[str, Any]:
    """Make an item as BasicSR's models take it; (H, W, C) images in [0, 1] become (C, H, W) tensors.

    ``name`` is the name that results are saved under: without suffix, unique in a data set, and possibly with ``/``.
    """
    lq, gt = (torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))) for image in (lq, gt))
    return {'lq': lq, 'gt': gt, 'task': task, 'lq_path': lq_path, 'gt_path': gt_path, 'name': name}
