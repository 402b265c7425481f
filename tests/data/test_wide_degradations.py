"""Wide ranges of damage: repeatable, stronger with strength, and each part by its law."""
import cv2
import numpy as np
import pytest

from rdbm_plugin.config.options import OptionError
from rdbm_plugin.data.clean_sources import open_clean
from rdbm_plugin.data.degradations import TASKS, Intact, Ranges, degrade, draw
from rdbm_plugin.data.degradations.blur import LinearBlur
from rdbm_plugin.data.degradations.camera import Jpeg, SensorNoise, draw_camera
from rdbm_plugin.data.degradations.lowlight import ToneCurve, UnevenLight
from rdbm_plugin.data.degradations.rain import LensDrops
from rdbm_plugin.data.image_source import to_float
from rdbm_plugin.data.synthetic_universal_dataset import SyntheticUniversalDataset


@pytest.fixture(scope='module')
def photo():
    return to_float(open_clean('embedded', 'val').decode(0))[50:250, 100:300]


def made(photo, task, seed, **options):
    rng = np.random.default_rng(seed)
    return degrade(photo, draw(task, rng, Ranges('wide', **options)), rng)


def psnr(a, b):
    return -10 * np.log10(np.square(a - b).mean())


@pytest.mark.parametrize('task', TASKS)
def test_wide_damage_repeats_by_seed_and_differs_between_seeds(photo, task):
    for seed in range(12):
        first, again, other = (made(photo, task, each) for each in (seed, seed, seed + 100))
        assert np.array_equal(first, again) and not np.array_equal(first, other)
        assert first.shape == photo.shape and first.dtype == np.float32 and 0 <= first.min() <= first.max() <= 1


@pytest.mark.parametrize('task', TASKS)
def test_more_strength_is_more_damage(photo, task):
    alone = {'camera': 0, 'second': 0}
    means = [np.mean([psnr(made(photo, task, seed, strength=(s, s), **alone), photo) for seed in range(30)])
             for s in (0.0, 0.5, 1.0)]
    assert means[0] > means[1] + 1 and means[1] > means[2] + 1
    assert means[0] > (14 if task == 'lowlight' else 22) and means[2] < 24


def test_shares_of_camera_and_of_second_damage_are_kept():
    def names(seed, **options):
        return [type(each).__name__ for each in draw('desnow', np.random.default_rng(seed), Ranges('wide', **options))]
    drawn = [names(seed) for seed in range(600)]
    camera = sum(bool({'Jpeg', 'SensorNoise'} & set(each)) for each in drawn)
    second = sum(bool({'Rain', 'LowLight', 'Haze', 'LinearBlur'} & set(each)) for each in drawn)
    assert camera == pytest.approx(0.4 * 600, abs=40) and second >= 35
    for seed in range(50):
        assert not {'Jpeg', 'SensorNoise'} & set(names(seed, camera=0, second=0))
        assert {'Jpeg', 'SensorNoise'} & set(names(seed, camera=1))


def test_narrow_samples_have_a_camera_only_when_asked_and_stay_the_same_beneath_it():
    drawn = 0
    for seed in range(300):
        old, with_camera = (draw('derain', np.random.default_rng(seed), Ranges(**options))
                            for options in ({}, {'camera': 0.3}))
        assert with_camera[0] == old[0] and len(old) == 1
        drawn += len(with_camera) > 1
        assert draw('intact', np.random.default_rng(seed), Ranges(camera=1.0)) == [Intact()]
    assert drawn == pytest.approx(0.3 * 300, abs=30)


def test_intact_photos_stay_intact(photo):
    for seed in range(20):
        assert np.array_equal(made(photo, 'intact', seed), photo)


def test_shake_keeps_place_and_light(photo):
    """The centre of mass of a point, and the mean of the light, hardly move; rotation differs over the picture."""
    point = np.zeros((101, 101, 3), np.float32)
    point[50, 50] = 1
    y, x = np.mgrid[:101, :101]
    for seed in range(5):
        shaken = LinearBlur('path', 25, 0.3, 0.0, 1.0).apply(point, np.random.default_rng(seed))[..., 0]
        assert shaken.sum() == pytest.approx(1, abs=1e-3)
        assert abs((shaken * x).sum() - 50) < 1 and abs((shaken * y).sum() - 50) < 1
        assert max(np.ptp(each[shaken > 1e-4]) for each in (x, y)) in range(20, 32)
    grid = np.zeros((200, 200, 3), np.float32)
    grid[12::25, 12::25] = 1

    def brightest(rotation):
        out = LinearBlur('path', 9, 0, rotation, 1.0).apply(grid, np.random.default_rng(0))[..., 0]
        return out.reshape(8, 25, 8, 25).max(axis=(1, 3))
    assert np.ptp(brightest(0.0)) < 1e-4, 'without rotation the shake is the same everywhere'
    assert np.ptp(brightest(0.1)) > 0.2 * brightest(0.1).max()
    bright = LinearBlur('path', 21, 0, 0, 2.2).apply(point, np.random.default_rng(0))
    plain = LinearBlur('path', 21, 0, 0, 1.0).apply(point, np.random.default_rng(0))
    assert bright.sum() > 2 * plain.sum(), 'averaged as light, a highlight leaves a bright trace'


def test_uneven_light_lies_between_its_floor_and_one(photo):
    for kind in ('backlight', 'lamps', 'vignette'):
        out = UnevenLight(kind, 0.1).apply(photo, np.random.default_rng(0))
        share = (out / np.maximum(photo, 1e-3))[photo > 0.05]
        assert share.min() >= 0.1 ** (1 / 2.2) - 1e-4 and share.max() <= 1 + 1e-4 and np.ptp(share) > 0.2


def test_tone_curve_keeps_black_white_and_order():
    ramp = np.linspace(0, 1, 256, dtype=np.float32)[None, :, None]
    for contrast in (-0.5, 0.0, 0.9):
        out = ToneCurve(contrast, 0.0).apply(ramp, None)
        assert out[0, 0, 0] == 0 and out[0, -1, 0] == 1 and (np.diff(out[0, :, 0]) > 0).all()
    assert np.array_equal(ToneCurve(0.0, 0.0).apply(ramp, None), ramp)


def test_sensor_noise_has_the_variance_of_its_law():
    gray = np.full((300, 300, 3), 0.5, np.float32)
    light = 0.5**2.2
    noisy = SensorNoise(1e-3, 3e-3).apply(gray, np.random.default_rng(0)) ** 2.2
    assert noisy.mean() == pytest.approx(light, rel=0.01)
    assert noisy.var() == pytest.approx(1e-3 * light + 9e-6, rel=0.03)


def test_jpeg_is_what_opencv_writes(photo):
    pixels = np.rint(photo * 255).astype(np.uint8)
    coded = cv2.imencode('.jpg', pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 50])[1]
    assert np.array_equal(np.rint(Jpeg(50).apply(photo, None) * 255), cv2.imdecode(coded, 1)[..., ::-1])
    assert all(draw_camera(np.random.default_rng(seed)) for seed in range(10))


def test_drops_change_their_places_alone(photo):
    out = LensDrops(3, 10, 0.5).apply(photo, np.random.default_rng(0))
    changed = (np.abs(out - photo).max(axis=2) > 2 / 255).mean()
    assert 0.002 < changed < 0.2


@pytest.mark.parametrize(('block', 'words'), [
    ({'ranges': 'huge'}, "ranges: found 'huge'"), ({'strength': [0.5]}, 'strength: found [0.5]; expected [lowest,'),
    ({'strength': [0.8, 0.2]}, 'strength: found 0.2'), ({'camera': 2}, 'camera: found 2'),
    ({'second': -1}, 'second: found -1'), ({'strenght': [0, 1]}, "Did you mean 'strength'?")])
def test_bad_options_are_named(block, words):
    with pytest.raises(OptionError) as error:
        SyntheticUniversalDataset({'name': 'x', 'phase': 'val', 'dataroot_gt': 'embedded', 'degradations': block})
    assert words in str(error.value)


def test_narrow_ranges_are_the_default_and_what_they_were():
    """Checksums of version 0.1, so that its figures can be repeated."""
    options = {'name': 'x', 'phase': 'val', 'dataroot_gt': 'embedded', 'gt_size': 64}
    plain = SyntheticUniversalDataset(options)
    named = SyntheticUniversalDataset({**options, 'degradations': {'ranges': 'narrow'}})
    wide = SyntheticUniversalDataset({**options, 'degradations': {'ranges': 'wide'}})
    for index in range(len(plain)):
        assert (plain[index]['lq'] == named[index]['lq']).all()
    assert any((plain[index]['lq'] != wide[index]['lq']).any() for index in range(len(plain)))


@pytest.mark.parametrize('ranges', ['narrow', 'wide'])
def test_training_crops_are_whole(ranges):
    """With the margin that damage reaches in from, crops of the wanted size come out."""
    data = SyntheticUniversalDataset({'name': 'x', 'phase': 'train', 'dataroot_gt': 'embedded', 'gt_size': 48,
                                      'degradations': {'ranges': ranges}, 'batch_size_per_gpu': 5,
                                      'num_worker_per_gpu': 0})
    for index in range(10):
        assert data[index]['lq'].shape == data[index]['gt'].shape == (3, 48, 48)
