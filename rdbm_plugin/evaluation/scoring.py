"""Scores of restored images by BasicSR's metrics and ours. Needs BasicSR."""
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from rdbm_plugin.basicsr_host.lookup import metric_arguments, needs_clean, registered
from rdbm_plugin.config.options import OptionError
from rdbm_plugin.evaluation.pictures import Picture
from rdbm_plugin.evaluation.set_measures import MIN_IMAGES, Share, check_images


def image_name(data: Mapping[str, Any]) -> str:
    """Return the name of a test image within its set, from a batch of one."""
    return data['name'][0] if 'name' in data else Path(data['lq_path'][0]).stem


def scores(image: Picture, clean: Picture | None, metrics: Mapping[str, Mapping[str, Any]] | None,
           dataset: str) -> dict[str, float | Share]:
    """Return the score of one image by each metric, or its share in a measure of its set.

    Args:
        image: BGR, (H, W, 3).
        clean: The clean image in the same form, or None without ground truth; OptionError if a metric needs it.
        metrics: The block ``val: metrics:``.
        dataset: Name of the data set, for the error.
    """
    found = {}
    for name, options in (metrics or {}).items():
        if clean is None and needs_clean(options['type']):
            raise OptionError(f'datasets: {dataset}: val: metrics: {name}: needs ground truth, which this data set '
                              'lacks; use a paired data set, or other metrics (calculate_niqe, pyiqa_score).')
        arguments = metric_arguments(options['type'], options, image, clean)
        score = registered('METRIC')[options['type']](**arguments)
        found[name] = score if isinstance(score, Share) else float(score)
    return found


def check_sizes(opt: Mapping[str, Any]) -> None:
    """Raise OptionError if a test or validation set has too few images for a measure of whole sets."""
    metrics = ((opt.get('val') or {}).get('metrics') or {}).values()
    least = {each['type']: each.get('min_images', MIN_IMAGES[each['type']]) for each in metrics
             if each['type'] in MIN_IMAGES}
    for phase, block in opt['datasets'].items() if least else ():
        if not phase.startswith('train'):
            images = len(registered('DATASET')[block['type']](deepcopy(block)))
            for measure in least:
                check_images(measure, images, least[measure], f'datasets: {phase}')
