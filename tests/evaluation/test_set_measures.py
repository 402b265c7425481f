"""FID and KID by torch-fidelity, with a small network in place of Inception, against closed forms."""
import csv
import json
import re
import sys

import cv2
import numpy as np
import pytest
import torch
from conftest import command
from skimage import data

from rdbm_plugin.config.options import OptionError
from rdbm_plugin.evaluation import set_measures
from rdbm_plugin.evaluation.protocols import check_protocol, fid, kid
from rdbm_plugin.evaluation.results import ImageScore, SetScore

torch_fidelity = pytest.importorskip('torch_fidelity')

WEIGHTS = 'hub/checkpoints/weights-inception-2015-12-05-6726825d.pth'
SMALL = '''
import torch
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY


class Small(FeatureExtractorBase):
    """Mean red, green and blue, times what the file with the weights says."""

    def __init__(self, name, features_list, feature_extractor_weights_path=None, **_):
        super().__init__(name, features_list)
        self.scale = torch.load(feature_extractor_weights_path, weights_only=True)['scale']

    @staticmethod
    def get_provided_features_list():
        return ('2048',)

    def forward(self, image):
        assert image.dtype == torch.uint8
        return (image.float().mean((2, 3)) * self.scale,)
'''
NAME = 'inception-v3-compat'


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Where torch looks for weights; there is no network."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setenv('https_proxy', 'http://127.0.0.1:9')
    set_measures.inception.cache_clear()
    set_measures._features.cache_clear()
    yield tmp_path
    set_measures.inception.cache_clear()
    set_measures._features.cache_clear()


@pytest.fixture
def small(home, monkeypatch):
    """The small network in Inception's place; weights double the means."""
    found = {}
    exec(SMALL, found)
    monkeypatch.setitem(sys.modules['torch_fidelity.registry'].FEATURE_EXTRACTORS_REGISTRY, NAME, found['Small'])
    (home / WEIGHTS).parent.mkdir(parents=True)
    torch.save({'scale': torch.tensor(2.0)}, home / WEIGHTS)


def flat(colours):
    """BGR images of one colour each, of various sizes, (red, green, blue)."""
    return [np.full((4 + i % 3, 5, 3), colour[::-1], np.uint8) for i, colour in enumerate(colours)]


def of_set(measure, restored, clean, **options):
    return SetScore.of([ImageScore(str(i), {'x': measure(*pair, **options)}, {}, 0.0, 1)
                        for i, pair in enumerate(zip(flat(restored), flat(clean)))]).restored['x']


def corners(middle, spread):
    """The eight corners of a box: their covariance is diagonal, 8/7 spread^2."""
    signs = np.stack(np.meshgrid(*[(-1, 1)] * 3), -1).reshape(8, 3)
    return np.array(middle) + signs * np.array(spread)


def test_fid_is_the_distance_of_two_gaussians_with_diagonal_covariances(small):
    """Sum of squared differences of means and of standard deviations; the network doubles both."""
    restored, clean = corners((90, 120, 60), (20, 7, 30)), corners((100, 118, 66), (25, 10, 28))
    expected = 4 * ((10**2 + 2**2 + 6**2) + 8 / 7 * (5**2 + 3**2 + 2**2))
    assert of_set(fid, restored, clean, min_images=8) == pytest.approx(expected, rel=1e-9)
    assert of_set(fid, clean, clean[::-1], min_images=8) == pytest.approx(0, abs=1e-4)


def test_fid_of_correlated_features_is_that_of_the_matrix_square_root(small):
    from scipy.linalg import sqrtm
    random = np.random.default_rng(0)
    sets = [np.clip(random.normal(size=(60, 3)) @ random.normal(scale=15, size=(3, 3)) + 120, 0, 255).astype(np.uint8)
            for _ in range(2)]
    (mean_a, cov_a), (mean_b, cov_b) = ((2 * each.mean(0), 4 * np.cov(each.T.astype(float))) for each in sets)
    root = sqrtm(cov_a)
    expected = np.square(mean_a - mean_b).sum() + np.trace(cov_a + cov_b - 2 * sqrtm(root @ cov_b @ root).real)
    assert of_set(fid, *sets, min_images=60) == pytest.approx(expected, rel=1e-6)


def kernel(x, y):
    return (4 * float(x @ y) / 3 + 1)**3


def test_kid_is_the_unbiased_mmd_of_a_cubic_kernel(small):
    random = np.random.default_rng(1)
    restored, clean = (random.integers(0, 256, (12, 3)).astype(float) for _ in range(2))
    within = sum(kernel(each[i], each[j]) for each in (restored, clean) for i in range(12) for j in range(12) if i != j)
    across = sum(kernel(x, y) for x in restored for y in clean)
    assert of_set(kid, restored, clean, min_images=12) == pytest.approx(within / (12 * 11) - 2 * across / 144, rel=1e-9)


def test_kid_of_many_is_the_mean_over_subsets(small, monkeypatch):
    """Pairs are drawn apart, so that the mean over all subsets is the estimate without the pairs."""
    monkeypatch.setattr(set_measures, 'KID_SUBSET', 20)
    random = np.random.default_rng(2)
    clean = random.integers(0, 256, (24, 3)).astype(float)
    restored = np.clip(clean + 90, 0, 255)
    within = sum(kernel(each[i], each[j]) for each in (restored, clean) for i in range(24) for j in range(24) if i != j)
    across = sum(kernel(x, y) for x in restored for y in clean)
    expected = within / (24 * 23) - 2 * across / 24**2
    found = of_set(kid, restored, clean, min_images=24)
    assert found != pytest.approx(expected, rel=1e-6) and found == pytest.approx(expected, rel=0.1)


def test_small_sets_are_refused_in_words(small):
    with pytest.raises(OptionError, match=r'fid: found 8 images; expected at least 2049, .* use kid, .*_images: 8"'):
        of_set(fid, corners((90, 90, 90), (1, 1, 1)), corners((90, 90, 90), (2, 2, 2)))
    with pytest.raises(OptionError, match='kid: found 8 images; expected at least 100, '):
        of_set(kid, corners((90, 90, 90), (1, 1, 1)), corners((90, 90, 90), (2, 2, 2)))
    for options, words in (({'better': 'higher'}, 'write "better: lower"'), ({'min_images': 1}, 'at least 2')):
        with pytest.raises(OptionError, match=words):
            check_protocol('fid', {'better': 'lower', **options})


def test_images_without_what_is_cropped(small):
    image = np.full((9, 9, 3), 50, np.uint8)
    image[2:-2, 2:-2] = 80
    assert fid(image, image, crop_border=2).restored.tolist() == [160, 160, 160]


def test_without_weights_the_message_says_what_to_fetch_and_where_to_put_it(home):
    with pytest.raises(OptionError, match='Fetch https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/'
                                          f'weights-inception-2015-12-05-6726825d.pth and put it at {home}/{WEIGHTS}'):
        check_protocol('kid', {'better': 'lower'})
    assert not any(path.is_file() for path in home.rglob('*'))


def test_weights_that_would_run_code_are_refused(home):
    (home / WEIGHTS).parent.mkdir(parents=True)
    torch.save(print, home / WEIGHTS)
    with pytest.raises(OptionError, match='not a checkpoint that is safe to load'):
        set_measures.inception()


def test_without_torch_fidelity_the_message_says_what_to_do(home, monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch_fidelity.feature_extractor_inceptionv3', None)
    with pytest.raises(OptionError, match=r'need torch-fidelity.*pip install torch-fidelity'):
        set_measures.inception()


def test_models_that_take_means_over_images_say_so(small):
    clean = data.coffee()
    with pytest.raises(OptionError, match=r'fid measures a whole set, .* use "rdbm compare"'):
        sum([fid(clean, clean)])


def test_mmengine_measures_the_set(small):
    pytest.importorskip('mmengine')
    from mmengine.registry import METRICS
    metric = METRICS.build({'type': 'rdbm_plugin.kid', 'min_images': 4})
    random = np.random.default_rng(3)
    images = torch.from_numpy(random.integers(0, 256, (4, 3, 3, 6, 6)) / 255).float()
    metric.process(None, [{'lq': lq, 'restored': restored, 'gt': gt} for lq, restored, gt in images])
    found = metric.evaluate(4)
    pixels = np.rint(255 * images.numpy()).astype(np.uint8).transpose(1, 0, 3, 4, 2)[..., ::-1]
    for key, place in (('kid', 1), ('kid_degraded', 0)):
        shares = [kid(np.ascontiguousarray(x), np.ascontiguousarray(y), min_images=4)
                  for x, y in zip(pixels[place], pixels[2])]
        assert found[key] == pytest.approx(set_measures.combined(shares), rel=1e-9)


RUN = SMALL + '''
import json
import sys
FEATURE_EXTRACTORS_REGISTRY['inception-v3-compat'] = Small
from rdbm_plugin.__main__ import main
for command in json.loads(sys.argv[1]):
    sys.argv = ['rdbm', *command.split()]
    print('status', main())
'''
OPTIONS = '''
plugin: !!python/name:rdbm_plugin.registration.__version__
name: own
model_type: RDBMModel
scale: 1
num_gpu: 0
manual_seed: 0
bridge: {type: ResidualBridge, prediction: residual}
datasets:
  test_1: {name: derain, type: SyntheticUniversalDataset, dataroot_gt: embedded, tasks: [derain], gt_size: 64}
network_g: {type: RDBMUNet, variant: T}
path: {pretrain_network_g: shipped, param_key_g: params_ema, strict_load_g: true}
val:
  save_img: true
  suffix: ~
  sampler: {type: BridgeSampler, steps: 1}
  metrics:
    psnr: {type: psnr_rgb}
    fid: {type: fid, better: lower, min_images: 2}
    kid: {type: kid, better: lower, min_images: 2}
'''


def table(file):
    with file.open(encoding='utf-8') as opened:
        return list(csv.DictReader(opened))


def test_test_and_compare_give_sets_their_measures(home):
    """Of finished results, one folder whole and one in part, with the numbers of images; refused if these are few."""
    (home / WEIGHTS).parent.mkdir(parents=True)
    torch.save({'scale': torch.tensor(2.0)}, home / WEIGHTS)
    (home / 'own.yml').write_text(OPTIONS)
    (home / 'part/derain').mkdir(parents=True)
    cv2.imwrite(str(home / 'part/derain/chelsea.png'), np.full((64, 64, 3), 90, np.uint8))
    few = '--force_yml name=few val:metrics:fid:min_images=2049'
    printed = command('-c', RUN, json.dumps([
        'test -opt own.yml', 'compare results/own part --sets own.yml --names whole part', f'test -opt own.yml {few}',
        f'compare part --sets own.yml {few}']), cwd=home, env={'TORCH_HOME': str(home)}).stdout
    assert re.findall(r'^status (\w+)', printed, re.M)[1:] == ['0', '2', '2']
    assert printed.count('datasets: test_1: fid: found 2 images; expected at least 2049') == 2
    assert not (home / 'results/few').exists()
    assert printed.count('gain  images') == 3
    row, = table(home / 'results/own/table.csv')
    assert row['images'] == '2' and float(row['fid']) > 0 and row['fid degraded'] != row['fid']
    assert list(table(home / 'results/own/images.csv')[0]) == [
        'set', 'image', 'psnr degraded', 'psnr', 'seconds', 'evaluations']
    exact = json.loads((home / 'results/own/results.json').read_text(encoding='utf-8'))['sets']['derain']
    found = {each['method']: each for each in table(home / 'comparison/table.csv')}
    for metric in ('fid', 'kid'):
        assert float(found['whole'][metric]) == pytest.approx(exact['restored'][metric], rel=1e-9)
        assert float(found['degraded'][metric]) == pytest.approx(exact['degraded'][metric], rel=1e-9)
        assert found['part (1 of 2 images)'][metric] == ''
    assert (found['whole']['images'], found['part (1 of 2 images)']['images']) == ('2', '1')
    assert '| fid | derain (2) |' in (home / 'comparison/table.md').read_text(encoding='utf-8')
