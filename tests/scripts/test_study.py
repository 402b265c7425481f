"""The study: rows are trained at equal compute, scored on three sets, laid out, and not trained twice."""
import json
import re

import numpy as np
import pytest
import yaml
from conftest import ROOT, command
from PIL import Image
from score_weights import darkened
from study_layout import by_row, figures_in, of_speed, page, tables

SUITE = ROOT / 'options/suites/study.yml'


@pytest.fixture
def small(tmp_path):
    """The suite with the smallest trainings, on photos of noise."""
    content = yaml.safe_load(SUITE.read_text(encoding='utf-8'))
    content['base'] = str(ROOT / 'options' / content['base'].removeprefix('../'))
    content['scales']['cpu'].update(main_seeds=[0, 1], photos=1, size=32, iterations=4)
    content['scales']['cpu']['changes'].update({
        'logger:print_freq': 1,
        'datasets:train:gt_size': 16, 'datasets:train:batch_size_per_gpu': 5, 'datasets:train:num_worker_per_gpu': 0,
        'train:warmup_iter': -1, **{f'datasets:val_{i}:gt_size': 16 for i in range(1, 6)}})
    path = tmp_path / 'suite.yml'
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    rng = np.random.default_rng(0)
    for part in ('train', 'val', 'test'):
        (tmp_path / 'photos' / part).mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8)).save(tmp_path / 'photos' / part / '0.png')
    return path


def study(small, *words, check=True):
    return command(ROOT / 'scripts/study/study.py', 'photos', '--suite', small, '-o', 'study.json', *words,
                   cwd=small.parent, check=check)


def test_rows_are_trained_at_equal_compute_scored_and_shown_once(small):
    rows = ['--rows', 'regression', 'residual_passes', 'one', 'residual_late', 'naf_regression', '--seeds', 0]
    output = study(small, *rows).stdout
    found = {each['row']: each for each in json.loads((small.parent / 'study.json').read_text())}
    assert [each['iterations'] for each in found.values()] == [4, 4, 4, 2, 4]
    late = found['residual_late']
    assert late['before'] + 2 * late['compute'] == pytest.approx(4 * found['residual_passes']['compute'])
    assert output.count('| `residual_late` | 1 | 2 | 2.00 |') == 4   # of its claim, and of the three sets
    for each in found.values():
        assert [iteration for iteration, _ in each['losses']] == [*range(1, each['iterations'] + 1)]
        assert len(each['degraded']) == len(each['restored']['1']) == 11 and each['degraded']['intact'] == 100
    assert set(found['one']['restored']) == {'1', '2', '3', '5', '10', *(
        f'start stochastic {steps}' for steps in (2, 10)), *(
        f'start stochastic eta 1 {steps}{mean}' for steps in (10,) for mean in ('', ', mean of 4'))}
    assert found['naf_regression']['parameters'] != found['one']['parameters']
    mean = np.mean([value[0] for kind, value in found['one']['restored']['10'].items() if kind.startswith('foreign')])
    assert re.search(r'\| `one` \| start stochastic 10 \| \S+ \|.*\n(?:.*\n)*?.*', output)
    assert f'| `one` | 10 | {mean:.2f} |' in output
    models = sorted(small.parent.glob('experiments/*/models/net_g_latest.pth'))
    times = [model.stat().st_mtime_ns for model in models]
    again = study(small, *rows).stdout
    assert len(models) == 5 and [model.stat().st_mtime_ns for model in models] == times
    assert again[again.index('## '):] == output[output.index('## '):]
    laid = command(ROOT / 'scripts/study/study.py', '--tables', 'study.json', cwd=small.parent).stdout
    assert laid.strip() in output and (small.parent / 'study.md').read_text() == laid
    plots = {path.stem: path.stat().st_size for path in small.parent.glob('*.png')}
    assert set(plots) == {f'study_{claim}' for claim in (
        'noise', 'one_step', 'wider', 'recipe', 'networks', 'samples', 'optimizers')}
    assert min(plots.values()) > 1000


def test_changed_rows_are_not_passed_off_as_the_old_ones_and_other_rows_are_kept(small):
    study(small, '--rows', 'regression', '--seeds', 0)
    small.write_text(small.read_text().replace('iterations: 4', 'iterations: 3'))
    process = study(small, '--rows', 'regression', 'residual', '--seeds', 0, check=False)
    assert process.returncode == 1
    assert 'study.json has it with other changes; remove that to train it anew' in process.stdout
    kept = {each['row']: each['iterations'] for each in json.loads((small.parent / 'study.json').read_text())}
    assert kept == {'regression': 4, 'residual': 3}
    (small.parent / 'study.json').unlink()
    process = study(small, '--rows', 'regression', '--seeds', 0, check=False)
    assert process.returncode == 1 and 'experiments/study_cpu_regression_seed0 has it' in process.stdout


def test_what_a_row_starts_from_must_be_there(small):
    process = study(small, '--rows', 'residual_late', '--seeds', 0, check=False)
    assert process.returncode == 1 and 'which is not there; train that row first' in process.stdout


def test_all_rows_and_seeds_are_known_and_a_wrong_name_is_named(small):
    process = study(small, '--rows', 'residul', check=False)
    assert process.returncode == 2 and "--rows: found 'residul'" in process.stdout


def test_trainings_are_scored_on_darkness_with_and_without_noise(small):
    words = ['--rows', 'regression', '--seeds', 0]
    study(small, *words)
    model, = small.parent.glob('experiments/*/models/net_g_latest.pth')
    trained = model.stat().st_mtime_ns
    output = study(small, *words, '--darkness', '-o', 'dark.json').stdout
    (found,) = json.loads((small.parent / 'dark.json').read_text())
    assert model.stat().st_mtime_ns == trained, 'nothing is trained twice'
    assert found['row'] == 'regression' and len(found['restored']['1']) == 5 and set(found['restored']) == {'1'}
    assert f'| `regression` | {found["restored"]["1"]["own"][0]:.2f} |' in output
    assert output.endswith(study(small, '--tables', 'dark.json').stdout)
    assert (small.parent / 'dark_brightness.png').stat().st_size > 1000


def test_when_a_row_reaches_the_final_loss_of_another_is_found():
    steps = range(200, 4001, 200)
    slow = {'row': 'residual', 'seed': 0, 'losses': [[step, 4000 / step] for step in steps]}
    fast = {'row': 'residual_muon', 'seed': 0, 'losses': [[step, 2000 / step] for step in steps]}
    other = {**slow, 'seed': 1}
    pairs = {'residual_muon': 'residual', 'passes_muon': 'residual_passes'}
    table = of_speed(by_row([slow, fast, other]), pairs)['speed']
    row = [cell.strip() for cell in table.splitlines()[-1].strip('|').split('|')]
    # Over a tenth, two of the twenty: (4000 / 3800 + 1) / 2, half of it, and first no more than that at 2,200.
    assert row == ['`residual_muon`', '`residual`', '1', '0.5132', '1.0263', '55.00']
    assert of_speed(by_row([slow, {**fast, 'losses': []}]), {'residual_muon': 'residual'}) == {}
    never = of_speed(by_row([slow, fast]), {'residual': 'residual_muon'})['speed']
    assert never.splitlines()[-1].endswith('inf |')


def test_kinds_of_darkness_differ_in_what_they_say():
    clean = np.full((64, 64, 3), 0.5, np.float32)
    found = dict(darkened(clean, 0))
    roughness = {kind: float(picture.std(axis=(0, 1)).mean()) for kind, picture in found.items()}
    assert roughness['own, no noise'] < 1e-3 < roughness['own, JPEG'] < roughness['own']
    assert roughness['foreign, JPEG'] < roughness['foreign, no JPEG']
    assert all(picture.mean() < 0.4 for picture in found.values())
    assert found['own'].mean() == pytest.approx(found['own, no noise'].mean(), abs=0.01)


def test_tables_of_the_page_are_those_of_the_files():
    text = (ROOT / 'RESULTS.md').read_text(encoding='utf-8')
    folder = ROOT / 'docs/results'
    names = {path.stem for path in folder.glob('*.json')}
    assert names == {'study_cpu', 'darkness_cpu'}
    for name in names:
        found = tables(figures_in(folder / f'{name}.json'), SUITE)
        assert (folder / f'{name}.md').read_text(encoding='utf-8') == page(found)
        assert f'docs/results/{name}.json' in text and f'(docs/results/{name}.md)' in text
        for title, table in found.items():
            if title.startswith('claim ') or title == 'PSNR':
                assert table in text, f'{name}: {title}'
        claims = [title.removeprefix('claim ') for title in found if title.startswith('claim ')] or ['brightness']
        assert {plot.name for plot in folder.glob(f'{name}*.png')} == {f'{name}_{claim}.png' for claim in claims}
        assert all(f'(docs/results/{name}_{claim}.png)' in text for claim in claims)
