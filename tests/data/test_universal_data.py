"""UniversalPairedDataset from real files and LMDBs, through BasicSR's own loaders and samplers."""
import logging
import os
import re
from collections import Counter
from importlib import import_module

import cv2
import numpy as np
import pytest
import torch
from conftest import rdbm, short
from torch.utils.data import DataLoader

from rdbm_plugin.commands import preflight
from rdbm_plugin.config.options import OptionError
from rdbm_plugin.data.image_source import ImageError, decode_rgb
from rdbm_plugin.data.lmdb_writer import write_lmdb
from rdbm_plugin.data.task_mixture import count_batches
from rdbm_plugin.data.universal_paired_dataset import UniversalPairedDataset

build_dataloader = import_module('basicsr.data').build_dataloader
EnlargedSampler = import_module('basicsr.data.data_sampler').EnlargedSampler
prefetchers = import_module('basicsr.data.prefetch_dataloader')

SIZES = {'derain': 3, 'lowlight': 7, 'dehaze': 20}


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image[..., ::-1])


def coloured(task, number, shape=(40, 48)):
    """An image that says where it belongs: R the task, G the number, B rising from left to right."""
    image = np.zeros((*shape, 3), np.uint8)
    image[..., 0], image[..., 1], image[..., 2] = task, number, np.arange(shape[1])
    return image


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Folders and LMDBs of three tasks of unequal size."""
    root = tmp_path_factory.mktemp('data')
    for task, (name, size) in enumerate(SIZES.items()):
        for side, change in (('gt', 0), ('lq', 100)):
            images = []
            for number in range(size):
                image = coloured(task + change, number)
                save(root / name / side / f'{number:03d}.png', image)
                content = (root / name / side / f'{number:03d}.png').read_bytes()
                images.append((f'{number:03d}', content, image.shape))
            write_lmdb(root / name / f'{side}.lmdb', images)
    return root


def block(root, ending='', quotas=(2, 1, 2), **changes):
    tasks = {name: {'dataroot_gt': f'{root}/{name}/gt{ending}', 'dataroot_lq': f'{root}/{name}/lq{ending}',
                    **({'quota': quota} if quota else {})} for name, quota in zip(SIZES, quotas)}
    return {'name': 'universal', 'type': 'UniversalPairedDataset', 'phase': 'train', 'tasks': tasks, 'gt_size': 16,
            'batch_size_per_gpu': 5, 'num_worker_per_gpu': 0, 'dataset_enlarge_ratio': 2, 'prefetch_mode': None,
            **changes}


def made(seed, options):
    torch.manual_seed(seed)
    count_batches(0)
    dataset = UniversalPairedDataset(options)
    dataset.consumed = 0
    return dataset


def epoch(options, workers=0, seed=0, context=None, batch=5):
    """All batches of one epoch through BasicSR's sampler."""
    dataset = made(seed, options)
    sampler = EnlargedSampler(dataset, 1, 0, 2)
    return list(DataLoader(dataset, batch, sampler=sampler, num_workers=workers, drop_last=True,
                           multiprocessing_context=context if workers else None))


def same(first, second):
    return len(first) == len(second) and all(
        a['lq_path'] == b['lq_path'] and torch.equal(a['lq'], b['lq']) and torch.equal(a['gt'], b['gt'])
        for a, b in zip(first, second))


@pytest.mark.parametrize('ending', ['', '.lmdb'])
@pytest.mark.parametrize('mode', [None, 'cpu', pytest.param('cuda', marks=pytest.mark.gpu)])
def test_batches_hold_the_quotas_with_basicsrs_loader_and_prefetchers(data, ending, mode):
    options = block(data, ending, num_worker_per_gpu=2, prefetch_mode=mode, num_prefetch_queue=2, pin_memory=False)
    dataset = made(0, options)
    loader = build_dataloader(dataset, options, num_gpu=1, sampler=EnlargedSampler(dataset, 1, 0, 2), seed=0)
    if mode:
        kind = prefetchers.CPUPrefetcher if mode == 'cpu' else prefetchers.CUDAPrefetcher
        fetcher = kind(loader, *[{'num_gpu': 1}] * (mode == 'cuda'))
        fetcher.reset()
        batches = list(iter(fetcher.next, None))
    else:
        batches = list(loader)
    assert len(batches) == 12
    for batch in batches:
        assert Counter(batch['task']) == {'derain': 2, 'lowlight': 1, 'dehaze': 2}
        assert batch['gt'].shape == batch['lq'].shape == (5, 3, 16, 16)


def test_samples_are_their_pairs_in_rgb(data):
    """Red is the task, green the number, blue the column: a swap of channels or of sides would show."""
    for ending in ('', '.lmdb'):
        dataset = made(0, block(data, ending, use_hflip=False, use_rot=False))
        for place in range(10):
            item = dataset[place]
            gt, lq = (np.rint(item[side].numpy() * 255) for side in ('gt', 'lq'))
            task, number = list(SIZES).index(item['task']), int(item['gt_path'].split('/')[-1].split('.')[0])
            assert (gt[0] == task).all() and (lq[0] == task + 100).all()
            assert (gt[1] == number).all() and (lq[1] == number).all()
            assert (gt[2] == gt[2, 0, 0] + np.arange(16)).all() and (gt[2] == lq[2]).all()


def test_flips_and_turns_are_alike_and_reach_all_eight(tmp_path):
    """A mark in one corner of both sides, of another colour in each."""
    for side, colour in (('gt', (255, 0, 0)), ('lq', (0, 0, 255))):
        image = np.zeros((16, 16, 3), np.uint8)
        image[1, 4] = colour
        save(tmp_path / side / 'a.png', image)
    tasks = {'t': {'dataroot_gt': str(tmp_path / 'gt'), 'dataroot_lq': str(tmp_path / 'lq')}}
    for changes, count in (({}, 8), ({'use_rot': False}, 2), ({'use_hflip': False}, 4),
                           ({'use_hflip': False, 'use_rot': False}, 1)):
        dataset = made(0, block(tmp_path, batch_size_per_gpu=1, **changes) | {'tasks': tasks})
        places = set()
        for place in range(100):
            item = dataset[place]
            assert torch.equal(item['gt'][0], item['lq'][2])
            assert not item['gt'][1:].any() and not item['lq'][:2].any()
            places.add(tuple(torch.nonzero(item['gt'][0])[0].tolist()))
        assert len(places) == count


def test_manual_seed_changes_order_and_crops_and_repeats_them(data):
    first, again, other = (epoch(block(data), seed=seed) for seed in (1, 1, 2))
    assert same(first, again)
    assert [batch['lq_path'] for batch in first] != [batch['lq_path'] for batch in other]
    assert not same(first, other)


@pytest.mark.parametrize(('context', 'ending'), [
    ('fork', ''), ('fork', '.lmdb'), ('spawn', '.lmdb'), pytest.param('spawn', '', marks=pytest.mark.slow)])
def test_data_do_not_depend_on_workers(data, ending, context):
    """After an LMDB has been opened in this process, too."""
    alone = epoch(block(data, ending))
    for workers in (1, 2) if context == 'fork' else (2,):
        assert same(alone, epoch(block(data, ending), workers, context=context))


def test_every_pair_comes_once_before_any_comes_twice(data):
    seen = {name: [] for name in SIZES}
    for batch in epoch(block(data, dataset_enlarge_ratio=5), workers=2):
        for task, path in zip(batch['task'], batch['lq_path']):
            seen[task].append(path)
    for name, paths in seen.items():
        whole = [paths[i:i + SIZES[name]] for i in range(0, len(paths) - SIZES[name] + 1, SIZES[name])]
        assert whole and all(len(set(each)) == SIZES[name] for each in whole)


def test_ranks_share_the_pairs_and_keep_the_quotas(data, monkeypatch):
    """What two ranks draw is what one draws with the double batch."""
    batches = []
    for rank in (0, 1):
        dataset = made(7, block(data))
        dataset.rank, dataset.ranks = rank, 2
        batches.append([dataset.__getitems__([0] * 5) for _ in range(6)])
        assert all(Counter(item['task'] for item in batch) == {'derain': 2, 'lowlight': 1, 'dehaze': 2}
                   for batch in batches[-1])
    whole = made(7, block(data, batch_size_per_gpu=10))
    for first, second in zip(*batches):
        joined = whole.__getitems__([0] * 10)
        assert [item['lq_path'] for item in first + second] == [item['lq_path'] for item in joined]
        assert all(torch.equal(a['lq'], b['lq']) for a, b in zip(first + second, joined))


def test_a_resumed_run_goes_on_where_it_stopped(data):
    whole = epoch(block(data))
    for workers in (0, 2):
        dataset = made(0, block(data))
        count_batches(5)
        rest = list(DataLoader(dataset, 5, sampler=EnlargedSampler(dataset, 1, 0, 2), num_workers=workers))
        assert same(whole[5:], rest[:7])


def test_without_a_count_of_batches_every_epoch_is_another(data):
    """Other models than ours do not count; PyTorch's seed of the epoch then decides."""
    def epochs(workers):
        torch.manual_seed(3)
        dataset = UniversalPairedDataset(block(data))
        dataset.consumed = None
        loader = DataLoader(dataset, 5, num_workers=workers)
        return [list(loader) for _ in range(2)]
    first, again = epochs(2), epochs(2)
    assert same(first[0], again[0]) and same(first[1], again[1])
    assert not same(*first)


@pytest.mark.parametrize(('changes', 'shares'), [
    ({}, (1 / 3, 1 / 3, 1 / 3)), ({'weights': (5, 3, 2)}, (0.5, 0.3, 0.2)), ({'temperature': 1}, (0.1, 7 / 30, 2 / 3)),
    ({'temperature': 2}, tuple(np.sqrt([3, 7, 20]) / np.sqrt([3, 7, 20]).sum())), ({'temperature': 1e6}, (1 / 3,) * 3)])
def test_shares_by_weight_and_temperature(data, changes, shares):
    options = block(data, quotas=(None,) * 3)
    for task, weight in zip(options['tasks'].values(), changes.get('weights', ())):
        task['weight'] = weight
    dataset = made(0, options | {k: v for k, v in changes.items() if k == 'temperature'})
    drawn = Counter(dataset.mixture.draw(place).task for place in range(3000))
    assert [drawn[task] / 3000 for task in range(3)] == pytest.approx(shares, abs=1.1e-3)


def test_validation_goes_through_all_pairs_whole_or_their_centre(data):
    dataset = UniversalPairedDataset(block(data, phase='val', gt_size=None))
    assert len(dataset) == sum(SIZES.values())
    items = [dataset[i] for i in range(len(dataset))]
    assert Counter(item['task'] for item in items) == SIZES
    assert all(item['gt'].shape == (3, 40, 48) for item in items)
    centre = UniversalPairedDataset(block(data, phase='val', gt_size=20))[0]['gt']
    assert torch.equal(centre, items[0]['gt'][:, 10:30, 14:34])


def test_border_of_clean_images_is_cut(tmp_path):
    """SOTS indoor: clean 640x480, hazy 620x460."""
    whole = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    save(tmp_path / 'gt/1400.png', whole)
    save(tmp_path / 'lq/1400_1.png', whole[10:-10, 10:-10])
    task = {'dataroot_gt': str(tmp_path / 'gt'), 'dataroot_lq': str(tmp_path / 'lq'), 'pairing': {'many_to_one': '_'}}
    options = {'name': 'v', 'phase': 'val'}
    item = UniversalPairedDataset({**options, 'tasks': {'t': {**task, 'gt_border': 10}}})[0]
    assert item['gt'].shape == (3, 28, 44) and torch.equal(item['gt'], item['lq'])
    with pytest.raises(OSError, match=r'is 44x28, but its clean image .* is 64x48'):
        UniversalPairedDataset({**options, 'tasks': {'t': task}})[0]


def test_sixteen_bits_gray_and_alpha_are_read(tmp_path):
    deep = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    for side in ('gt', 'lq'):
        for name, image in (('deep', deep), ('gray', (deep >> 8).astype(np.uint8)),
                            ('alpha', np.dstack([deep >> 8] * 4).astype(np.uint8))):
            (tmp_path / side).mkdir(exist_ok=True)
            cv2.imwrite(str(tmp_path / side / f'{name}.png'), image)
    tasks = {'t': {'dataroot_gt': str(tmp_path / 'gt'), 'dataroot_lq': str(tmp_path / 'lq')}}
    items = UniversalPairedDataset({'name': 'v', 'phase': 'val', 'tasks': tasks})
    found = {item['gt_path'].rsplit('/', 1)[1]: item['gt'] for item in (items[i] for i in range(3))}
    np.testing.assert_allclose(found['deep.png'].numpy(), np.stack([deep] * 3) / 65535, atol=1e-6)
    np.testing.assert_allclose(found['gray.png'].numpy(), np.stack([deep >> 8] * 3) / 255, atol=1e-6)
    assert torch.equal(found['gray.png'], found['alpha.png'])


# ---------------------------------------------------------------------------------------------- images that are broken

def spoil(root, name, how):
    path = root / 'derain' / 'lq' / name
    content = path.read_bytes()
    if how == 'truncated':
        path.write_bytes(content[:len(content) // 2])
    elif how == 'empty':
        path.write_bytes(b'')
    elif how == 'size':
        save(path, coloured(0, 0, (30, 30)))
    elif how == 'small':
        for side in ('gt', 'lq'):
            save(root / 'derain' / side / name, coloured(0, 0, (12, 12)))
    elif how == 'gone':
        path.unlink()


@pytest.fixture
def many(tmp_path):
    """One task of 120 pairs."""
    for side in ('gt', 'lq'):
        for number in range(120):
            save(tmp_path / 'derain' / side / f'{number:03d}.png', coloured(0, number))
    return tmp_path


def one_task(root, **changes):
    options = block(root, **changes)
    options['tasks'] = {'derain': options['tasks']['derain']}
    return options | {'batch_size_per_gpu': 2}


@pytest.mark.parametrize(('how', 'words'), [
    ('truncated', 'is truncated'), ('empty', 'is empty'), ('size', 'pairs must be of equal size'),
    ('small', 'smaller than gt_size 16'), ('gone', 'cannot be read')])
@pytest.mark.parametrize('workers', [0, 2])
def test_bad_image_is_named_once_and_replaced_in_the_same_way(many, how, words, workers, caplog):
    options = one_task(many)
    good = epoch(options, batch=2)
    dataset = made(0, options)
    spoil(many, '033.png', how)
    caplog.set_level(logging.WARNING, 'basicsr')
    runs = []
    for _ in range(2):
        loader = DataLoader(dataset, 2, sampler=EnlargedSampler(dataset, 1, 0, 2), num_workers=workers)
        dataset.consumed, dataset._next = 0, None
        runs.append([batch for _ in range(2) for batch in loader])
    assert same(runs[0], runs[1])
    paths = [path for batch in runs[0] for path in batch['lq_path']]
    assert not any('033' in path for path in paths)
    replaced = [place for place, path in enumerate(path for batch in good for path in batch['lq_path'])
                if '033' in path]
    assert len(replaced) == 2
    wanted = [path for batch in good for path in batch['lq_path']]
    assert [place for place in range(240) if paths[place] != wanted[place]] == replaced
    if not workers:  # a worker's log is its own
        warnings = [record.getMessage() for record in caplog.records]
        assert len(warnings) == 1 and '033.png' in warnings[0] and words in warnings[0]
        assert '1 of 120 images so far' in warnings[0]


def test_warning_of_a_worker_reaches_the_log_once(many, capfd):
    logging.getLogger('basicsr').addHandler(handler := logging.StreamHandler())
    try:
        spoil(many, '033.png', 'truncated')
        epoch(one_task(many), workers=2, batch=2)
    finally:
        logging.getLogger('basicsr').removeHandler(handler)
    assert capfd.readouterr().err.count('033.png') == 1


@pytest.mark.parametrize('workers', [0, pytest.param(2, marks=pytest.mark.slow)])
def test_too_many_bad_images_end_training(many, workers):
    options = one_task(many)
    dataset = made(0, options)
    spoil(many, '033.png', 'truncated')
    spoil(many, '044.png', 'empty')
    words = r'2 of 120 images cannot be used, more than max_bad_share 0\.01(.|\n)*doctor'
    with pytest.raises(ImageError, match=words):
        for _ in DataLoader(dataset, 2, num_workers=workers):
            pass
    assert len(epoch(options | {'max_bad_share': 0.02}, workers, batch=2)) == 120


def test_validation_refuses_a_bad_image(many):
    spoil(many, '033.png', 'truncated')
    dataset = UniversalPairedDataset(one_task(many, phase='val', gt_size=None))
    with pytest.raises(OSError, match=r'033\.png: not a readable image: it is truncated'):
        dataset[33]


def test_jpeg_is_judged_by_its_picture_not_by_what_follows(tmp_path):
    rng = np.random.default_rng(0)
    content = cv2.imencode('.jpg', rng.integers(0, 256, (99, 99, 3), np.uint8))[1].tobytes()
    assert decode_rgb(content + bytes(rng.integers(1, 200, 9999, np.uint8)), 'film.jpg').shape == (99, 99, 3)
    with pytest.raises(ImageError, match='truncated'):
        decode_rgb(content[:-300], 'half.jpg')


# ------------------------------------------------------------------------------------------------------------ options

@pytest.mark.parametrize(('change', 'words'), [
    ({'gt_size': None}, ['gt_size: missing']),
    ({'gtsize': 9}, ["unknown key 'gtsize'", "Did you mean 'gt_size'?"]),
    ({'tasks': None}, ['tasks: found None']),
    ({'tasks': {'a': {'dataroot_gt': 'x'}}}, ['tasks: a', "'dataroot_lq' is missing"]),
    ({'tasks': {'a': {'dataroot_gt': '/none', 'dataroot_lq': '/none'}}}, ['tasks: a: dataroot_gt', '/none']),
    ({'batch_size_per_gpu': 7}, ['batch_size_per_gpu: found 7', '2 + 1 + 2 sum to 5']),
    ({'temperature': 2}, ['quota, weight and temperature exclude']),
    ({'temperature': 0}, ['temperature: found 0', '> 0']),
    ({'max_bad_share': 2}, ['max_bad_share: found 2', '<= 1'])])
def test_bad_options_are_named(data, change, words):
    with pytest.raises(OptionError) as error:
        UniversalPairedDataset(block(data) | change)
    assert str(error.value).startswith('datasets: universal: ')
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(('change', 'words'), [
    ({'quota': 0}, ['quota: found 0']), ({'weight': -1}, ['weight: found -1']),
    ({'qouta': 1}, ["Did you mean 'quota'?"]),
    ({'pairing': 'name'}, ['pairing: found']), ({'io_backend': {'type': 'lmbd'}}, ["Did you mean 'lmdb'?"]),
    ({'pairing': {'template': '{}_x'}}, ['no pairs', '000.png', 'pairing']),
    ({'quota': None}, ['derain: quota is missing'])])
def test_bad_task_options_are_named(data, change, words):
    options = block(data)
    options['tasks']['derain'].update(change)
    with pytest.raises(OptionError) as error:
        UniversalPairedDataset(options)
    assert all(word in str(error.value) for word in ['derain', *words]), error.value


def test_unpaired_images_are_named_or_left_out(many):
    (many / 'derain/gt/007.png').unlink()
    with pytest.raises(OptionError, match=r'1 of 120 degraded images have no clean one: 007\.png; .*skip_unpaired'):
        UniversalPairedDataset(one_task(many))
    assert len(UniversalPairedDataset(one_task(many, skip_unpaired=True))) == 119


def test_option_file_of_pairs_trains_and_logs_every_task(prepared, tmp_path):
    os.symlink(prepared / 'datasets', tmp_path / 'datasets')
    process = rdbm('train', 'train_rdbm_universal_pairs.yml', tmp_path, {**short(3), **{
        f'datasets:val_{i}:gt_size': 24 for i in range(1, 6)}, **{
        f'datasets:train:tasks:{task}:quota': 1 for task in ('derain', 'lowlight', 'desnow', 'dehaze', 'deblur')}})
    lines = re.findall(r'l_pix: .*', process.stdout)
    assert len(lines) == 3
    for line in lines:
        values = dict(re.findall(r'(l_\w+): (\S+)', line))
        tasks = [float(values[f'l_{task}']) for task in ('derain', 'lowlight', 'desnow', 'dehaze', 'deblur')]
        # Five digits of each are printed.
        assert sum(tasks) / 5 == pytest.approx(float(values['l_pix']), rel=2e-4)
    assert 'Validation, 2 network evaluations per image:' in process.stdout


def test_a_bad_file_is_named_before_training(data, tmp_path):
    """Headers are looked at, and the ends of PNG and JPEG files."""
    clean = tmp_path / 'clean'
    for number in range(40):
        save(clean / f'{number}.png', coloured(0, number))
    cut = clean / '7.png'
    options = {'name': 'p', 'type': 'SyntheticUniversalDataset', 'phase': 'train', 'dataroot_gt': str(clean),
               'gt_size': 16, 'batch_size_per_gpu': 5, 'num_worker_per_gpu': 0}
    preflight.check_dataset('train', options)
    cut.write_bytes(cut.read_bytes()[:-20])
    with pytest.raises(OptionError, match=r'1 of 40 images cannot be used, more than max_bad_share 0\.01.*7\.png'):
        preflight.check_dataset('train', options)
    preflight.check_dataset('train', {**options, 'max_bad_share': 0.03})
    cut.write_text('no image')
    with pytest.raises(OptionError, match=r'clean.7\.png: not a readable image'):
        preflight.check_dataset('train', options)


def test_crops_far_larger_than_the_photos_are_refused_before_training(tmp_path):
    save(tmp_path / '0.png', coloured(0, 0))
    options = {'name': 'p', 'type': 'SyntheticUniversalDataset', 'phase': 'train', 'dataroot_gt': str(tmp_path),
               'gt_size': 2000, 'batch_size_per_gpu': 20, 'num_worker_per_gpu': 0, 'dataset_enlarge_ratio': 20}
    with pytest.raises(OptionError, match=r'gt_size: found 2000.*0\.png 48x40.*20 pairs would take 1,831 MiB'):
        preflight.check_dataset('train', options)
    preflight.check_dataset('train', {**options, 'gt_size': 64})


def test_pairs_are_looked_at_too(data, tmp_path):
    for side in ('gt', 'lq'):
        for number in range(10):
            save(tmp_path / side / f'{number}.png', coloured(0, number))
    (tmp_path / 'lq/3.png').write_bytes(b'')
    tasks = {'derain': {'dataroot_gt': str(tmp_path / 'gt'), 'dataroot_lq': str(tmp_path / 'lq')}}
    with pytest.raises(OptionError, match=r'1 of 20 images cannot be used.*lq.3\.png'):
        preflight.check_dataset('train', block(data, tasks=tasks))
