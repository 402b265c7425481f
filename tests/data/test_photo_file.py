"""Users' image files: what they hold survives reading and writing."""
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from rdbm_plugin.data.image_source import ImageError
from rdbm_plugin.data.photo_file import Photo, read_photo, upright, write_photo

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (13, 17, 3), np.uint8)


@pytest.mark.parametrize('suffix', ['.png', '.tif', '.bmp'])
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
@pytest.mark.parametrize('kind', ['rgb', 'gray', 'alpha'])
def test_lossless_formats_give_back_what_they_were_given(tmp_path, suffix, dtype, kind):
    rgb = RNG.integers(0, np.iinfo(dtype).max + 1, (13, 17, 3)).astype(dtype)
    rgb = np.repeat(rgb[..., :1], 3, axis=2) if kind == 'gray' else rgb
    alpha = rgb[..., 0].copy() if kind == 'alpha' else None
    path = tmp_path / f'a{suffix}'
    write_photo(path, Photo(rgb, kind == 'gray', alpha, PROFILE))
    back = read_photo(path)
    if suffix == '.bmp':
        expected = np.rint(rgb / 257).astype(np.uint8) if dtype == np.uint16 else rgb
        assert np.array_equal(back.rgb, expected) and back.alpha is None
        return
    assert back.rgb.dtype == dtype and np.array_equal(back.rgb, rgb)
    assert (back.alpha is None) == (alpha is None) and (alpha is None or np.array_equal(back.alpha, alpha))
    assert back.gray == (kind == 'gray') and back.profile == PROFILE
    with Image.open(path) as other:  # an independent reader agrees on form and profile
        assert other.size == (17, 13) and other.info.get('icc_profile') == PROFILE


@pytest.mark.parametrize('suffix', ['.jpg', '.webp'])
def test_lossy_formats_keep_look_and_profile(tmp_path, suffix):
    smooth = np.linspace(0, 255, 32 * 32 * 3).reshape(32, 32, 3).astype(np.uint8)
    write_photo(tmp_path / f'a{suffix}', Photo(smooth, profile=PROFILE))
    back = read_photo(tmp_path / f'a{suffix}')
    assert np.abs(back.rgb.astype(int) - smooth).mean() < 3 and back.profile == PROFILE


def test_webp_keeps_alpha_and_jpeg_drops_it(tmp_path):
    alpha = np.full((13, 17), 255, np.uint8)
    alpha[:5] = 40
    for suffix in ('.webp', '.jpg'):
        write_photo(tmp_path / f'a{suffix}', Photo(RGB, alpha=alpha))
    assert np.array_equal(read_photo(tmp_path / 'a.webp').alpha, alpha)
    assert read_photo(tmp_path / 'a.jpg').alpha is None


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('suffix', ['.jpg', '.png', '.tif'])
def test_orientation_is_undone_as_pillow_does(tmp_path, orientation, suffix):
    from PIL import ImageOps
    smooth = np.zeros((16, 24, 3), np.uint8)
    smooth[:8, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(smooth).save(tmp_path / f'a{suffix}', exif=exif)
    with Image.open(tmp_path / f'a{suffix}') as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert('RGB'))
    found = read_photo(tmp_path / f'a{suffix}').rgb
    assert found.shape == expected.shape and np.abs(found.astype(int) - expected).max() < 30
    assert np.array_equal(upright(smooth, orientation) > 128, expected > 128)


def test_orientation_of_16_bits_is_undone(tmp_path):
    deep = np.zeros((16, 24, 3), np.uint16)
    deep[:8, :8] = 65535
    tifffile.imwrite(tmp_path / 'a.tif', deep, photometric='rgb', extratags=[(274, 'H', 1, 6, True)])
    assert np.array_equal(read_photo(tmp_path / 'a.tif').rgb, upright(deep, 6))


@pytest.mark.parametrize(('content', 'words'), [
    (b'', 'is empty'), (b'no image', 'damaged or of another format'), (b'\x89PNG\r\n\x1a\n', 'truncated')])
def test_bad_files_are_named(tmp_path, content, words):
    (tmp_path / 'bad.png').write_bytes(content)
    with pytest.raises(ImageError, match=rf'bad\.png.*{words}'):
        read_photo(tmp_path / 'bad.png')


def test_bombs_are_refused_before_they_are_decoded(tmp_path):
    Image.new('1', (20000, 6000)).save(tmp_path / 'bomb.png')
    with pytest.raises(ImageError, match=r'has 120 megapixels, more than the limit of 100.*--max-megapixels'):
        read_photo(tmp_path / 'bomb.png')
    assert read_photo(tmp_path / 'bomb.png', 200).rgb.shape == (6000, 20000, 3)


def test_writing_is_whole_or_nothing(tmp_path):
    with pytest.raises(ImageError, match='cannot write'):
        write_photo(tmp_path / 'a.gif', Photo(RGB))
    (tmp_path / 'file').write_text('in the way')
    with pytest.raises(ImageError, match='cannot be written'):
        write_photo(tmp_path / 'file/a.png', Photo(RGB))
    (tmp_path / 'a.png').mkdir()
    with pytest.raises(ImageError, match='cannot be written'):
        write_photo(tmp_path / 'a.png', Photo(RGB))
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a.png', 'file']
