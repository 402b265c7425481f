"""Suites of baselines of equal size and of the family's bridges, and networks of BasicSR in the bridge."""
import re

import pytest
import torch
import yaml
from conftest import ROOT, TINY, command, forced, rdbm, row_file, short, suite_rows
from torch.utils.flop_counter import FlopCounterMode

import rdbm_plugin
from rdbm_plugin import OptionError, RDBMUNet
from rdbm_plugin.archs.complexity import giga_multiply_adds
from rdbm_plugin.bridge import BRIDGES
from rdbm_plugin.commands.preflight import check_options
from rdbm_plugin.config.option_file import read_option_file
from rdbm_plugin.config.options import build

BASELINES, FAMILY = suite_rows('baselines'), suite_rows('family')
FOREIGN = [name for name in BASELINES if not name.startswith(('rdbm', 'regression'))]
QUICK = ROOT / 'options/train_rdbm_quickstart.yml'
EDSR = '{type: EDSR, num_in_ch: 3, num_out_ch: 3, num_feat: 8, num_block: 1, upscale: 1}'
SWINIR = ("{type: SwinIR, img_size: 16, in_chans: 6, window_size: 8, upscale: 1, upsampler: '', embed_dim: 8, "
          'depths: [2], num_heads: [2], mlp_ratio: 2}')


def registered():
    import rdbm_plugin.registration  # noqa: F401
    from rdbm_plugin.basicsr_host.lookup import registered
    return registered('ARCH')


def read(suite, name, folder):
    return read_option_file(row_file(suite, name, folder))


def test_there_are_four_architectures_for_each_size():
    assert set(FOREIGN) == {f'{kind}_{size}' for kind in ('edsr', 'rcan', 'srvgg', 'swinir') for size in 'tb'}


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', FOREIGN)
def test_foreign_networks_are_as_large_as_ours(name, tmp_path):
    ours = RDBMUNet(name[-1].upper())
    network = build('network_g', read('baselines', name, tmp_path)['network_g'], registered())
    with torch.no_grad():
        size = (48, 40) if 'swinir' in name else (45, 38)  # SwinIRModel pads
        assert network(torch.zeros(1, 3, *size)).shape == (1, 3, *size), 'photos have any size'
    parameters = [sum(p.numel() for p in each.parameters()) for each in (network, ours)]
    if abs(parameters[0] / parameters[1] - 1) <= 0.05:
        return
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, 256, 256))
    assert counter.get_total_flops() / 2e9 == pytest.approx(giga_multiply_adds(ours), rel=0.05)


@pytest.mark.parametrize('suite', ['baselines', 'family'])
def test_rows_pass_every_check_and_have_data_seed_iterations_and_rate_in_common(suite, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick, names = read_option_file(QUICK), {'baselines': BASELINES, 'family': FAMILY}[suite]
    first = read(suite, next(iter(suite_rows(suite))), tmp_path)['train']
    for name in names:
        theirs = read(suite, name, tmp_path)
        assert theirs['name'] == name and theirs['plugin'] == rdbm_plugin.__version__
        assert theirs['datasets'] == quick['datasets'] and theirs['manual_seed'] == quick['manual_seed']
        for key in ('total_iter', 'ema_decay', 'scheduler'):
            assert theirs['train'][key] == first[key], key
        rate, kind = theirs['train']['optim_g']['lr'], theirs['train']['optim_g']['type']
        assert rate == first['optim_g']['lr'] and (kind == 'Muon') == (first['optim_g']['type'] == 'Muon')
        theirs['is_train'] = True
        for phase, dataset in theirs['datasets'].items():
            dataset['phase'] = phase.split('_')[0]
        check_options(theirs)


def test_regression_is_our_network_at_node_t_with_an_l1_loss(tmp_path):
    for size in 'tb':
        opt = read('baselines', f'regression_{size}', tmp_path)
        assert opt['network_g'] == {'type': 'RDBMUNet', 'variant': size.upper()}
        assert opt['train']['node_t_share'] == 1 and opt['val']['sampler']['steps'] == 1
        assert opt['train']['pixel_opt']['type'] == 'L1Loss'


def test_family_has_a_row_for_every_bridge(tmp_path):
    found = [read('family', name, tmp_path) for name in FAMILY]
    assert {opt['bridge']['type'] for opt in found} == set(BRIDGES)
    ours = read_option_file(QUICK)
    for opt in found:
        opt['val']['sampler'].pop('start')
        assert {key: value for key, value in opt.items() if key not in ('name', 'bridge', 'val')} == {
            key: value for key, value in ours.items() if key not in ('name', 'bridge', 'val')}


@pytest.mark.parametrize('name', FAMILY)
def test_family_trains_and_validates(name, tmp_path):
    process = rdbm('train', row_file('family', name, tmp_path), tmp_path, short(2))
    assert 'Validation, 2 network evaluations per image:' in process.stdout and 'nan' not in process.stdout.lower()


@pytest.mark.parametrize(('backbone', 'channels'), [(EDSR, 3), (SWINIR, 6)])
def test_networks_of_basicsr_train_in_the_bridge_by_option_file_alone(tmp_path, backbone, channels):
    text = re.sub(r'network_g:\n(  .*\n)+', f'network_g:\n  type: BridgeBackbone\n  backbone: {backbone}\n'
                  f'  in_channels: {channels}\n  out_channels: {channels}\n', QUICK.read_text(encoding='utf-8'))
    text = re.sub(r'  val_[2-5]: .*\n', '', text)
    (tmp_path / 'own.yml').write_text(text)
    changes = {key: value for key, value in TINY.items() if 'variant' not in key and not re.search('val_[2-5]', key)}
    process = command('-m', 'rdbm_plugin', 'train', '-opt', 'own.yml', *forced({**changes, **short(3)}), cwd=tmp_path)
    assert 'Network [BridgeBackbone] is created.' in process.stdout and 'Validation derain' in process.stdout


def test_swinir_restores_photos_of_any_size(tmp_path):
    row_file('baselines', 'swinir_t', tmp_path).rename(tmp_path / 'own.yml')
    changes = {key: value for key, value in TINY.items() if not re.search('variant|sampler', key)}
    changes.update({'datasets:val_1:gt_size': 37, 'network_g:embed_dim': 8, 'network_g:depths': '[2]',
                    'network_g:num_heads': '[2]'})
    process = command('-m', 'rdbm_plugin', 'train', '-opt', 'own.yml', *forced({**changes, **short(2)}), cwd=tmp_path)
    assert 'Model [SwinIRModel] is created.' in process.stdout and 'Validation derain' in process.stdout


def test_backbone_is_zero_at_first_sees_all_inputs_and_learns():
    network = build('network_g', {'type': 'BridgeBackbone', 'backbone': yaml.safe_load(EDSR)}, registered())
    x_t, mu, t = torch.rand(2, 3, 12, 17), torch.rand(2, 3, 12, 17), torch.tensor([3, 90])
    assert not network(x_t, mu, t).any() and network(x_t, mu, t).shape == x_t.shape
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(4):
        optimizer.zero_grad()
        (network(x_t, mu, t) - 1).square().mean().backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())
    out = network(x_t, mu, t)
    for changed in ((x_t + 0.1, mu, t), (x_t, mu + 0.1, t), (x_t, mu, t + 5)):
        assert not torch.allclose(network(*changed), out)


@pytest.mark.parametrize(('block', 'words'), [
    ({'backbone': {'type': 'EDRS'}}, "backbone: type: found 'EDRS'"),
    ({'backbone': {'type': 'EDSR', 'num_feats': 3}}, "unknown key 'num_feats'"),
    ({}, "key 'backbone' is missing"),
    ({'backbone': {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3}, 'in_channels': 0}, 'in_channels: found 0'),
])
def test_bad_backbones_are_named(block, words):
    with pytest.raises(OptionError, match=words):
        build('network_g', {'type': 'BridgeBackbone', **block}, registered())


SMALL = [f'{key}={value}' for key, value in TINY.items() if not re.match('network_g|val:', key)]
SUITE = ROOT / 'options/suites/baselines.yml'


def test_a_suite_trains_what_is_missing_and_compares(tmp_path):
    run = [ROOT / 'scripts/study/run_suite.py', SUITE, QUICK, '--rows', 'edsr_t', '--iters', 3, '-o', 'suite',
           '--force_yml', *SMALL]
    process = command(*run, cwd=tmp_path)
    assert 'edsr_t: trained in' in process.stdout and 'train_rdbm_quickstart: trained in' in process.stdout
    assert (tmp_path / 'suite/page.html').is_file()
    models = [tmp_path / f'experiments/{name}/models/net_g_latest.pth' for name in ('edsr_t', 'train_rdbm_quickstart')]
    before = [model.stat().st_mtime_ns for model in models]
    models[0].unlink()
    process = command(*run, cwd=tmp_path)
    assert 'train_rdbm_quickstart: trained already' in process.stdout and 'edsr_t: trained in' in process.stdout
    assert models[1].stat().st_mtime_ns == before[1] and models[0].stat().st_mtime_ns != before[0]


def test_the_recipe_of_the_shipped_weights_is_one_command(prepared, tmp_path):
    (tmp_path / 'datasets').symlink_to(prepared / 'datasets')
    suite = ROOT / 'options/suites/shipped.yml'
    process = command(ROOT / 'scripts/study/run_suite.py', suite, '--iters', 1, '--force_yml', *SMALL, cwd=tmp_path)
    names = 'shipped_small', 'shipped_large', 'shipped'
    assert all(f'{name}: trained in' in process.stdout for name in names)
    for before, name in zip(names, names[1:]):
        log = (tmp_path / f'comparison/logs/{name}.log').read_text()
        assert f'Loading RDBMUNet from experiments/{before}/models/net_g_latest.pth' in log


def test_the_suite_that_the_page_shows_trains_a_rival_on_pairs(prepared, tmp_path):
    text = (ROOT / 'docs/compare.md').read_text(encoding='utf-8')
    block = next(each for each in re.findall(r'```yaml\n(.*?)```', text, re.S) if each.startswith('base:'))
    (tmp_path / 'mine.yml').write_text(block.replace('train_mine.yml ', f'{ROOT}/options/train_rdbm_pairs.yml '))
    (tmp_path / 'datasets').symlink_to(prepared / 'datasets')
    small = [each for each in SMALL if not re.match('datasets:val_[2-5]', each)]
    command(ROOT / 'scripts/study/run_suite.py', 'mine.yml', '--rows', 'edsr', '--iters', 2, '-o', 'suite',
            '--force_yml', *small, cwd=tmp_path)
    assert '| edsr |' in (tmp_path / 'suite/table.md').read_text(encoding='utf-8')


def test_a_suite_goes_on_after_a_failure(tmp_path):
    good = row_file('baselines', 'edsr_t', tmp_path)
    text = good.read_text(encoding='utf-8').replace('num_block: 4', 'num_blocks: 4')
    (tmp_path / 'bad.yml').write_text(text.replace('name: edsr_t', 'name: bad'))
    process = command(ROOT / 'scripts/study/run_suite.py', 'bad.yml', good, '--iters', 2, '-o', 'suite',
                      '--sets', good, '--force_yml', *SMALL, cwd=tmp_path, check=False)
    assert process.returncode == 1 and 'edsr_t: trained in' in process.stdout and "'num_blocks'" in (
        tmp_path / 'suite/logs/bad.log').read_text()


def test_rows_are_written_as_option_files_and_unknown_ones_named(tmp_path):
    run = [ROOT / 'scripts/study/run_suite.py', ROOT / 'options/suites/published.yml', '--write', 'own']
    assert command(*run, cwd=tmp_path).stdout.split() == [
        f'own/{name}.yml' for name in ('test_goub', 'test_irsde', 'train_rdbm_code')]
    assert read_option_file(tmp_path / 'own/test_goub.yml')['bridge']['type'] == 'OUBridge'
    process = command(*run, '--rows', 'goub', cwd=tmp_path, check=False)
    assert process.returncode == 2 and "--rows: found 'goub'" in process.stdout
