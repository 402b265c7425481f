"""Users' image files: what they hold survives reading and writing."""
import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from rdbm_plugin.data import photo_file
from rdbm_plugin.data.image_source import ImageError
from rdbm_plugin.data.photo_file import MISSING, Photo, read_photo, upright, write_photo

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (13, 17, 3), np.uint8)


def needs(suffix):
    """A case that is skipped where the format cannot be read."""
    missing = MISSING.get(suffix)
    return pytest.param(suffix, marks=pytest.mark.skipif(missing is not None, reason=f'pip install {missing}'))


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


@pytest.mark.parametrize('suffix', ['.jpg', '.webp', needs('.avif'), needs('.heic')])
@pytest.mark.parametrize('gray', [False, True])
def test_lossy_formats_keep_look_and_profile(tmp_path, suffix, gray):
    smooth = np.linspace(0, 255, 31 * 33 * 3).reshape(31, 33, 3).astype(np.uint8)
    smooth = np.repeat(smooth[..., :1], 3, axis=2) if gray else smooth
    write_photo(tmp_path / f'a{suffix}', Photo(smooth, gray, profile=PROFILE))
    back = read_photo(tmp_path / f'a{suffix}')
    assert np.abs(back.rgb.astype(int) - smooth).mean() < 3 and back.profile == PROFILE
    assert back.gray == gray or suffix == '.webp', 'WebP has no gray'


@pytest.mark.parametrize('suffix', ['.webp', '.jpg', needs('.avif'), needs('.heic')])
def test_lossy_formats_keep_alpha_but_for_jpeg(tmp_path, suffix):
    alpha = np.full((16, 24), 255, np.uint8)
    alpha[:8] = 40
    write_photo(tmp_path / f'a{suffix}', Photo(np.full((16, 24, 3), 99, np.uint8), alpha=alpha))
    back = read_photo(tmp_path / f'a{suffix}').alpha
    assert back is None if suffix == '.jpg' else np.abs(back.astype(int) - alpha).max() <= 4


@pytest.mark.parametrize('suffix', ['.tif', needs('.exr')])
@pytest.mark.parametrize('kind', ['rgb', 'gray', 'alpha'])
def test_floats_stay_floats(tmp_path, suffix, kind):
    rgb = RNG.random((13, 17, 3), np.float32)
    rgb = np.repeat(rgb[..., :1], 3, axis=2) if kind == 'gray' else rgb
    alpha = RNG.random((13, 17), np.float32) if kind == 'alpha' else None
    path = tmp_path / f'a{suffix}'
    write_photo(path, Photo(rgb, kind == 'gray', alpha, PROFILE))
    back = read_photo(path)
    assert back.rgb.dtype == np.float32 and back.gray == (kind == 'gray')
    np.testing.assert_allclose(back.rgb, rgb, rtol=0, atol=1e-7)
    assert (back.alpha is None) == (alpha is None) and (alpha is None or np.array_equal(back.alpha, alpha))
    assert back.profile == (None if suffix == '.exr' else PROFILE)
    write_photo(tmp_path / 'b.png', back)
    assert np.array_equal(read_photo(tmp_path / 'b.png').rgb, np.rint(back.rgb * np.float32(65535)).astype(np.uint16))
    restored = back.with_rgb(np.full_like(rgb, 1.5)).rgb
    assert restored.dtype == np.float32 and restored.max() == 1


@pytest.mark.parametrize('suffix', ['.tif', needs('.exr')])
@pytest.mark.parametrize('value', [1.25, -0.5, np.nan])
def test_floats_beyond_the_range_are_refused(tmp_path, suffix, value, monkeypatch):
    rgb = np.full((5, 6, 3), 0.5, np.float32)
    rgb[2, 3, 1] = value
    monkeypatch.setattr(photo_file, '_quantized', lambda image, dtype: image)
    write_photo(tmp_path / f'a{suffix}', Photo(rgb))
    with pytest.raises(ImageError, match=rf'a\{suffix}: holds values from .*{value:g}.*must lie in \[0, 1\]'):
        read_photo(tmp_path / f'a{suffix}')


@pytest.mark.skipif('.exr' in MISSING, reason='pip install OpenEXR')
def test_exr_of_half_floats_and_of_other_channels(tmp_path):
    import OpenEXR
    header = {'compression': OpenEXR.PIZ_COMPRESSION, 'type': OpenEXR.scanlineimage}
    half = RNG.random((5, 7, 3)).astype(np.float16)
    OpenEXR.File(header, {'RGB': half}).write(str(tmp_path / 'half.exr'))
    assert np.array_equal(read_photo(tmp_path / 'half.exr').rgb, half.astype(np.float32))
    OpenEXR.File(header, {'Z': half[..., 0].copy()}).write(str(tmp_path / 'depth.exr'))
    with pytest.raises(ImageError, match='it has the channels Z; expected RGB, RGBA or Y'):
        read_photo(tmp_path / 'depth.exr')
    with pytest.raises(ImageError, match=r'half\.exr: has 0 megapixels, more than the limit of 1e-05'):
        read_photo(tmp_path / 'half.exr', 1e-5)


def test_jpeg_2000_is_read_in_its_depth(tmp_path):
    Image.fromarray(RGB).save(tmp_path / 'a.jp2')
    assert np.array_equal(read_photo(tmp_path / 'a.jp2').rgb, RGB)
    deep = RNG.integers(0, 2**16, (40, 33, 3)).astype(np.uint16)
    assert cv2.imwrite(str(tmp_path / 'deep.jp2'), deep[..., ::-1], [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000])
    assert np.array_equal(read_photo(tmp_path / 'deep.jp2').rgb, deep)
    # Of 12 bits: the same code, with another number of bits in the header and zero moved to where they have it.
    twelve = RNG.integers(0, 2**12, (40, 33)).astype(np.uint16)
    coded = cv2.imencode('.jp2', twelve + 2**15 - 2**11, [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000])[1].tobytes()
    place = coded.index(b'\xff\x51') + 40
    assert coded[place] == 15
    (tmp_path / '12.jp2').write_bytes(coded[:place] + b'\x0b' + coded[place + 1:])
    back = read_photo(tmp_path / '12.jp2')
    assert back.gray and np.abs(back.rgb[..., 0] - twelve * (65535 / 4095)).max() <= 0.51


def test_values_of_other_kinds_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / 'a.tif', np.full((9, 9), 70000, np.int32))
    with pytest.raises(ImageError, match=r'a\.tif: not a readable image: it '):
        read_photo(tmp_path / 'a.tif')


def test_the_first_frame_of_a_gif_is_read(tmp_path):
    frames = [Image.fromarray(np.full((13, 17, 3), value, np.uint8)) for value in (40, 200)]
    frames[0].save(tmp_path / 'a.gif', save_all=True, append_images=frames[1:])
    with pytest.warns(UserWarning, match=r'a\.gif: has 2 pages or frames'):
        assert np.array_equal(read_photo(tmp_path / 'a.gif').rgb, np.full((13, 17, 3), 40, np.uint8))


def test_what_a_format_needs_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(MISSING, '.heic', 'pillow-heif')
    with pytest.raises(ImageError, match=r'a\.HEIC: .* pip install pillow-heif$'):
        read_photo(tmp_path / 'a.HEIC')
    with pytest.raises(ImageError, match=r'pip install pillow-heif$'):
        write_photo(tmp_path / 'a.heic', Photo(RGB))


@pytest.mark.parametrize('share', [0.05, 0.5])
@pytest.mark.parametrize('name', ['a.png', 'a.jpg', 'a.jp2', 'a.tif', 'deep.png', 'deep.jp2', 'deep.tif', 'a.webp'])
def test_no_truncated_file_is_read(tmp_path, name, share):
    noise = RNG.integers(0, 256, (40, 40, 3), np.uint8)
    noise = noise.astype(np.uint16) * 257 if 'deep' in name else noise
    assert cv2.imwrite(str(tmp_path / name), noise)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:int(share * len(content))])
    with pytest.raises(ImageError, match='not a readable image'):
        read_photo(tmp_path / name)


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('suffix', ['.jpg', '.png', '.tif', needs('.avif')])
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
