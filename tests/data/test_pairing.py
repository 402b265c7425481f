"""Pairing rules on the file names that data sets really have."""
import re

import cv2
import numpy as np
import pytest
import yaml
from conftest import ROOT

from rdbm_plugin.config.options import OptionError
from rdbm_plugin.data.image_source import ImageSource
from rdbm_plugin.data.pairing import find_pairs
from rdbm_plugin.data.universal_paired_dataset import read_task

SNIPPETS = yaml.safe_load((ROOT / 'docs/known_datasets.yml').read_text(encoding='utf-8'))
PIXEL = cv2.imencode('.png', np.zeros((1, 1, 3), np.uint8))[1].tobytes()


def source(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(PIXEL)
    return ImageSource(folder)


CASES = {
    'equal names, other suffix': ('same', ['a/1.png', '2.png'], ['a/1.jpg', '2.png'], ['a/1.png 1.jpg', '2.png 2.png']),
    'template': ({'template': '{}_rain'}, ['s/1.png', '2.png'], ['s/1_rain.jpg', '2_rain.jpg'], None),
    'template x': ({'template': '{}x2'}, ['norain-1.png'], ['norain-1x2.png'], None),
    'RESIDE OTS': ({'many_to_one': '_'}, ['0001.jpg', '0012.jpg'],
                   ['0001_0.8_0.2.jpg', '0001_1_0.16.jpg', '0012_0.9_0.08.jpg'],
                   ['0001.jpg 0001_0.8_0.2.jpg', '0001.jpg 0001_1_0.16.jpg', '0012.jpg 0012_0.9_0.08.jpg']),
    'RESIDE OTS in parts': ({'many_to_one': '_'}, ['0025.jpg'], ['part1/0025_0.8_0.1.jpg', 'part4/0025_1_0.2.jpg'],
                            ['0025.jpg 0025_0.8_0.1.jpg', '0025.jpg 0025_1_0.2.jpg']),
    'many to one in scenes': ({'many_to_one': '_'}, ['s1/1.png', 's2/1.png'], ['s1/1_a.png', 's2/1_b.png'],
                              ['s1/1.png 1_a.png', 's2/1.png 1_b.png']),
    'many to one, of names that begin with the separator': (
        {'many_to_one': '_'}, ['_1.png'], ['_1_a.png', '_1_b.png'], ['_1.png _1_a.png', '_1.png _1_b.png']),
    'RESIDE ITS': ({'many_to_one': '_'}, ['1.png', '10.png'], ['10_3_0.90179.png', '1_1_0.90179.png'],
                   ['10.png 10_3_0.90179.png', '1.png 1_1_0.90179.png']),
    'Rain100': ({'prefix': ['rain-', 'norain-']}, ['norain-1.png', 'norain-10.png'], ['rain-1.png', 'rain-10.png'],
                None),
    'SPA': ({'template': ['{}', '{}gt']}, ['000gt.png', '001gt.png'], ['000.png', '001.png'], None),
    'LOL-v2': ({'prefix': ['low', 'normal']}, ['normal00001.png'], ['low00001.png'], None),
}


@pytest.mark.parametrize('case', CASES)
def test_rule_pairs_the_names_of_its_data_set(tmp_path, case):
    rule, clean, degraded, expected = CASES[case]
    gt, lq = source(tmp_path / 'gt', clean), source(tmp_path / 'lq', degraded)
    pairs = find_pairs(gt, lq, rule)
    found = sorted((gt.name(a), lq.name(b)) for a, b in zip(pairs.gt, pairs.lq))
    if expected is None:
        expected = sorted(zip(sorted(clean), sorted(degraded)))
        assert found == expected
    else:
        assert sorted(f'{a} {b.rsplit("/", 1)[-1]}' for a, b in found) == sorted(expected)
    assert pairs.lonely_gt == pairs.lonely_lq == []


def test_both_sides_may_share_one_folder(tmp_path):
    """Rain100 as it is packed: rain-1.png beside norain-1.png; GoPro: SCENE/blur beside SCENE/sharp."""
    both = source(tmp_path / 'rain', ['rain-1.png', 'norain-1.png', 'rain-2.png', 'norain-2.png'])
    pairs = find_pairs(both, both, {'prefix': ['rain-', 'norain-']})
    assert [(both.name(a), both.name(b)) for a, b in zip(pairs.gt, pairs.lq)] == [
        ('norain-1.png', 'rain-1.png'), ('norain-2.png', 'rain-2.png')]
    gopro = source(tmp_path / 'gopro', [f'GOPR{scene}/{kind}/{frame:06d}.png' for scene in (1, 2)
                                        for kind in ('blur', 'blur_gamma', 'sharp') for frame in (1, 2)])
    pairs = find_pairs(gopro, gopro, {'folder': ['blur', 'sharp']})
    assert [(gopro.name(a), gopro.name(b)) for a, b in zip(pairs.gt, pairs.lq)] == [
        (f'GOPR{scene}/sharp/{frame:06d}.png', f'GOPR{scene}/blur/{frame:06d}.png')
        for scene in (1, 2) for frame in (1, 2)]
    assert pairs.lonely_gt == pairs.lonely_lq == []


def test_images_without_a_partner_are_named(tmp_path):
    pairs = find_pairs(source(tmp_path / 'gt', ['a.png', 'b.png']), source(tmp_path / 'lq', ['b.png', 'c.jpg']))
    assert (len(pairs.gt), pairs.lonely_gt, pairs.lonely_lq) == (1, ['a.png'], ['c.jpg'])


def test_degraded_images_below_the_clean_ones_are_not_missed(tmp_path):
    gt = source(tmp_path / 'Rain100L', ['norain-001.png', 'rainy/rain-001.png'])
    pairs = find_pairs(gt, ImageSource(tmp_path / 'Rain100L/rainy'), {'prefix': ['rain-', 'norain-']})
    assert (len(pairs.gt), pairs.lonely_gt, pairs.lonely_lq) == (1, [], [])


def test_images_that_the_rule_does_not_cover_are_named(tmp_path):
    gt, lq = source(tmp_path / 'gt', ['norain-1.png', 'x.png']), source(tmp_path / 'lq', ['rain-1.png', 'y.png'])
    pairs = find_pairs(gt, lq, {'prefix': ['rain-', 'norain-']})
    assert (len(pairs.gt), pairs.lonely_gt, pairs.lonely_lq) == (1, ['x.png'], ['y.png'])


def test_equal_names_in_different_folders_stay_apart(tmp_path):
    gt, lq = (source(tmp_path / side, ['x/1.png', 'y/1.png']) for side in ('gt', 'lq'))
    pairs = find_pairs(gt, lq)
    assert [(gt.name(a), lq.name(b)) for a, b in zip(pairs.gt, pairs.lq)] == [('x/1.png',) * 2, ('y/1.png',) * 2]


@pytest.mark.parametrize('text', [
    'b.png, b2.png\na.png, a2.jpg\n', 'b.png (1,1,3), b2.png (1,1,3)\na.png, a2.jpg', 'b.png b2.png 9\n\na.png a2.jpg'])
def test_meta_info_names_pairs_in_its_order(tmp_path, text):
    (tmp_path / 'meta.txt').write_text(text)
    gt = source(tmp_path / 'gt', ['a.png', 'b.png', 'c.png'])
    lq = source(tmp_path / 'lq', ['a2.jpg', 'b2.png'])
    pairs = find_pairs(gt, lq, {'meta_info': str(tmp_path / 'meta.txt')})
    assert [(gt.name(a), lq.name(b)) for a, b in zip(pairs.gt, pairs.lq)] == [
        ('b.png', 'b2.png'), ('a.png', 'a2.jpg')]


def test_meta_info_of_basicsr_names_both_sides_at_once(tmp_path):
    (tmp_path / 'meta.txt').write_text('s/a.png (480,480,3)\nnone.png (480,480,3)\n')
    gt, lq = (source(tmp_path / side, ['s/a.png', 'b.png']) for side in ('gt', 'lq'))
    pairs = find_pairs(gt, lq, {'meta_info': str(tmp_path / 'meta.txt')})
    assert [gt.name(a) for a in pairs.gt] == [lq.name(b) for b in pairs.lq] == ['s/a.png']
    assert pairs.lonely_gt == pairs.lonely_lq == ['none.png']


def test_line_without_an_image_name_is_shown(tmp_path):
    (tmp_path / 'meta.txt').write_text('a.png\nwhatever\n')
    one = source(tmp_path / 'gt', ['a.png'])
    with pytest.raises(OptionError, match=r"meta\.txt: found the line 'whatever'"):
        find_pairs(one, one, {'meta_info': str(tmp_path / 'meta.txt')})


@pytest.mark.parametrize(('rule', 'words'), [
    ('sam', ["pairing: found 'sam'", "Did you mean 'same'?"]),
    ({'same': 1}, ['pairing: found']),
    ('template', ['pairing: found']),
    ({'template': 'x'}, ['template', "'{}'"]),
    ({'template': ['{}', 1]}, ['template', 'degraded and clean']),
    ({'many_to_one': ''}, ['many_to_one']),
    ({'prefix': 'rain'}, ['prefix', 'degraded and clean']),
    ({'folder': ['a']}, ['folder', 'degraded and clean']),
    ({'meta_info': '/no/such.txt'}, ['meta_info', '/no/such.txt']),
    (None, ['pairing: found None'])])
def test_bad_rules_are_named(tmp_path, rule, words):
    one = source(tmp_path, ['a.png'])
    with pytest.raises(OptionError) as error:
        find_pairs(one, one, rule)
    assert all(word in str(error.value) for word in words)


def test_ambiguous_names_are_refused(tmp_path):
    gt = source(tmp_path / 'gt', ['a.png', 'a.jpg'])
    with pytest.raises(OptionError, match=r"several suffixes, first 'a'"):
        find_pairs(gt, gt)


KNOWN = {  # file names that the archives are known to hold, below datasets/; clean then degraded
    'Rain100L_train': ('RainTrainL/norain-1.png', 'RainTrainL/rain-1.png'),
    'Rain100L_test': ('Rain100L/norain-001.png', 'Rain100L/rainy/rain-001.png'),
    'Rain100L_new_test': ('rain_data_test_Light/norain/norain-1.png', 'rain_data_test_Light/rain/X2/norain-1x2.png'),
    'Rain13K_train': ('Rain13K/train/target/1.jpg', 'Rain13K/train/input/1.jpg'),
    'SPA_test': ('real_test_1000/gt/000gt.png', 'real_test_1000/rain/000.png'),
    'LOL_train': ('LOLdataset/our485/high/2.png', 'LOLdataset/our485/low/2.png'),
    'LOLv2_real_train': ('LOL-v2/Real_captured/Train/Normal/normal00001.png',
                         'LOL-v2/Real_captured/Train/Low/low00001.png'),
    'LOLv2_synthetic_train': ('LOL-v2/Synthetic/Train/Normal/r000da54ft.png',
                              'LOL-v2/Synthetic/Train/Low/r000da54ft.png'),
    'Snow100K_train': ('Snow100K/all/gt/beautiful_smile_00003.jpg', 'Snow100K/all/synthetic/beautiful_smile_00003.jpg'),
    'Snow100K_L_test': tuple(f'Snow100K/media/jdway/GameSSD/overlapping/test/Snow100K-L/{side}/city_00003.jpg'
                             for side in ('gt', 'synthetic')),
    'CSD_train': ('CSD/Train/Gt/1.tif', 'CSD/Train/Snow/1.tif'),
    'ITS_train': ('ITS/clear/1.png', 'ITS/hazy/1_1_0.90179.png'),
    'OTS_train': ('OTS_ALPHA/clear/clear_images/0005.jpg', 'OTS_ALPHA/haze/OTS/0005_0.8_0.2.jpg'),
    'SOTS_indoor_test': ('SOTS/indoor/nyuhaze500/gt/1400.png', 'SOTS/indoor/nyuhaze500/hazy/1400_1.png'),
    'SOTS_outdoor_test': ('SOTS/outdoor/gt/0001.png', 'SOTS/outdoor/hazy/0001_0.8_0.2.jpg'),
    'GoPro_train': ('GOPRO_Large/train/GOPR0372_07_00/sharp/000047.png',
                    'GOPRO_Large/train/GOPR0372_07_00/blur/000047.png'),
    'GoPro_repacked_train': ('GoPro/train/target/GOPR0384_11_00-000001.png',
                             'GoPro/train/input/GOPR0384_11_00-000001.png'),
    'RealBlur_J_test': tuple(f'RealBlur/RealBlur-J_ECC_IMCORR_centroid_itensity_ref/scene007/{name}'
                             for name in ('gt/gt_1.png', 'blur/blur_1.png')),
}


def test_every_known_data_set_has_a_case():
    assert set(SNIPPETS) == set(KNOWN)


@pytest.mark.parametrize('name', KNOWN)
def test_snippets_pair_the_names_of_their_data_sets(name, tmp_path, monkeypatch):
    clean, degraded = KNOWN[name]
    source(tmp_path / 'datasets', [clean, degraded, degraded.replace('/blur/', '/blur_gamma/')])
    if 'RealBlur' in name:
        (tmp_path / 'datasets/RealBlur/RealBlur_J_test_list.txt').write_text(
            f'{clean.partition("/")[2]} {degraded.partition("/")[2]}\n')
    monkeypatch.chdir(tmp_path)
    task = read_task(name, SNIPPETS[name])
    assert [(task.gt.path(a), task.lq.path(b)) for a, b in zip(task.pairs.gt.tolist(), task.pairs.lq.tolist())] == [
        (f'datasets/{clean}', f'datasets/{degraded}')]


BETTER = {
    'scale': ([f'{i}.png' for i in range(12)], [f'{i}x4.png' for i in range(12)],
              "\"pairing: {template: '{}x4'}\" pairs 12 of 12"),
    'LOL-v2': ([f'normal{i:05d}.png' for i in range(1, 9)], [f'low{i:05d}.png' for i in range(1, 9)],
               "\"pairing: {template: ['low{}', 'normal{}']}\" pairs 8 of 8"),
    'Rain100': ([f'norain-{i}.png' for i in range(1, 12)], [f'rain-{i}.png' for i in range(1, 12)],
                "\"pairing: {template: ['rain-{}', 'norain-{}']}\" pairs 11 of 11"),
    'RESIDE': (['1.png', '10.png'], ['10_3_0.9.png', '1_1_0.9.png', '1_2_0.8.png'],
               '"pairing: {many_to_one: _}" pairs 3 of 3'),
    'words': (['cat.png', 'dog.png'], ['cat_rain.png', 'dog_rain.png'],
              "\"pairing: {template: '{}_rain'}\" pairs 2 of 2"),
    'none': (['cat.png', 'dog.png'], ['tree.png', 'house.png'], 'set "pairing" to the rule that pairs them'),
}


@pytest.mark.parametrize('case', BETTER)
def test_an_error_names_the_rule_that_would_join_most(tmp_path, case):
    clean, degraded, advice = BETTER[case]
    source(tmp_path / 'gt', clean), source(tmp_path / 'lq', degraded)
    roots = {'dataroot_gt': str(tmp_path / 'gt'), 'dataroot_lq': str(tmp_path / 'lq')}
    with pytest.raises(OptionError) as error:
        read_task('mine', {**roots, 'pairing': {'template': '{}_no'}})
    assert str(error.value).endswith(f'; {advice}.')
    if case != 'none':
        rule = yaml.safe_load(re.search('"(pairing: .*)" pairs', advice)[1])
        assert len(read_task('mine', {**roots, **rule}).pairs.lq) == len(degraded)


def test_a_rule_that_joins_more_is_named_where_some_are_joined(tmp_path):
    source(tmp_path / 'gt', ['0.png', '1.png', '2.png', '3.png'])
    source(tmp_path / 'lq', ['0x4.png', '1x4.png', '2x4.png', '3.png'])
    with pytest.raises(OptionError, match=r"3 of 4 degraded .*; \"pairing: {template: '{}x4'}\" pairs 3 of 4, or"):
        read_task('mine', {'dataroot_gt': str(tmp_path / 'gt'), 'dataroot_lq': str(tmp_path / 'lq')})


def test_lists_of_folders_are_paired_place_by_place(tmp_path):
    for place, names in (('a', ['1.png', '2.png']), ('b/c', ['1.png'])):
        for side in ('gt', 'lq'):
            source(tmp_path / place / side, names)
    source(tmp_path / 'b/c/gt', ['3.png'])
    roots = {f'dataroot_{side}': [str(tmp_path / place / side) for place in ('a', 'b/c')] for side in ('gt', 'lq')}
    task = read_task('mine', roots)
    assert [(task.gt.path(a), task.lq.path(b)) for a, b in zip(task.pairs.gt.tolist(), task.pairs.lq.tolist())] == [
        tuple(str(tmp_path / name.format(side)) for side in ('gt', 'lq'))
        for name in ('a/{}/1.png', 'a/{}/2.png', 'b/c/{}/1.png')]
    assert task.pairs.lonely_gt == ['3.png'] and task.lq.decode(2).shape == (1, 1, 3)
    assert len(set(task.lq.stems())) == 3, 'results of equal names would replace each other'
    with pytest.raises(OptionError, match='found 1 folders, and 2 in dataroot_gt'):
        read_task('mine', {**roots, 'dataroot_lq': roots['dataroot_lq'][:1]})
