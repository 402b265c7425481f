"""How commands end: with one line for what is no fault of the program, and in silence if nobody reads them any more."""
import os
import re
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, command, environment, forced, short
from torch.utils.data import DataLoader

from rdbm_plugin import __main__ as program
from rdbm_plugin.data.image_source import ImageError

CLOSED = """
import io, os, sys
from rdbm_plugin.__main__ import main
terminal = os.fdopen(os.dup(2), 'w')
for words in (['options'], ['--help'], ['data', 'list'], ['restore', '--help'], ['compare', '--help'], ['--version']):
    read, write = os.pipe()
    os.close(read)
    sys.stdout = io.TextIOWrapper(os.fdopen(write, 'wb'))
    sys.argv = ['rdbm', *words]
    print(*words, main(), file=terminal, flush=True)
"""


def test_commands_whose_output_nobody_reads_end_as_by_sigpipe():
    process = subprocess.run([sys.executable, '-c', CLOSED], env=environment(), stderr=subprocess.PIPE, text=True)
    lines = process.stderr.splitlines()
    assert len(lines) == 6 and all(line.endswith(' 141') for line in lines), process.stderr


def test_a_program_ends_in_silence_if_nobody_reads_it():
    read, write = os.pipe()
    os.close(read)
    process = subprocess.run([sys.executable, '-m', 'rdbm_plugin', 'options'], env=environment(), stdout=write,
                             stderr=subprocess.PIPE, text=True, cwd=ROOT)
    os.close(write)
    assert (process.returncode, process.stderr) == (141, '')


class Broken:
    """A data set whose items cannot be read."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        raise ImageError('a.png: is 4x4, but its clean image b.png is 5x5; pairs must be of equal size.')


def read_in_a_worker():
    next(iter(DataLoader(Broken(), num_workers=1)))


def allocate_too_much():
    torch.empty(2**60)


def fail(error):
    def run():
        raise error
    return run


@pytest.mark.parametrize(('fault', 'line'), [
    (read_in_a_worker, 'a.png: is 4x4, but its clean image b.png is 5x5; pairs must be of equal size.'),
    (fail(OSError(28, 'No space left on device', 'x/y.pth')), "[Errno 28] No space left on device: 'x/y.pth'"),
    (fail(MemoryError()), 'out of memory'),
    (fail(torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB.\nMore')),
     'CUDA out of memory. Tried to allocate 2 GiB.'),
    (allocate_too_much, None),
    (fail(ModuleNotFoundError("No module named 'wandb'", name='wandb')), "No module named 'wandb'; pip install wandb"),
], ids=lambda value: getattr(value, '__name__', '') or None)
def test_faults_end_in_one_line(fault, line, monkeypatch, capsys):
    from rdbm_plugin.commands import options
    monkeypatch.setattr(options, 'main', fault)
    monkeypatch.setattr(sys, 'argv', ['rdbm', 'options'])
    assert program.main() == 1
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 1 and printed[0].startswith('rdbm options: ')
    assert printed[0] == f'rdbm options: {line}' if line else "can't allocate memory" in printed[0]


def test_other_errors_keep_their_traceback(monkeypatch):
    from rdbm_plugin.commands import options
    monkeypatch.setattr(options, 'main', fail(RuntimeError('a mistake of ours')))
    monkeypatch.setattr(sys, 'argv', ['rdbm', 'options'])
    with pytest.raises(RuntimeError, match='a mistake of ours'):
        program.main()


def test_pairs_of_unequal_size_end_a_training_in_one_line(tmp_path):
    for side, size in (('gt', 40), ('lq', 36)):
        (tmp_path / side).mkdir()
        for number in range(3):
            cv2.imwrite(str(tmp_path / side / f'{number}.png'), np.zeros((size, size, 3), np.uint8))
    changes = {key: value for key, value in {**TINY, **short(2)}.items() if not re.match('datasets:val_[2-5]', key)}
    changes.update({f'datasets:{phase}:tasks:mine:dataroot_{side}': side
                    for phase in ('train', 'val_1') for side in ('gt', 'lq')})
    process = command('-m', 'rdbm_plugin', 'train', '-opt', ROOT / 'options/train_rdbm_pairs.yml',
                      *forced({**changes, 'datasets:train:num_worker_per_gpu': 1}), cwd=tmp_path, check=False)
    assert process.returncode == 1 and 'Traceback' not in process.stdout
    last = process.stdout.strip().splitlines()[-1]
    assert last.startswith('rdbm train: datasets: ') and '.png: is 36x36, but its clean image' in last
    log = next(tmp_path.glob('experiments/*/train_*.log')).read_text()
    assert 'Traceback' in log and 'is 36x36, but its clean image' in log


@pytest.mark.parametrize(('changes', 'words'), [
    ({'logger:wandb:project': 'x', 'logger:use_tb_logger': True}, 'logger: wandb: project: needs wandb'),
    ({'logger:wandb:project': 'x', 'logger:use_tb_logger': False}, 'set use_tb_logger: true as well'),
    ({'logger:use_tb_logger': True}, 'logger: use_tb_logger: needs tensorboard')])
def test_what_a_logger_needs_is_asked_before_anything_is_written(changes, words, refused, monkeypatch):
    from rdbm_plugin.models import option_checks
    absent = 'tensorboard' if 'tensorboard' in words else 'wandb'
    find = option_checks.find_spec
    monkeypatch.setattr(option_checks, 'find_spec', lambda name: None if name == absent else find(name))
    assert words in refused('train', 'train_rdbm_quickstart.yml', {**short(2), **changes})
