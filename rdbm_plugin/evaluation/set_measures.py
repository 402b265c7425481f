"""FID and KID, one number per set, by torch-fidelity. Needs torch; torch-fidelity is needed only to compute them.

Each picture has a :class:`Share` among its scores; :func:`combined` computes the measure from the shares of a set.
"""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rdbm_plugin.archs.checkpoint import read_safely
from rdbm_plugin.config.options import OptionError

MIN_IMAGES = {'fid': 2049, 'kid': 100}
"""Minimum number of images in a set, unless ``min_images`` says otherwise.

FID needs the covariance of 2048 features, which has full rank from 2049 images on (https://github.com/bioinf-jku/TTUR),
and its bias depends on the number of images and the method (Chong and Forsyth, arXiv 1911.07023). KID is unbiased, but
varies more with fewer images; 100 is the smallest set that papers on restoration commonly report (Rain100).
"""

KID_SUBSET = 1000
"""Images in each of the 100 random subsets over which KID's authors average; a smaller set is a single subset."""


@dataclass(frozen=True, eq=False)
class Share:
    """The contribution of one image to a measure of its set: Inception features, (2048,) float32 each."""

    measure: str
    min_images: int
    restored: Tensor
    clean: Tensor

    def __radd__(self, other: object) -> NoReturn:
        # BasicSR's own models sum the values of a metric.
        raise OptionError(f'val: metrics: {self.measure} measures a whole set, but this model takes the mean over '
                          'images; use "rdbm compare", or remove the metric.')


def share(measure: str, image: NDArray[np.uint8], clean: NDArray[np.uint8], min_images: int) -> Share:
    """Return the share of a restored and a clean image, BGR, (H, W, 3)."""
    return Share(measure, min_images, *(_features(each.tobytes(), len(each)) for each in (image, clean)))


# Holds a clean image and the latest restored one, because FID and KID compare every method with the same clean image.
@lru_cache(maxsize=2)
def _features(image: bytes, height: int) -> Tensor:
    rgb = np.frombuffer(image, np.uint8).reshape(1, height, -1, 3)[..., ::-1].transpose(0, 3, 1, 2)
    network, device = inception()
    with torch.no_grad():
        return network(torch.from_numpy(rgb.copy()).to(device))[0][0].cpu()


@cache
def inception() -> tuple[Any, str]:
    """Return the Inception of 2015 that defines FID, from torch-fidelity, and its device."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3 as url
        from torch_fidelity.utils import create_feature_extractor
    except ImportError as error:
        raise OptionError(f'FID and KID need torch-fidelity, which cannot be imported ({error}); pip install '
                          'torch-fidelity, or remove the metric.') from None
    weights = Path(torch.hub.get_dir(), 'checkpoints', Path(url).name)
    if not weights.is_file():
        try:
            weights.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(weights), progress=False)
        except OSError as error:
            raise OptionError(f'FID and KID need weights of Inception, which could not be downloaded ({error}). '
                              f'Fetch {url} and put it at {weights}, or remove the metric.') from None
    # torch-fidelity itself would execute code in the pickle.
    read_safely(weights)
    cuda = torch.cuda.is_available()
    return create_feature_extractor('inception-v3-compat', ['2048'], cuda, verbose=False,
                                    feature_extractor_weights_path=str(weights)), 'cuda' if cuda else 'cpu'


def of_images(scores: Mapping[str, float | Share]) -> dict[str, float]:
    """Return the scores of a single image, without its shares in measures of the set."""
    return {metric: score for metric, score in scores.items() if not isinstance(score, Share)}


def check_images(measure: str, images: int, least: int, where: str) -> None:
    """Raise OptionError if ``where`` has too few images for a measure."""
    if images < least:
        other = 'use kid' if measure == 'fid' else 'use more images'
        raise OptionError(f'{where}: {measure}: found {images} images; expected at least {least}, as fewer say little; '
                          f'{other}, or write "min_images: {images}" to repeat what others measured.')


def combined(scores: Sequence[float | Share]) -> float:
    """Return the mean over images or sets, or the measure of a set from its shares; refuse sets that are too small."""
    return _of_set(tuple(scores)) if isinstance(scores[0], Share) else float(np.mean(scores))


# The log, the tables and the best score so far request the same set.
@lru_cache(maxsize=64)
def _of_set(shares: tuple[Share, ...]) -> float:
    from torch_fidelity import metric_fid, metric_kid
    measure, images = shares[0].measure, len(shares)
    check_images(measure, images, shares[0].min_images, 'val: metrics')
    restored, clean = (torch.stack([getattr(each, side) for each in shares]).double() for side in ('restored', 'clean'))
    if measure == 'fid':
        statistics = map(metric_fid.fid_features_to_statistics, (restored, clean))
        return metric_fid.fid_statistics_to_metric(*statistics, verbose=False)[metric_fid.KEY_METRIC_FID]
    found = metric_kid.kid_features_to_metric(restored, clean, kid_subset_size=min(images, KID_SUBSET),
                                              kid_subsets=100 if images > KID_SUBSET else 1, verbose=False)
    return found[metric_kid.KEY_METRIC_KID_MEAN]
