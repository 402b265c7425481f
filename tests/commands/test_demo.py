"""``rdbm demo`` as a user meets it: its process, its page in a browser, what it refuses."""
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import command, demo, environment
from PIL import Image

from rdbm_plugin import Restorer
from rdbm_plugin.data.photo_file import read_photo

pytest.importorskip('gradio', reason='pip install "rdbm_plugin[demo]" to test the page')


@pytest.fixture(scope='module')
def address(tmp_path_factory):
    """Of a page with the shipped weights and those of a run."""
    folder = tmp_path_factory.mktemp('demo')
    models = folder / 'experiments/mine/models'
    models.mkdir(parents=True)
    network = Restorer(device='cpu').network
    torch.save({'params': network.state_dict()}, models / 'net_g_latest.pth')
    (models.parent / 'mine.yml').write_text('network_g: {type: RDBMUNet, variant: T}\n')
    with demo('--max-megapixels', 0.02, '--checkpoint', 'shipped', 'experiments/mine', cwd=folder,
              env=environment()) as found:
        yield found


@pytest.fixture
def page(browser, address):
    context = browser.new_context(viewport={'width': 1300, 'height': 900}, accept_downloads=True)
    page = context.new_page()
    page.set_default_timeout(60000)
    page.goto(address)
    yield page
    context.close()


def photo(path, shape=(90, 120, 3)):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8)).save(path)
    return path


def test_a_photo_is_restored_with_several_weights_and_downloaded(page, tmp_path):
    source = photo(tmp_path / 'holiday.png')
    page.set_input_files('input[type=file]', str(source))
    page.wait_for_selector('img[src*="holiday"]')
    page.get_by_label('number input for Network evaluations').fill('1')
    page.get_by_role('button', name='Restore').click()
    button = page.get_by_role('button', name='Download (shipped)')
    button.wait_for()
    page.get_by_role('button', name='Download (mine)').wait_for()
    with page.expect_download() as download:
        button.click()
    assert download.value.suggested_filename == 'holiday_restored.png'
    made = read_photo(download.value.path()).rgb
    assert np.array_equal(made, Restorer(steps=1, device='cpu')(read_photo(source).rgb))


@pytest.mark.parametrize(('name', 'make', 'words'), [
    ('large.png', lambda path: photo(path, (200, 200, 3)), 'more than the limit of 0.02'),
])
def test_what_cannot_be_restored_is_said_on_the_page(page, tmp_path, name, make, words):
    make(tmp_path / name)
    page.set_input_files('input[type=file]', str(tmp_path / name))
    page.wait_for_selector(f'img[src*="{name.split(".")[0]}"]', state='attached')
    page.get_by_role('button', name='Restore').click()
    page.get_by_text(words).first.wait_for()


def test_nobody_else_in_the_network_gets_in(address):
    """Of this machine's addresses the page answers on the loopback alone."""
    port = int(address.rsplit(':', 1)[1])
    tables = [Path('/proc/net', name) for name in ('tcp', 'tcp6')]
    rows = [line.split() for table in tables if table.exists() for line in table.read_text().splitlines()[1:]]
    listening = [row[1] for row in rows if row[3] == '0A' and row[1].endswith(f':{port:04X}')]
    assert listening == [f'0100007F:{port:04X}']


def test_weights_that_are_missing_are_named_before_anything_is_served(tmp_path):
    process = command('-m', 'rdbm_plugin', 'demo', '--checkpoint', 'none.pth', cwd=tmp_path, check=False)
    assert process.returncode == 2 and "checkpoint: no file 'none.pth'" in process.stdout
