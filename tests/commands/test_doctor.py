"""rdbm doctor finds each fault, names it, and has nothing to say about what is sound."""
import json
import re
import shutil
import sys

import cv2
import numpy as np
import pytest
import yaml
from conftest import ROOT, command

PLUGIN = 'plugin: !!python/name:rdbm_plugin.registration.__version__\n'


@pytest.fixture
def sound(tmp_path):
    """An option file of one task with four training pairs and two of validation."""
    rng = np.random.default_rng(0)
    for part, count in (('train', 4), ('val', 2)):
        for side in ('gt', 'lq'):
            (tmp_path / part / side).mkdir(parents=True)
            for number in range(count):
                image = rng.integers(0, 256, (40, 40, 3), np.uint8)
                cv2.imwrite(str(tmp_path / part / side / f'{number}.png'), image)
    tasks = {part: {'derain': {'dataroot_gt': f'{part}/gt', 'dataroot_lq': f'{part}/lq'}} for part in ('train', 'val')}
    return {
        'name': 'sound', 'model_type': 'RDBMModel', 'scale': 1, 'num_gpu': 0, 'manual_seed': 0,
        'bridge': {'type': 'ResidualBridge'}, 'network_g': {'type': 'RDBMUNet', 'variant': 'T'},
        'path': {'pretrain_network_g': None},
        'datasets': {
            'train': {'name': 'pairs', 'type': 'UniversalPairedDataset', 'tasks': tasks['train'], 'gt_size': 32,
                      'num_worker_per_gpu': 1, 'batch_size_per_gpu': 2, 'dataset_enlarge_ratio': 1},
            'val': {'name': 'derain', 'type': 'UniversalPairedDataset', 'tasks': tasks['val']}},
        'train': {'optim_g': {'type': 'Adam', 'lr': 0.001}, 'total_iter': 10, 'warmup_iter': -1,
                  'scheduler': {'type': 'MultiStepLR', 'milestones': [10]},
                  'pixel_opt': {'type': 'ResidualModulatedLoss'}},
        'val': {'val_freq': 5, 'save_img': False, 'metrics': {'psnr': {'type': 'calculate_psnr', 'crop_border': 0}}},
        'logger': {'print_freq': 1, 'save_checkpoint_freq': 5, 'use_tb_logger': False}}


@pytest.fixture
def doctor(tmp_path, monkeypatch, capsys):
    """Runs rdbm doctor on options and returns its status and its findings."""
    from rdbm_plugin.__main__ import main

    def run(options, *arguments, plugin=PLUGIN):
        (tmp_path / 'x.yml').write_text(plugin + yaml.safe_dump(options, sort_keys=False), encoding='utf-8')
        before = sorted(tmp_path.rglob('*'))
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, 'argv', ['rdbm', 'doctor', '-opt', 'x.yml', '--json', *arguments])
        status = main()
        assert sorted(tmp_path.rglob('*')) == before, 'the doctor writes nothing'
        found = json.loads(capsys.readouterr().out)
        assert found['ok'] == (status == 0)
        return status, [f'{f["level"]} {f["where"]}: {f["message"]}' for f in found['findings']]
    return run


def test_sound_file_passes(sound, doctor):
    status, findings = doctor(sound)
    assert status == 0
    told = [line for line in findings if line.startswith(('error', 'warning', 'note'))]
    assert not [line for line in told if not line.startswith('note codebase')], told
    assert any('datasets: train: derain: 4 pairs checked' in line for line in findings)
    assert any('datasets: val: derain: 2 pairs checked' in line for line in findings)


def image(name, picture):
    def fault(root, options):
        cv2.imwrite(str(root / name), picture)
    return fault


def write(name, content):
    def fault(root, options):
        (root / name).write_bytes(content)
    return fault


def option(path, value):
    def fault(root, options):
        *parents, last = path.split(':')
        for key in parents:
            options = options[key]
        if value is None:
            del options[last]
        else:
            options[last] = value
    return fault


def copy(source, target):
    def fault(root, options):
        shutil.copy(root / source, root / target)
    return fault


def reencode(source, target):
    """The same pixels in another file."""
    def fault(root, options):
        cv2.imwrite(str(root / target), cv2.imread(str(root / source)), [cv2.IMWRITE_PNG_COMPRESSION, 9])
    return fault


def cut(name):
    def fault(root, options):
        path = root / name
        path.write_bytes(path.read_bytes()[:900])
    return fault


NOISE = np.random.default_rng(1).integers(0, 256, (40, 40, 3), np.uint8)
ERRORS = {
    'missing folder': (option('datasets:train:tasks:derain:dataroot_gt', 'nowhere'),
                       ['datasets: pairs: tasks: derain: dataroot_gt', 'nowhere']),
    'not an LMDB': (option('datasets:train:tasks:derain:io_backend', {'type': 'lmdb'}), ['data.mdb is missing']),
    'unpaired': (image('train/lq/9.png', NOISE), ['train: derain', '1 degraded images have no clean', '9.png']),
    'size': (image('train/lq/2.png', NOISE[:36]), ['1 pairs of unequal size', 'lq/2.png 40x36 against 40x40']),
    'torn': (cut('train/gt/1.png'), ['1 of 8 images cannot be used', 'train/gt/1.png', 'is truncated']),
    'no image': (write('val/gt/1.png', b'text'), ['datasets: val: derain', 'val/gt/1.png']),
    'overlap': (reencode('train/gt/3.png', 'val/gt/0.png'), ['1 images are in training and in validation',
                                                             'val/gt/0.png = train/gt/3.png']),
    'patch': (option('datasets:train:gt_size', 48), ['8 images are smaller than gt_size 48', '0.png 40x40']),
    'patch as text': (option('datasets:train:gt_size', 'abc'), ["gt_size: found 'abc'"]),
    'no rate': (option('train:optim_g:lr', 0), ['train: optim_g: lr: found 0', '> 0']),
    'negative rate': (option('train:optim_g:lr', -1e-4), ['train: optim_g: lr: found -0.0001']),
    'decay': (option('train:optim_g:weight_decay', -1), ['train: optim_g: weight_decay: found -1']),
    'betas': (option('train:optim_g:betas', [0.9, 1.0]), ['train: optim_g: betas: found [0.9, 1.0]', '< 1']),
    'betas of Muon': (option('train:optim_g', {'type': 'Muon', 'lr': 1e-3, 'betas': [0.9, 1.0]}),
                      ['betas: found', '< 1']),
    'periods': (option('train:scheduler', {'type': 'CosineAnnealingRestartLR', 'periods': [0]}),
                ['train: scheduler: periods: found [0]', 'at least 1']),
    'lowest rate': (option('train:scheduler', {'type': 'CosineAnnealingRestartLR', 'periods': [10], 'eta_min': -1}),
                    ['train: scheduler: eta_min: found -1']),
    'GPUs': (option('num_gpu', 2), ['num_gpu: found 2', 'sees 0 GPUs', 'num_gpu: 0']),
    'crops of clean images': (option('datasets:train', {
        'name': 'p', 'type': 'SyntheticUniversalDataset', 'dataroot_gt': 'train/gt', 'gt_size': 2000,
        'batch_size_per_gpu': 5, 'num_worker_per_gpu': 0}),
        ['gt_size: found 2000, more than twice the shorter side of 4 of 4 images', '0.png 40x40', '458 MiB']),
    'rate as text': (option('train:optim_g:lr', '1e-4'), ["lr: found the text '1e-4'", '!!float']),
    'quota': (option('datasets:train:tasks:derain:quota', 3), ['batch_size_per_gpu: found 2', '3 sum to 3']),
    'misspelt block key': (option('train:ema_deacy', 0.9), ["train: key 'ema_deacy'", "Did you mean 'ema_decay'?"]),
    'misspelt top key': (option('manual_sed', 0), ["key 'manual_sed'", "Did you mean 'manual_seed'?"]),
    'misplaced block': (option('train:val', {'val_freq': 5}), ["train: key 'val'", 'indentation']),
    'bridge key': (option('bridge:modulatoin', 'one'), ["unknown key 'modulatoin'", "Did you mean 'modulation'?"]),
    'network': (option('network_g:variant', 'XL'), ["network_g: variant: found 'XL'"]),
    'loss': (option('train:pixel_opt:type', 'L3Loss'), ["pixel_opt: type: found 'L3Loss'"]),
    'metric': (option('val:metrics:psnr:type', 'psnr'), ["val: metrics: psnr: type: found 'psnr'"]),
    'checkpoint': (option('path:pretrain_network_g', 'none.pth'), ['none.pth']),
    'cpu prefetch': (option('datasets:train', {
        'name': 'p', 'type': 'SyntheticUniversalDataset', 'dataroot_gt': 'train/gt', 'gt_size': 8,
        'num_worker_per_gpu': 0, 'prefetch_mode': 'cpu', 'batch_size_per_gpu': 5}),
                     ['prefetch_mode: found cpu', 'at least one worker']),
    'no val block': (option('val', None), ['val: missing or empty', 'validation sets']),
}


@pytest.mark.parametrize('case', ERRORS)
def test_each_fault_is_an_error_that_names_it(case, sound, doctor, tmp_path):
    fault, words = ERRORS[case]
    fault(tmp_path, sound)
    status, findings = doctor(sound)
    errors = [line for line in findings if line.startswith('error')]
    assert status == 1
    assert any(all(word in line for word in words) for line in errors), errors


WARNINGS = {
    'gray': (image('train/gt/0.png', NOISE[..., 0]), ['warning', '1 gray images', 'train/gt/0.png']),
    'alpha': (image('train/gt/0.png', np.dstack([NOISE, NOISE[..., :1]])), ['warning', '1 alpha images']),
    '16-bit': (image('train/lq/0.png', NOISE.astype(np.uint16) * 257), ['warning', '1 16-bit images']),
    'clean without degraded': (image('train/gt/9.png', NOISE), ['note', '1 clean images have no degraded', '9.png']),
    'unknown key': (option('colour', 1), ['warning', "key 'colour'"]),
}


@pytest.mark.parametrize('case', WARNINGS)
def test_what_may_be_meant_is_named_but_no_error(case, sound, doctor, tmp_path):
    fault, words = WARNINGS[case]
    fault(tmp_path, sound)
    status, findings = doctor(sound)
    assert status == 0, findings
    assert any(all(word in line for word in words) for line in findings), findings


def test_all_faults_are_listed_at_once(sound, doctor, tmp_path):
    for case in ('size', 'unpaired', 'misspelt block key', 'network', 'metric'):
        ERRORS[case][0](tmp_path, sound)
    assert len([line for line in doctor(sound)[1] if line.startswith('error')]) >= 5


def test_missing_plugin_line_is_an_error(sound, doctor):
    status, findings = doctor(sound, plugin='')
    assert status == 1 and any('the line "plugin: !!python/name:rdbm_plugin' in line for line in findings)


def test_skipping_the_images_is_quick_and_finds_the_rest(sound, doctor, tmp_path):
    cut('train/gt/1.png')(tmp_path, sound)
    assert doctor(sound, '--no-images')[0] == 0
    assert doctor(sound)[0] == 1


def test_changes_by_command_line_are_examined(sound, doctor):
    assert doctor(sound, '--force_yml', 'datasets:train:gt_size=48')[0] == 1


def test_basicsrs_own_paired_data_are_examined(sound, doctor, tmp_path):
    sound['datasets']['val'] = {'name': 'derain', 'type': 'PairedImageDataset', 'dataroot_gt': 'val/gt',
                                'dataroot_lq': 'val/lq', 'io_backend': {'type': 'disk'}}
    assert doctor(sound)[0] == 0
    cut('val/lq/1.png')(tmp_path, sound)
    status, findings = doctor(sound)
    assert status == 1 and any('val/lq/1.png' in line and 'truncated' in line for line in findings)


def test_clean_images_of_synthetic_data_are_examined(sound, doctor, tmp_path):
    sound['datasets']['train'] = {
        'name': 'p', 'type': 'SyntheticUniversalDataset', 'dataroot_gt': 'train/gt + dead_leaves:2', 'gt_size': 48,
        'num_worker_per_gpu': 1, 'batch_size_per_gpu': 5}
    status, findings = doctor(sound)
    assert status == 0
    assert any('6 clean images, 4 files checked' in line for line in findings)
    assert any(line.startswith('warning') and '4 images are smaller than gt_size 48 and will be enlarged' in line
               for line in findings)
    reencode('train/gt/3.png', 'val/gt/0.png')(tmp_path, sound)
    cut('train/gt/1.png')(tmp_path, sound)
    errors = [line for line in doctor(sound)[1] if line.startswith('error')]
    assert len(errors) == 2 and 'is truncated' in errors[0] and 'in training and in validation' in errors[1]


def test_second_basicsr_on_the_path_is_named(sound, doctor, tmp_path):
    (tmp_path / 'basicsr').mkdir()
    status, findings = doctor(sound)
    assert status == 0
    assert any('2 folders named basicsr' in line and str(tmp_path / 'basicsr') in line for line in findings), findings


def test_torch_that_does_not_match_torchvision_is_named(monkeypatch):
    from rdbm_plugin.commands import doctor as module
    found = {'python': '3.11', 'torch': '2.9.0+cpu', 'torchvision': '0.23.0', 'basicsr': '1.4.2'}
    monkeypatch.setattr(module, 'versions', lambda: found)
    monkeypatch.setattr(module, 'requires', lambda name: ['numpy', 'torch (==2.8.0)', 'pillow>=5'])
    assert not any(f.level == 'error' for f in module.check_installation()), 'another form of requirement'
    monkeypatch.setattr(module, 'requires', lambda name: ['numpy', 'torch==2.8.0', 'pillow>=5'])
    errors = [f.message for f in module.check_installation() if f.level == 'error']
    assert len(errors) == 1 and 'torchvision 0.23.0 needs torch==2.8.0, found torch 2.9.0+cpu' in errors[0]


@pytest.mark.parametrize('name', ['train_rdbm_quickstart', 'train_rdbm_universal', 'train_rdbm_universal_pairs',
                                  'train_rdbm_pairs'])
def test_shipped_files_pass(name, prepared):
    process = command('-m', 'rdbm_plugin', 'doctor', '-opt', ROOT / f'options/{name}.yml', '--force_yml',
                      'num_gpu=0', cwd=prepared)
    assert process.stdout.strip().splitlines()[-1].endswith('0 errors, 0 warnings'), process.stdout


def test_report_for_people_lists_errors_last(sound, tmp_path):
    option('train:ema_deacy', 0.9)(tmp_path, sound)
    (tmp_path / 'x.yml').write_text(PLUGIN + yaml.safe_dump(sound, sort_keys=False), encoding='utf-8')
    process = command('-m', 'rdbm_plugin', 'doctor', '-opt', 'x.yml', cwd=tmp_path, check=False)
    assert process.returncode == 1
    *_, error, summary = process.stdout.strip().splitlines()
    assert error.startswith("error    options: train: key 'ema_deacy'") and summary == 'x.yml: 1 errors, 0 warnings'


@pytest.mark.parametrize('kind', ['UniversalPairedDataset', 'PairedImageDataset'])
def test_pace_of_loader_and_step_are_told(kind, sound, tmp_path):
    train = sound['datasets']['train']
    if kind == 'PairedImageDataset':
        del train['tasks']
        train.update(type=kind, dataroot_gt='train/gt', dataroot_lq='train/lq', io_backend={'type': 'disk'},
                     use_hflip=True, use_rot=True)
    (tmp_path / 'sound.yml').write_text(PLUGIN + yaml.safe_dump(sound))
    words = ['-m', 'rdbm_plugin', 'doctor', '-opt', 'sound.yml', '--pace', '--force_yml']
    output = command(*words, 'datasets:train:num_worker_per_gpu=1', cwd=tmp_path).stdout
    found = re.search(r'ok +pace: one process makes (\d+) samples a second, a batch in (\S+) ms; a step on the cpu '
                      r'takes (\S+) ms: the network sets the pace', output)
    assert found, output
    assert float(found[2]) < float(found[3]) and float(found[1]) * float(found[2]) == pytest.approx(2000, rel=0.5)
    output = command(*words, 'datasets:train:num_worker_per_gpu=0', cwd=tmp_path).stdout
    assert 'the loader sets the pace; num_worker_per_gpu: found 0, 1 would do' in output


def test_lists_of_roots_are_taken_as_the_host_or_we_take_them(sound, doctor, tmp_path):
    """A host's own data set may read several folders; ours do."""
    train, val = sound['datasets']['train'], sound['datasets']['val']
    train['tasks']['derain'] = {'dataroot_gt': ['train/gt', 'val/gt'], 'dataroot_lq': ['train/lq', 'val/lq']}
    val['tasks']['derain'] = {'dataroot_gt': ['more/gt'], 'dataroot_lq': ['more/lq']}
    shutil.copytree(tmp_path / 'val', tmp_path / 'more')
    for path in (tmp_path / 'more').rglob('*.png'):
        cv2.imwrite(str(path), np.random.default_rng(len(str(path))).integers(0, 256, (40, 40, 3), np.uint8))
    status, findings = doctor(sound)
    assert status == 0 and any('datasets: train: derain: 6 pairs checked' in line for line in findings), findings
    sound['datasets']['train'] = {
        'name': 'p', 'type': 'SyntheticUniversalDataset', 'dataroot_gt': ['train/gt', 'dead_leaves:2'], 'gt_size': 16,
        'num_worker_per_gpu': 1, 'batch_size_per_gpu': 5}
    status, findings = doctor(sound)
    assert status == 0 and any('6 clean images, 4 files checked' in line for line in findings), findings
    sound['datasets']['train'] = {
        'name': 'p', 'type': 'RealESRGANDataset', 'dataroot_gt': ['train/gt', 'nowhere'], 'num_worker_per_gpu': 1,
        'batch_size_per_gpu': 2}
    errors = [line for line in doctor(sound)[1] if line.startswith('error')]
    assert len(errors) == 1 and "dataroot_gt: no such file or folder 'nowhere'" in errors[0], errors


def test_options_are_listed_in_whole_sentences_that_fit(monkeypatch, capsys):
    from rdbm_plugin.commands import options
    monkeypatch.setattr(sys, 'argv', ['rdbm options'])
    for columns in (80, 120, 200):
        monkeypatch.setenv('COLUMNS', str(columns))
        assert options.main() == 0
        listing = capsys.readouterr().out.split('\n\n')[0]
        assert max(map(len, listing.splitlines())) <= columns
        sentences = re.split(r'(?m)^(?=\S)', listing)[1:]
        assert len(sentences) == len(list(options.shipped().rglob('*.yml'))) + 2
        for sentence in sentences:
            name, *words = sentence.split()
            comment = ' '.join((options.shipped() / name).read_text(encoding='utf-8').replace('\n#', ' ').split())
            assert sentence.rstrip().endswith('.') and ' '.join(words).rstrip('.') in comment
