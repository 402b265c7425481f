"""Option files and changes to them are read as plain data, and anything at all gets an error of ours or none."""
import io
import os
import re
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from rdbm_plugin.config.option_file import make_change, parse, parse_value, read_option_file
from rdbm_plugin.config.options import OptionError
from rdbm_plugin.data.image_source import ImageError
from rdbm_plugin.data.photo_file import read_photo

QUICK = ROOT / 'options/train_rdbm_quickstart.yml'
TEXT = QUICK.read_text(encoding='utf-8')
LONG = int(os.environ.get('RDBM_FUZZ', '1'))
"""So many times as many examples as in short."""
FUZZ = settings(max_examples=500 * LONG, deadline=None, database=None, derandomize=True,
                suppress_health_check=list(HealthCheck))


@pytest.fixture(scope='module')
def check():
    """All checks that a training goes through, on text; None if they pass, else the message of our error."""
    import rdbm_plugin.registration  # noqa: F401
    from rdbm_plugin.models.option_checks import check_model

    def run(text):
        try:
            opt = parse(text)
            assert isinstance(opt, Mapping)
            check_model({**opt, 'is_train': True, 'dist': False})
        except OptionError as error:
            return str(error)
    return run


def edited(old, new):
    assert TEXT.count(old) == 1, old
    return TEXT.replace(old, new)


VAL, LOGS = TEXT.index('\nval:') + 1, TEXT.index('# Logs -')
SURPRISES = {
    'val within train': (TEXT[:VAL] + re.sub('(?m)^', '  ', TEXT[VAL:LOGS]) + TEXT[LOGS:],
                         ["train: key 'val'", 'top of the file', 'indentation']),
    'metrics at the top': (edited('  metrics:\n    psnr:', 'metrics:\n    psnr:'),
                           ["key 'metrics'", 'belongs under val']),
    'val left out': (TEXT[:TEXT.index('# Validation -')] + TEXT[TEXT.index('# Logs -'):], ['val: missing or empty']),
    'two blocks of one name': (TEXT + '\nval:\n  val_freq: 5\n', ["key 'val' appears twice", 'line']),
    'key at the top': (TEXT + '\nsave_img: true\n', ["key 'save_img'", 'belongs under val']),
    'misspelt block': (edited('\nlogger:', '\nloger:'), ["key 'loger'", "Did you mean 'logger'?"]),
    'misspelt key': (edited('  ema_decay: 0.997', '  ema_deacy: 0.997'), ["key 'ema_deacy'", "'ema_decay'"]),
    'path that would be made': (edited('  resume_state: ~', '  resume_sate: x'), ["path: key 'resume_sate'"]),
    'text for a number': (edited('  total_iter: 1500', '  total_iter: 3e3'), ["total_iter: found '3e3'"]),
    'text for a switch': (edited('  use_tb_logger: true', '  use_tb_logger: "yes"'), ["use_tb_logger: found 'yes'"]),
    'name as a number': (edited('name: train_rdbm_quickstart', 'name: 001'), ['name: found 1', 'quotes']),
    'name that climbs': (edited('name: train_rdbm_quickstart', 'name: ../../x'), ["name: found '../../x'"]),
    'schedule that ends early': (edited('  periods: [1500]', '  periods: [1000]'), ['periods: found [1000]', '1500']),
    'schedule of another type': (edited('    eta_min: !!float 1e-6', '    gamma: 0.5'), ["unknown key 'gamma'"]),
    'weights of restarts': (edited('    restart_weights: [1]', '    restart_weights: [1, 2]'), ['restart_weights']),
    'prefetch without pinning': (edited('    prefetch_mode: ~ ', '    prefetch_mode: cuda '), ['pin_memory']),
    'decay': (edited('  ema_decay: 0.997', '  ema_decay: 1.5'), ['ema_decay: found 1.5']),
    'another phase': (edited('  val_1: {', '  test_1: {'), ['datasets: test_1']),
    'seed': (edited('manual_seed: 0', 'manual_seed: -1'), ['manual_seed: found -1']),
    'program': (edited('scale: 1 ', 'scale: !!python/object/apply:os.getcwd [] #'), ['Option files may name a plugin']),
    'key that is no text': (TEXT + '\n1: 2\n', ['the key 1 is not text']),
    'block without end': ('a: &a [*a]', ['recursive']),
    'billion laughs': ('a: &a [x,x,x,x,x,x,x,x,x]\n' + ''.join(
        f'{c}: &{c} [{",".join(["*" + p] * 9)}]\n' for p, c in zip('abcdefgh', 'bcdefghi')), ['more than 100000']),
}


@pytest.mark.parametrize('case', SURPRISES)
def test_what_yaml_would_take_for_something_else_is_named(check, case):
    text, words = SURPRISES[case]
    message = check(text)
    assert message is not None
    for word in words:
        assert word in message, message


def test_unchanged_file_passes(check):
    assert check(TEXT) is None


def test_reading_gives_what_basicsr_reads():
    from basicsr.utils.options import ordered_yaml
    for file in (ROOT / 'options').rglob('*.yml'):
        text = file.read_text(encoding='utf-8')
        assert parse(text, plugins=True) == yaml.load(text, ordered_yaml()[0]), file


@pytest.mark.parametrize(('text', 'value'), [
    ('~', None), ('none', None), ('None', None), ('true', True), ('False', False), ('3', 3), ('0.5', 0.5), ('-1', -1),
    ('1e-4', 1e-4), ('!!float 1e-4', 1e-4), ('!!float 2', 2.0), ('.5', 0.5), ('10/255', '10/255'), ('abc', 'abc'),
    ('', ''), ('[1, 2]', [1, 2]), ("['a', 'b']", ['a', 'b']), ('[derain, deblur]', ['derain', 'deblur']),
    ('{a: 1}', {'a': 1}), ("'007'", '007'), ('1.2.3', '1.2.3'), ('a=b', 'a=b'), ('nan', 'nan')])
def test_values_on_the_command_line(text, value):
    found = parse_value(text)
    assert found == value and type(found) in (type(value), type(yaml.safe_load('{a: 1}')), type(parse('{a: 1}')))


@pytest.mark.parametrize('text', ['!!python/object/apply:os.getcwd []', '[1, 2', '"open', '[__import__("os")'])
def test_values_that_are_none_are_refused(text):
    with pytest.raises(OptionError):
        parse_value(text)


@pytest.mark.parametrize(('change', 'words'), [
    ('train', 'expected KEY:KEY=VALUE'), ('=3', 'expected KEY:KEY=VALUE'), ('train::x=3', 'expected KEY:KEY=VALUE'),
    ('tarin:lr=3', "has no tarin; all keys but the last must exist there. Did you mean 'train'?"),
    ('train.optim_g.lr=3', 'write colons: train:optim_g:lr=3.'),
    ('name:x=3', "name: found 'train_rdbm_quickstart'; expected a block"),
    ('train:total_iter:x=3', 'train: total_iter: found 1500; expected a block'),
    ('train:a=[1', 'not valid YAML')])
def test_changes_that_cannot_be_made_are_named(change, words):
    content = parse(TEXT)
    with pytest.raises(OptionError) as error:
        make_change(content, change)
    assert words in str(error.value) and str(error.value).startswith('--force_yml: ') and change in str(error.value)


def test_no_change_runs_a_program(tmp_path, monkeypatch):
    """With BasicSR each of these makes the file."""
    monkeypatch.chdir(tmp_path)
    content = parse(TEXT)
    for change in ('train:lr=[open("made", "w")]', 'name"]=open("made","w")#=1', '"]or open("made","w")#=[1]'):
        try:
            make_change(content, change)
        except OptionError:
            continue
    assert list(tmp_path.iterdir()) == []


def test_file_that_would_run_a_program_is_refused_and_named(tmp_path):
    file = tmp_path / 'evil.yml'
    file.write_text(TEXT + f'\nx: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path '
                           f'["{tmp_path / "made"}"]]\n')
    with pytest.raises(OptionError, match=r'evil\.yml.*Option files may name a plugin'):
        read_option_file(file)
    assert [path.name for path in tmp_path.iterdir()] == ['evil.yml']


def test_plugin_that_is_not_there_is_named(tmp_path):
    file = tmp_path / 'x.yml'
    file.write_text(TEXT.replace('rdbm_plugin.registration.__version__', 'no_such_plugin.x'))
    with pytest.raises(OptionError, match=r'line 6.*no_such_plugin.*PYTHONPATH'):
        read_option_file(file)


YAML_BITS = st.sampled_from([
    'train:', 'val:', '  ', '\n', '- ', '? ', ': ', '&a ', '*a', '<<: ', '!!float ', '!!timestamp ', '!!bool ',
    '!!int ', '!!binary ', '!!set ', '!!omap ', '!!python/name:os.system', '!!python/object/new:x ', '[', ']', '{', '}',
    '|\n', '>\n', '"', "'", '#', '%YAML 9.9\n', '---\n', '...\n', '1e999', '0x', '0b2', '1:60', '2020-99-99', '~', '=',
    '.inf', '\t', '\x00', '\ufeff', '\ud7ff', '🜏', 'scale', 'name', '[' * 50])


@FUZZ
@given(st.one_of(st.binary(max_size=200), st.text(max_size=200), st.lists(YAML_BITS, max_size=25).map(''.join)))
def test_fuzzing_the_reader(content):
    with suppress(OptionError):
        parse(content)


LINES = TEXT.splitlines(keepends=True)


@settings(FUZZ, max_examples=100 * LONG)
@given(st.data())
def test_fuzzing_the_checks(check, data):
    """The quickstart file with some lines cut, doubled, indented otherwise or given another value."""
    lines = list(LINES)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(6, len(lines) - 1))
        how = data.draw(st.integers(0, 4))
        key = lines[place].split(':')[0]
        value = data.draw(st.one_of(YAML_BITS, st.text(max_size=12), st.integers().map(str), st.floats().map(str)))
        lines[place] = {0: '', 1: lines[place] * 2, 2: ' ' * data.draw(st.integers(0, 6)) + lines[place].lstrip(),
                        3: f'{key}: {value}\n', 4: f'{key}{value}: 1\n'}[how]
    check(''.join(lines))


@FUZZ
@given(st.text(max_size=60) | st.builds('{}={}'.format, st.sampled_from(['train:ema_decay', 'name', 'val:metrics']),
                                        st.text(max_size=30) | st.lists(YAML_BITS, max_size=6).map(''.join)))
def test_fuzzing_changes(change):
    with suppress(OptionError):
        make_change({'name': 'x', 'train': {'ema_decay': 1}, 'val': {'metrics': {}}}, change)


def encoded():
    """One small picture in every format that rdbm restore reads."""
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    found = []
    for suffix, kind in (('.png', 'PNG'), ('.jpg', 'JPEG'), ('.webp', 'WEBP'), ('.tif', 'TIFF'), ('.bmp', 'BMP')):
        out = io.BytesIO()
        Image.fromarray(image).save(out, kind)
        found.append((suffix, out.getvalue()))
    found.append(('.png', cv2.imencode('.png', image.astype(np.uint16) * 257)[1].tobytes()))
    return found


@FUZZ
@given(st.data())
def test_fuzzing_the_image_reader(data):
    """Files with some bytes changed, cut out, put in, or cut off."""
    suffix, content = data.draw(st.sampled_from(encoded()))
    damaged = bytearray(content)
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(damaged) - 1)) if damaged else 0
        how = data.draw(st.integers(0, 3))
        damaged[place:place + (how < 2)] = {0: b'', 2: b''}.get(how, data.draw(st.binary(min_size=1, max_size=4)))
        if how == 2:
            del damaged[place:]
    path = Path(FOLDER, f'x{suffix}')
    path.write_bytes(damaged)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            photo = read_photo(path, 1.0)
            assert photo.rgb.ndim == 3 and photo.rgb.shape[2] == 3
        except ImageError as error:
            assert path.name in str(error)


@pytest.fixture(autouse=True, scope='module')
def _folder(tmp_path_factory):
    global FOLDER
    FOLDER = tmp_path_factory.mktemp('images')
