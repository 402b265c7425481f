"""Every command that README.md and docs/ show is run, from the text itself, in a tiny setting.

What costs more than seconds or needs a server is run by the test that OTHERS names, which must hold its words.
"""
import re
import shlex
import shutil

import pytest
from conftest import ROOT, TINY, command, forced, short

PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]


def commands():
    """Page and command of every line of every bash block; comments and continued lines are undone."""
    found = []
    for page in PAGES:
        for block in re.findall(r'```bash\n(.*?)```', page.read_text(encoding='utf-8'), re.S):
            for line in block.replace('\\\n', ' ').splitlines():
                for part in re.sub(r'\s#.*', '', line).split('&&'):
                    found.append((page.name, ' '.join(part.split())))
    return found


EXTRAS = re.compile(r'\[([\w,]+)\]')
SMALL_TRAINING = {**TINY, **short(1)}
SMALL_TEST = {'num_gpu': 0, 'val:sampler:steps': 1, **{f'datasets:test_{i}:gt_size': 24 for i in range(1, 6)}}
RUN = {
    # Beginning of a command -> what is changed in it, and what is added to it.
    'rdbm train -opt options/train_rdbm_universal.yml --auto_resume': ({}, forced(SMALL_TRAINING)),
    'rdbm train': ({}, forced(SMALL_TRAINING)),
    'rdbm train -opt options/train_rdbm_pairs.yml': ({}, forced({
        key: value for key, value in SMALL_TRAINING.items() if not re.match('datasets:val_[2-5]', key)})),
    'rdbm train -opt options/train_rdbm_universal_pairs.yml': (
        {}, forced({**SMALL_TRAINING, 'datasets:train:batch_size_per_gpu': 20})),
    'rdbm test': ({'path:pretrain_network_g=experiments/train_rdbm_quickstart/models/net_g_latest.pth':
                   'path:pretrain_network_g=shipped', '1,2,5,10,20': '1,2'},
                  forced(SMALL_TEST)),
    'rdbm doctor -opt options': ({}, []),
    'rdbm doctor -opt FILE': ({'FILE': 'options/train_rdbm_quickstart.yml'}, []),
    'rdbm doctor --codebase FOLDER': ({'FOLDER': 'theirs'}, []),
    'python scripts/study/plot_bridge.py': ({}, []),
    'python scripts/study/run_suite.py options/suites/family.yml --rows family_vp --write': ({}, []),
    'rdbm data list': ({}, []),
    'rdbm restore': ({'FOLDER': 'photos'}, ['--steps', '1', '--device', 'cpu']),
    'python scripts/data_preparation/prepare_universal.py': (
        {'/path/to/photos': 'photos'}, ['--out', 'made', '--crop-size', '64']),
    'python scripts/data_preparation/create_lmdb.py': (
        {'datasets/Rain13K/train/target': 'photos', 'datasets/Rain13K/train/gt.lmdb': 'photos.lmdb'}, []),
    'python scripts/model_conversion/convert_weights.py experiments': (
        {'experiments/NAME/models/net_g_latest.pth': 'rdbm_plugin/inference/weights/rdbm_t.pth'}, []),
    'python scripts/model_conversion/convert_weights.py': ({}, []),
}
OTHERS = {
    'python3 scripts/run_tests.py': ('.ci/run', 'scripts/run_tests.py'),
    'python3 scripts/quickstart.py': ('tests/scripts/test_scripts.py', 'from quickstart import training'),
    'rdbm data fetch': ('tests/data/test_fetching.py', "'data', 'fetch', 'bsds500', '--from'"),
    'zensical build': ('tests/docs/test_site.py', "'zensical', 'build', '--strict'"),
    'rdbm test -opt options/train_rdbm_pairs.yml': ('tests/commands/test_testing.py', 'train_rdbm_pairs.yml'),
    'rdbm demo': ('tests/conftest.py', "'demo', '--no-browser'"),
    'rdbm compare': ('tests/evaluation/test_compare.py', "'rdbm_plugin', 'compare'"),
    'python scripts/study/study.py': ('tests/scripts/test_study.py', "'scripts/study/study.py', 'photos'"),
    'python scripts/study/run_suite.py': ('tests/scripts/test_suites.py', "'scripts/study/run_suite.py'"),
    'python scripts/model_conversion/export_network.py': ('tests/scripts/test_export.py', 'export_network'),
    'python scripts/examples/example_onnx.py': ('tests/scripts/test_export.py', 'example_onnx.py'),
    'python scripts/study/benchmark.py': ('tests/scripts/test_scripts.py', "'scripts/study/benchmark.py'"),
    'python scripts/study/check_gpu.py': ('tests/scripts/test_scripts.py', "'scripts/study/check_gpu.py', '--dry'"),
    'python scripts/study/score_weights.py': ('tests/scripts/test_scripts.py', 'scripts/study/score_weights.py'),
    'python basicsr/train.py': ('tests/basicsr_host/test_basicsr_checkout.py', "'basicsr/train.py', '-opt'"),
    'python -m rdbm_plugin.mmengine': ('tests/mmengine/test_mmengine.py', 'rdbm_plugin.mmengine'),
    'torchrun --nproc_per_node=2 -m rdbm_plugin.mmengine': ('tests/mmengine/test_mmengine.py', 'two_ranks'),
    'torchrun --nproc_per_node=2 -m rdbm_plugin train': ('tests/models/test_distributed.py', "'--launcher', 'pytorch'"),
    'torchrun --nproc_per_node=2 basicsr/train.py': ('tests/models/test_distributed.py', 'torch.distributed.run'),
    'torchrun --nnodes=2': ('tests/models/test_distributed.py', 'torch.distributed.run'),
}


def rule(line):
    """The longest beginning that RUN or OTHERS has of a command."""
    return max((each for each in (*RUN, *OTHERS) if line.startswith(each)), key=len, default=None)


LINES = sorted({line for _, line in commands()})


@pytest.fixture(scope='module')
def folder(prepared, tmp_path_factory):
    """A clone in which the commands run: our files, prepared data, a few photos, somebody's code base."""
    folder = tmp_path_factory.mktemp('clone')
    for name in ('options', 'scripts', 'docs', 'rdbm_plugin'):
        (folder / name).symlink_to(ROOT / name)
    (folder / 'datasets').symlink_to(prepared / 'datasets')
    (folder / 'photos').mkdir()
    for name in ('dark.jpg', 'rainy.jpg'):
        shutil.copy(ROOT / 'docs/samples' / name, folder / 'photos')
    (folder / 'theirs').mkdir()
    (folder / 'theirs/train.py').write_text('import basicsr\n')
    return folder


@pytest.mark.parametrize('line', [line for line in LINES if rule(line) in RUN])
def test_command_runs(line, folder):
    changes, added = RUN[rule(line)]
    words = [changes.get(word, word) for word in shlex.split(line)]
    # Of two --force_yml the first would be lost.
    added = [word for word in added if word != '--force_yml' or word not in words]
    words = ['-m', 'rdbm_plugin', *words[1:]] if words[0] == 'rdbm' else words[1:]
    if 'rdbm.safetensors ' in line and not (folder / 'rdbm.safetensors').exists():
        command('scripts/model_conversion/convert_weights.py', ROOT / 'rdbm_plugin/inference/weights/rdbm_t.pth',
                'rdbm.safetensors', cwd=folder)
    if line.endswith('rdbm.safetensors'):
        (folder / 'rdbm.safetensors').unlink(missing_ok=True)
    # BasicSR names what it moves aside by the second, which may be the same for two short runs.
    for aside in folder.glob('experiments/*_archived_*'):
        shutil.rmtree(aside)
    command(*words, *added, cwd=folder)


def test_every_command_has_a_rule():
    left = [line for line in LINES if not line.startswith('pip install') and rule(line) is None]
    assert left == []
    for file, words in OTHERS.values():
        assert words in (ROOT / file).read_text(encoding='utf-8'), (file, words)


def test_extras_that_are_installed_exist():
    setup = (ROOT / 'setup.py').read_text(encoding='utf-8')
    named = {extra for line in LINES if line.startswith('pip install') for each in EXTRAS.findall(line)
             for extra in each.split(',')}
    assert named and all(f"'{extra}':" in setup for extra in named)
