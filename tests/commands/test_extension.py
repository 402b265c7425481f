"""A bridge and a sampler from outside the package: one registered class each, no change elsewhere."""
from conftest import ROOT, TINY, command, forced, short

EXTENSION = '''
from rdbm_plugin.bridge import ResidualBridge
from rdbm_plugin.registration import BRIDGE_REGISTRY, SAMPLER_REGISTRY
from rdbm_plugin.samplers import Sampler, SampleResult

version = 1


@BRIDGE_REGISTRY.register()
class NarrowBridge(ResidualBridge):
    """An OU bridge whose width is an option of its own."""

    def __init__(self, width=0.1, timesteps=100, prediction='residual'):
        super().__init__('one', 'linear', timesteps, width**2, prediction, total=1.0)


@SAMPLER_REGISTRY.register()
class OneJump(Sampler):
    """The estimate at node T."""

    nfe = 1

    def sample(self, mu, estimate, noise, keep_trajectory):
        z = estimate(self.first_state(mu, noise), self.bridge.timesteps)
        return SampleResult(mu + z, z, 1, [])
'''


def test_outside_bridge_and_sampler_train_through_an_option_file(tmp_path):
    (tmp_path / 'lab_extension.py').write_text(EXTENSION)
    text = (ROOT / 'options/train_rdbm_quickstart.yml').read_text(encoding='utf-8')
    text = text.replace('rdbm_plugin.registration.__version__', 'lab_extension.version')
    start, end = text.index('bridge:\n'), text.index('# Data ---')
    text = text[:start] + 'bridge: {type: NarrowBridge, width: 0.2}\n' + text[end:]
    start, end = text.index('  sampler:\n'), text.index('  metrics:\n')
    text = text[:start] + '  sampler: {type: OneJump}\n' + text[end:]
    (tmp_path / 'own.yml').write_text(text)
    changes = {**TINY, **short(2)}
    del changes['val:sampler:steps']
    process = command('-m', 'rdbm_plugin', 'train', '-opt', 'own.yml', *forced(changes), cwd=tmp_path,
                      env={'PYTHONPATH': str(tmp_path)})
    assert 'Validation, 1 network evaluations per image:' in process.stdout
    process = command('-m', 'rdbm_plugin', 'train', '-opt', 'own.yml', *forced({**changes, 'bridge:widht': 1}),
                      cwd=tmp_path, env={'PYTHONPATH': str(tmp_path)}, check=False)
    assert process.returncode == 2 and "unknown key 'widht'" in process.stdout and "'width'" in process.stdout
