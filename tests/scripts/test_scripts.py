"""The measuring and drawing scripts run as the README says and write what they promise."""
import json
import re

import cv2
import numpy as np
import pytest
from conftest import ROOT, TINY, command, forced, short
from quickstart import training

from rdbm_plugin.archs.checkpoint import read_parameters

FAMILY = ROOT / 'options/suites/family.yml'


def test_bridges_are_drawn(tmp_path):
    command(ROOT / 'scripts/study/plot_bridge.py', ROOT / 'options/train_rdbm_universal.yml', FAMILY, '--out', 'plots',
            cwd=tmp_path)
    for name in ('coefficients', 'rnr', 'noise_map'):
        picture = cv2.imread(str(tmp_path / f'plots/{name}.png'))
        assert min(picture.shape[:2]) > 200 and picture.std() > 10


def test_drawing_names_a_bad_file(tmp_path):
    (tmp_path / 'bad.yml').write_text('name: bad\nnum_gpu: 0\ndatasets: {}\npath: {}\nbridge: {type: Brige}\n')
    process = command(ROOT / 'scripts/study/plot_bridge.py', 'bad.yml', cwd=tmp_path, check=False)
    assert process.returncode == 2 and "bridge: type: found 'Brige'" in process.stdout
    assert 'Traceback' not in process.stdout


@pytest.mark.parametrize('scratch', [False, True])
def test_quickstart_begins_with_the_shipped_weights_or_without(scratch, tmp_path):
    still = {**TINY, **short(1), 'train:optim_g:lr': 1e-12}
    words = training([*['--from-scratch'][:scratch], '--auto_resume', *forced(still)])
    assert '--auto_resume' in words
    words = [ROOT / each if each.startswith('options/') else each for each in words]
    command('-m', 'rdbm_plugin', *words, cwd=tmp_path)
    made, = tmp_path.glob('experiments/*/models/net_g_latest.pth')
    begun = read_parameters(made, 'params')
    shipped = read_parameters('shipped', 'params_ema')
    apart = max((begun[name] - shipped[name].float()).abs().max() for name in shipped)
    assert apart > 0.01 if scratch else apart < 1e-6


@pytest.mark.alone
def test_the_cost_of_sampling_and_training_is_measured(tmp_path):
    command(ROOT / 'scripts/study/benchmark.py', '--device', 'cpu', '--parts', 'sampler', 'trainer', '--rounds', 2,
            cwd=tmp_path)
    rows = json.loads((tmp_path / 'benchmark.json').read_text())['rows']
    ratios = {row['what']: row for row in rows if 'ratio' in row}
    assert len(ratios) >= 6 and all(row['low'] <= row['ratio'] <= row['high'] for row in ratios.values())
    slow = {what: row for what, row in ratios.items() if '<= 1.0' in row['bound'] and row['ratio'] >= 1.5}
    assert not slow, 'far from any noise'


@pytest.mark.slow
@pytest.mark.alone
def test_our_network_is_faster_than_one_with_attention(tmp_path):
    """Nine to fifteen times as fast was measured for an evaluation of variant T, and three times is promised. The other
    bounds are nearer to what was measured than a busy machine is steady."""
    command(ROOT / 'scripts/study/benchmark.py', '--device', 'cpu', '--parts', 'networks', '--rounds', 1, cwd=tmp_path)
    rows = json.loads((tmp_path / 'benchmark.json').read_text())['rows']
    bounded = [row for row in rows if row['bound']]
    assert [row['bound'] for row in bounded] == ['>= 3', '>= 3', '>= 1.5', '>= 1.5']
    assert bounded[0]['what'].endswith('forward') and bounded[0]['ratio'] > 3, bounded
    assert all(row['ratio'] > 1 for row in bounded), bounded


def test_weights_are_scored_on_own_and_on_foreign_damage(tmp_path):
    printed = command(ROOT / 'scripts/study/score_weights.py', 'embedded', '--count', 1, '--steps', 1, '--device',
                      'cpu', cwd=tmp_path).stdout
    found = json.loads((tmp_path / 'scores.json').read_text(encoding='utf-8'))['psnr']
    assert found.keys() == {'degraded', 'shipped, 1 evaluations'} and found['degraded']['intact'] == [100.0]
    assert sum(kind.startswith('own') for kind in found['degraded']) == 5
    assert sum(kind.startswith('foreign') for kind in found['degraded']) == 5
    for group in ('own', 'foreign'):
        degraded, restored = ([row[kind][0] for kind in row if kind.startswith(group)] for row in found.values())
        assert np.mean(restored) > np.mean(degraded)
        assert re.search(rf'{group} mean +{np.mean(degraded):.2f} +{np.mean(restored):.2f}', printed)


def test_pictures_of_the_pages_are_made(tmp_path):
    command(ROOT / 'scripts/upkeep/make_pictures.py', '--out', tmp_path, '--steps', 1, cwd=tmp_path)
    made = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob('*.jpg')}
    assert made == {'strengths.jpg', 'before_after.jpg', 'restored.jpg', *(f'samples/{name}.jpg' for name in (
        'rainy', 'dark', 'snowy', 'hazy'))}
    assert cv2.imread(str(tmp_path / 'samples/dark.jpg')).shape == (300, 451, 3)
    assert all((ROOT / 'docs' / name).is_file() for name in made)


def test_the_check_of_a_gpu_runs_dry(tmp_path):
    process = command(ROOT / 'scripts/study/check_gpu.py', '--dry', cwd=tmp_path, fresh=True)
    rows = json.loads((tmp_path / 'check_gpu.json').read_text())['rows']
    found = {row['what'].split(',')[0].split(' in ')[0]: row for row in rows}
    for what in ('T', '10-step sampling / 10 evaluations', 'waits', 'resumed against at once', '80x48'):
        assert what in found, process.stdout
    assert not [row for row in rows if row['verdict'] == 'FAIL'] and 'resumed against at once' in process.stdout
    assert [row['value'] for row in rows if row['what'].startswith('resumed')] == [0]
    assert [row['value'] for row in rows if row['what'].startswith('train, prefetch_mode: cpu')] == [1, 0]
