"""The shipped option files, and the checks that options go through."""
import re

import pytest
import yaml
from conftest import ROOT

import rdbm_plugin.basicsr_host  # noqa: F401  lets BasicSR 1.4.2 be imported
from rdbm_plugin.config.options import OptionError, check_int, check_number

FILES = sorted((ROOT / 'options').glob('*.yml'))


@pytest.mark.parametrize('file', FILES, ids=lambda file: file.name)
def test_option_files_load_the_plugin_and_pass_every_check(file, prepared, monkeypatch):
    monkeypatch.chdir(prepared)
    from basicsr.utils.options import ordered_yaml

    import rdbm_plugin
    from rdbm_plugin.commands.preflight import check_options
    opt = yaml.load(file.read_text(encoding='utf-8'), ordered_yaml()[0])
    assert opt['plugin'] == rdbm_plugin.__version__
    opt['is_train'] = file.name.startswith('train')
    if not opt['is_train']:
        opt['path']['pretrain_network_g'] = None
    for phase, dataset in opt['datasets'].items():
        dataset['phase'] = phase.split('_')[0]
    check_options(opt)


@pytest.mark.parametrize('file', FILES, ids=lambda file: file.name)
def test_floats_in_exponent_form_carry_their_tag(file):
    """YAML 1.1 reads 1e-4 as text."""
    assert not re.search(r'(?<!float )\b\d+e-?\d', re.sub('#.*', '', file.read_text(encoding='utf-8')))


@pytest.mark.parametrize('name', ['train_rdbm_universal', 'train_rdbm_universal_pairs'])
def test_universal_files_are_the_papers_set_up(name):
    text = (ROOT / f'options/{name}.yml').read_text(encoding='utf-8')
    for line in ('variant: L', 'gt_size: 256', 'batch_size_per_gpu: 20', 'type: Muon ', 'lr: 0.0005',
                 'total_iter: 500000', 'schedule: cosine', 'stationary_variance: 10/255', 'steps: 10'):
        assert line in text
    assert 'tasks: [derain, lowlight, desnow, dehaze, deblur]' in text or text.count('quota: 4') == 5


def test_the_papers_file_has_its_optimizer():
    text = (ROOT / 'options/train_rdbm_universal_paper.yml').read_text(encoding='utf-8')
    assert 'type: Adam ' in text and 'lr: !!float 1e-4' in text and 'weight_decay: 0\n' in text


def test_universal_files_differ_in_name_and_data_alone():
    texts = [(ROOT / f'options/train_rdbm_universal{part}.yml').read_text(encoding='utf-8') for part in ('', '_pairs')]
    without = [re.sub(r'(?s)\A.*?# Numbers|\nname: \S+ *|\ndatasets:.*?\n# Network', '', text) for text in texts]
    assert without[0] == without[1]


@pytest.mark.parametrize(('value', 'number'), [
    (3, 3.0), ('3', 3.0), ('1e-4', 1e-4), ('10/255', 10 / 255), (' 1 / 3 ', 1 / 3)])
def test_numbers_may_be_written_as_text(value, number):
    assert check_number('key', value) == number


@pytest.mark.parametrize('value', [True, None, 'x', '', [1], float('nan'), float('inf'), '1/0', 'inf'])
def test_what_is_not_a_finite_number_is_refused(value):
    with pytest.raises(OptionError, match='key: found'):
        check_number('key', value)


@pytest.mark.parametrize('value', [True, 1.0, '1', None, -1])
def test_what_is_not_a_whole_number_is_refused(value):
    with pytest.raises(OptionError, match='key: found'):
        check_int('key', value, 0)
