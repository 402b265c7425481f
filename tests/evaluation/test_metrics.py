"""The metric protocols against scikit-image and published values."""
import importlib.util

import numpy as np
import pytest
from skimage import data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

import rdbm_plugin.registration  # noqa: F401
from rdbm_plugin.basicsr_host.lookup import REGISTERED
from rdbm_plugin.config.options import OptionError


def score(kind, img, img2, **options):
    """As BasicSR calls it, with RGB images."""
    from basicsr.metrics import calculate_metric
    images = {'img': np.ascontiguousarray(img[..., ::-1]), 'img2': np.ascontiguousarray(img2[..., ::-1])}
    return calculate_metric(images, {'type': kind, **options})


@pytest.fixture(scope='module')
def pair():
    """A photo and the photo with noise and less light; RGB."""
    clean = data.coffee()
    noisy = 0.8 * clean + np.random.default_rng(0).normal(0, 12, clean.shape)
    return np.rint(np.clip(noisy, 0, 255)).astype(np.uint8), clean


def test_every_protocol_is_registered():
    from basicsr.utils.registry import METRIC_REGISTRY
    assert len(REGISTERED['METRIC']) == 10
    assert all(entry.split(':')[1] in METRIC_REGISTRY for entry in REGISTERED['METRIC'])


def similarity(a, b, **options):
    return structural_similarity(a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255,
                                 **options)


@pytest.mark.parametrize('border', [0, 7])
def test_rgb_agrees_with_scikit_image(pair, border):
    cut = [image[border:-border, border:-border] if border else image for image in pair]
    assert score('psnr_rgb', *pair, crop_border=border) == pytest.approx(peak_signal_noise_ratio(*cut), abs=1e-9)
    assert score('ssim_rgb', *pair, crop_border=border) == pytest.approx(similarity(*cut, channel_axis=2), abs=1e-6)


@pytest.mark.parametrize('border', [0, 4])
@pytest.mark.parametrize('shape', [(11, 40), (67, 83), (400, 600)])
def test_protocols_agree_with_basicsr(pair, shape, border):
    """To the rounding of float64 for RGB; BasicSR's luma is not rounded, so luma is given to it as a gray image."""
    images = [image[:shape[0] + 2 * border, :shape[1] + 2 * border] for image in pair]
    for metric in ('psnr', 'ssim'):
        basicsr = score(f'calculate_{metric}', *images, crop_border=border)
        assert score(f'{metric}_rgb', *images, crop_border=border) == pytest.approx(basicsr, abs=1e-6)
        lumas = [np.repeat(luma(image)[..., None], 3, axis=2) for image in images]
        basicsr = score(f'calculate_{metric}', *lumas, crop_border=border)
        assert score(f'{metric}_y', *images, crop_border=border) == pytest.approx(basicsr, abs=1e-6)


def test_ssim_is_what_its_authors_define():
    """Wang et al. 2004, equations 6 and 14 to 16, written out window by window."""
    rng = np.random.default_rng(5)
    x, y = rng.integers(0, 256, (2, 15, 17)).astype(float)
    offsets = np.arange(-5, 6)
    weights = np.exp(-(offsets[:, None]**2 + offsets**2) / (2 * 1.5**2))
    weights /= weights.sum()
    found = []
    for top in range(15 - 10):
        for left in range(17 - 10):
            a, b = (image[top:top + 11, left:left + 11] for image in (x, y))
            mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
            var_a, var_b = (weights * (a - mean_a)**2).sum(), (weights * (b - mean_b)**2).sum()
            covariance = (weights * (a - mean_a) * (b - mean_b)).sum()
            c1, c2 = (0.01 * 255)**2, (0.03 * 255)**2
            found.append((2 * mean_a * mean_b + c1) * (2 * covariance + c2)
                         / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)))
    images = [np.repeat(image[..., None], 3, axis=2).astype(np.uint8) for image in (x, y)]
    assert score('ssim_rgb', *images) == pytest.approx(np.mean(found), abs=1e-9)


def test_ssim_of_less_than_a_window_is_refused(pair):
    with pytest.raises(ValueError, match='found 40x10 pixels'):
        score('ssim_rgb', *(image[:10, :40] for image in pair))


def luma(image):
    """BT.601 as printed in MATLAB's documentation of rgb2ycbcr, in exact integers, halves rounded up."""
    red, green, blue = (image[..., i].astype(np.int64) for i in range(3))
    return ((65481 * red + 128553 * green + 24966 * blue + 16500 * 255) // 255000).astype(np.uint8)


def test_luma_agrees_with_scikit_image(pair):
    lumas = [luma(image) for image in pair]
    assert score('psnr_y', *pair) == pytest.approx(peak_signal_noise_ratio(*lumas), abs=1e-3)
    assert score('ssim_y', *pair) == pytest.approx(similarity(*lumas), abs=1e-5)


def test_values_published_by_ipol():
    """Computed with the software of https://www.ipol.im/pub/art/2011/g_lmii/, as scikit-image's own tests quote it."""
    camera = data.camera()
    noise = np.random.RandomState(5).randn(*camera.shape)
    noisy = np.clip(camera + 20.0 * noise, 0, 255).astype(np.uint8)
    images = [np.repeat(image[..., None], 3, axis=2) for image in (noisy, camera)]
    assert score('psnr_rgb', *images) == pytest.approx(22.409353363576034, abs=1e-3)
    assert score('ssim_rgb', *images) == pytest.approx(0.357959091663361, abs=1e-3)


@pytest.mark.parametrize(('rgb', 'y'), [  # digital colour bars of ITU-R BT.601: full range RGB, luma from 16 to 235
    ((255, 255, 255), 235), ((255, 255, 0), 210), ((0, 255, 255), 170), ((0, 255, 0), 145),
    ((255, 0, 255), 106), ((255, 0, 0), 81), ((0, 0, 255), 41), ((0, 0, 0), 16)])
def test_luma_of_the_colour_bars(rgb, y):
    from rdbm_plugin.evaluation.protocols import matlab_y
    assert matlab_y(np.array([[rgb[::-1]]], np.uint8)).item() == y


def test_luma_scores_differ_from_basicsr_only_by_rounding(pair):
    assert score('psnr_y', *pair) == pytest.approx(score('calculate_psnr', *pair, crop_border=0, test_y_channel=True),
                                                   abs=5e-3)


def test_gt_mean_forgives_a_wrong_exposure_and_is_no_other_protocols_default(pair):
    clean = pair[1]
    dark = (clean * 0.5).astype(np.uint8)
    assert score('psnr_rgb', dark, clean) < 15
    assert score('psnr_gt_mean', dark, clean) > 40
    assert score('ssim_gt_mean', dark, clean) > 0.98 > score('ssim_rgb', dark, clean)
    scaled = np.clip(pair[0] * (_gray(clean) / _gray(pair[0])), 0, 255)
    assert score('psnr_gt_mean', *pair) == pytest.approx(peak_signal_noise_ratio(
        clean.astype(float), scaled, data_range=255), abs=1e-2)


def _gray(image):
    return (image @ np.array([0.299, 0.587, 0.114])).mean()


def test_equal_images(pair):
    assert score('psnr_rgb', pair[1], pair[1]) == float('inf')
    assert score('ssim_y', pair[1], pair[1]) == 1


@pytest.mark.skipif(importlib.util.find_spec('pyiqa') is not None, reason='pyiqa is installed')
@pytest.mark.parametrize('kind', ['lpips', 'pyiqa_score'])
def test_without_pyiqa_the_message_says_what_to_do(pair, kind):
    with pytest.raises(OptionError, match=r'needs pyiqa.*pip install pyiqa'):
        score(kind, *pair)


@pytest.mark.skipif(importlib.util.find_spec('pyiqa') is None, reason='pip install pyiqa to test it')
def test_pyiqa_gives_what_it_gives_by_itself(pair):
    import pyiqa
    import torch
    images = [torch.from_numpy(image.transpose(2, 0, 1).copy())[None].float() / 255 for image in pair]
    expected = float(pyiqa.create_metric('gmsd', device='cpu')(*images))
    assert score('pyiqa_score', *pair, metric='gmsd', better='lower') == pytest.approx(expected, abs=1e-6)
    with pytest.raises(OptionError, match='Did you mean'):
        score('pyiqa_score', *pair, metric='musiqq')
