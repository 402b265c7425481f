"""The test command: which tests run in which round, and what their processes see."""
import sys
from types import SimpleNamespace

import pytest
import run_tests
from conftest import command

SEEN = 'import torch; print(len(torch.cuda._parse_visible_devices()))'


def test_torch_finds_no_gpu_where_they_are_hidden(tmp_path, monkeypatch):
    """By how torch reads the environment, which needs no GPU to differ."""
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '0,1')
    for gpus, count in ((False, 0), (True, 2)):
        assert command('-c', SEEN, cwd=tmp_path, env=run_tests.environment(gpus)).stdout.split() == [str(count)]


@pytest.mark.parametrize('gpu', [False, True])
@pytest.mark.parametrize('words', [[], ['--slow'], ['tests/models'], ['-m', 'gpu']])
def test_gpus_are_hidden_from_all_rounds_but_their_own(words, gpu, monkeypatch, capsys):
    started = []

    def run(line, env=None, **_):
        started.append((' '.join(line[1:]), env))
        return SimpleNamespace(returncode=int(line[2] == run_tests.PROBE and not gpu))
    monkeypatch.setattr(run_tests, 'prepare', lambda extra: 'python')
    monkeypatch.setattr(run_tests, 'install_browser', lambda: None)
    monkeypatch.setattr(run_tests.subprocess, 'run', run)
    monkeypatch.setattr(sys, 'argv', ['run_tests.py', *words])
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '3')
    assert run_tests.main() == 0
    asked = words not in (['tests/models'],)
    assert ('sees no GPU' in capsys.readouterr().out) == (asked and not gpu)
    tested = [(line, env['CUDA_VISIBLE_DEVICES']) for line, env in started if line.startswith('-m pytest')]
    assert [seen for _, seen in tested if seen] == ['3'] * (asked and gpu)
    assert all(('not gpu' in line) == (not seen) for line, seen in tested if line != '-m pytest tests/models')


def test_every_test_is_in_one_round():
    marks = ('alone', 'gpu', 'slow')
    for number in range(8):
        has = {mark: bool(number >> place & 1) for place, mark in enumerate(marks)}
        for given in ([], ['--slow']):
            runs = sum(eval(words[1], {}, has) for words, _ in run_tests.rounds(given))
            assert runs == (1 if given or not has['slow'] else 0), (has, given)
