"""Imports run one way through the rooms of the package, those inside functions included, and never in a circle."""
import ast
import subprocess
import sys

import pytest
from conftest import ROOT, command

PACKAGE = ROOT / 'rdbm_plugin'

LAYERS = ('config', 'bridge', 'samplers', 'losses', 'basicsr_host', 'archs', 'data', 'inference', 'evaluation',
          'models', 'registration', 'registry', 'mmengine', 'spandrel', 'commands', '__main__')
"""From the ground up: a room imports from those before it, and from itself."""
OPEN_TO_ALL = 'rdbm_plugin'
"""The package itself has the version and lazy names, and imports nothing."""


def modules():
    """Dotted name -> file of every module."""
    found = {}
    for path in sorted(PACKAGE.rglob('*.py')):
        parts = path.relative_to(ROOT).with_suffix('').parts
        found['.'.join(parts[:-1] if parts[-1] == '__init__' else parts)] = path
    return found


class Imports(ast.NodeVisitor):
    """What a file imports, wherever in it, but for what only type checkers see."""

    def __init__(self):
        self.names = []

    def visit_If(self, node):
        if not (isinstance(node.test, ast.Name) and node.test.id == 'TYPE_CHECKING'):
            self.generic_visit(node)

    def visit_Import(self, node):
        self.names += [alias.name for alias in node.names]

    def visit_ImportFrom(self, node):
        assert not node.level, 'imports are absolute'
        self.names += [f'{node.module}.{alias.name}' for alias in node.names]

    def visit_Call(self, node):
        called = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, 'attr', '')
        given = node.args[0] if node.args else None
        if called in ('import_module', '__import__') and isinstance(given, ast.Constant):
            self.names.append(given.value)
        self.generic_visit(node)


def arrows():
    """Module -> the modules of the package that it imports."""
    known = modules()
    found = {}
    for name, path in known.items():
        imports = Imports()
        imports.visit(ast.parse(path.read_text(encoding='utf-8')))
        targets = {imported if imported in known else imported.rpartition('.')[0] for imported in imports.names}
        found[name] = {target for target in targets if target in known and target not in (name, OPEN_TO_ALL)}
    return found


def room(module):
    return module.split('.')[1]


def circles(graph):
    """Modules that can be reached from themselves."""
    def reached(start):
        seen, waiting = set(), [*graph[start]]
        while waiting:
            module = waiting.pop()
            if module not in seen:
                seen.add(module)
                waiting += graph[module]
        return seen
    return sorted(module for module in graph if module in reached(module))


def test_every_entry_of_the_package_is_a_room_with_a_floor():
    entries = {path.stem for path in PACKAGE.iterdir() if path.suffix in ('', '.py') and path.name != '__pycache__'}
    assert entries - {'__init__', 'py'} == set(LAYERS) and len(entries - {'__init__', '__main__', 'py'}) <= 15


def test_imports_run_downwards():
    upwards = [f'{name} -> {target}' for name, targets in arrows().items() if name != OPEN_TO_ALL for target in targets
               if LAYERS.index(room(target)) > LAYERS.index(room(name))]
    assert upwards == []


def test_no_imports_run_in_a_circle():
    assert circles(arrows()) == []
    assert circles({'a': {'b'}, 'b': {'c'}, 'c': {'b'}, 'd': {'a'}}) == ['b', 'c'], 'the test can fail'


@pytest.mark.parametrize('room', ['bridge', 'samplers', 'losses', 'archs', 'inference'])
def test_the_mathematics_imports_without_basicsr(room):
    names = [name for name in modules() if name.split('.')[1:2] == [room]]
    command('-c', f'import sys; sys.modules["basicsr"] = None; import {", ".join(names)}', cwd=ROOT)


def test_the_package_itself_imports_nothing():
    heavy = {'torch', 'numpy', 'cv2', 'basicsr', 'yaml'}
    program = f'import sys; import rdbm_plugin; sys.exit(bool({heavy} & set(sys.modules)))'
    assert subprocess.run([sys.executable, '-c', program], cwd=ROOT).returncode == 0
