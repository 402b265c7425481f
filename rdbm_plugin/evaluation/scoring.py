"""Scores of restored images by BasicSR's metrics and ours. Needs BasicSR."""
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rdbm_plugin.basicsr_host.lookup import metric_arguments, needs_clean, registered
from rdbm_plugin.config.options import OptionError

Picture = NDArray[np.uint8]


def image_name(data: Mapping[str, Any]) -> str:
    """What a test image is called within its set, from a batch of one."""
    return data['name'][0] if 'name' in data else Path(data['lq_path'][0]).stem


def scores(image: Picture, clean: Picture | None, metrics: Mapping[str, Mapping[str, Any]] | None,
           dataset: str) -> dict[str, float]:
    """Score of one image by each metric.

    Args:
        image: BGR, (H, W, 3).
        clean: The same, or None where there is no ground truth.
        metrics: The block ``val: metrics:``.
        dataset: Name for the error.

    Raises:
        OptionError: A metric needs ground truth and there is none.
    """
    found = {}
    for name, options in (metrics or {}).items():
        if clean is None and needs_clean(options['type']):
            raise OptionError(f'datasets: {dataset}: val: metrics: {name}: needs ground truth, which this data set has '
                              'not; use a paired data set, or metrics without it (calculate_niqe, pyiqa_score).')
        arguments = metric_arguments(options['type'], options, image, clean)
        found[name] = float(registered('METRIC')[options['type']](**arguments))
    return found
