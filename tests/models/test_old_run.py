"""A run of version 0.1, broken off after 4 of 8 iterations, goes on as it would have then."""
import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import command, forced
from rounding import of_sums

from rdbm_plugin.archs.checkpoint import SELF_CONTAINED

OLD = Path(__file__).with_name('run_of_0_1')
CHANGES = {'num_gpu': 0, 'datasets:train:gt_size': 16, 'datasets:train:batch_size_per_gpu': 7,
           'datasets:train:num_worker_per_gpu': 0, 'datasets:val_1:gt_size': 24, 'val:sampler:steps': 2,
           'train:total_iter': 8, 'train:scheduler:periods': '[8]', 'val:val_freq': 4, 'train:amp': 'none',
           'logger:save_checkpoint_freq': 4, 'logger:print_freq': 1, 'logger:use_tb_logger': 'false',
           'train:node_t_share': 1}
"""All samples at node T: how nodes are drawn is another since."""
LOSSES = (1.0285e-01, 1.3316e-01, 1.1876e-01, 1.1256e-01)
"""Of iterations 5 to 8, as version 0.1 printed them when it went on from the same state."""


def test_network_and_state_of_version_0_1_are_gone_on_with(tmp_path):
    run = tmp_path / 'experiments/run_of_0.1'
    for source, folder in (('net_g_4.pth', 'models'), ('4.state', 'training_states')):
        (run / folder).mkdir(parents=True)
        shutil.copy(OLD / source, run / folder)
    output = command('-m', 'rdbm_plugin', 'train', '-opt', OLD / 'run.yml', '--auto_resume', *forced(CHANGES),
                     cwd=tmp_path).stdout
    assert 'Resuming training from epoch: 0, iter: 4.' in output
    assert re.findall('Resumed with a changed option: (.*)', output) == ['train: node_t_share: 0.6 -> 1']
    # Five digits are printed.
    assert [float(x) for x in re.findall(r'l_pix: (\S+)', output)] == pytest.approx(LOSSES, rel=2e-4)
    found, expected = (torch.load(path, weights_only=True) for path in (
        run / 'models/net_g_latest.pth', OLD / 'expected_8.pth'))
    assert found.keys() - {SELF_CONTAINED} == expected.keys() == {'params', 'params_ema'}
    for key, weights in expected.items():
        for name, value in weights.items():
            # Four steps of Adam at a rate of 1e-3 lead at most 4e-3 away, and follow a gradient to as large a share as
            # that is rounded: of_sums(7 * 16 * 16) for what is added up over the batch, and ten times that where it
            # cancels to a tenth.
            assert (found[key][name] - value).abs().max() < 4e-3 * 10 * of_sums(7 * 16 * 16), (key, name)
