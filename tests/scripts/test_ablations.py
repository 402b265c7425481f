"""The suite of ablations: its rows are trained, measured and laid out, once each."""
import json

import numpy as np
import pytest
import yaml
from conftest import ROOT, TINY, command

from rdbm_plugin.data.synthetic_universal_dataset import SyntheticUniversalDataset

SUITE = ROOT / 'options/suites/ablations.yml'


@pytest.fixture
def small(tmp_path):
    """The suite with the smallest trainings, two tasks and two seeds for its main rows."""
    content = yaml.safe_load(SUITE.read_text(encoding='utf-8'))
    content['base'] = str(ROOT / 'options/train_rdbm_quickstart.yml')
    scale = content['scales']['cpu']
    scale.update(main_seeds=[0, 1], seeds=[0], steps=[1, 2])
    # Rows of other networks and models change these again.
    scale['changes'].update({**TINY, 'train:total_iter': 2,
                             'train:scheduler:periods': [2], 'val:val_freq': 2, 'logger:save_checkpoint_freq': 2,
                             'datasets:train:batch_size_per_gpu': 5})
    content['sets'].update(gt_size=32, seeds=[0], tasks=['derain', 'lowlight'])
    path = tmp_path / 'suite.yml'
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def run(small, *words, check=True):
    return command(ROOT / 'scripts/run_suite.py', 'ablations', '--suite', small, '-o', 'found', *words,
                   cwd=small.parent, check=check)


def test_rows_are_trained_measured_and_shown_once(small):
    rows = ['--rows', 'residual', 'edsr']
    output = run(small, *rows).stdout
    found = json.loads((small.parent / 'found/scores.json').read_text())
    assert [(each['row'], each['seed']) for each in found] == [
        ('residual', 0), ('residual', 1), ('edsr', 0)]
    assert {'euler 1', 'euler 2', 'euler stochastic 2'} <= set(found[0]['restored'])
    assert set(found[2]['restored']) == {'euler 1'} and found[2]['parameters'] < found[0]['parameters']
    assert '| residual | 2 |' in output and '±' in output
    for name in ('tables.md', 'scores.csv', 'nfe.png', 'pictures.png'):
        assert (small.parent / 'found' / name).stat().st_size > 100, name
    models = sorted(small.parent.glob('experiments/*/models/net_g_latest.pth'))
    times = [model.stat().st_mtime_ns for model in models]
    assert len(models) == 3
    (small.parent / 'experiments/ablations_cpu_edsr_seed0/ablation.json').unlink()
    again = run(small, *rows).stdout
    assert [model.stat().st_mtime_ns for model in models] == times
    assert again.splitlines()[-30:] == output.splitlines()[-30:]


def test_scores_are_those_of_the_images_and_changed_rows_are_not_passed_off_as_the_old_ones(small):
    words = ['--rows', 'regression', '--seeds', 0]
    run(small, *words)
    found = json.loads((small.parent / 'found/scores.json').read_text())[0]
    data = SyntheticUniversalDataset({'name': 'derain', 'phase': 'test', 'dataroot_gt': 'embedded', 'tasks': ['derain'],
                                      'gt_size': 32})
    errors, same = [], []
    for item in (data[i] for i in range(len(data))):
        lq, gt = (np.rint(item[key].numpy() * 255) for key in ('lq', 'gt'))
        errors.append(10 * np.log10(255**2 / np.mean((lq - gt) ** 2)))
        same.append((np.abs(lq - gt).max(0) <= 2).mean())
    assert found['degraded']['derain']['psnr'] == pytest.approx(np.mean(errors), abs=1e-3)
    assert found['degraded']['derain']['intact share'] == pytest.approx(np.mean(same), abs=1e-9)
    assert found['degraded']['clean photo']['psnr'] == 100
    process = run(small, *words, '--force_yml', 'train:ema_decay=0.5', check=False)
    assert process.returncode == 1 and 'remove experiments/ablations_cpu_regression_seed0' in process.stdout
    small.write_text(small.read_text().replace('  gt_size: 32\n', '  gt_size: 24\n'))
    run(small, *words)
    assert json.loads((small.parent / 'found/scores.json').read_text())[0]['sets']['gt_size'] == 24


def test_a_row_that_fails_is_named_and_the_others_are_shown(small):
    text = small.read_text().replace('bridge:modulation: one', 'bridge:modulation: two')
    small.write_text(text)
    process = run(small, '--rows', 'one', 'regression', '--seeds', 0, check=False)
    assert process.returncode == 1 and 'ablations_cpu_one_seed0: ended with status' in process.stdout
    assert '| regression | 1 |' in process.stdout
    assert "found 'two'" in (small.parent / 'found/logs/ablations_cpu_one_seed0.log').read_text()


@pytest.mark.parametrize(('words', 'message'), [
    (['--rows', 'residuals'], "--rows: found 'residuals'"), (['--scale', 'cpus'], "--scale: found 'cpus'"),
    (['--suite', 'none.yml'], "--suite: no file 'none.yml'")])
def test_bad_words_are_named(small, words, message):
    process = run(small, *words, check=False)
    assert process.returncode == 2 and message in process.stdout and 'Traceback' not in process.stdout


def test_every_row_passes_the_checks_of_training(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / 'scripts'))
    monkeypatch.chdir(tmp_path)
    import ablations

    import rdbm_plugin.registration  # noqa: F401
    from rdbm_plugin.commands.preflight import check_options
    for scale in ('cpu', 'gpu'):
        rows = ablations.Suite.read(SUITE, scale).rows(None, [0], [])
        assert len({row.experiment for row in rows}) == len(rows) >= 20
        for row in rows:
            opt = row.options()
            opt['is_train'] = True
            for phase, dataset in opt['datasets'].items():
                dataset['phase'] = phase.split('_')[0]
            check_options(opt)
            assert opt['name'] == row.experiment
