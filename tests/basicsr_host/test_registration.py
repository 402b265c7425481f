"""Registries, import orders, and what an import may cost."""
import pytest
from conftest import ROOT, command

NAMES = ['MODEL RDBMModel', 'ARCH RDBMUNet', 'LOSS ResidualModulatedLoss', 'DATASET SyntheticUniversalDataset',
         'SAMPLER BridgeSampler', 'BRIDGE ResidualBridge']
CHECK = f"""
from basicsr.utils import registry
from basicsr.utils.registry import SAMPLER_REGISTRY, BRIDGE_REGISTRY
for registry_name, name in (pair.split() for pair in {NAMES!r}):
    assert getattr(registry, registry_name + '_REGISTRY').get(name).__name__ == name
"""
ORDERS = {
    'plugin first': 'import rdbm_plugin.registration',
    'BasicSR first': 'import rdbm_plugin.basicsr_host.compat as c; assert c; import basicsr; '
                     'import rdbm_plugin.registration',
    'twice': 'import rdbm_plugin.registration, importlib; importlib.reload(rdbm_plugin.registration)',
    'forgotten and again': 'import sys, rdbm_plugin.registration; del sys.modules["rdbm_plugin.registration"]; '
                           'import rdbm_plugin.registration',
    'a module of ours first': 'import rdbm_plugin.archs.rdbm_unet_arch, rdbm_plugin.samplers; '
                              'import rdbm_plugin.registration',
    'the model first': 'import rdbm_plugin.basicsr_host.compat as c; assert c; '
                       'import rdbm_plugin.models.rdbm_model; import rdbm_plugin.registration',
    'our command first': 'import rdbm_plugin.__main__, rdbm_plugin.registration',
}


@pytest.mark.parametrize('order', ORDERS)
def test_everything_is_registered_in_every_import_order(order, tmp_path):
    # torchvision 0.16 warns of what it is about to remove.
    process = command('-W', 'ignore', '-c', ORDERS[order] + '\n' + CHECK, cwd=tmp_path)
    assert process.stdout == '', 'importing prints nothing'
    assert list(tmp_path.iterdir()) == [], 'importing writes nothing'


def test_a_second_plugin_with_registries_of_its_own_does_not_clash(tmp_path):
    code = """
import rdbm_plugin.basicsr_host.compat as c; assert c
from basicsr.utils import registry
registry.SAMPLER_REGISTRY = registry.Registry('sampler')
@registry.SAMPLER_REGISTRY.register()
class Theirs: pass
import rdbm_plugin.registration
assert 'Theirs' in registry.SAMPLER_REGISTRY and 'BridgeSampler' in registry.SAMPLER_REGISTRY
"""
    command('-c', code, cwd=tmp_path)


def test_pure_layers_work_without_basicsr(tmp_path):
    code = """
import sys
class NoBasicSR:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] == 'basicsr':
            raise ImportError('BasicSR is not here')
sys.meta_path.insert(0, NoBasicSR())
import torch
from rdbm_plugin import BridgeSampler, RDBMUNet, ResidualModulatedLoss, build_bridge
import rdbm_plugin.data.synthetic_universal_dataset
bridge = build_bridge()
sampler = BridgeSampler(bridge, steps=10)
restored = sampler(RDBMUNet('T').eval(), torch.rand(1, 3, 37, 53) * 2 - 1).x0
assert restored.shape == (1, 3, 37, 53)
"""
    command('-c', code, cwd=tmp_path)


def test_package_names_are_real():
    import rdbm_plugin
    for name in rdbm_plugin.__all__:
        assert getattr(rdbm_plugin, name)
    with pytest.raises(AttributeError, match='no attribute'):
        _ = rdbm_plugin.RDBMNet


def test_no_folder_named_basicsr():
    assert not (ROOT / 'basicsr').exists()
