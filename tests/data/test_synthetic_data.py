"""The synthetic data set and its clean sources."""
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, RandomSampler

from rdbm_plugin.config.options import OptionError
from rdbm_plugin.data.clean_sources import EMBEDDED, PACKAGED, open_clean
from rdbm_plugin.data.dead_leaves import DeadLeaves
from rdbm_plugin.data.degradations import TASKS
from rdbm_plugin.data.image_source import ImageError
from rdbm_plugin.data.synthetic_universal_dataset import SyntheticUniversalDataset

TRAIN = {'name': 'photos', 'phase': 'train', 'dataroot_gt': 'embedded', 'gt_size': 48}
VAL = {'name': 'val', 'phase': 'val', 'dataroot_gt': 'embedded'}


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
    assert not set(EMBEDDED['train']) & set(EMBEDDED['val'])
    for phase in ('train', 'val', 'test'):
        source = open_clean('embedded', phase)
        assert {Path(source.path(i)).name for i in range(len(source))} == set(EMBEDDED[phase.replace('test', 'val')])


def test_photos_of_packages_serve_and_a_missing_package_is_named(monkeypatch):
    source = open_clean('embedded + scikit-learn + matplotlib', 'train')
    assert [Path(source.path(i)).name for i in range(4, 7)] == ['china.jpg', 'flower.jpg', 'grace_hopper.jpg']
    assert all(min(source.decode(i).shape[:2]) > 400 for i in range(4, 7))
    monkeypatch.setitem(PACKAGED, 'scikit-learn', ('no_such_package.images', ('china.jpg',)))
    with pytest.raises(OptionError, match="'scikit-learn' needs scikit-learn, which is not installed"):
        open_clean('scikit-learn', 'train')


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
    ({'dataroot_gt': '/no/such/folder'}, ['datasets: photos: dataroot_gt', '/no/such/folder', 'a folder or LMDB of']),
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
    with pytest.raises(ImageError, match=r'1 of 1 images cannot be used(.|\n)*torn\.png: not a readable image'):
        next(iter(DataLoader(data, num_workers=workers)))


def test_folder_without_images_is_named(tmp_path):
    with pytest.raises(OptionError, match=r'no image in .*expected files ending in'):
        SyntheticUniversalDataset({**TRAIN, 'dataroot_gt': str(tmp_path)})


def test_several_sources_serve(tmp_path):
    cv2.imwrite(str(tmp_path / 'a.png'), np.full((70, 80, 3), 99, np.uint8))
    data = SyntheticUniversalDataset({**VAL, 'dataroot_gt': f'{tmp_path} + dead_leaves:2', 'tasks': ['derain']})
    assert [tuple(data[i]['gt'].shape) for i in range(3)] == [(3, 70, 80), (3, 256, 256), (3, 256, 256)]
    assert data[0]['gt_path'].endswith('a.png') and data[2]['gt_path'] == 'dead_leaves_000001'


def test_dead_leaves_repeat_and_differ():
    leaves = DeadLeaves(3)
    assert np.array_equal(leaves.decode(1), DeadLeaves(3).decode(1))
    assert not np.array_equal(leaves.decode(1), leaves.decode(2))
    assert not np.array_equal(leaves.decode(1), DeadLeaves(3, seed=1).decode(1))
    train, val = (open_clean('dead_leaves:2', phase) for phase in ('train', 'val'))
    assert not np.array_equal(train.decode(0), val.decode(0))


def slope_of_spectrum(images):
    """Exponent of frequency in the mean power of 256x256 windows, which characterises natural images (Field 1987)."""
    window = np.hanning(256)[:, None] * np.hanning(256)
    gray = [image.mean(2) for image in images]
    gray = [image[top:top + 256, left:left + 256] for image in gray
            for top in {0, len(image) - 256} for left in {0, image.shape[1] - 256}]
    power = np.mean([np.abs(np.fft.fft2((image - image.mean()) * window))**2 for image in gray], axis=0)
    frequency = np.hypot(*np.meshgrid(*[np.fft.fftfreq(256)] * 2))
    part = (frequency > 0.02) & (frequency < 0.1)
    return np.polyfit(np.log(frequency[part]), np.log(power[part]), 1)[0]


def test_dead_leaves_have_the_spectrum_of_photos():
    photos = [slope_of_spectrum([source.decode(i)]) for source in (open_clean('embedded', 'train'),
                                                                   open_clean('embedded', 'val'))
              for i in range(len(source))]
    assert min(photos) < slope_of_spectrum([DeadLeaves(20).decode(i) for i in range(20)]) < max(photos)


@pytest.mark.parametrize('root', ['dead_leaves', 'dead_leaves:no', 'dead_leaves:0', 5, [], 'embedded + no'])
def test_bad_clean_sources_are_named(root):
    with pytest.raises(OptionError, match=r'dataroot_gt|dead_leaves'):
        SyntheticUniversalDataset({**TRAIN, 'dataroot_gt': root})


def test_chained_tasks_train_and_validate():
    tasks = ['dehaze+derain', 'lowlight']
    batch = next(iter(DataLoader(SyntheticUniversalDataset({**TRAIN, 'tasks': tasks}), batch_size=4)))
    assert Counter(batch['task']) == {'dehaze+derain': 2, 'lowlight': 2}
    assert SyntheticUniversalDataset({**VAL, 'tasks': tasks})[0]['task'] == 'dehaze+derain'
