"""Degradations, clean sources and the synthetic data set."""
from collections import Counter

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, RandomSampler

from rdbm_plugin.data.clean_sources import EMBEDDED, list_clean, read_rgb
from rdbm_plugin.data.degradations import TASKS, degrade
from rdbm_plugin.data.synthetic_universal_dataset import SyntheticUniversalDataset
from rdbm_plugin.options import OptionError

TRAIN = {'name': 'photos', 'phase': 'train', 'dataroot_gt': 'embedded', 'gt_size': 48}
VAL = {'name': 'val', 'phase': 'val', 'dataroot_gt': 'embedded'}


@pytest.fixture(scope='module')
def photo():
    return read_rgb(list_clean('embedded', 'val')[0]).astype(np.float32) / 255


@pytest.mark.parametrize('task', TASKS)
def test_degradation_repeats_by_seed_and_differs_between_seeds(photo, task):
    first, again, other = (degrade(photo, task, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert first.shape == photo.shape and first.dtype == np.float32
    assert first.min() >= 0 and first.max() <= 1
    assert np.array_equal(np.rint(first * 255) / np.float32(255), first)


@pytest.mark.parametrize(('task', 'low', 'high'), [
    ('derain', 12, 40), ('lowlight', 3, 20), ('desnow', 10, 40), ('dehaze', 3, 25), ('deblur', 15, 45)])
def test_degradation_is_neither_nothing_nor_everything(photo, task, low, high):
    """PSNR of 20 draws against the clean photo."""
    for seed in range(20):
        error = np.square(degrade(photo, task, np.random.default_rng(seed)) - photo).mean()
        assert low < -10 * np.log10(error) < high


def test_degradations_act_in_the_direction_of_their_physics(photo):
    rng = np.random.default_rng(0)
    assert (degrade(photo, 'derain', rng) >= photo - 0.16).all()
    assert degrade(photo, 'lowlight', rng).mean() < photo.mean() / 1.5
    assert degrade(photo, 'dehaze', rng).std() < photo.std()
    gradient = [np.abs(np.diff(image, axis=0)).mean() for image in (degrade(photo, 'deblur', rng), photo)]
    assert gradient[0] < gradient[1]


def test_training_batches_hold_every_task_equally_often():
    data = SyntheticUniversalDataset(TRAIN)
    order = RandomSampler(data, replacement=True, num_samples=15)
    for batch in DataLoader(data, batch_size=5, num_workers=1, sampler=order):
        assert Counter(batch['task']) == dict.fromkeys(TASKS, 1)
        assert batch['lq'].shape == batch['gt'].shape == (5, 3, 48, 48)
        assert batch['lq'].dtype == torch.float32 and batch['lq'].min() >= 0 and batch['lq'].max() <= 1
        assert not torch.equal(batch['lq'], batch['gt'])


def epoch(seed, workers):
    torch.manual_seed(seed)
    loader = DataLoader(SyntheticUniversalDataset(TRAIN), batch_size=5, num_workers=workers, shuffle=True)
    return torch.cat([batch['lq'] for _ in range(2) for batch in loader])


@pytest.mark.parametrize('workers', [0, 2])
def test_training_data_repeat_by_torch_seed_alone(workers):
    state = np.random.get_state()[1].copy()
    first, again, other = epoch(1, workers), epoch(1, workers), epoch(2, workers)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert not torch.equal(*first.chunk(2)), 'the second epoch must not repeat the first'
    assert np.array_equal(np.random.get_state()[1], state), "numpy's own generator is not ours to move"


def test_validation_pairs_are_fixed_and_whole():
    data = SyntheticUniversalDataset(VAL)
    assert len(data) == len(EMBEDDED['val']) * 5
    assert [data[i]['task'] for i in range(5)] == list(TASKS)
    again = SyntheticUniversalDataset(VAL)
    assert all(torch.equal(data[i]['lq'], again[i]['lq']) for i in range(len(data)))
    assert data[0]['gt'].shape == (3, 300, 451)
    reseeded = SyntheticUniversalDataset({**VAL, 'seed': 1})
    assert not torch.equal(data[0]['lq'], reseeded[0]['lq'])


def test_validation_photos_are_never_trained_on():
    assert not {path.name for path in list_clean('embedded', 'train')} & set(EMBEDDED['val'])
    assert not set(EMBEDDED['train']) & set(EMBEDDED['val'])
    for phase in ('train', 'val'):
        assert all(path.is_file() for path in list_clean('embedded', phase))


def test_any_folder_of_photos_of_any_size_serves(tmp_path):
    (tmp_path / 'sub').mkdir()
    rng = np.random.default_rng(0)
    for name, shape in (('a.png', (20, 33, 3)), ('sub/b.jpg', (90, 70, 3)), ('gray.png', (64, 64))):
        cv2.imwrite(str(tmp_path / name), rng.integers(0, 256, shape, np.uint8))
    (tmp_path / 'notes.txt').write_text('not an image')
    data = SyntheticUniversalDataset({**TRAIN, 'dataroot_gt': str(tmp_path), 'min_scale': 0.5})
    assert len(data) == 3
    assert all(data[i]['gt'].shape == (3, 48, 48) for i in range(3))


@pytest.mark.parametrize(('change', 'words'), [
    ({'dataroot_gt': '/no/such/folder'}, ['datasets: photos: dataroot_gt', '/no/such/folder', 'a folder of']),
    ({'tasks': ['derian']}, ['tasks', "'derian'", "Did you mean 'derain'?"]),
    ({'gt_size': None}, ['gt_size', 'missing']),
    ({'gt_size': 4}, ['gt_size', 'found 4', 'at least 8']),
    ({'gtsize': 64}, ['unknown key', "'gtsize'", "Did you mean 'gt_size'?"]),
    ({'min_scale': 3}, ['min_scale', 'found 3', '<= 1']),
    ({'tasks': []}, ['tasks', 'found []', 'derain, lowlight']),
    ({'tasks': 'derain'}, ['tasks', "found 'derain'", 'a list']),
])
def test_bad_options_are_named(change, words):
    with pytest.raises(OptionError) as error:
        SyntheticUniversalDataset({**TRAIN, **change})
    for word in words:
        assert word in str(error.value)


def test_missing_folder_key_is_named():
    with pytest.raises(OptionError, match="'dataroot_gt' is missing"):
        SyntheticUniversalDataset({k: v for k, v in TRAIN.items() if k != 'dataroot_gt'})


@pytest.mark.parametrize('content', [b'', b'\x89PNG\r\n\x1a\n broken', b'just text'])
@pytest.mark.parametrize('workers', [0, 1])
def test_unreadable_image_is_named(tmp_path, content, workers):
    (tmp_path / 'torn.png').write_bytes(content)
    data = SyntheticUniversalDataset({**TRAIN, 'dataroot_gt': str(tmp_path)})
    with pytest.raises(OSError, match=r'torn\.png: not a readable image'):
        next(iter(DataLoader(data, num_workers=workers)))


def test_folder_without_images_is_named(tmp_path):
    with pytest.raises(OptionError, match=r'no image in .*expected files ending in'):
        SyntheticUniversalDataset({**TRAIN, 'dataroot_gt': str(tmp_path)})
