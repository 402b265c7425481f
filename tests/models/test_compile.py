"""train: compile: the step alone is compiled; weights, checkpoints and validation are those of the plain network."""
from functools import partial

import pytest
import torch
from conftest import TINY, rdbm, short
from test_optimizers import momentum, step_of, wound_back
from test_training import weights

from rdbm_plugin.models.training_step import Batch

QUICK, SGD = 'train_rdbm_quickstart.yml', '{type: SGD, lr: 0.01}'


def test_without_a_compiler_it_is_refused_before_anything_is_written(refused, monkeypatch):
    inductor = pytest.importorskip('torch._inductor.config')
    cpp_builder = pytest.importorskip('torch._inductor.cpp_builder')
    cpp_builder.get_cpp_compiler.cache_clear() if hasattr(cpp_builder.get_cpp_compiler, 'cache_clear') else None
    monkeypatch.setattr(inductor.cpp, 'cxx', (None, '/no/such/compiler'))
    monkeypatch.setattr(inductor, 'fx_graph_cache', False)
    torch._dynamo.reset()
    error = refused('train', QUICK, {**TINY, 'train:compile': 'true'})
    assert 'train: compile: torch.compile does not work here' in error and 'install g++' in error


def test_the_compiled_step_leads_where_the_plain_one_does(monkeypatch):
    """By torch's own tracer without its code generator, which takes minutes: the slow test has that."""
    monkeypatch.setattr(torch, 'compile', partial(torch.compile, backend='eager'))
    gt = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    plain, compiled = step_of(momentum), step_of(momentum, compiled=True)
    for iteration in (1, 2, 3):
        for step in (plain, compiled):
            step.run(iteration, Batch(gt / 2, gt, ['rain'] * 2, ['x.png'] * 2))
    assert compiled.compiled is not compiled.net and plain.compiled is plain.net
    assert plain.net.state_dict().keys() == compiled.net.state_dict().keys()
    # Gradients are clipped to a norm of 1 and the rate is 0.1: a few roundings of 1e-7 of that.
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(plain.weights, compiled.weights))


@pytest.mark.slow
def test_a_compiled_run_is_resumed_and_ends_where_a_plain_one_does(tmp_path):
    folders = {name: tmp_path / name for name in ('plain', 'compiled', 'resumed')}
    options = {**TINY, **short(4, every=2), 'train:amp': 'none', 'train:optim_g': SGD}
    for name in ('plain', 'compiled'):
        folders[name].mkdir()
        rdbm('train', QUICK, folders[name], {**options, 'train:compile': str(name == 'compiled').lower()})
    wound_back(folders['compiled'], folders['resumed'])
    rdbm('train', QUICK, folders['resumed'], {**options, 'train:compile': 'true'}, ['--auto_resume'])
    plain, compiled, resumed = map(weights, folders.values())
    assert plain.keys() == compiled.keys() == resumed.keys()
    for key, values in plain.items():
        assert all(torch.allclose(values[name], compiled[key][name], atol=1e-5) for name in values)
        assert all(torch.allclose(compiled[key][name], resumed[key][name], atol=1e-6) for name in values)
