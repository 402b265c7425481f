"""scripts/data_preparation/prepare_universal.py on the embedded photos and on a folder."""
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT, command

from rdbm_plugin.data import degradations
from rdbm_plugin.data.clean_sources import EMBEDDED, open_clean
from rdbm_plugin.data.image_source import ImageSource, to_float

SCRIPT = ROOT / 'scripts/data_preparation/prepare_universal.py'
TASKS = ('derain', 'lowlight', 'desnow', 'dehaze', 'deblur')


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in Path(folder).rglob('*')
            if path.suffix in ('.png', '.jsonl')}


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(11):
        (tmp_path / f'photos/{number % 2}').mkdir(parents=True, exist_ok=True)
        image = cv2.resize(rng.integers(0, 256, (9, 9, 3), np.uint8), (70, 60 + number))
        cv2.imwrite(str(tmp_path / f'photos/{number % 2}/{number:02d}.png'), image)
    return tmp_path / 'photos'


def run(folder, *arguments, check=True):
    return command(SCRIPT, '--clean', folder / 'photos', '--tasks', 'derain', 'dehaze+lowlight', '--crop-size', 40,
                   '--step', 30, *arguments, cwd=folder, check=check)


def records(folder):
    return [json.loads(line) for line in (folder / 'parameters.jsonl').read_text().splitlines()]


def sources(folder):
    return {part: {record['source'] for record in records(folder / part)} for part in ('train', 'val')}


def test_layout_and_pairs(prepared):
    root = prepared / 'datasets/universal'
    assert {path.name for path in root.iterdir()} == {*TASKS, 'overview.png', 'settings.json'}
    for task in TASKS:
        for part in ('train', 'val'):
            for side in ('gt', 'lq'):
                folder, packed = (ImageSource(root / task / part / name) for name in (side, f'{side}.lmdb'))
                assert folder.stems() == packed.stems()
                assert np.array_equal(folder.decode(0), packed.decode(0))
            assert ImageSource(root / task / part / 'gt').stems() == ImageSource(root / task / part / 'lq').stems()
        assert ImageSource(root / task / 'val/gt').stems() == [Path(name).stem for name in EMBEDDED['val']]
        sizes = {image.shape for image in map(ImageSource(root / task / 'train/gt').decode, range(4))}
        assert all(max(shape[:2]) <= 480 for shape in sizes)


def test_validation_pairs_are_whole_photos_degraded_as_the_record_says(prepared):
    """The record alone, read back, makes the same image."""
    for task in TASKS:
        folder = prepared / 'datasets/universal' / task / 'val'
        sources = {Path(p).name: i for i, p in enumerate(map(open_clean('embedded', 'val').path, range(2)))}
        for record in records(folder):
            clean = to_float(open_clean('embedded', 'val').decode(sources[Path(record['source']).name]))
            rng = np.random.default_rng(record['seeds'])
            degradations.draw(task, rng)
            parameters = [getattr(degradations, each.pop('type'))(**each) for each in record['degradations']]
            again = degradations.degrade(clean, parameters, rng)
            name = record['files'][0]
            for side, image in (('gt', clean), ('lq', again)):
                written = cv2.imread(str(folder / side / name))[..., ::-1]
                assert np.array_equal(written, np.rint(image * 255))


def test_sub_images_tile_the_photo_and_repeat_on_any_number_of_cores(photos, tmp_path):
    for name, workers in (('one', 1), ('two', 2)):
        run(tmp_path, '--out', name, '--workers', workers)
    one, two = content(tmp_path / 'one'), content(tmp_path / 'two')
    assert {k: v for k, v in one.items() if k.endswith('.png')} == {k: v for k, v in two.items() if k.endswith('.png')}
    assert len([name for name in one if name.startswith('derain/val/gt')]) == 3
    train = [name for name in one if name.startswith('derain/train/gt')]
    assert len(train) == 8 * 4, 'two by two tiles of each photo'
    photo = cv2.imread(str(photos / '1/03.png'))
    tiles = [cv2.imread(str(tmp_path / f'one/derain/train/gt/1/03_s{i:03d}.png')) for i in range(4)]
    height = len(photo)
    for tile, (top, left) in zip(tiles, ((0, 0), (0, 30), (height - 40, 0), (height - 40, 30))):
        assert np.array_equal(tile, photo[top:top + 40, left:left + 40])


def test_restarted_it_finishes_what_is_missing_and_touches_nothing_else(photos, tmp_path):
    run(tmp_path, '--out', 'out')
    whole = content(tmp_path / 'out')
    folder = tmp_path / 'out/derain/train'
    lines = (folder / 'parameters.jsonl').read_text().splitlines(keepends=True)
    (folder / 'parameters.jsonl').write_text(''.join(lines[:7]) + lines[7][:20])
    lost = json.loads(lines[6])['files'][0]
    (folder / 'lq' / lost).unlink()
    kept = json.loads(lines[0])['files'][0]
    before = (folder / 'lq' / kept).stat().st_mtime_ns
    run(tmp_path, '--out', 'out')
    after = content(tmp_path / 'out')
    assert {k: v for k, v in after.items() if k.endswith('.png')} == {
        k: v for k, v in whole.items() if k.endswith('.png')}
    assert (folder / 'lq' / kept).stat().st_mtime_ns == before
    key = 'derain/train/parameters.jsonl'
    assert sorted(after[key].splitlines()) == sorted(whole[key].splitlines())


def test_copies_differ(photos, tmp_path):
    run(tmp_path, '--out', 'out', '--copies', 2)
    folder = tmp_path / 'out/derain/train'
    assert len(records(folder)) == 16
    first, second = (cv2.imread(str(folder / 'lq/1' / name)) for name in ('03_s000.png', '03_c1_s000.png'))
    assert not np.array_equal(first, second)


def test_other_settings_are_not_mixed_into_a_folder(photos, tmp_path):
    run(tmp_path, '--out', 'out')
    before = content(tmp_path / 'out')
    process = run(tmp_path, '--out', 'out', '--seed', 1, check=False)
    assert process.returncode == 2 and 'other settings' in process.stdout and 'Traceback' not in process.stdout
    assert content(tmp_path / 'out') == before


@pytest.mark.parametrize(('arguments', 'words'), [
    (['--clean', 'none'], "'none'"), (['--tasks', 'derian'], "Did you mean 'derain'?"),
    (['--copies', '0'], '--copies')])
def test_bad_arguments_are_named_and_nothing_is_written(tmp_path, arguments, words):
    process = command(SCRIPT, *arguments, cwd=tmp_path, check=False)
    assert process.returncode == 2 and words in process.stdout and 'Traceback' not in process.stdout
    assert not list(tmp_path.iterdir())


def test_all_bad_photos_are_named_before_anything_is_written(photos, tmp_path):
    (photos / '1/05.png').write_bytes(b'torn')
    (photos / '0/02.jpg').write_bytes((photos / '0/02.png').read_bytes())
    (photos / '0/08.png').write_bytes((photos / '0/08.png').read_bytes()[:500])
    process = run(tmp_path, '--out', 'out', check=False)
    assert process.returncode == 2 and 'Traceback' not in process.stdout
    for words in ('3 photos cannot be used', '05.png: not a readable image', '08.png: not a readable image',
                  '0/02: occurs with several suffixes'):
        assert words in process.stdout
    assert not (tmp_path / 'out').exists()


def test_a_photo_stays_on_its_side_when_others_go(photos, tmp_path):
    run(tmp_path, '--out', 'out')
    sides = sources(tmp_path / 'out/derain')
    removed = sorted(sides['train'])[:3]
    for name in removed:
        Path(name).unlink()
    run(tmp_path, '--out', 'out')
    assert sources(tmp_path / 'out/derain') == sides and not sides['train'] & sides['val']


def test_snippet_it_prints_is_a_data_set(photos, tmp_path, monkeypatch):
    import yaml

    from rdbm_plugin.data.universal_paired_dataset import UniversalPairedDataset
    process = run(tmp_path, '--out', 'out', '--lmdb')
    text = process.stdout[process.stdout.index('datasets:'):]
    options = yaml.safe_load(text)['datasets']['train']
    monkeypatch.chdir(tmp_path)
    data = UniversalPairedDataset({**options, 'phase': 'train', 'gt_size': 32})
    assert data.task_names == ['derain', 'dehaze+lowlight'] and len(data) == 64
    assert data[0]['gt'].shape == (3, 32, 32)
