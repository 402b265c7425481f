"""What the README shows works as written."""
import re

import pytest
from conftest import ROOT, command

README = (ROOT / 'README.md').read_text(encoding='utf-8')


@pytest.mark.parametrize('code', re.findall(r'```python\n(.*?)```', README, re.S))
def test_python_runs(code, tmp_path):
    command('-c', code, cwd=tmp_path)


def test_files_that_it_names_exist():
    named = set(re.findall(r'(?:scripts|options|docs)/[\w/.]+\.(?:py|yml|jpg|png)', README))
    assert len(named) >= 6
    assert [name for name in named if not (ROOT / name).is_file()] == []
