"""``rdbm test``: its files, several ranks, several numbers of evaluations, and data without ground truth."""
import csv
import importlib.util
import json
import re
from functools import partial

import cv2
import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, command, forced, rdbm, short, two_ranks

from rdbm_plugin.archs.checkpoint import read_parameters

NO_PYIQA = pytest.mark.skipif(importlib.util.find_spec('pyiqa') is not None, reason='pyiqa is installed')
FILE = 'test_rdbm_universal.yml'
SHIPPED = {'network_g:variant': 'T', 'path:pretrain_network_g': 'shipped', 'num_gpu': 0,
           'val:sampler:steps': 2}
SMALL = {**SHIPPED, **{f'datasets:test_{i}:gt_size': 48 for i in range(1, 6)}}


def read(path):
    with path.open(encoding='utf-8') as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope='module')
def tested(tmp_path_factory):
    """Results of a small test, and what was printed."""
    folder = tmp_path_factory.mktemp('tested')
    return folder / 'results/test_rdbm_universal', rdbm('test', FILE, folder, SMALL).stdout


def test_tables_hold_the_means_of_the_images(tested):
    folder, printed = tested
    images, table = read(folder / 'images.csv'), read(folder / 'table.csv')
    assert [row['set'] for row in table] == ['derain', 'lowlight', 'desnow', 'dehaze', 'deblur', 'average']
    assert len(images) == 10 and {row['image'] for row in images} == {'chelsea', 'coffee'}
    for row in table[:-1]:
        for column, digits in (('psnr', 2), ('psnr degraded', 2), ('ssim', 4), ('ssim degraded', 4)):
            mean = np.mean([float(each[column]) for each in images if each['set'] == row['set']])
            assert row[column] == f'{mean:.{digits}f}'
        assert re.search(rf'{row["set"]} +{row["psnr degraded"]} +{row["psnr"]}', printed)
    content = json.loads((folder / 'results.json').read_text(encoding='utf-8'))
    assert content['sets']['average']['restored']['psnr'] == pytest.approx(
        np.mean([each['restored']['psnr'] for name, each in content['sets'].items() if name != 'average']))
    assert content['metrics'] == {'psnr': {'type': 'psnr_rgb'}, 'ssim': {'type': 'ssim_rgb'}}
    assert {'rdbm_plugin', 'basicsr', 'torch', 'python'} <= content['versions'].keys()
    assert (folder / 'table.md').read_text(encoding='utf-8').count('\n') == 8


def test_saved_pictures_are_what_was_scored(tested):
    folder, _ = tested
    row = read(folder / 'images.csv')[1]
    picture = cv2.imread(str(folder / f'visualization/{row["set"]}/{row["image"]}_test_rdbm_universal.png'))
    from rdbm_plugin.data.synthetic_universal_dataset import SyntheticUniversalDataset
    clean = SyntheticUniversalDataset({'name': 'derain', 'phase': 'test', 'dataroot_gt': 'embedded', 'gt_size': 48,
                                       'tasks': ['derain']})[1]['gt']
    error = np.rint(clean.permute(1, 2, 0).double().numpy()[..., ::-1] * 255) - picture
    assert float(row['psnr']) == pytest.approx(10 * np.log10(255**2 / np.mean(error**2)), abs=1e-9)


def test_stored_options_give_the_same_results_again(tested, tmp_path):
    folder, _ = tested
    options = yaml.safe_load((folder / 'options.yml').read_text(encoding='utf-8'))
    assert options['val']['sampler']['steps'] == 2 and options['network_g']['variant'] == 'T'
    command('-m', 'rdbm_plugin', 'test', '-opt', folder / 'options.yml', cwd=tmp_path)
    again = read(tmp_path / 'results/test_rdbm_universal/images.csv')
    assert [without_time(row) for row in again] == [without_time(row) for row in read(folder / 'images.csv')]


def without_time(row):
    return {key: value for key, value in row.items() if key != 'seconds'}


def job(ranks, cwd, changes, check=True):
    """A test on so many ranks, as torchrun starts them."""
    entries = [f'{key}={value}' for key, value in {**SHIPPED, **changes}.items()]
    run = partial(two_ranks, cwd=cwd) if ranks == 2 else partial(command, cwd=cwd)
    launcher = ['--launcher', 'pytorch'] if ranks == 2 else []
    return run('-m', 'rdbm_plugin', 'test', '-opt', ROOT / 'options' / FILE, *launcher, '--force_yml', *entries,
               check=check)


@pytest.fixture
def three_photos(tmp_path):
    """A number of images that two ranks cannot share evenly."""
    rng = np.random.default_rng(0)
    for name, shape in (('a', (40, 60)), ('b', (56, 33)), ('c', (48, 48))):
        image = cv2.GaussianBlur(rng.random((*shape, 3)) * 255, (0, 0), 3) * 3 - 255
        (tmp_path / 'photos').mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / f'photos/{name}.png'), np.clip(image, 0, 255).astype(np.uint8))
    return tmp_path / 'photos'


def test_two_ranks_give_what_one_gives_to_the_last_digit(three_photos, tmp_path):
    changes = {f'datasets:test_{i}:dataroot_gt': three_photos for i in range(1, 6)}
    folders = []
    for ranks in (1, 2):
        (tmp_path / str(ranks)).mkdir()
        job(ranks, tmp_path / str(ranks), {**changes, 'val:sampler:eta': 1.0, 'bridge:modulation': 'one',
                                                  'val:other_bridge': 'true'})
        folders.append(tmp_path / str(ranks) / 'results/test_rdbm_universal')
    one, two = ([without_time(row) for row in read(folder / 'images.csv')] for folder in folders)
    assert len(one) == 15 and one == two
    tables = [json.loads((folder / 'results.json').read_text(encoding='utf-8'))['sets'] for folder in folders]
    for name, each in tables[0].items():
        assert each['restored'] == tables[1][name]['restored'] and each['degraded'] == tables[1][name]['degraded']
    for picture in (folders[0] / 'visualization').rglob('*.png'):
        assert picture.read_bytes() == (folders[1] / 'visualization' / picture.relative_to(
            folders[0] / 'visualization')).read_bytes()


def test_an_image_that_fails_on_one_rank_ends_all_ranks_with_its_name(three_photos, tmp_path):
    (three_photos / 'b.png').write_bytes((three_photos / 'b.png').read_bytes()[:-30])
    process = job(2, tmp_path, {f'datasets:test_{i}:dataroot_gt': three_photos for i in range(1, 6)}, check=False)
    assert process.returncode != 0
    assert 'b.png: not a readable image: it is truncated' in process.stdout and 'rank 1 failed' in process.stdout


SLOW = '''
import time
from datetime import timedelta
from torch import distributed
from rdbm_plugin.models.ranks import Ranks

distributed.init_process_group('gloo', timeout=timedelta(seconds=2))
ranks = Ranks(True)
def work():
    time.sleep(5 * ranks.rank)
    return [f'{ranks.rank}a', f'{ranks.rank}b'][:2 - ranks.rank]
open(f'rank{ranks.rank}.txt', 'w').write(' '.join(ranks.in_turn(work)))
distributed.destroy_process_group()
'''


def test_ranks_wait_longer_for_a_validation_than_the_time_out_of_training(tmp_path):
    (tmp_path / 'slow.py').write_text(SLOW)
    two_ranks(tmp_path / 'slow.py', cwd=tmp_path)
    assert [(tmp_path / f'rank{rank}.txt').read_text() for rank in (0, 1)] == ['0a 1a 0b'] * 2


def test_sweep_of_evaluations(tested, tmp_path):
    rdbm('test', FILE, tmp_path, {**SMALL, 'name': 'swept'}, extra=['--steps', '2,1'])
    table = read(tmp_path / 'results/swept_steps/table.csv')
    assert [row['steps'] for row in table] == ['1', '2'] == [row['evaluations'] for row in table]
    costs = [float(row['multiply-adds at 256x256 (G)']) for row in table]
    assert costs[1] == pytest.approx(2 * costs[0], rel=1e-3) and costs[0] == pytest.approx(2.62, abs=0.01)
    average = read(tested[0] / 'table.csv')[-1]
    assert table[1]['psnr'] == average['psnr'] and table[1]['ssim'] == average['ssim'] != table[0]['ssim']
    plot = cv2.imread(str(tmp_path / 'results/swept_steps/plot.png'))
    assert plot.shape[1] > 800 and plot.std() > 10
    assert {'swept_steps', 'swept_steps_1', 'swept_steps_2'} == {path.name for path in (tmp_path / 'results').iterdir()}
    logs = [path.read_text(encoding='utf-8') for path in sorted((tmp_path / 'results').rglob('*.log'))]
    assert [log.count('Testing derain') for log in logs] == [1, 1]


def test_the_file_of_a_training_tests_what_it_trained(prepared, tmp_path):
    (tmp_path / 'datasets').symlink_to(prepared / 'datasets')
    small = {'num_gpu': 0, 'network_g:variant': 'T', 'datasets:val_1:gt_size': 24}
    run = ['-m', 'rdbm_plugin', 'test', '-opt', ROOT / 'options/train_rdbm_pairs.yml']
    process = command(*run, *forced(small), cwd=tmp_path, check=False)
    assert process.returncode == 2 and 'train_rdbm_pairs.yml: not trained yet: no experiments/' in process.stdout
    training = {**short(1), 'datasets:train:gt_size': 16, 'datasets:train:num_worker_per_gpu': 0}
    command('-m', 'rdbm_plugin', 'train', '-opt', run[-1], *forced({**small, **training}), cwd=tmp_path)
    log = next((tmp_path / 'experiments/train_rdbm_pairs').glob('train*.log')).read_text(encoding='utf-8')
    command(*run, '--steps', '1,2', *forced(small), cwd=tmp_path)
    found = read(tmp_path / 'results/train_rdbm_pairs_steps/table.csv')
    assert re.search(rf'mine +\S+ +{found[1]["psnr"]} ', log), 'as scored at the end of the training'


@pytest.mark.parametrize(('steps', 'words'), [('1,200', 'steps: found 200'), ('1,x', "--steps: found '1,x'"),
                                              ('0', 'steps: found 0')])
def test_bad_steps_are_refused_before_anything_runs(refused, steps, words):
    assert words in refused('test', FILE, SMALL, extra=['--steps', steps])


def own_file(tmp_path, datasets, metrics, val=''):
    """The test file with other data and metrics."""
    text = (ROOT / 'options' / FILE).read_text(encoding='utf-8')
    text = re.sub(r'datasets:\n(  .*\n)+', f'datasets:\n{datasets}\n', text)
    text = re.sub(r'  metrics:.*\n(    .*\n)+', f'  metrics: {metrics}\n{val}', text)
    (tmp_path / 'own.yml').write_text(text)
    return tmp_path / 'own.yml'


def test_images_without_ground_truth(three_photos, tmp_path):
    cv2.imwrite(str(three_photos / 'a.png'), np.random.default_rng(0).integers(0, 255, (200, 208, 3)).astype(np.uint8))
    (three_photos / 'b.png').unlink()
    (three_photos / 'c.png').unlink()
    data = f'  test_1: {{name: own, type: SingleImageDataset, dataroot_lq: {three_photos}, io_backend: {{type: disk}}}}'
    file = own_file(tmp_path, data, '{niqe: {type: calculate_niqe, crop_border: 0, better: lower}}')
    rdbm('test', file, tmp_path, SHIPPED)
    row = read(tmp_path / 'results/test_rdbm_universal/table.csv')[0]
    assert row['set'] == 'own' and float(row['niqe']) > 0 and float(row['niqe degraded']) > 0
    process = rdbm('test', own_file(tmp_path, data, '{psnr: {type: psnr_rgb}}'), tmp_path, SHIPPED, check=False)
    assert process.returncode == 2
    assert 'datasets: own: val: metrics: psnr: needs ground truth' in process.stdout


def test_tiles_in_a_test(tmp_path):
    data = '  test_1: {name: derain, type: SyntheticUniversalDataset, dataroot_gt: embedded, tasks: [derain]}'
    scores = []
    for name, tile in (('whole', '~'), ('tiled', '192'), ('auto', 'auto')):
        file = own_file(tmp_path, data, '{psnr: {type: psnr_rgb}}', f'  tile: {tile}\n')
        file.write_text(re.sub(r'  tile: ~ .*\n', '', file.read_text()))
        rdbm('test', file, tmp_path, {**SHIPPED, 'name': name})
        scores.append([(row['image'], float(row['psnr'])) for row in read(tmp_path / f'results/{name}/images.csv')])
    assert [name for name, _ in scores[0]] == ['chelsea', 'coffee']
    for (name, whole), (_, tiled), (_, auto) in zip(*scores):
        assert 0 < abs(whole - tiled) < 0.05
        # One of the photos is wider than a tile that is chosen by itself.
        assert whole == auto if 'chelsea' in name else 0 < abs(whole - auto) < 0.001
    assert len(list((tmp_path / 'results/tiled/visualization/derain').rglob('*_tiled.png'))) == 2


@pytest.mark.parametrize(('changes', 'words'), [
    ({'val:metrics:psnr:type': 'psnr_yy'}, "val: metrics: psnr: type: found 'psnr_yy'"),
    ({'val:metrics:psnr:crop_boarder': 4}, "val: metrics: psnr: unknown key 'crop_boarder'"),
    ({'val:metrics:psnr:crop_border': -1}, "val: metrics: psnr: crop_border: found -1"),
    ({'val:metrics:psnr:better': 'high'}, "val: metrics: psnr: better: found 'high'"),
    pytest.param({'val:metrics:psnr:type': 'lpips'}, "val: metrics: psnr: metric 'lpips' needs pyiqa", marks=NO_PYIQA),
    ({'path:pretrain_network_g': '~'}, 'path: '),
    ({'val:smapler:steps': 1}, "has no val: smapler"),
    ({'val:metrics:psnr:crop_border': '[a]'}, "crop_border: found ['a']"),
    ({'val:tile': 20}, 'val: tile: found 20'),
    ({'val:tile_overlap': -1}, "val: tile_overlap: found -1"),
])
def test_bad_metrics_and_tiles_are_named(refused, changes, words):
    assert words in refused('test', FILE, {**SMALL, **changes})


def test_another_bridge_than_the_trained_one_is_refused_unless_it_is_meant(tmp_path):
    torch.save({'params': read_parameters('shipped', 'params_ema')}, tmp_path / 'x.pth')
    (tmp_path / 'x.yml').write_text('network_g: {type: RDBMUNet, variant: T}\nbridge: {modulation: one}\n')
    changes = {**SMALL, 'path:pretrain_network_g': str(tmp_path / 'x.pth')}
    process = rdbm('test', FILE, tmp_path, changes, check=False)
    assert process.returncode == 2 and 'bridge: modulation: found ' in process.stdout
    assert "x.pth was trained with 'one'" in process.stdout and '"val: other_bridge: true"' in process.stdout
    assert not (tmp_path / 'results').exists()
    rdbm('test', FILE, tmp_path, {**changes, 'val:other_bridge': 'true'})
