"""Weights as safetensors and back, and files that are not what they say."""
import shutil

import numpy as np
import pytest
import torch
from conftest import ROOT, command
from safetensors.torch import load_file

from rdbm_plugin import Restorer
from rdbm_plugin.models.checkpoint import read_parameters
from rdbm_plugin.options import OptionError
from rdbm_plugin.restorer import SHIPPED


def convert(*arguments, cwd, check=True):
    return command(ROOT / 'scripts/convert_weights.py', *arguments, cwd=cwd, check=check)


@pytest.fixture(scope='module')
def converted(tmp_path_factory):
    """The shipped weights as safetensors, with their option file beside them."""
    folder = tmp_path_factory.mktemp('weights')
    convert(SHIPPED, 'own.safetensors', cwd=folder)
    shutil.copy(SHIPPED.with_suffix('.yml'), folder / 'own.yml')
    return folder


def test_there_and_back_changes_nothing(converted):
    convert('own.safetensors', 'back.pth', cwd=converted)
    first, second = read_parameters(SHIPPED, 'params_ema'), read_parameters(converted / 'back.pth')
    assert first.keys() == second.keys() == load_file(converted / 'own.safetensors').keys()
    assert all(torch.equal(first[key], second[key]) and first[key].dtype == second[key].dtype for key in first)


def test_restores_the_same_from_both(converted):
    image = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    assert np.array_equal(Restorer(steps=2)(image), Restorer(converted / 'own.safetensors', steps=2)(image))


def test_nothing_is_replaced(converted):
    before = (converted / 'own.safetensors').read_bytes()
    process = convert(SHIPPED, 'own.safetensors', cwd=converted, check=False)
    assert process.returncode != 0 and 'exists already' in process.stdout and 'Traceback' not in process.stdout
    assert (converted / 'own.safetensors').read_bytes() == before


@pytest.mark.parametrize('content', [b'', b'no safetensors', b'\xff' * 64])
def test_damaged_file_is_named(tmp_path, content):
    (tmp_path / 'torn.safetensors').write_bytes(content)
    with pytest.raises(OptionError, match=r'torn\.safetensors: damaged'):
        read_parameters(tmp_path / 'torn.safetensors')


def test_truncated_file_is_named(converted, tmp_path):
    content = (converted / 'own.safetensors').read_bytes()
    (tmp_path / 'torn.safetensors').write_bytes(content[:len(content) // 2])
    with pytest.raises(OptionError, match=r'torn\.safetensors: damaged'):
        read_parameters(tmp_path / 'torn.safetensors')


class Evil:
    """What a pickle may do to who loads it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return type(self.path).touch, (self.path,)


@pytest.mark.parametrize('protocol', ['zip', 'legacy'])
def test_pickle_that_would_run_code_is_refused_and_named(tmp_path, protocol):
    path = tmp_path / 'evil.pth'
    torch.save({'params': Evil(tmp_path / 'ran')}, path, _use_new_zipfile_serialization=protocol == 'zip')
    with pytest.raises(OptionError, match=r'evil\.pth: not a checkpoint that is safe to load'):
        read_parameters(path)
    assert not (tmp_path / 'ran').exists()
