"""Metric protocols under names of their own, so that a table can say how it was measured.

They are registered in BasicSR's METRIC_REGISTRY and take a restored and a clean image, BGR, (H, W, 3) uint8. All take
``crop_border``, the pixels to ignore at each side, and BasicSR's ``better`` (``higher`` or ``lower``). None calls the
surrounding code base, whose functions of the same name differ, so a protocol gives the same number everywhere.
"""
import math
from collections.abc import Mapping
from functools import cache
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from rdbm_plugin.config.options import OptionError, check_int, suggest
from rdbm_plugin.evaluation.set_measures import MIN_IMAGES, Share, inception, share

Image = NDArray[np.uint8]


def psnr_rgb(img: Image, img2: Image, crop_border: int = 0, better: str = 'higher') -> float:
    """PSNR in dB over all channels: 10 log10(255^2 / MSE) in float64; inf for equal images."""
    error = np.square(_crop(img, crop_border).astype(np.float64) - _crop(img2, crop_border)).mean()
    return 10 * math.log10(255**2 / error) if error else math.inf


def ssim_rgb(img: Image, img2: Image, crop_border: int = 0, better: str = 'higher') -> float:
    """SSIM (Wang et al., IEEE TIP 2004; Gaussian window 11, sigma 1.5), mean over the channels.

    As in the authors' code, covariances are those of the population, and the border of the window is left out.

    Raises:
        ValueError: An image without its border is smaller than 11 pixels.
    """
    pair = [_crop(each, crop_border).astype(np.float64) for each in (img, img2)]
    if min(pair[0].shape[:2]) < 11:
        raise ValueError(f'ssim: found {pair[0].shape[1]}x{pair[0].shape[0]} pixels without the border; expected at '
                         'least 11x11.')
    return float(structural_similarity(*pair, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
                                       data_range=255, channel_axis=2 if pair[0].ndim == 3 else None))


def psnr_y(img: Image, img2: Image, crop_border: int = 0, better: str = 'higher') -> float:
    """PSNR in dB on the luma of MATLAB's ``rgb2ycbcr`` for uint8, as papers on deraining report it."""
    return psnr_rgb(matlab_y(img), matlab_y(img2), crop_border)


def ssim_y(img: Image, img2: Image, crop_border: int = 0, better: str = 'higher') -> float:
    """SSIM on the luma of MATLAB's ``rgb2ycbcr`` for uint8, as papers on deraining report it."""
    return ssim_rgb(matlab_y(img), matlab_y(img2), crop_border)


def psnr_gt_mean(img: Image, img2: Image, crop_border: int = 0, better: str = 'higher') -> float:
    """PSNR after scaling the restored image to the mean brightness of the clean one, which no method can know.

    Some papers on low light report it (LLFlow, Retinexformer). Name it wherever you report it.
    """
    return psnr_rgb(match_mean(img, img2), img2, crop_border)


def ssim_gt_mean(img: Image, img2: Image, crop_border: int = 0, better: str = 'higher') -> float:
    """SSIM after scaling the restored image to the mean brightness of the clean one; see :func:`psnr_gt_mean`."""
    return ssim_rgb(match_mean(img, img2), img2, crop_border)


def fid(img: Image, img2: Image, crop_border: int = 0, better: str = 'lower',
        min_images: int = MIN_IMAGES['fid']) -> Share:
    """An image's share in the Frechet Inception distance of its set to the clean one (Heusel et al., arXiv 1706.08500).

    Sets of fewer than ``min_images`` are refused. Raises OptionError if torch-fidelity or its weights are missing.
    """
    return share('fid', _crop(img, crop_border), _crop(img2, crop_border), min_images)


def kid(img: Image, img2: Image, crop_border: int = 0, better: str = 'lower',
        min_images: int = MIN_IMAGES['kid']) -> Share:
    """Kernel Inception distance with its cubic kernel (Binkowski et al., arXiv 1801.01401); see :func:`fid`."""
    return share('kid', _crop(img, crop_border), _crop(img2, crop_border), min_images)


def lpips(img: Image, img2: Image, crop_border: int = 0, better: str = 'lower') -> float:
    """LPIPS (Zhang et al., arXiv 1801.03924) with AlexNet, by pyiqa. Lower is better.

    Raises:
        OptionError: pyiqa or its weights cannot be loaded.
    """
    return pyiqa_score(img, img2, 'lpips', crop_border, better)


def pyiqa_score(img: Image, img2: Image | None = None, metric: str = 'musiq', crop_border: int = 0,
                better: str = 'higher') -> float:
    """Any measure of pyiqa, such as musiq, maniqa, clipiqa, niqe or dists; see ``pyiqa ls``.

    Measures that need no ground truth ignore ``img2``.

    Raises:
        OptionError: pyiqa or the weights of the measure cannot be loaded, or it does not know ``metric``.
    """
    measure = pyiqa_measure(metric)
    images = [_crop(image, crop_border) for image in ((img,) if measure.metric_mode == 'NR' else (img, img2))]
    tensors = [torch.from_numpy(np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1)))[None] for image in images]
    with torch.inference_mode():
        return float(measure(*(tensor.to(_device()).float() / 255 for tensor in tensors)))


@cache
def pyiqa_measure(metric: str) -> Any:
    """Return a measure of pyiqa, loaded once.

    Raises:
        OptionError: pyiqa or the weights of the measure cannot be loaded, or it does not know ``metric``.
    """
    try:
        import pyiqa
    except ImportError as error:
        raise OptionError(f'metric {metric!r} needs pyiqa, which cannot be imported ({error}); pip install pyiqa, or '
                          'remove the metric.') from None
    known = pyiqa.list_models()
    if metric not in known:
        raise OptionError(f'metric: found {metric!r}; pyiqa has {", ".join(known)}.{suggest(metric, known)}')
    try:
        return pyiqa.create_metric(metric, device=_device())
    except Exception as error:
        # pyiqa downloads weights here, and its various download routes may raise anything.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise OptionError(f'metric {metric!r}: pyiqa could not load it: {reason}. Without a network, download '
                          'the files named above elsewhere and put them where it says, or remove the metric.') from None


def check_protocol(name: str, options: Mapping[str, Any]) -> None:
    """Raise OptionError if a metric of another package cannot be loaded, or ``better`` is not its direction.

    ``name`` is any registered metric, and ``options`` are the other keys of its block.
    """
    if name in MIN_IMAGES:
        check_int('min_images', options.get('min_images', MIN_IMAGES[name]), 2)
        inception()
        lower = True
    elif name in ('lpips', 'pyiqa_score'):
        lower = pyiqa_measure('lpips' if name == 'lpips' else options.get('metric', 'musiq')).lower_better
    else:
        return
    better = 'lower' if lower else 'higher'
    if options.get('better') != better:
        raise OptionError(f'better: found {options.get("better")!r}; for this metric write "better: {better}".')


def matlab_y(image: Image) -> Image:
    """Convert BGR uint8, (H, W, 3), to the luma of ITU-R BT.601, (H, W), 16 to 235, rounded to uint8 as in MATLAB."""
    return np.floor(image @ np.array([24.966, 128.553, 65.481]) / 255 + 16.5).astype(np.uint8)


def match_mean(image: Image, reference: Image) -> NDArray[np.float64]:
    """Scale ``image`` to the mean gray value of ``reference``; clip to [0, 255] without rounding."""
    means = [cv2.cvtColor(each, cv2.COLOR_BGR2GRAY).mean() for each in (reference, image)]
    return np.clip(image * (means[0] / max(means[1], 1e-6)), 0, 255)


def _device() -> str:
    return 'cuda' if torch.cuda.is_available() else 'cpu'


def _crop(image: NDArray[Any], border: int) -> NDArray[Any]:
    return image[border:image.shape[0] - border, border:image.shape[1] - border]
