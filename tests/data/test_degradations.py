"""The synthetic degradations: ranges, physics, repeatability."""
from dataclasses import asdict, replace

import numpy as np
import pytest

from rdbm_plugin.config.options import OptionError
from rdbm_plugin.data.clean_sources import open_clean
from rdbm_plugin.data.degradations import TASKS, Blur, Haze, LowLight, Rain, Snow, degrade, draw
from rdbm_plugin.data.image_source import to_float


@pytest.fixture(scope='module')
def photo():
    return to_float(open_clean('embedded', 'val').decode(0))


def made(photo, task, seed):
    rng = np.random.default_rng(seed)
    return degrade(photo, draw(task, rng), rng)


@pytest.mark.parametrize('task', [*TASKS, 'dehaze+derain', 'lowlight+deblur'])
def test_degradation_repeats_by_seed_and_differs_between_seeds(photo, task):
    before = photo.copy()
    first, again, other = (made(photo, task, seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert np.array_equal(photo, before), 'the clean image is not touched'
    assert first.shape == photo.shape and first.dtype == np.float32
    assert first.min() >= 0 and first.max() <= 1
    assert np.array_equal(np.rint(first * 255) / np.float32(255), first)


def test_intact_photos_stay_as_they_are(photo):
    assert np.array_equal(made(photo, 'intact', 0), photo)
    assert np.array_equal(made(photo, 'derain+intact', 1), made(photo, 'derain', 1))


@pytest.mark.parametrize('task', TASKS)
def test_result_depends_on_parameters_and_generator_alone(photo, task):
    parameters = draw(task, np.random.default_rng(3))
    first, again = (degrade(photo, parameters, np.random.default_rng(4)) for _ in range(2))
    assert np.array_equal(first, again)
    copied = [type(each)(**asdict(each)) for each in parameters]
    assert np.array_equal(degrade(photo, copied, np.random.default_rng(4)), first)


@pytest.mark.parametrize(('task', 'low', 'high'), [
    ('derain', 12, 40), ('lowlight', 3, 20), ('desnow', 10, 40), ('dehaze', 3, 25), ('deblur', 15, 45)])
def test_degradation_is_neither_nothing_nor_everything(photo, task, low, high):
    """PSNR of 20 draws against the clean photo."""
    for seed in range(20):
        error = np.square(made(photo, task, seed) - photo).mean()
        assert low < -10 * np.log10(error) < high


def test_degradations_act_in_the_direction_of_their_physics(photo):
    assert (made(photo, 'derain', 0) >= photo - 0.16).all()
    assert made(photo, 'lowlight', 0).mean() < photo.mean() / 1.5
    assert made(photo, 'dehaze', 0).std() < photo.std()
    gradient = [np.abs(np.diff(image, axis=0)).mean() for image in (made(photo, 'deblur', 0), photo)]
    assert gradient[0] < gradient[1]


def test_rain_streaks_brighten_and_lie_along_their_angle():
    dark = np.zeros((200, 200, 3), np.float32)
    for angle in (0.0, 0.5, -0.5):
        rain = Rain(layers=1, density=0.004, length=25, angle=angle, strength=0.8, veil=0.0)
        drawn = rain.apply(dark, np.random.default_rng(0))[..., 0]
        assert drawn.max() > 0.2
        # The mean tensor of the gradients: its small direction is that of the streaks.
        dy, dx = np.gradient(drawn)
        tensor = np.array([[np.mean(dx * dx), np.mean(dx * dy)], [np.mean(dx * dy), np.mean(dy * dy)]])
        along = np.linalg.eigh(tensor)[1][:, 0]
        assert np.arctan(along[0] / along[1]) == pytest.approx(angle, abs=0.15)


def test_more_layers_and_density_mean_more_rain():
    dark = np.zeros((200, 200, 3), np.float32)
    light = Rain(1, 0.002, 15, 0.0, 0.8, 0.0)
    means = [rain.apply(dark, np.random.default_rng(0)).mean()
             for rain in (light, replace(light, layers=3), replace(light, layers=3, density=0.01))]
    assert means[0] < means[1] < means[2]


def test_veil_adds_light_and_removes_contrast(photo):
    veiled = Rain(1, 0.0, 15, 0.0, 0.8, 0.1).apply(photo, np.random.default_rng(0))
    np.testing.assert_allclose(veiled, photo + 0.1 * (0.85 - photo), atol=1e-6)


def test_low_light_follows_its_closed_form_without_noise():
    light = LowLight(gain=0.1, gamma=2.2, shot=0.0, read=0.0, red=1.1, blue=0.9)
    gray = np.full((4, 4, 3), 0.5, np.float32)
    expected = (0.5**2.2 * 0.1 * np.array([1.1, 1.0, 0.9])) ** (1 / 2.2)
    np.testing.assert_allclose(light.apply(gray, np.random.default_rng(0))[0, 0], expected, rtol=1e-5)


def test_low_light_noise_has_the_variance_of_shot_and_read_noise():
    """Var = shot * signal + read^2 in linear light (Foi et al. 2008)."""
    light = LowLight(gain=0.2, gamma=1.0, shot=1e-3, read=4e-3, red=1.0, blue=1.0)
    gray = np.full((400, 400, 3), 0.9, np.float32)
    signal = 0.9**2.2 * 0.2
    drawn = light.apply(gray, np.random.default_rng(0))
    assert drawn.mean() == pytest.approx(signal, rel=1e-2)
    assert drawn.var() == pytest.approx(1e-3 * signal + 4e-3**2, rel=0.02)


def test_snow_is_near_white_and_grows_with_density():
    dark = np.zeros((200, 200, 3), np.float32)
    few = Snow(density=5e-4, radius=3, motion=2, angle=0.3, opacity=1.0, veil=0.0)
    drawn = [snow.apply(dark, np.random.default_rng(0)) for snow in (few, replace(few, density=4e-3))]
    assert drawn[0].max() <= 0.96 + 1e-6 and drawn[1].mean() > 2 * drawn[0].mean()


def test_haze_is_koschmieders_law_over_its_depth_map(photo):
    haze = Haze(beta=1.2, airlight=(0.8, 0.85, 0.9), slope=0.5, relief=0.3, objects=2)
    depth = haze.depth(photo, np.random.default_rng(5))
    hazy = haze.apply(photo, np.random.default_rng(5))
    t = np.exp(-1.2 * depth.astype(np.float64))[..., None]
    np.testing.assert_allclose(hazy, photo * t + np.array([0.8, 0.85, 0.9]) * (1 - t), atol=1e-6)


def test_haze_depth_is_far_above_and_near_in_objects(photo):
    flat = Haze(1.0, (0.9, 0.9, 0.9), slope=0.8, relief=0.0, objects=0)
    depth = flat.depth(photo, np.random.default_rng(0))
    assert depth[:9].mean() > 1.3 > 0.7 > depth[-9:].mean()
    plain = replace(flat, slope=0.0)
    near = replace(plain, objects=3).depth(photo, np.random.default_rng(0))
    np.testing.assert_allclose(plain.depth(photo, np.random.default_rng(0)), 1, atol=1e-3)
    assert near.max() < 1.1 and near.min() < 0.8


def test_haze_depth_steps_where_the_image_does():
    halves = np.full((120, 120, 3), 0.2, np.float32)
    halves[:, 60:] = 0.8
    steps = [np.abs(np.diff(Haze(1.0, (0.9,) * 3, 0.0, 0.0, 2).depth(halves, np.random.default_rng(seed)), axis=1))
             .mean(axis=0) for seed in range(10)]
    assert np.mean([step[59] for step in steps]) > 5 * np.mean([np.median(step) for step in steps])


def test_blur_keeps_the_mean_and_the_place():
    point = np.zeros((61, 61, 3), np.float32)
    point[30, 30] = 1
    for seed in range(20):
        rng = np.random.default_rng(seed)
        spread = Blur.draw(rng).apply(point, rng)[..., 0].astype(np.float64)
        assert spread.sum() == pytest.approx(1, abs=1e-4) and spread.max() < 0.5
        rows, columns = np.mgrid[:61, :61]
        assert (rows * spread).sum() == pytest.approx(30, abs=1.5)
        assert (columns * spread).sum() == pytest.approx(30, abs=1.5)


@pytest.mark.parametrize(('name', 'cls', 'ranges'), [
    ('derain', Rain, {'layers': (1, 3), 'density': (0.002, 0.01), 'length': (9, 27), 'angle': (-0.6, 0.6),
                      'strength': (0.5, 0.9), 'veil': (0, 0.12)}),
    ('lowlight', LowLight, {'gain': (0.03, 0.2), 'gamma': (2, 2.4), 'shot': (0, 1e-3), 'read': (0, 4e-3),
                            'red': (0.85, 1.15), 'blue': (0.85, 1.15)}),
    ('desnow', Snow, {'density': (5e-4, 4e-3), 'radius': (1.5, 4), 'motion': (1, 7), 'opacity': (0.7, 1),
                      'veil': (0, 0.2)}),
    ('dehaze', Haze, {'beta': (0.6, 1.8), 'slope': (0, 0.8), 'relief': (0, 0.5), 'objects': (0, 3)})])
def test_parameters_fill_their_documented_ranges(name, cls, ranges):
    drawn = [draw(name, np.random.default_rng(seed))[0] for seed in range(300)]
    assert all(type(each) is cls for each in drawn)
    for key, (low, high) in ranges.items():
        values = np.array([getattr(each, key) for each in drawn], float)
        assert low <= values.min() < low + 0.1 * (high - low) and high >= values.max() > high - 0.1 * (high - low)


def test_chain_is_applied_from_left_to_right(photo):
    rng = np.random.default_rng(0)
    parameters = draw('dehaze+lowlight', rng)
    assert [type(each) for each in parameters] == [Haze, LowLight]
    state = np.random.default_rng(1)
    by_hand = np.clip(parameters[0].apply(photo, state), 0, 1)
    by_hand = np.clip(parameters[1].apply(by_hand, state), 0, 1)
    np.testing.assert_allclose(degrade(photo, parameters, np.random.default_rng(1)), by_hand, atol=0.51 / 255)


@pytest.mark.parametrize('task', ['derian', 'derain+', 'derain+snow', ''])
def test_unknown_degradation_is_named(task):
    with pytest.raises(OptionError, match='tasks: found'):
        draw(task, np.random.default_rng(0))
