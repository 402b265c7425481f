"""Writing LMDBs, alone and by scripts/data_preparation/create_lmdb.py, and reading them with BasicSR's own code."""
import os
import signal
import subprocess
import sys
import time
from importlib import import_module

import cv2
import lmdb
import numpy as np
import pytest
from conftest import ROOT, command

from rdbm_plugin.config.options import OptionError
from rdbm_plugin.data.image_source import ImageSource
from rdbm_plugin.data.lmdb_writer import write_lmdb

SCRIPT = ROOT / 'scripts/data_preparation/create_lmdb.py'


@pytest.fixture
def photos(tmp_path):
    """Two sub-folders with equal names in them, PNG and JPEG, gray and colour."""
    rng = np.random.default_rng(0)
    for name, shape in (('a/1.png', (30, 40, 3)), ('b/1.png', (32, 20, 3)), ('b/2.jpg', (16, 16, 3)),
                        ('c.png', (8, 9))):
        (tmp_path / 'photos' / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / 'photos' / name), rng.integers(0, 256, shape, np.uint8))
    return tmp_path / 'photos'


def test_folder_and_lmdb_hold_the_same_images(photos, tmp_path):
    process = command(SCRIPT, photos, tmp_path / 'p.lmdb', cwd=tmp_path)
    assert '4 images' in process.stdout
    folder, packed = ImageSource(photos), ImageSource(tmp_path / 'p.lmdb')
    assert folder.stems() == packed.stems() == ['a/1', 'b/1', 'b/2', 'c']
    for index in range(4):
        assert np.array_equal(folder.decode(index), packed.decode(index))
        assert folder.read(index) == packed.read(index), 'files are stored as they are'
    assert (tmp_path / 'p.lmdb/meta_info.txt').read_text().splitlines() == [
        'a/1.png (30,40,3) 1', 'b/1.png (32,20,3) 1', 'b/2.png (16,16,3) 1', 'c.png (8,9,1) 1']


def test_lmdb_is_one_that_basicsr_reads(photos, tmp_path):
    paired = import_module('basicsr.data').build_dataset
    for name in ('gt', 'lq'):
        command(SCRIPT, photos, tmp_path / f'{name}.lmdb', cwd=tmp_path)
    data = paired({'name': 'v', 'type': 'PairedImageDataset', 'phase': 'val', 'scale': 1,
                   'dataroot_gt': str(tmp_path / 'gt.lmdb'), 'dataroot_lq': str(tmp_path / 'lq.lmdb'),
                   'io_backend': {'type': 'lmdb'}})
    assert len(data) == 4
    ours = ImageSource(photos)
    for index in range(3):
        theirs = data[index]
        assert np.array_equal(np.rint(theirs['gt'].numpy().transpose(1, 2, 0) * 255), ours.decode(index))


def test_lmdb_that_basicsr_wrote_is_read(photos, tmp_path):
    make = import_module('basicsr.utils.lmdb_util').make_lmdb_from_imgs
    make(str(photos), str(tmp_path / 'theirs.lmdb'), ['a/1.png', 'c.png'], ['a/1', 'c'])
    source, folder = ImageSource(tmp_path / 'theirs.lmdb'), ImageSource(photos)
    assert source.stems() == ['a/1', 'c']
    assert np.array_equal(source.decode(0), folder.decode(0)) and np.array_equal(source.decode(1), folder.decode(3))


def test_map_grows(tmp_path):
    content = np.random.default_rng(0).bytes(300_000)
    write_lmdb(tmp_path / 'g.lmdb', ((f'{number:02d}', content, (1, 1, 3)) for number in range(10)), map_size=2**16)
    source = ImageSource(tmp_path / 'g.lmdb')
    assert len(source) == 10 and all(source.read(i) == content for i in range(10))
    assert (tmp_path / 'g.lmdb/data.mdb').stat().st_size < 5e6


def test_growth_keeps_what_was_committed_before(tmp_path):
    contents = [np.random.default_rng(i).bytes(30_000) for i in range(40)]
    images = ((f'{number:02d}', content, (1, 1, 3)) for number, content in enumerate(contents))
    write_lmdb(tmp_path / 'g.lmdb', images, map_size=2**17)
    source = ImageSource(tmp_path / 'g.lmdb')
    assert [source.read(i) for i in range(40)] == contents


def test_an_error_leaves_nothing_behind(tmp_path):
    def images():
        yield 'a', b'1', (1, 1, 3)
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError):
        write_lmdb(tmp_path / 'e.lmdb', images())
    assert not list(tmp_path.iterdir())


def test_killed_while_writing_leaves_no_half_lmdb_and_can_be_repeated(tmp_path):
    (tmp_path / 'many').mkdir()
    content = cv2.imencode('.png', np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8))[1].tobytes()
    for number in range(600):
        (tmp_path / f'many/{number}.png').write_bytes(content)
    process = subprocess.Popen([sys.executable, str(SCRIPT), 'many', 'many.lmdb'], cwd=tmp_path,
                               stderr=subprocess.DEVNULL, env={**os.environ, 'PYTHONPATH': str(ROOT)})
    deadline = time.time() + 60
    while not (tmp_path / '.many.lmdb.partial/data.mdb').exists() and time.time() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / 'many.lmdb').exists()
    command(SCRIPT, 'many', 'many.lmdb', cwd=tmp_path)
    assert len(ImageSource(tmp_path / 'many.lmdb')) == 600
    assert sorted(path.name for path in tmp_path.iterdir()) == ['many', 'many.lmdb']


def test_what_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r'must end in \.lmdb'):
        write_lmdb(tmp_path / 'x', [])
    (tmp_path / 'x.lmdb').mkdir()
    with pytest.raises(FileExistsError, match=r'x\.lmdb exists'):
        write_lmdb(tmp_path / 'x.lmdb', [])
    with pytest.raises(ValueError, match='occurs twice'):
        write_lmdb(tmp_path / 'y.lmdb', [('a', b'1', (1, 1, 3))] * 2)
    with pytest.raises(ValueError, match='longer than 511 bytes'):
        write_lmdb(tmp_path / 'y.lmdb', [('a' * 512, b'1', (1, 1, 3))])
    assert [path.name for path in tmp_path.iterdir()] == ['x.lmdb']


def test_script_names_a_bad_image_and_writes_nothing(photos, tmp_path):
    (photos / 'b/2.jpg').write_bytes(b'\xff\xd8 torn')
    process = command(SCRIPT, photos, tmp_path / 'p.lmdb', cwd=tmp_path, check=False)
    assert process.returncode == 1 and 'b/2.jpg: not a readable image' in process.stdout
    assert 'Traceback' not in process.stdout
    assert [path.name for path in tmp_path.iterdir()] == ['photos']


def test_script_refuses_names_that_differ_in_suffix_only(photos, tmp_path):
    (photos / 'b/2.png').write_bytes((photos / 'c.png').read_bytes())
    process = command(SCRIPT, photos, tmp_path / 'p.lmdb', cwd=tmp_path, check=False)
    assert process.returncode == 2 and "several suffixes, first 'b/2'" in process.stdout


@pytest.mark.parametrize(('make', 'words'), [
    (lambda path: None, 'no LMDB'), (lambda path: path.mkdir(), 'data.mdb is missing'),
    (lambda path: lmdb.open(str(path)).close(), 'no image in')])
def test_what_is_no_lmdb_is_named(tmp_path, make, words):
    make(tmp_path / 'n.lmdb')
    with pytest.raises(OptionError, match=words) as error:
        ImageSource(tmp_path / 'n.lmdb', key='dataroot_lq')
    assert str(error.value).startswith('dataroot_lq: ')


def test_key_that_meta_info_promises_but_the_lmdb_lacks_is_named(photos, tmp_path):
    command(SCRIPT, photos, tmp_path / 'p.lmdb', cwd=tmp_path)
    with open(tmp_path / 'p.lmdb/meta_info.txt', 'a', encoding='utf-8') as file:
        file.write('z.png (8,8,3) 1\n')
    source = ImageSource(tmp_path / 'p.lmdb')
    with pytest.raises(OSError, match=r'p\.lmdb/z: listed in meta_info\.txt, but not in the LMDB'):
        source.read(4)
