"""What README.md and docs/ show works as written, and what they name exists."""
import ast
import json
import re

import pytest
from conftest import ROOT, command

PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
TEXTS = {page.name: page.read_text(encoding='utf-8') for page in PAGES}
SITE = (ROOT / '.mkdocs.yml').read_text(encoding='utf-8')
OF_OTHERS = ("No module named 'torchvision.transforms.functional_tensor'", 'could not determine a constructor',
             'Found no NVIDIA driver', 'CUDA out of memory')
"""Messages of Python, PyYAML and torch."""


@pytest.mark.parametrize(('page', 'code'), [(name, code) for name, text in TEXTS.items()
                                            for code in re.findall(r'```python\n(.*?)```', text, re.S)])
def test_python_runs(page, code, tmp_path):
    command('-c', code, cwd=tmp_path)


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = TEXTS[page.name]
    for link in re.findall(r'\]\(([^)\s]+)\)', text):
        if link.startswith('http'):
            continue
        file, _, heading = link.partition('#')
        target = (page.parent / file).resolve() if file else page
        assert target.is_file(), link
        if heading:
            headings = re.findall(r'(?m)^#+ (.*)$', target.read_text(encoding='utf-8'))
            assert heading in {re.sub(r'[^\w -]', '', each.lower()).replace(' ', '-') for each in headings}, link


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_every_picture_is_beside_the_command_that_makes_it(page):
    blocks = TEXTS[page.name].split('\n\n')
    for place, block in enumerate(blocks):
        if '](' in block and re.search(r'!\[[^\]]*\]\(', block):
            beside = blocks[max(0, place - 1):place + 2]
            assert any(re.match('Made by .*(`|command)', each) for each in beside), block


def test_files_that_they_name_exist():
    named = set(re.findall(r'(?:scripts|options|docs|tests|rdbm_plugin)/[\w/.]+\.(?:py|yml|jpg|png|md|sbatch)',
                           ' '.join(TEXTS.values())))
    assert len(named) > 30
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_every_script_that_a_text_or_message_names_exists_and_none_needs_the_tests():
    scripts = sorted((ROOT / 'scripts').rglob('*.*'))
    places = [*PAGES, ROOT / 'RESULTS.md', ROOT / 'pyproject.toml', *(ROOT / 'options').rglob('*.yml'),
              *(ROOT / '.github').rglob('*.yml'), *(ROOT / 'rdbm_plugin').rglob('*.py'),
              *(ROOT / 'rdbm_plugin').rglob('*.md'), *(path for path in scripts if path.suffix in ('.py', '.sbatch'))]
    named = {(name, place.name) for place in places
             for name in re.findall(r'scripts/[\w/]+\.(?:py|sbatch)', place.read_text(encoding='utf-8'))}
    assert len({name for name, _ in named}) > 15
    assert [each for each in named if not (ROOT / each[0]).is_file()] == []
    of_tests = {path.stem for path in (ROOT / 'tests').rglob('*.py')}
    for path in scripts:
        if path.suffix == '.py':
            nodes = list(ast.walk(ast.parse(path.read_bytes())))
            needed = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
            needed |= {each.name for node in nodes if isinstance(node, ast.Import) for each in node.names}
            assert not needed & of_tests, path


def test_the_first_screen_is_short_and_every_page_is_reached_from_it():
    readme = TEXTS['README.md']
    assert len(readme.encode()) <= 12 * 1024
    reached = set(re.findall(r'\(docs/(\w+)\.md', readme))
    assert {name.removesuffix('.md') for name in TEXTS} - reached == {'README', 'index'}
    assert {name.removesuffix('.md') for name in TEXTS} == set(re.findall(r'- (\w+)\.md', SITE)) | {'README'}


@pytest.mark.parametrize('name', [name for name in TEXTS if name != 'README.md'])
def test_every_page_starts_with_the_command_that_does_it(name):
    before = TEXTS[name].split('```')[0]
    assert len(before.splitlines()) <= 8, 'the command comes first'


def test_quoted_messages_are_in_the_code():
    literals = ' '.join(
        node.value for path in (ROOT / 'rdbm_plugin').rglob('*.py') for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str))
    quoted = re.findall(r'(?m)^\| `(.+?)`', TEXTS['troubleshooting.md'].split('|---|---|---|')[1])
    assert len(quoted) > 12
    for message in quoted:
        pieces = [piece for piece in re.split(r"'1e-4'|FILE|\d+", message) if piece.strip()]
        assert message in OF_OTHERS or all(piece.strip() in literals for piece in pieces), message


def public(tree):
    """Public functions, classes and methods of a module."""
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith('_'):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from (each for each in node.body if isinstance(each, ast.FunctionDef)
                            and not each.name.startswith('_') and not node.bases)


@pytest.mark.parametrize('module', re.findall(r'^::: ([\w.]+)', TEXTS['api.md'], re.M))
def test_what_the_reference_shows_has_docstrings(module):
    path = ROOT / (module.replace('.', '/') + '.py')
    tree = ast.parse((path if path.is_file() else path.with_suffix('') / '__init__.py').read_bytes())
    assert ast.get_docstring(tree)
    assert [node.name for node in public(tree) if not ast.get_docstring(node)] == []


def test_the_notebook_runs(tmp_path):
    """Its code cells one after another, as a notebook runs them, in the tiny setting that its first cell offers."""
    cells = json.loads((ROOT / 'docs/tour.ipynb').read_text(encoding='utf-8'))['cells']
    code = '\n'.join(''.join(cell['source']) for cell in cells if cell['cell_type'] == 'code')
    assert 'TINY = False' in code and code.count('plt.show()') == 2 and code.count('show({') >= 4
    code = re.sub(r'(?m)^[%!].*$', '', code).replace('TINY = False', 'TINY = True')
    command('-c', 'import matplotlib\nmatplotlib.use("Agg")\n' + code, cwd=tmp_path)
