"""``rdbm restore`` and Restorer, with the weights that come with the package."""
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, command
from foreign_damage import KINDS, damage
from PIL import Image
from rounding import UNIT, doubled, within_rounding

from rdbm_plugin import OptionError, RDBMUNet, Restorer
from rdbm_plugin.archs.checkpoint import SELF_CONTAINED, SHIPPED, with_options
from rdbm_plugin.commands import restore as cli
from rdbm_plugin.data.photo_file import MISSING, Photo, read_photo, write_photo
from rdbm_plugin.data.synthetic_universal_dataset import SyntheticUniversalDataset


@pytest.fixture(scope='module')
def restore():
    return Restorer(device='cpu', steps=2)


@pytest.fixture(scope='module')
def photos():
    """The held-out photos of each task: tensors (3, H, W), degraded and clean."""
    def read(task):
        data = SyntheticUniversalDataset({'name': task, 'phase': 'val', 'dataroot_gt': 'embedded', 'tasks': [task]})
        return [data[index] for index in range(len(data))]
    return {task: read(task) for task in ('derain', 'lowlight', 'desnow', 'dehaze', 'deblur')}


def psnr(a, b):
    return -10 * float((a - b).square().mean().log10())


def test_shipped_weights_restore_photos_they_never_saw(restore, photos):
    gains = [np.mean([psnr(restore(each['lq']), each['gt']) - psnr(each['lq'], each['gt']) for each in items])
             for items in photos.values()]
    assert np.mean(gains) > 3 and min(gains) > 0


@pytest.mark.parametrize('checkpoint', [(), (None,), ('shipped',)])
def test_shipped_weights_are_taken_by_default_and_by_name(checkpoint):
    assert Restorer(*checkpoint, device='cpu').checkpoint == SHIPPED


def test_shipped_weights_leave_good_photos_almost_untouched(photos):
    restore = Restorer(device='cpu')
    assert min(psnr(restore(each['gt']), each['gt']) for each in photos['derain']) >= 38


def test_shipped_weights_do_not_harm_what_another_hand_has_damaged(photos):
    """Damage by formulas that no training knows; PSNR in dB of two photos that training never saw."""
    restore, gains = Restorer(device='cpu'), {}
    for number, item in enumerate(photos['derain']):
        clean = item['gt'].permute(1, 2, 0).numpy()
        for place, kind in enumerate(KINDS):
            lq = torch.from_numpy(damage(kind, clean, np.random.default_rng([number, place]))).permute(2, 0, 1)
            gains.setdefault(kind, []).append(psnr(restore(lq), item['gt']) - psnr(lq, item['gt']))
    means = {kind: np.mean(each) for kind, each in gains.items()}
    assert np.mean(list(means.values())) > 1.5 and min(means.values()) > -1, means


@pytest.mark.parametrize('task, tile', [('lowlight', 128), *(
    pytest.param(task, tile, marks=pytest.mark.slow)
    for task, tile in (('derain', 128), ('dehaze', 128), ('dehaze', 192)))])
def test_tiles_cost_less_than_0_05_db(restore, photos, task, tile):
    """And gain no more than that, but for thick haze in tiles below the 192 pixels that docs/restore.md asks for."""
    tiled = Restorer(device='cpu', steps=2, tile=tile)
    most = 0.25 if (task, tile) == ('dehaze', 128) else 0.05
    for each in photos[task]:
        whole, parts = restore(each['lq']), tiled(each['lq'])
        assert -0.05 < psnr(parts, each['gt']) - psnr(whole, each['gt']) < most
        assert not torch.equal(whole, parts)


@pytest.mark.parametrize('kind', ['uint8', 'uint16', 'float32', 'gray'])
def test_arrays_come_back_as_they_are(restore, kind):
    rng = np.random.default_rng(0)
    shape = (21, 34) if kind == 'gray' else (21, 34, 3)
    dtype = np.dtype('uint8' if kind == 'gray' else kind)
    top = np.iinfo(dtype).max if dtype.kind == 'u' else 1
    image = (rng.random(shape) * top).astype(dtype)
    kept = image.copy()
    out = restore(image)
    assert out.shape == shape and out.dtype == dtype and np.array_equal(image, kept)
    tensor = torch.from_numpy((image / np.float32(top)).astype(np.float32))
    tensor = tensor.expand(3, *shape) if kind == 'gray' else tensor.permute(2, 0, 1)
    expected = restore(tensor).permute(1, 2, 0).numpy()
    # Both round the same numbers to float32 a few times on their way in and out, and one of them to whole numbers.
    step = 0.5 / top if dtype.kind == 'u' else 0
    np.testing.assert_allclose(out / top, expected.mean(axis=2) if kind == 'gray' else expected, rtol=0,
                               atol=step + 8 * UNIT)


def test_batch_of_tensors_equals_its_images(restore):
    batch = torch.rand(2, 3, 40, 56, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        exact = (restore.sampler(doubled(restore.network), 2 * batch.double() - 1).x0 + 1) / 2
    assert within_rounding(restore(batch), torch.stack([restore(image) for image in batch]), exact)


@pytest.mark.parametrize('shape', [(1, 1), (3, 200), (65, 7)])
def test_tiny_and_odd_sizes(restore, shape):
    assert restore(np.zeros((*shape, 3), np.uint8)).shape == (*shape, 3)


@pytest.mark.parametrize('image', [np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4), np.int32), torch.zeros(4, 4),
                                   torch.zeros(3, 4, 4, dtype=torch.uint8), np.full((4, 4, 3), 200.0),
                                   np.full((4, 4, 3), np.nan), np.zeros((0, 4, 3), np.uint8)])
def test_other_forms_are_refused(restore, image):
    with pytest.raises(OptionError, match='image: found'):
        restore(image)


def test_out_of_memory_halves_the_tile_and_says_so_once(monkeypatch, photos):
    restore = Restorer(device='cpu', steps=1, tile=0)
    image = photos['derain'][0]['lq']
    expected = restore(image)
    real, sizes = type(restore.network).forward, []

    def small_machine(self, x_t, *rest, **told):
        sizes.append(max(x_t.shape[-2:]))
        if sizes[-1] > 150:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate")
        return real(self, x_t, *rest, **told)

    monkeypatch.setattr(type(restore.network), 'forward', small_machine)
    with pytest.warns(UserWarning, match='Out of memory; retrying with tiles of') as caught:
        result = restore(image)
    assert psnr(result, expected) > 45 and len(caught) == 2  # 451 pixels, 225, 112
    sizes.clear()
    restore(image)
    assert max(sizes) <= 112, 'the next image starts with what worked'


def test_progress_ends_at_one(restore):
    seen = []
    Restorer(device='cpu', steps=3, tile=64, overlap=16)(np.zeros((100, 150, 3), np.uint8), progress=seen.append)
    assert seen == sorted(seen) and seen[-1] == pytest.approx(1) and len(seen) == 3 * 2 * 3


@pytest.mark.parametrize(('arguments', 'words'), [
    ({'checkpoint': 'no.pth'}, "checkpoint: no file 'no.pth'"),
    ({'opt': 'no.yml'}, "opt: no file 'no.yml'"),
    ({'steps': 0}, 'steps: found 0'),
    ({'solver': 'eulr'}, "Did you mean 'euler'"),
    ({'tile': 20}, 'tile: found 20'),
    ({'device': 'gpu'}, "device: found 'gpu'"),
    ({'dtype': 'int8'}, "dtype: found 'int8'"),
    ({'memory': 0}, 'memory: found 0'),
])
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises(OptionError, match=words):
        Restorer(**arguments)


def test_options_of_a_run_are_found_beside_its_checkpoint(tmp_path):
    models = tmp_path / 'experiments/run/models'
    models.mkdir(parents=True)
    torch.save({'params': Restorer(device='cpu').network.state_dict()}, models / 'net_g_5.pth')
    with pytest.raises(OptionError, match='opt: found none'):
        Restorer(models / 'net_g_5.pth')
    options = (ROOT / 'options/train_rdbm_quickstart.yml').read_text(encoding='utf-8')
    (models.parent / 'train.yml').write_text(options, encoding='utf-8')
    assert Restorer(models / 'net_g_5.pth').sampler.nfe == 10
    (models.parent / 'train.yml').write_text(options.replace('variant: T', 'variant: S'), encoding='utf-8')
    with pytest.raises(OptionError, match='RDBMUNet variant T'):
        Restorer(models / 'net_g_5.pth')


def test_changes_of_the_command_line_count_and_not_the_file_in_the_folder(tmp_path):
    """BasicSR copies the option file into the experiment without what --force_yml changed."""
    options = {'network_g': {'type': 'RDBMUNet', 'variant': 'S'}, 'bridge': {'modulation': 'one', 'timesteps': 50},
               'val': {'sampler': {'steps': 3}}}
    models = tmp_path / 'experiments/run/models'
    models.mkdir(parents=True)
    shutil.copy(ROOT / 'options/train_rdbm_quickstart.yml', models.parent)
    weights = RDBMUNet('S').state_dict()
    torch.save({'params': weights, SELF_CONTAINED: with_options(weights, options)}, models / 'net_g_5.pth')
    restore = Restorer(models.parent)
    assert restore.sampler.nfe == 3 and restore.bridge.timesteps == 50 and restore.bridge.modulation == 'one'
    assert Restorer(models.parent, steps=2).sampler.nfe == 2
    (tmp_path / 'other.yml').write_text(yaml.safe_dump({**options, 'bridge': {'timesteps': 60}}))
    with pytest.raises(OptionError, match=r"modulation: found 'residual', but net_g_5\.pth was trained with 'one'"):
        Restorer(models.parent, tmp_path / 'other.yml')


def test_the_folder_of_an_experiment_stands_for_its_best_network_else_its_newest(tmp_path):
    models = tmp_path / 'run/models'
    models.mkdir(parents=True)
    with pytest.raises(OptionError, match=r'checkpoint: .*run: found no net_g_best\.pth'):
        Restorer(tmp_path / 'run')
    (models.parent / 'train.yml').write_text('network_g: {type: RDBMUNet, variant: T}\n', encoding='utf-8')
    weights = {'params': Restorer(device='cpu').network.state_dict()}
    for name in ('net_g_900', 'net_g_1000', 'net_g_latest', 'net_g_best'):
        torch.save(weights, models / f'{name}.pth')
        for folder in (models, models.parent):
            assert Restorer(folder, device='cpu').checkpoint.stem == name


@pytest.mark.parametrize(('key', 'trained', 'given'), [
    ('prediction', 'residual', 'x0'), ('modulation', 'one', 'residual'), ('stationary_variance', '1/255', 0.1)])
def test_another_bridge_than_the_trained_one_is_refused(tmp_path, key, trained, given):
    """Its network would give garbage without a word."""
    torch.save({'params': Restorer(device='cpu').network.state_dict()}, tmp_path / 'x.pth')
    network = 'network_g: {type: RDBMUNet, variant: T}\n'
    for name, value in (('x', trained), ('other', given), ('same', trained)):
        (tmp_path / f'{name}.yml').write_text(f'{network}bridge: {{{key}: {value}}}\n')
    with pytest.raises(OptionError, match=rf'bridge: {key}: found .*x\.pth was trained with .*{trained}.*--other'):
        Restorer(tmp_path / 'x.pth', tmp_path / 'other.yml')
    assert Restorer(tmp_path / 'x.pth', tmp_path / 'other.yml', other_bridge=True)
    assert Restorer(tmp_path / 'x.pth', tmp_path / 'same.yml')


def test_a_number_written_in_two_ways_is_the_same_bridge(tmp_path):
    torch.save({'params': Restorer(device='cpu').network.state_dict()}, tmp_path / 'x.pth')
    for name, block in (('x', '{stationary_variance: 10/255}'), ('other', '{stationary_variance: 0.0392156862745098, '
                                                                         'type: ResidualBridge}')):
        (tmp_path / f'{name}.yml').write_text(f'network_g: {{type: RDBMUNet, variant: T}}\nbridge: {block}\n')
    assert Restorer(tmp_path / 'x.pth', tmp_path / 'other.yml')


def test_nothing_of_basicsr_is_imported():
    code = ('import sys; sys.modules["basicsr"] = None\n'
            'import numpy; from rdbm_plugin import Restorer; Restorer(steps=1)(numpy.zeros((9, 9, 3), "uint8"))')
    subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT)


# ---------------------------------------------------------------------------------------------------- command line

@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Runs the command in this process, in an empty folder; returns exit status and what it printed."""
    def call(*arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, 'argv', ['rdbm restore', *map(str, arguments), '--device', 'cpu', '--steps', '1'])
        status = cli.main()
        printed = capsys.readouterr()
        return status, printed.out + printed.err
    return call


def write(path, shape=(20, 30, 3), dtype=np.uint8):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = (np.random.default_rng(0).random(shape) * np.iinfo(dtype).max).astype(dtype)
    assert cv2.imwrite(str(path), image)
    return path


def test_files_folders_and_patterns(run, tmp_path):
    write(tmp_path / 'a/1.png')
    write(tmp_path / 'a/deep/2.jpg')
    write(tmp_path / 'b/3.webp')
    write(tmp_path / 'b/4.tif', dtype=np.uint16)
    write(tmp_path / 'c.png', (20, 30, 4))
    status, text = run('a', 'b/*', 'c.png', '-o', 'out', '--compare')
    assert status == 0 and '5 of 5 images restored' in text
    made = sorted(str(path.relative_to(tmp_path / 'out')) for path in (tmp_path / 'out').rglob('*.*'))
    assert made == sorted(['1.png', 'deep/2.jpg', '3.webp', '4.tif', 'c.png', '1_compare.png', 'deep/2_compare.png',
                           '3_compare.png', '4_compare.png', 'c_compare.png'])
    assert read_photo(tmp_path / 'out/4.tif').rgb.dtype == np.uint16
    assert read_photo(tmp_path / 'out/c.png').alpha is not None
    assert read_photo(tmp_path / 'out/1_compare.png').rgb.shape == (20, 60, 3)
    status, text = run('c.png', '-o', 'other/name.jpg')
    assert status == 0 and (tmp_path / 'other/name.jpg').is_file()


def test_formats_of_today_keep_their_format_where_it_can_be_written(run, tmp_path):
    (tmp_path / 'in').mkdir()
    smooth = np.linspace(0, 255, 40 * 48 * 3).reshape(40, 48, 3).astype(np.uint8)
    for name in ('a.gif', 'b.jp2'):
        Image.fromarray(smooth).save(tmp_path / 'in' / name)
    for suffix in ('.avif', '.heic', '.exr', '.tif'):
        if suffix not in MISSING:
            write_photo(tmp_path / f'in/c{suffix}', Photo(smooth if suffix in ('.avif', '.heic')
                                                          else smooth.astype(np.float32) / 255))
    status, text = run('in', '-o', 'out')
    assert status == 0, text
    expected = {'a.png', 'b.png', 'c.tif', *(f'c{suffix}' for suffix in {'.avif', '.heic', '.exr'} - set(MISSING))}
    assert {path.name for path in (tmp_path / 'out').iterdir()} == expected
    assert read_photo(tmp_path / 'out/c.tif').rgb.dtype == np.float32


def test_files_that_are_no_known_image_are_counted_by_suffix(run, tmp_path, monkeypatch):
    write(tmp_path / 'in/1.png')
    for name in ('2.HEIC', '3.heic', 'deep/4.heic', '5.psd', 'README', '.hidden'):
        (tmp_path / 'in' / name).parent.mkdir(exist_ok=True)
        (tmp_path / 'in' / name).write_bytes(b'?')
    monkeypatch.setitem(MISSING, '.heic', 'pillow-heif')
    status, text = run('in', '-o', 'in/out')
    assert status == 0
    assert ('1 of 1 images restored to in/out; left out: 1 without suffix, 3 .heic (pip install pillow-heif), 1 .psd'
            in text.splitlines())


def test_earlier_results_are_no_inputs(run, tmp_path):
    write(tmp_path / 'a.png')
    for _ in range(2):
        status, text = run('.', '-o', 'out')
        assert status == 0 and '1 of 1 images restored' in text
    assert [path.name for path in (tmp_path / 'out').rglob('*')] == ['a.png']


def bomb(path):
    Image.new('1', (20000, 6000)).save(path)


@pytest.mark.parametrize(('name', 'make', 'words'), [
    ('zero.png', lambda path: path.write_bytes(b''), 'is empty'),
    ('cut.jpg', lambda path: path.write_bytes(write(path).read_bytes()[:-200]), 'is truncated'),
    ('text.png', lambda path: path.write_text('no image'), 'damaged or of another format'),
    ('bomb.png', bomb, '120 megapixels, more than the limit of 100; if this is intended, raise the limit with '
                       '--max-megapixels'),
])
def test_a_bad_file_is_named_and_the_others_are_restored(run, tmp_path, name, make, words):
    (tmp_path / 'in').mkdir()
    make(tmp_path / 'in' / name)
    write(tmp_path / 'in/good.png')
    status, text = run('in', '-o', 'out')
    assert status == 1 and name in text and words in text and '1 of 2 images restored' in text
    assert [path.name for path in (tmp_path / 'out').iterdir()] == ['good.png']


def test_bad_inputs_and_outputs_are_named_and_the_others_are_restored(run, tmp_path):
    (tmp_path / 'empty').mkdir()
    good, same = write(tmp_path / 'good.png'), write(tmp_path / 'out/same.png')
    before = same.read_bytes()
    write(tmp_path / 'b/good.png')
    status, text = run('empty', 'nowhere', good, 'b/good.png', same, '-o', 'out')
    assert status == 1 and '1 of 1 images restored' in text
    for words in ('no image in the folder empty', 'no such file, folder or pattern: nowhere',
                  'b/good.png: would be written to out/good.png', 'the output would replace the input'):
        assert words in text
    assert same.read_bytes() == before
    status, text = run('empty', '-o', 'out')
    assert status == 1


def test_no_output_replaces_any_input(run, tmp_path):
    """Also not that of another one, nor a comparison another's."""
    first, second = write(tmp_path / 'a/1.png'), write(tmp_path / 'b/1.png')
    before = second.read_bytes()
    status, text = run('a', 'b', '-o', 'b')
    assert status == 1 and second.read_bytes() == before and text.count('would replace the input') == 3
    write(tmp_path / 'c/x.png')
    write(tmp_path / 'c/x.jpg')
    write(tmp_path / 'c/x_compare.png')
    status, _ = run('c', '-o', 'out', '--compare')
    assert status == 0 and len(list((tmp_path / 'out').iterdir())) == 6
    assert first.is_file()


def test_gray_with_alpha_stays_gray(run, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 2), dtype=np.uint8)
    Image.fromarray(pixels, 'LA').save(tmp_path / 'la.png')
    assert run('la.png', '-o', 'out')[0] == 0
    made = np.asarray(Image.open(tmp_path / 'out/la.png').convert('RGBA'))
    assert np.array_equal(made[..., 0], made[..., 2]) and made[..., 3].std() > 0


def test_the_last_line_repeats_the_first_reason(run, tmp_path):
    (tmp_path / 'bad.png').write_text('no image')
    status, text = run('bad.png', 'nowhere.png', '-o', 'out')
    assert status == 1
    last = next(line for line in text.splitlines() if line.startswith('0 of 1 images restored to out; '))
    assert 'nowhere.png' in last and last.endswith('(and 1 more)')


@pytest.mark.parametrize('name', ['pages.tif', 'film.gif.png', 'film.webp'])
def test_further_pages_are_not_lost_without_a_word(run, tmp_path, name):
    pages = [Image.new('RGB', (20, 30), colour) for colour in ('red', 'green', 'blue')]
    pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
    status, text = run(name, '-o', 'out')
    assert status == 0 and f'{name}: has 3 pages or frames, but only the first is read' in text


def sizes(folder):
    for number, shape in enumerate([(20, 30, 3), (20, 30, 3), (24, 24, 3), (20, 30, 3), (20, 30, 3), (20, 30, 3)]):
        path = write(folder / f'{number}.png', shape)
        if number == 3:
            path.write_text('no image')


def test_batches_threads_and_processes_give_what_one_at_a_time_gives(run, tmp_path, monkeypatch):
    sizes(tmp_path / 'in')
    status, text = run('in', '-o', 'one', '--batch', 1, '--compare')
    assert status == 1 and '5 of 6 images restored' in text
    one = {path.name: path.read_bytes() for path in (tmp_path / 'one').iterdir()}
    assert len(one) == 10
    for rank in (0, 1):
        monkeypatch.setenv('RANK', str(rank))
        monkeypatch.setenv('WORLD_SIZE', '2')
        status, text = run('in', '-o', 'shared', '--compare')
        assert status == rank and f'{3 - rank} of 3 images restored' in text
    assert {path.name: path.read_bytes() for path in (tmp_path / 'shared').iterdir()} == one
    monkeypatch.delenv('RANK')
    run('in', '-o', 'batched', '--batch', 4)
    for name in ('0.png', '1.png', '2.png', '4.png', '5.png'):
        first, second = (read_photo(tmp_path / folder / name).rgb.astype(int) for folder in ('one', 'batched'))
        assert np.abs(first - second).max() <= 1


def test_a_broken_run_goes_on_where_it_stopped(run, tmp_path):
    sizes(tmp_path / 'in')
    write(tmp_path / 'out/0.png')
    before = (tmp_path / 'out/0.png').read_bytes()
    status, text = run('in', '-o', 'out', '--skip-existing')
    assert status == 1 and '4 of 5 images restored to out; 1 were there already; ' in text
    assert (tmp_path / 'out/0.png').read_bytes() == before
    (tmp_path / 'in/3.png').unlink()
    status, text = run('in', '-o', 'out', '--skip-existing')
    assert status == 0 and '0 of 0 images restored to out; 5 were there already' in text


def test_unwritable_output_is_named(run, tmp_path):
    write(tmp_path / 'a.png')
    (tmp_path / 'file').write_text('in the way')
    status, text = run('a.png', '-o', 'file/folder')
    assert status == 1 and 'cannot be written' in text and (tmp_path / 'file').read_text() == 'in the way'


@pytest.mark.slow
def test_a_4k_image_takes_at_most_1_gib(tmp_path):
    """With variant L on a CPU, above the interpreter with all modules. Tiles after the second are not evaluated."""
    code = f'''
import numpy, resource, torch
from rdbm_plugin import RDBMUNet, Restorer
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
folder = r"{tmp_path}/"
torch.save({{"params": RDBMUNet("L").state_dict()}}, folder + "l.pth")
open(folder + "l.yml", "w").write("network_g: {{type: RDBMUNet, variant: L}}")
before = peak()
restore = Restorer(folder + "l.pth", device="cpu", steps=2)
real, calls = RDBMUNet.forward, []
def forward(self, x_t, mu, t, context=None):
    calls.append(mu.shape)
    return real(self, x_t, mu, t, context) if len(calls) <= 2 else torch.zeros_like(mu)
RDBMUNet.forward = forward
out = restore(numpy.full((2160, 3840, 3), 99, numpy.uint8))
print(restore.tile, len(calls), peak() - before)
'''
    tile, calls, gib = command('-c', code, cwd=tmp_path).stdout.split()[-3:]
    assert float(gib) < 1 and int(tile) == 576 and int(calls) == 2 * 40
