"""The site builds without a warning, fits a screen and a phone, shows equations, and asks nothing of any server."""
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

PAGES = ('bridges', 'labs', 'api')
"""With equations and a table of six columns; with long commands in a table; made from docstrings."""
TOO_WIDE = """() => [...document.querySelectorAll('body *')].filter(element => {
    const box = element.getBoundingClientRect();
    if (!box.width || (box.right <= innerWidth + 1 && box.left >= -1)) return false;
    for (let around = element.parentElement; around; around = around.parentElement)
        if (getComputedStyle(around).overflowX != 'visible') return false;     // it scrolls, or is put away
    return true;
}).map(element => element.outerHTML.slice(0, 80))"""
SUBSCRIPTS = """() => [...document.querySelectorAll('article math msub')].map(element => {
    const [base, index] = [...element.children].map(child => child.getBoundingClientRect());
    return [index.width > 0, index.left >= base.right - 1, index.bottom > base.bottom];
})"""


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    pytest.importorskip('zensical', reason='pip install -e ".[docs]", with Python 3.11 or later, to test the site')
    folder = tmp_path_factory.mktemp('site')
    shutil.copy(ROOT / '.mkdocs.yml', folder)
    shutil.copytree(ROOT / 'docs', folder / 'docs')
    (folder / 'rdbm_plugin').symlink_to(ROOT / 'rdbm_plugin')
    build = [sys.executable, '-m', 'zensical', 'build', '--strict', '-f', '.mkdocs.yml']
    process = subprocess.run(build, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.returncode == 0, process.stdout
    return folder / 'site'


def test_the_reference_has_what_is_public(site):
    page = (site / 'api.html').read_text(encoding='utf-8')
    for name in ('ResidualBridge', 'BridgeSampler', 'RDBMUNet', 'Restorer', 'RDBMModel', 'SyntheticUniversalDataset'):
        assert f'.{name}"' in page, name
    assert 'stationary_variance' in page


@pytest.mark.parametrize('width', [1200, 400])
def test_pages_fit_the_window_and_equations_are_drawn(site, browser, width):
    page, asked = browser.new_page(viewport={'width': width, 'height': 900}), []
    page.on('request', lambda request: asked.append(request.url))
    for name in PAGES:
        page.goto((site / f'{name}.html').as_uri())
        page.wait_for_function('document.readyState == "complete"')
        assert page.evaluate('document.documentElement.scrollWidth <= innerWidth'), name
        assert page.evaluate(TOO_WIDE) == [], name
        if name == 'bridges':
            drawn = page.evaluate(SUBSCRIPTS)
            assert len(drawn) > 10 and all(map(all, drawn)), drawn
            text = page.inner_text('article')
            assert not [each for each in ('$', '\\sinh', '\\mu') if each in text]
    assert [url for url in asked if not url.startswith('file:')] == []
    page.close()
