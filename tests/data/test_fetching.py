"""Fetching photo sets from a real HTTP server, with archives that are broken, hostile or of other content."""
import hashlib
import io
import tarfile
import threading
import zipfile
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import command

from rdbm_plugin.config.options import OptionError
from rdbm_plugin.data import fetching
from rdbm_plugin.data.fetching import Part, PhotoSet, download, fetch

IMAGES = {'train': {'1.jpg': b'first' * 40000, '2.jpg': b'second'}, 'test': {'3.jpg': b'third'}}


def digest(images):
    return hashlib.sha256(b''.join(f'{name} {hashlib.sha256(content).hexdigest()}\n'.encode()
                                   for name, content in sorted(images.items()))).hexdigest()


PARTS = {part: Part(len(images), digest(images)) for part, images in IMAGES.items()}


def members(**more):
    """Name -> content of an archive as sets are packed: with other files among the images."""
    found = {f'Set-main/data/images/{part}/{name}': content for part, images in IMAGES.items()
             for name, content in images.items()}
    return {'Set-main/README.md': b'text', 'Set-main/data/labels/train/1.mat': b'label', **found, **more}


def zipped(content):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, 'w') as file:
        for name, each in content.items():
            file.writestr(name, each)
    return packed.getvalue()


def tarred(content, links=()):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode='w:gz') as file:
        for name, each in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(each)
            file.addfile(info, io.BytesIO(each))
        for name, target in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            file.addfile(info)
    return packed.getvalue()


class Server:
    """Serves ``files``; breaks off after so many bytes of an answer as ``breaks`` has left."""

    def __init__(self):
        self.files, self.breaks, self.ranges = {}, [], []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                content = server.files.get(self.path)
                if content is None:
                    self.send_error(404)
                    return
                asked = self.headers.get('Range')
                server.ranges.append(asked)
                start = int(asked.removeprefix('bytes=').rstrip('-')) if asked else 0
                if start >= len(content):
                    self.send_error(416)
                    return
                self.send_response(206 if asked else 200)
                self.send_header('Content-Length', str(len(content) - start))
                self.end_headers()
                rest = content[start:]
                self.wfile.write(rest[:server.breaks.pop(0)] if server.breaks else rest)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.address = f'http://127.0.0.1:{self.http.server_port}'
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server(monkeypatch):
    served = Server()
    monkeypatch.setattr(fetching.time, 'sleep', lambda _: None)
    monkeypatch.setitem(fetching.SETS, 'tiny', PhotoSet(
        (served.address + '/gone.zip', served.address + '/set.zip'), PARTS, 'terms', 'paper'))
    yield served
    served.http.shutdown()
    served.http.server_close()


def there(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


WHOLE = {f'tiny/{part}/{name}': content for part, images in IMAGES.items() for name, content in images.items()}


def test_a_set_comes_from_the_first_address_that_answers_and_only_once(server, tmp_path):
    server.files['/set.zip'] = zipped(members())
    assert fetch('tiny', tmp_path / 'datasets') == tmp_path / 'datasets/tiny'
    assert there(tmp_path / 'datasets') == WHOLE
    asked = len(server.ranges)
    fetch('tiny', tmp_path / 'datasets')
    assert len(server.ranges) == asked


def test_an_interrupted_download_is_resumed(server, tmp_path):
    content = server.files['/set.zip'] = zipped(members())
    server.breaks = [1000, 70000]
    fetch('tiny', tmp_path)
    assert server.ranges == [None, 'bytes=1000-', 'bytes=71000-'] and there(tmp_path) == WHOLE
    # Also by the next call, when a server breaks off every time.
    server.breaks, server.ranges = [1000] * fetching.TRIES, []
    with pytest.raises(OptionError, match=r'the connection ended after 4000 of .* is kept; the next attempt resumes'):
        download(server.address + '/set.zip', tmp_path / 'x.zip')
    assert download(server.address + '/set.zip', tmp_path / 'x.zip').read_bytes() == content
    assert server.ranges[-1] == 'bytes=4000-'


def test_what_lies_there_of_another_file_is_thrown_away(server, tmp_path):
    content = server.files['/set.zip'] = zipped(members())
    (tmp_path / 'x.zip.partial').write_bytes(bytes(len(content) + 5))
    assert download(server.address + '/set.zip', tmp_path / 'x.zip').read_bytes() == content


@pytest.mark.parametrize('pack', [zipped, tarred])
def test_nothing_is_written_elsewhere(server, tmp_path, pack):
    """Absolute paths and those that climb lead into the folder or nowhere; links and other files are left out."""
    more = {'../../train/evil.txt': b'x', '/etc/train/evil.exe': b'x', 'C:\\train\\..\\evil.bat': b'x',
            '../../../other/evil.jpg': b'x'}
    links = {'links': [('train/9.jpg', '/etc/passwd')]} if pack is tarred else {}
    server.files['/set.zip'] = partial(pack, **links)(members(**more))
    (tmp_path / 'deep/datasets').mkdir(parents=True)
    fetch('tiny', tmp_path / 'deep/datasets')
    assert there(tmp_path) == {f'deep/datasets/{name}': content for name, content in WHOLE.items()}


@pytest.mark.parametrize(('content', 'words'), [
    (zipped(members())[:-3000], 'not a complete .zip or .tar archive'),
    (tarred(members())[:-30], 'not a complete .zip or .tar archive'),
    (b'<html>Please log in</html>', 'not a complete .zip or .tar archive'),
    (zipped({**members(), '../../test/evil.jpg': b'x'}), 'test: found 2 images; expected 1'),
    (zipped({**members(), 'images/test/3.jpg': b'other'}), 'not those of the set'),
    (zipped({}), 'train: found 0 images; expected 2'),
])
def test_bad_archives_are_refused_and_nothing_is_left_of_them(server, tmp_path, content, words):
    server.files['/set.zip'] = content
    with pytest.raises(OptionError, match=words):
        fetch('tiny', tmp_path)
    assert not (tmp_path / 'tiny').exists() and all(path.suffix == '.zip' for path in tmp_path.iterdir())


def test_what_is_too_large_for_a_photo_is_left_out(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, 'LARGEST_IMAGE', 1000)
    for content in (zipped(members()), tarred(members())):
        server.files['/set.zip'] = content
        with pytest.raises(OptionError, match='train: found 1 images; expected 2'):
            fetch('tiny', tmp_path)
        (next(tmp_path.glob('*.zip'))).unlink()


def test_no_address_answers(server, tmp_path):
    with pytest.raises(OptionError, match=r'gone\.zip: the server answered 404 .*set\.zip: .*pass it with --from'):
        fetch('tiny', tmp_path)


@pytest.mark.parametrize('kind', ['folder', 'zip', 'tgz', 'address'])
def test_what_a_user_has_serves(server, tmp_path, kind):
    source = tmp_path / kind
    if kind == 'folder':
        for name, content in members().items():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes(content)
    elif kind == 'address':
        server.files['/mine/x.tgz'], source = tarred(members()), server.address + '/mine/x.tgz'
    else:
        source.write_bytes({'zip': zipped, 'tgz': tarred}[kind](members()))
    fetch('tiny', tmp_path / 'datasets', str(source))
    assert there(tmp_path / 'datasets') == WHOLE
    assert kind == 'address' or source.exists(), 'what is theirs stays'


@pytest.mark.parametrize('source', ['nowhere.zip', 'file:///etc/passwd', 'ftp://x/y.zip'])
def test_other_sources_are_named(server, tmp_path, source):
    with pytest.raises(OptionError, match=f'--from: found .{source}.; expected an existing'):
        fetch('tiny', tmp_path, source)


def test_a_folder_of_something_else_is_left_alone(server, tmp_path):
    (tmp_path / 'tiny/train').mkdir(parents=True)
    (tmp_path / 'tiny/train/mine.jpg').write_bytes(b'mine')
    with pytest.raises(OptionError, match='tiny: train: found 1 images; expected 2'):
        fetch('tiny', tmp_path)
    assert (tmp_path / 'tiny/train/mine.jpg').read_bytes() == b'mine'


def test_the_command_names_terms_and_what_to_cite(tmp_path):
    printed = command('-m', 'rdbm_plugin', 'data', 'list', cwd=tmp_path).stdout
    for words in ('bsds500: train (200), val (100), test (200)', 'non-commercial', 'TPAMI 33(5)', 'https://github.com/'):
        assert words in printed
    process = command('-m', 'rdbm_plugin', 'data', 'fetch', 'bsds500', '--from', tmp_path, cwd=tmp_path, check=False)
    assert process.returncode == 2 and 'train: found 0 images; expected 200' in process.stdout
    assert list(tmp_path.iterdir()) == [tmp_path / 'datasets'] and not list((tmp_path / 'datasets').iterdir())
