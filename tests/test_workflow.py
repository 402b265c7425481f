"""The workflow tries what setup.py and the pages say: its lowest versions, the Pythons, and tests that exist."""
import re

import yaml
from conftest import ROOT

JOBS = yaml.safe_load((ROOT / '.github/workflows/tests.yml').read_text(encoding='utf-8'))['jobs']
SETUP = (ROOT / 'setup.py').read_text(encoding='utf-8')


def test_the_lowest_versions_are_those_of_the_package():
    pins = dict(pin.split('==') for pin in JOBS['versions']['strategy']['matrix']['include'][0]['pins'].split())
    bounds = dict(re.findall(r"'([\w-]+)>=([\d.]+)[,<']", SETUP))
    needed = re.findall(r"'([\w-]+)>=", SETUP[SETUP.index('install_requires'):SETUP.index('extras_require')])
    assert {*needed, 'matplotlib', 'safetensors'} <= pins.keys() and len(needed) == 10
    for name, version in pins.items():
        assert version == bounds[name] or version.startswith(f'{bounds[name]}.'), name


def test_pythons_are_those_that_run_tests_accepts_and_tests_exist():
    environment = (ROOT / 'scripts/environment.py').read_text(encoding='utf-8')
    low, high = (int(each) for each in re.search(r'\(3, (\d+)\) <= .* <= \(3, (\d+)\)', environment).groups())
    assert JOBS['tests']['strategy']['matrix']['python'] == [f'3.{minor}' for minor in range(low, high + 1)]
    steps = ' '.join(step.get('run', '') for job in JOBS.values() for step in job['steps'])
    named = re.findall(r'tests/[\w/.]+', steps)
    assert len(named) > 5 and all((ROOT / each).exists() for each in named)
