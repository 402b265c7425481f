"""The bridge against numbers that the file of the method's authors computes: MiliLab/RDBM, code/rdbm.py at ddc8ef9.

That file has pi = 1, lambda 1e-4, cosine rates, 100 nodes and x0 as what the network predicts. Its network was replaced
by tanh(0.7 x_t - 0.2 mu + t / 100); images are five pixels of linspace(0, 1, 60), clean ones the same in reverse.
"""
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from conftest import ROOT, row_file

from rdbm_plugin import BridgeSampler, build_bridge
from rdbm_plugin.config.option_file import read_option_file

BRIDGE = {'modulation': 'one', 'schedule': 'cosine', 'stationary_variance': 1e-4, 'prediction': 'x0'}
PIXELS = torch.tensor([0, 13, 29, 46, 59])
COEFFICIENTS = {  # node: weight of the residual, scale of the noise
    1: (0.9993689060211182, 0.00035521353129297495), 10: (0.9721413254737854, 0.0023439580108970404),
    25: (0.8476216793060303, 0.00530601292848587), 50: (0.4972292184829712, 0.008676187135279179),
    75: (0.1499270498752594, 0.009886937215924263), 90: (0.027942711487412453, 0.009995178319513798),
    99: (0.0008888133452273905, 0.009297274053096771), 100: (0.0, 0.0)}
STATES = {  # node: x_t in [-1, 1] with eps = linspace(-2, 2, 60)
    1: (0.9980274, 0.5582187, 0.0169157, -0.5582187, -0.9980274),
    10: (0.9395947, 0.525536, 0.0159254, -0.525536, -0.9395947),
    50: (-0.0228939, -0.0128051, -0.000388, 0.0128051, 0.0228939),
    90: (-0.964105, -0.5392451, -0.0163408, 0.5392451, 0.964105)}
RESTORED = {  # evaluations: restored image in [0, 1]
    1: (0.7310586, 0.8085597, 0.879006, 0.9281973, 0.9525741),
    2: (0.7345458, 0.7789612, 0.8209089, 0.8539745, 0.8736883),
    5: (0.7747774, 0.7747084, 0.7690024, 0.7570606, 0.7445374),
    10: (0.7800235, 0.759218, 0.7277755, 0.6871337, 0.6512664),
    20: (0.7763517, 0.7417265, 0.6906723, 0.6258531, 0.5696156),
    50: (0.7691801, 0.7221513, 0.651328, 0.5607254, 0.4836921)}


def image(first, last):
    """Five pixels of linspace(first, last, 60), (1, 1, 1, 5)."""
    return torch.linspace(first, last, 60)[PIXELS].view(1, 1, 1, 5)


def test_coefficients_and_states_agree():
    bridge, mu, eps = build_bridge(BRIDGE), image(-1, 1), image(-2, 2)
    for node, (weight, scale) in COEFFICIENTS.items():
        assert float(bridge.mean_coef[node]) == pytest.approx(weight, abs=4e-7)
        assert float(bridge.std_coef[node]) == pytest.approx(scale, abs=4e-9)
    for node, expected in STATES.items():
        t = torch.tensor([node])
        x_t = mu + bridge.marginal(-2 * mu, bridge.modulate(-2 * mu, eps), t)
        assert x_t.flatten().tolist() == pytest.approx(expected, abs=5e-7)


@pytest.mark.parametrize('steps', RESTORED)
def test_restored_images_agree(steps):
    def network(x_t, mu, t):
        return torch.tanh(0.7 * x_t - 0.2 * mu + t.view(-1, 1, 1, 1) / 100)
    x0 = BridgeSampler(build_bridge(BRIDGE), steps=steps)(network, image(-1, 1)).x0
    assert ((x0 + 1) / 2).flatten().tolist() == pytest.approx(RESTORED[steps], abs=5e-7)


def test_the_row_that_trains_as_that_file_has_its_bridge_loss_nodes_and_states(tmp_path):
    assert_trains_as_the_file(read_option_file(row_file('published', 'train_rdbm_code', tmp_path)))


def test_rows_of_the_study_train_as_that_file_and_with_its_nodes_alone():
    study = pytest.importorskip('study')
    words = {'suite': ROOT / 'options/suites/study.yml', 'scale': 'cpu', 'photos': Path('photos'), 'seeds': [0],
             'darkness': False}
    code, nodes = (read_option_file(each.base, each.changes) for name in ('code', 'one_uniform')
                   for each in study.rows(Namespace(**words, rows=[name])))
    assert_trains_as_the_file(code)
    uniform, = study.rows(Namespace(**words, rows=['uniform']))
    uniform = read_option_file(uniform.base, [*uniform.changes, 'bridge:modulation=one', f'name={nodes["name"]}'])
    assert nodes == uniform and nodes['train']['total_iter'] == code['train']['total_iter']


def assert_trains_as_the_file(options):
    bridge, train = build_bridge(options['bridge']), options['train']
    assert torch.equal(bridge.std_coef, build_bridge(BRIDGE).std_coef)
    assert (bridge.modulation, bridge.prediction) == ('one', 'x0')
    pytest.importorskip('rdbm_plugin.models.option_checks').check_training(train, bridge)
    assert train['pixel_opt']['measure'] == 'x0' and train['pixel_opt'].get('criterion', 'l1') == 'l1'
    assert train['node_t_share'] is None and not train['own_start_share']
