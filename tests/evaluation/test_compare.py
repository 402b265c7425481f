"""``rdbm compare``: BasicSR's models and ours, finished folders, failures, and the page in a browser."""
import csv
import json
import re
import shutil

import cv2
import numpy as np
import pytest
import torch
import yaml
from conftest import command, rdbm, row_file

from rdbm_plugin import OptionError
from rdbm_plugin.evaluation.tables import DEGRADED, Scores, latex, metric_table, ranking

EDSR = {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 2, 'upscale': 1}
SETS = [{'name': task, 'type': 'SyntheticUniversalDataset', 'dataroot_gt': 'embedded', 'tasks': [task], 'gt_size': 64}
        for task in ('derain', 'dehaze')]
METRICS = {'psnr': {'type': 'psnr_rgb'}, 'ssim': {'type': 'calculate_ssim', 'crop_border': 0, 'test_y_channel': True}}


def write_options(file, **changes):
    """A test file; the first line loads the plugin."""
    options = {'name': file.stem, 'model_type': 'RDBMModel', 'scale': 1, 'num_gpu': 0, 'manual_seed': 0,
               'datasets': {f'test_{i}': block for i, block in enumerate(SETS, 1)},
               'network_g': {'type': 'RDBMUNet', 'variant': 'T'},
               'path': {'pretrain_network_g': 'shipped', 'param_key_g': 'params_ema', 'strict_load_g': True},
               'val': {'save_img': True, 'suffix': None, 'metrics': METRICS,
                       'sampler': {'type': 'BridgeSampler', 'steps': 2}}, **changes}
    if options['model_type'] == 'RDBMModel':
        options['bridge'] = {'type': 'ResidualBridge', 'prediction': 'residual'}
    text = 'plugin: !!python/name:rdbm_plugin.registration.__version__\n' + yaml.safe_dump(options, sort_keys=False)
    file.write_text(text)
    return file


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Option files of RDBM, of an EDSR, and of one whose weights are another network's."""
    from basicsr.archs.edsr_arch import EDSR as Network
    folder = tmp_path_factory.mktemp('compare')
    torch.manual_seed(0)
    torch.save({'params': Network(**{k: v for k, v in EDSR.items() if k != 'type'}).state_dict()}, folder / 'edsr.pth')
    path = {'pretrain_network_g': str(folder / 'edsr.pth'), 'param_key_g': 'params', 'strict_load_g': True}
    write_options(folder / 'rdbm.yml')
    write_options(folder / 'edsr.yml', model_type='SRModel', network_g=EDSR, path=path)
    write_options(folder / 'broken.yml', model_type='SRModel', network_g={**EDSR, 'num_feat': 9}, path=path)
    return folder


def compare(folder, *arguments, check=True):
    return command('-m', 'rdbm_plugin', 'compare', *arguments, cwd=folder, check=check)


@pytest.fixture(scope='module')
def compared(folder):
    """Of an RDBM, an EDSR, a folder of results of the RDBM, and two that fail."""
    rdbm('test', folder / 'rdbm.yml', folder)
    (folder / 'empty').mkdir()
    process = compare(folder, 'rdbm.yml', 'edsr.yml', 'broken.yml', 'results/rdbm', 'empty', '-o', 'out',
                      '--names', 'rdbm', 'edsr', 'broken', 'finished', 'empty', check=False)
    assert process.returncode == 1
    return process.stdout


def rows(folder):
    with (folder / 'out/table.csv').open(encoding='utf-8') as file:
        return {(row['method'], row['set']): row for row in csv.DictReader(file)}


def test_a_foreign_models_scores_are_those_of_basicsrs_own_test(folder, compared):
    log = rdbm('test', folder / 'edsr.yml', folder).stdout
    found = re.findall(r'Validation (\w+)\n\s+# psnr: ([\d.]+).*\n\s+# ssim: ([\d.]+)', log)
    assert [name for name, _, _ in found] == ['derain', 'dehaze']
    for name, psnr, ssim in found:
        row = rows(folder)['edsr', name]
        assert float(row['psnr']) == pytest.approx(float(psnr), abs=1e-4)
        assert float(row['ssim']) == pytest.approx(float(ssim), abs=1e-4)


def test_finished_results_score_as_when_they_were_made(folder, compared):
    table = rows(folder)
    for dataset in ('derain', 'dehaze', 'average'):
        for metric in METRICS:
            assert table['finished', dataset][metric] == table['rdbm', dataset][metric]
    made = json.loads((folder / 'results/rdbm/results.json').read_text(encoding='utf-8'))['sets']
    assert float(table['rdbm', 'average']['psnr']) == pytest.approx(made['average']['restored']['psnr'], abs=1e-9)
    assert float(table[DEGRADED, 'derain']['psnr']) == pytest.approx(made['derain']['degraded']['psnr'], abs=1e-9)


def test_costs_count_every_evaluation(folder, compared):
    table = rows(folder)
    ours, theirs = table['rdbm', 'derain'], table['edsr', 'derain']
    assert (ours['evaluations'], theirs['evaluations']) == ('2', '1')
    assert float(ours['multiply-adds (G)']) == pytest.approx(2.62, abs=0.01)
    assert float(ours['multiply-adds of an image (G)']) == pytest.approx(5.23, abs=0.02)
    weights = 3 * 8 * 9 + 5 * 8 * 8 * 9 + 2 * 8 * 3 * 9 - 8 * 3 * 9
    assert float(theirs['multiply-adds (G)']) == pytest.approx(256**2 * weights / 1e9, abs=0.006)
    assert float(ours['ms/image']) > 0 and float(theirs['peak memory (MiB)']) >= 0
    assert table['finished', 'derain']['ms/image'] == ''


def test_a_method_that_fails_loses_no_other(folder, compared):
    assert {method for method, _ in rows(folder)} == {DEGRADED, 'rdbm', 'edsr', 'finished'}
    assert 'empty failed: empty: no picture of derain/chelsea' in compared
    assert re.search(r'broken failed: RuntimeError: Error\(s\) in loading state_dict for EDSR', compared)
    faults = json.loads((folder / 'out/comparison.json').read_text(encoding='utf-8'))['faults']
    assert set(faults) == {'broken', 'empty'}


def test_what_has_been_run_is_not_run_again(folder, compared):
    shutil.copytree(folder / 'out', folder / 'again')
    picture = folder / 'again/methods/rdbm/derain/chelsea.png'
    before = picture.stat().st_mtime_ns
    assert not compare(folder, 'rdbm.yml', '-o', 'again', '--no-cost').returncode
    assert picture.stat().st_mtime_ns == before
    compare(folder, 'rdbm.yml', '-o', 'again', '--no-cost', '--force_yml', 'val:sampler:steps=1')
    assert picture.stat().st_mtime_ns != before


def test_a_folder_of_something_else_is_left_alone(folder, compared):
    (folder / 'mine/methods/rdbm').mkdir(parents=True)
    (folder / 'mine/methods/rdbm/thesis.txt').write_text('precious')
    process = compare(folder, 'rdbm.yml', '-o', 'mine', check=False)
    assert process.returncode == 1 and 'holds files that are not from an earlier' in process.stdout
    assert (folder / 'mine/methods/rdbm/thesis.txt').read_text() == 'precious'


def test_pictures_are_found_by_the_names_of_basicsr(tmp_path):
    from rdbm_plugin.evaluation.methods import Method, find_picture
    folder = tmp_path / 'run'
    for value, name in enumerate(('1_run', '1_2_run', '3', '3_x'), 1):
        (folder / 'visualization/a/sub').mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f'visualization/a/{name}.png'), np.full((2, 2, 3), value, np.uint8))
        cv2.imwrite(str(folder / f'visualization/a/sub/{name}.png'), np.full((2, 2, 3), 10 * value, np.uint8))
    method = Method('x', folder)
    values = [cv2.imread(str(find_picture(method, 'a', name)))[0, 0, 0] for name in ('1', '1_2', '3', 'sub/1')]
    assert values == [1, 2, 3, 10]
    cv2.imwrite(str(folder / 'visualization/a/4_p.png'), np.zeros((2, 2, 3), np.uint8))
    cv2.imwrite(str(folder / 'visualization/a/4_q.png'), np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(OptionError, match=r'2 pictures could be a/4: 4_p\.png, 4_q\.png'):
        find_picture(method, 'a', '4')


def test_of_finished_work_those_that_fit_are_compared_and_the_others_named(folder, compared):
    theirs = folder / 'theirs'
    shutil.copytree(folder / 'results/rdbm/visualization/derain', theirs / 'derain')
    for path in list((theirs / 'derain').iterdir()):
        path.rename(path.with_name(path.name.replace('_rdbm', '')))
    cv2.imwrite(str(theirs / 'derain/coffee.png'), np.zeros((9, 11, 3), np.uint8))
    cv2.imwrite(str(theirs / 'derain/IMG_1.png'), np.zeros((64, 64, 3), np.uint8))
    printed = compare(folder, 'theirs', 'rdbm.yml', '--sets', 'rdbm.yml', '-o', 'partly', '--no-cost').stdout
    assert 'theirs (1 of 4 images)' in printed and 'theirs: 4 gaps: ' in printed
    assert 'psnr: psnr_rgb' in printed and 'ssim: calculate_ssim (crop_border 0, test_y_channel True)' in printed
    found = json.loads((folder / 'partly/comparison.json').read_text(encoding='utf-8'))
    gaps = '\n'.join(found['left out']['theirs'])
    for words in ('coffee.png: is 11x9, but its ground truth is 64x64', 'no picture of dehaze/chelsea',
                  'no picture of dehaze/coffee', '1 pictures belong to no test image: derain/IMG_1.png'):
        assert words in gaps
    by_name = {row['method']: row['sets'] for row in found['rows']}
    with (folder / 'partly/images.csv').open(encoding='utf-8') as file:
        scores = {(row['method'], row['image']): row['psnr'] for row in csv.DictReader(file) if row['set'] == 'derain'}
    assert scores['theirs', 'chelsea'] == scores['rdbm', 'chelsea']
    assert by_name['theirs (1 of 4 images)']['derain']['psnr'] == pytest.approx(float(scores['theirs', 'chelsea']))
    text = (folder / 'partly/table.md').read_text(encoding='utf-8')
    assert '- psnr: psnr_rgb\n' in text and '% psnr: psnr_rgb' in (folder / 'partly/table.tex').read_text()


def test_pictures_of_a_comparison_are_there(folder, compared):
    text = (folder / 'out/table.md').read_text(encoding='utf-8')
    assert '**' in text and '<u>' in text and '__' not in text
    crops = cv2.imread(str(folder / 'out/crops.png'))
    assert crops.shape[1] > 1000 and crops.std() > 10


def test_sets_can_come_from_another_file(folder):
    write_options(folder / 'sets.yml', datasets={'test_1': {**SETS[1], 'name': 'fog'}},
                  val={'metrics': {'y': {'type': 'psnr_y'}}})
    compare(folder, 'rdbm.yml', '--sets', 'sets.yml', '-o', 'fog', '--no-cost')
    with (folder / 'fog/table.csv').open(encoding='utf-8') as file:
        found = list(csv.DictReader(file))
    assert {row['set'] for row in found} == {'fog'} and 'y' in found[0] and 'psnr' not in found[0]


@pytest.mark.parametrize(('arguments', 'words'), [
    (('results',), '--sets: missing'),
    (('rdbm.yml', '--names', 'a', 'b'), '--names: found 2 for 1 methods'),
    (('none.yml',), 'none.yml'),
])
def test_bad_arguments_are_named(folder, compared, arguments, words):
    process = compare(folder, *arguments, check=False)
    assert process.returncode == 2 and words in process.stdout and 'Traceback' not in process.stdout


def test_an_untrained_file_says_how_to_train_it(folder):
    row_file('baselines', 'edsr_t', folder).rename(folder / 'untrained.yml')
    process = compare(folder, 'untrained.yml', 'rdbm.yml', '--sets', 'rdbm.yml', '-o', 'un', '--no-cost', check=False)
    assert process.returncode == 1 and 'run: rdbm train -opt untrained.yml' in process.stdout
    assert 'rdbm ' in process.stdout


# -------------------------------------------------------------------------------------------------------------- tables

ROWS = [Scores(name, {'a': {'psnr': value}}, None, {'a': 7}) for name, value in (
    (DEGRADED, 99.0), ('one', 30.001), ('t_wo', 30.004), ('three', 29.5))]


def test_values_that_look_equal_share_a_place_and_the_input_has_none():
    assert metric_table(ROWS, 'psnr', 'higher', '**{}**', '__{}__') == [
        ['psnr', 'a (7)'], [DEGRADED, '99.00'], ['one', '**30.00**'], ['t_wo', '**30.00**'], ['three', '__29.50__']]
    assert metric_table(ROWS, 'psnr', 'lower', '**{}**')[4] == ['three', '**29.50**']


def test_latex_is_escaped_and_marked():
    text = latex(ROWS, {'psnr': 'higher'})
    assert r't\_wo & \textbf{30.00} \\' in text and r'three & \underline{29.50} \\' in text
    assert text.count(r'\begin{tabular}{lr}') == 1 == text.count(r'\end{tabular}')


def test_ranking_of_few():
    assert ranking({'a': 1.0}, 'higher') == ({'a'}, set())
    assert ranking({'a': float('nan'), 'b': 1.0, 'c': 2.0}, 'lower') == ({'b'}, {'c'})
    assert ranking({}, 'higher') == (set(), set())


# ---------------------------------------------------------------------------------------------------------------- page

@pytest.fixture(scope='module')
def paged(folder, compared):
    """A page with two methods and one that failed."""
    compare(folder, 'rdbm.yml', 'edsr.yml', 'empty', '-o', 'paged', '--no-cost', check=False)
    return folder / 'paged/page.html'


@pytest.fixture
def page(browser, paged):
    """The page in a browser, from the file system, without a network; any error in it fails the test."""
    context = browser.new_context(offline=True, viewport={'width': 1200, 'height': 900})
    page = context.new_page()
    errors, requests = [], []
    page.on('pageerror', lambda error: errors.append(str(error)))
    page.on('request', lambda request: requests.append(request.url))
    page.goto(paged.as_uri())
    yield page
    assert errors == []
    assert all(url.startswith(('file:', 'data:')) for url in requests)
    context.close()


def test_the_page_sorts_slides_and_shows(page):
    heading = page.locator('#tables table').first.locator('th', has_text='derain')
    cells = page.locator('#tables table').first.locator('tbody tr td:nth-child(2)')
    heading.locator('button').click()
    down = [float(text) for text in cells.all_inner_texts()]
    assert down == sorted(down, reverse=True) and len(down) == 3
    assert heading.get_attribute('aria-sort') == 'descending'
    heading.locator('button').click()
    assert [float(text) for text in cells.all_inner_texts()] == sorted(down)
    assert page.locator('.best').count() >= 4

    assert page.locator('#image option').all_inner_texts() == [
        'derain / chelsea', 'derain / coffee', 'dehaze / chelsea', 'dehaze / coffee']
    page.select_option('#image', index=2)
    page.select_option('#left-method', 'clean')
    page.select_option('#right-method', 'edsr')
    assert page.locator('#left').evaluate('image => image.complete && image.naturalWidth') == 64
    page.locator('#slider').fill('25')
    assert page.locator('#right').evaluate('image => image.style.clipPath').endswith('25%)')
    box = page.locator('#stage').bounding_box()
    page.mouse.click(box['x'] + 0.75 * box['width'], box['y'] + box['height'] / 2)
    assert float(page.locator('#slider').input_value()) == pytest.approx(75, abs=2)
    assert page.locator('#differences img').count() == 3
    assert page.locator('#scores tbody tr').count() == 3


def test_the_two_sides_of_the_divider_are_the_two_methods(page):
    page.select_option('#left-method', 'clean')
    page.select_option('#right-method', DEGRADED)
    pictures = {}
    for share in ('0', '50', '100'):
        page.locator('#slider').fill(share)
        shot = np.frombuffer(page.locator('#stage').screenshot(), np.uint8)
        pictures[share] = cv2.imdecode(shot, cv2.IMREAD_COLOR).astype(int)
    width = pictures['50'].shape[1]
    left, right = slice(2, width // 2 - 4), slice(width // 2 + 4, width - 2)
    assert np.abs(pictures['50'][:, left] - pictures['100'][:, left]).max() <= 2
    assert np.abs(pictures['50'][:, right] - pictures['0'][:, right]).max() <= 2
    assert np.abs(pictures['0'] - pictures['100']).mean() > 5


def test_the_page_says_what_failed(page):
    assert 'empty failed' in page.locator('.fault').inner_text()
    assert '"psnr_rgb"' in page.locator('#about').inner_text()
    assert 'psnr: psnr_rgb' in page.locator('#notes').inner_text()


def test_no_text_can_end_the_data_of_a_page(browser, tmp_path):
    from rdbm_plugin.evaluation.page import write_page
    evil = '</script><script>document.title = "broken"</script><b>'
    write_page(tmp_path / 'page.html', evil, [[[evil, 'x'], [evil, '1']]], [], {evil: evil}, [evil], {'a': evil})
    page = browser.new_page()
    page.goto((tmp_path / 'page.html').as_uri())
    assert page.title() == evil and page.locator('h1').inner_text() == evil
    assert page.locator('tbody td').first.inner_text() == evil
    page.close()


@pytest.mark.parametrize('name', ['irsde', 'goub'])
def test_published_checkpoints_run_in_a_comparison(name, folder, tmp_path):
    """Untrained weights of the layout that IR-SDE and GOUB publish, at a width of 8 instead of 64."""
    from rdbm_plugin.archs.conditional_unet_arch import ConditionalUNet
    state = ConditionalUNet(nf=8, depth=2).state_dict()
    torch.save(state, tmp_path / 'lastest_EMA.pth')
    changes = ['network_g:nf=8', 'network_g:depth=2', f'path:pretrain_network_g={tmp_path}/lastest_EMA.pth',
               'val:sampler:steps=2', 'num_gpu=0']
    compare(tmp_path, row_file('published', f'test_{name}', tmp_path), '--sets', folder / 'rdbm.yml', '--names', name,
            '--no-cost', '--force_yml', *changes, '-o', 'out')
    score = float(rows(tmp_path)[name, 'average']['psnr'])
    assert 0 < score < 60 and score != float(rows(tmp_path)[DEGRADED, 'average']['psnr'])
