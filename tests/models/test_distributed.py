"""Two real processes with gloo: they learn what one would, stop together, and none waits for one that died."""
import os
import re
import signal
import subprocess
import sys
import time
from socket import socket

import pytest
import torch
from conftest import ROOT, WARM, command, environment, forced, short, two_ranks
from rounding import UNIT, of_sums
from test_durability import RUNS, differences, file, own_model, what_remains  # noqa: F401

LAUNCH = ('-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2')
ONE_THREAD = {'OMP_NUM_THREADS': '1'}


def steps(folder, name, samples, parts, *more, ranks=1):
    run = two_ranks if ranks == 2 else command
    process = run(ROOT / 'tests/two_ranks.py', name, samples, parts, 'SGD', 'l2', *more, cwd=folder)
    return torch.load(folder / name, weights_only=True), process.stdout


@pytest.fixture(scope='module')
def one(tmp_path_factory):
    """One process with the whole batch."""
    return steps(tmp_path_factory.mktemp('one'), 'one.pt', 14, 1)[0]


@pytest.mark.parametrize(('samples', 'parts', 'ranks'), [(7, 1, 2), (7, 2, 2), (14, 4, 1)])
def test_two_halves_of_a_batch_give_the_gradients_and_weights_of_the_whole(tmp_path, one, samples, parts, ranks):
    """Noise for every pixel, clipping, own starts and weighted samples included."""
    found, _ = steps(tmp_path, 'parts.pt', samples, parts, ranks=ranks)
    largest = max(float(value.abs().max()) for value in one['gradients'].values())
    # Gradients are sums over 14 images of 32x32 pixels; three steps at a rate of 0.1 add their errors up.
    allowed = of_sums(14 * 32 * 32, largest)
    for kind, share in (('gradients', 1), ('weights', 0.3), ('average', 0.3)):
        gaps = [float((one[kind][name] - value).abs().max()) for name, value in found[kind].items()]
        assert max(gaps) <= share * allowed + 4 * UNIT, kind
    assert largest > 0.01
    assert found['losses'] == pytest.approx(one['losses'], rel=of_sums(14 * 32 * 32 * 3))


def test_step_that_is_not_finite_on_one_rank_is_taken_on_none(tmp_path):
    found, output = steps(tmp_path, 'poisoned.pt', 7, 1, 'poison', ranks=2)
    assert found['skipped'] == 1
    assert all(bool(value.isfinite().all()) for value in found['weights'].values())
    warned = re.search(r'Iteration 2: l_pix nan, .*: step skipped.*rank 0: (.*); rank 1: (.*)', output)
    assert len(warned[1].split(', ')) == len(warned[2].split(', ')) == 7, 'the images of both ranks are named'


def launched(file, changes, *extra):  # noqa: F811
    return [sys.executable, *LAUNCH, '-m', 'rdbm_plugin', 'train', '-opt', str(file), '--launcher', 'pytorch', *extra,
            *forced({**RUNS, **changes})]


def test_two_ranks_stop_together_and_go_on_bit_for_bit(file, tmp_path):  # noqa: F811
    """The signal goes to the launcher, as Slurm and users send it."""
    for name in ('whole', 'stopped'):
        (tmp_path / name).mkdir()
    whole, stopped = tmp_path / 'whole', tmp_path / 'stopped'
    two_ranks(*launched(file, {})[5:], cwd=whole)
    with open(stopped / 'output', 'w') as output:
        process = subprocess.Popen(launched(file, {}), cwd=stopped, env=environment(), stdout=output,
                                   stderr=subprocess.STDOUT)
        until = time.monotonic() + 120
        while 'iter:       7,' not in (stopped / 'output').read_text() and time.monotonic() < until:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) != 0
    end = re.search(r'Stopped by SIGTERM after iteration (\d+); saved up to (\d+)', (stopped / 'output').read_text())
    assert end[1] == end[2]
    assert f'iter: {end[1]}.' in two_ranks(*launched(file, {}, '--auto_resume')[5:], cwd=stopped).stdout
    assert differences(what_remains(whole), what_remains(stopped)) == []


DYING = '''
import os
import signal
from torch import distributed
from rdbm_plugin.models.rdbm_model import RDBMModel
from rdbm_plugin.registration import __version__
from basicsr.utils.registry import MODEL_REGISTRY


@MODEL_REGISTRY.register()
class DyingModel(RDBMModel):
    def optimize_parameters(self, current_iter):
        if current_iter == 3 and distributed.get_rank() == 1:
            HOW
        super().optimize_parameters(current_iter)
'''


@pytest.mark.parametrize(('how', 'words'), [
    pytest.param("raise RuntimeError('no more data on this node')", 'no more data on this node',
                 marks=pytest.mark.slow),
    ('os.kill(os.getpid(), signal.SIGKILL)', 'SIGKILL')])
def test_rank_that_dies_ends_the_job_within_a_minute(file, tmp_path, how, words):  # noqa: F811
    own, env = own_model(file, tmp_path, DYING.replace('HOW', how), 'DyingModel')
    begin = time.monotonic()
    process = command(*launched(own, short(500))[1:], cwd=tmp_path, env={**env, **ONE_THREAD}, check=False)
    assert process.returncode != 0 and time.monotonic() - begin < 60
    assert words in process.stdout


@pytest.mark.parametrize('spelling', ['--local-rank=1', '--local_rank=1'])
def test_both_spellings_of_the_local_rank(spelling, monkeypatch):
    from rdbm_plugin.commands import pipeline
    monkeypatch.setattr(sys, 'argv', ['rdbm', '-opt', str(ROOT / 'options/train_rdbm_quickstart.yml'), spelling])
    assert pipeline.parse_options('.')[1].local_rank == 1


def test_slurm_launcher_works_without_gpus(file, tmp_path):  # noqa: F811
    """Two tasks as srun starts them, with what Slurm puts into their environment."""
    (tmp_path / 'scontrol').write_text('#!/bin/sh\n[ "$*" = "show hostnames node1" ] && echo localhost\n')
    (tmp_path / 'scontrol').chmod(0o755)
    line = ['-m', 'rdbm_plugin', 'train', '-opt', str(file), '--launcher', 'slurm',
            *forced({**RUNS, **short(4), 'val:val_freq': 4})]
    with socket() as found:
        found.bind(('', 0))
        port = found.getsockname()[1]
    tasks = [WARM.launch(line, tmp_path, {
        'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'SLURM_PROCID': str(rank), 'SLURM_NTASKS': '2',
        'SLURM_NODELIST': 'node1', 'MASTER_PORT': str(port)}) for rank in (0, 1)]
    processes = [task.wait() for task in tasks]
    outputs = [process.stdout for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert 'world_size: 2' in outputs[0] and 'iter:       4,' in outputs[0] and 'iter:' not in outputs[1]


class Broken(torch.utils.data.Dataset):
    """Its third item cannot be had."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        if index == 2:
            raise ValueError('no such image')
        return index


def test_error_in_a_worker_ends_the_cpu_prefetcher_instead_of_hanging_it():
    from basicsr.data import prefetch_dataloader

    from rdbm_plugin.basicsr_host import compat
    compat.mend_prefetcher()
    loader = prefetch_dataloader.PrefetchDataLoader(1, dataset=Broken(), num_workers=1)
    prefetcher = prefetch_dataloader.CPUPrefetcher(loader)
    assert [int(prefetcher.next()), int(prefetcher.next())] == [0, 1]
    with pytest.raises(ValueError, match='no such image'):
        prefetcher.next()
