"""Baselines of equal size, and networks of BasicSR in the bridge."""
import re

import pytest
import torch
import yaml
from conftest import ROOT, TINY, command, forced, short
from torch.utils.flop_counter import FlopCounterMode

from rdbm_plugin import OptionError, RDBMUNet
from rdbm_plugin.archs.complexity import giga_multiply_adds
from rdbm_plugin.config.options import build

FILES = sorted((ROOT / 'options/baselines').glob('*.yml'))
FOREIGN = [file for file in FILES if 'model_type: RDBMModel' not in file.read_text(encoding='utf-8')]
QUICK = ROOT / 'options/train_rdbm_quickstart.yml'
EDSR = '{type: EDSR, num_in_ch: 3, num_out_ch: 3, num_feat: 8, num_block: 1, upscale: 1}'
SWINIR = ("{type: SwinIR, img_size: 16, in_chans: 6, window_size: 8, upscale: 1, upsampler: '', embed_dim: 8, "
          'depths: [2], num_heads: [2], mlp_ratio: 2}')


def registered():
    import rdbm_plugin.registration  # noqa: F401
    from rdbm_plugin.basicsr_host.lookup import registered
    return registered('ARCH')


def read(file):
    from basicsr.utils.options import ordered_yaml
    return yaml.load(file.read_text(encoding='utf-8'), ordered_yaml()[0])


def test_there_are_three_architectures_for_each_size():
    types = {read(file)['network_g']['type'] for file in FOREIGN}
    assert len(types) >= 3
    assert {file.stem for file in FOREIGN} == {f'{kind}_{size}' for kind in ('edsr', 'rcan', 'srvgg', 'swinir')
                                               for size in 'tb'}


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('file', FOREIGN, ids=lambda file: file.stem)
def test_foreign_networks_are_as_large_as_ours(file):
    ours = RDBMUNet(file.stem[-1].upper())
    network = build('network_g', read(file)['network_g'], registered())
    with torch.no_grad():
        size = (48, 40) if 'swinir' in file.stem else (45, 38)  # SwinIRModel pads
        assert network(torch.zeros(1, 3, *size)).shape == (1, 3, *size), 'photos have any size'
    parameters = [sum(p.numel() for p in each.parameters()) for each in (network, ours)]
    if abs(parameters[0] / parameters[1] - 1) <= 0.05:
        return
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, 256, 256))
    assert counter.get_total_flops() / 2e9 == pytest.approx(giga_multiply_adds(ours), rel=0.05)


@pytest.mark.parametrize('file', FILES, ids=lambda file: file.stem)
def test_baselines_have_data_iterations_and_seed_of_ours(file):
    theirs, ours = read(file), read(QUICK)
    assert theirs['datasets'] == ours['datasets'] and theirs['manual_seed'] == ours['manual_seed']
    for key in ('total_iter', 'ema_decay', 'scheduler'):
        assert theirs['train'][key] == ours['train'][key]
    assert theirs['train']['optim_g']['lr'] == ours['train']['optim_g']['lr']
    assert theirs['val']['metrics'] == ours['val']['metrics'] and theirs['name'] == file.stem


def test_regression_is_one_evaluation_of_the_same_network():
    for size in 'tb':
        opt = read(ROOT / f'options/baselines/regression_{size}.yml')
        assert opt['network_g'] == {'type': 'RDBMUNet', 'variant': size.upper()}
        assert opt['train']['node_t_share'] == 1 and opt['val']['sampler']['steps'] == 1
        assert opt['train']['pixel_opt']['type'] == 'L1Loss'


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
    text = (ROOT / 'options/baselines/swinir_t.yml').read_text(encoding='utf-8')
    text = re.sub(r'embed_dim: 50, depths: .*?, num_heads: .*?\]', 'embed_dim: 8, depths: [2], num_heads: [2]', text)
    (tmp_path / 'own.yml').write_text(re.sub(r'  val_[2-5]: .*\n', '', text))
    changes = {key: value for key, value in TINY.items() if not re.search('variant|sampler|val_', key)}
    changes['datasets:val_1:gt_size'] = 37
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


def test_a_suite_trains_what_is_missing_and_compares(tmp_path):
    (tmp_path / 'options').mkdir()
    files = [ROOT / 'options/baselines/edsr_t.yml', QUICK]
    changes = [f'{key}={value}' for key, value in TINY.items() if not re.match('network_g|val:', key)]
    run = [ROOT / 'scripts/run_suite.py', *files, '--iters', 3, '-o', 'suite', '--force_yml', *changes]
    process = command(*run, cwd=tmp_path)
    assert 'edsr_t: trained in' in process.stdout and 'train_rdbm_quickstart: trained in' in process.stdout
    assert (tmp_path / 'suite/page.html').is_file()
    models = [tmp_path / f'experiments/{name}/models/net_g_latest.pth' for name in ('edsr_t', 'train_rdbm_quickstart')]
    before = [model.stat().st_mtime_ns for model in models]
    models[0].unlink()
    process = command(*run, cwd=tmp_path)
    assert 'train_rdbm_quickstart: trained already' in process.stdout and 'edsr_t: trained in' in process.stdout
    assert models[1].stat().st_mtime_ns == before[1] and models[0].stat().st_mtime_ns != before[0]


def test_a_suite_goes_on_after_a_failure_and_budgets_time(tmp_path):
    text = (ROOT / 'options/baselines/edsr_t.yml').read_text(encoding='utf-8')
    bad = text.replace('num_block: 4', 'num_blocks: 4').replace('name: edsr_t', 'name: bad')
    (tmp_path / 'bad.yml').write_text(bad)
    changes = [f'{key}={value}' for key, value in TINY.items() if not re.match('network_g|val:', key)]
    good = ROOT / 'options/baselines/edsr_t.yml'
    process = command(ROOT / 'scripts/run_suite.py', 'bad.yml', good, '--minutes', 0.02, '-o', 'suite', '--sets', good,
                      '--force_yml', *changes, cwd=tmp_path, check=False)
    assert process.returncode == 1 and 'edsr_t: trained in' in process.stdout and "'num_blocks'" in (
        tmp_path / 'suite/logs/bad.log').read_text()
    assert re.search(r'"iterations": \d+', (tmp_path / 'suite/logs/edsr_t.json').read_text())
    assert not list((tmp_path / 'experiments').glob('*_trial'))
