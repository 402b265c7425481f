"""Tiles: weights that sum to one, no seams, and what the whole image is like in every tile."""
import pytest
import torch
from torch import nn

from rdbm_plugin import RDBMUNet
from rdbm_plugin.config.options import OptionError
from rdbm_plugin.inference.tiling import GRID, TiledNetwork, blending, bytes_per_pixel, tile_for, tiled


@pytest.mark.parametrize(('length', 'tile', 'overlap'), [
    (100, 64, 16), (64, 64, 16), (65, 64, 16), (1000, 96, 32), (321, 128, 0), (500, 128, 63), (30, 64, 8)])
def test_weights_sum_to_one_and_tiles_cover_all(length, tile, overlap):
    total = torch.zeros(length)
    tiles = blending(length, tile, overlap)
    for start, weight in tiles:
        assert len(weight) <= tile and (weight >= 0).all()
        assert start % GRID == 0, 'the network must halve the same pixels as in the whole image'
        total[start:start + len(weight)] += weight
    torch.testing.assert_close(total, torch.ones(length))
    assert all(a + len(w) - b >= overlap for (a, w), (b, _) in zip(tiles, tiles[1:]))


def test_local_network_is_not_changed_by_tiling():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 3, 9, padding=4, padding_mode='replicate')

    def network(x_t, mu, t):
        return conv(x_t - mu)
    x_t, mu = torch.rand(2, 2, 3, 150, 201)
    with torch.inference_mode():
        # At the inner edge of a tile the padding is wrong for 4 pixels, where the weight is least.
        tiled = TiledNetwork(network, 64, 31)(x_t, mu, torch.tensor([1, 1]))
        whole = network(x_t, mu, None)
    assert float((tiled - whole).abs().mean()) < 2e-3


def trained_like(variant='T'):
    """An RDBMUNet whose output depends on all of its layers."""
    torch.manual_seed(0)
    network = RDBMUNet(variant).eval()
    for name, parameter in network.named_parameters():
        if 'conv_out' in name or 'tail' in name:
            torch.nn.init.normal_(parameter, std=0.03)
    return network


def uneven():
    """State and degraded image whose left half is dark and flat and whose right half is bright and noisy."""
    generator = torch.Generator().manual_seed(1)
    mu = torch.rand(2, 3, 200, 403, generator=generator) * 0.2 - 0.9
    mu[..., 200:] += 1.5 * torch.rand(mu[..., 200:].shape, generator=generator)
    return mu + 0.1 * torch.randn(mu.shape, generator=generator), mu, torch.tensor([50, 7])


def test_every_tile_is_told_what_the_whole_image_is_like():
    network = trained_like()
    x_t, mu, t = uneven()
    with torch.inference_mode():
        whole = network(x_t, mu, t)
        told = TiledNetwork(network, 128, 64)(x_t, mu, t)
        alone = TiledNetwork(lambda *images: network(*images), 128, 64)(x_t, mu, t)
    error, without = (float((each - whole).abs().mean()) for each in (told, alone))
    assert error < 5e-3 * float(whole.abs().mean()) and error < 0.02 * without


def test_far_from_the_edges_of_its_tile_a_pixel_is_what_it_is_in_the_whole_image():
    network = trained_like()
    x_t, mu, t = (each.double() if each.is_floating_point() else each for each in uneven())
    network.double()
    with torch.inference_mode():
        whole = network(x_t, mu, t)
        part = (..., slice(16, 192), slice(64, 336))
        found = network(x_t[part], mu[part], t, context=network.context(x_t, mu))
    inner = (..., slice(72, -72), slice(72, -72))
    # Float64 rounds by 1e-16 of values of about 1; some sixty layers of sums of 300 products follow each other.
    torch.testing.assert_close(found[inner], whole[part][inner], rtol=0, atol=1e-12)


def test_context_does_not_depend_on_the_strips_it_is_summed_in(monkeypatch):
    network = trained_like().double()
    x_t, mu = (each.double() for each in uneven()[:2])
    x_t, mu = x_t[..., :192, :], mu[..., :192, :]
    before = network.context(x_t, mu)
    monkeypatch.setattr('rdbm_plugin.archs.rdbm_unet_arch.STRIP', 64)
    torch.testing.assert_close(network.context(x_t, mu), before, rtol=0, atol=1e-12)


def test_small_images_are_passed_on():
    seen = []

    def network(x_t, mu, t):
        seen.append(x_t.shape)
        return x_t
    x_t = torch.rand(1, 3, 60, 40)
    assert torch.equal(TiledNetwork(network, 64, 8)(x_t, x_t, torch.tensor([1])), x_t)
    assert seen == [(1, 3, 60, 40)]


def test_tile_grows_with_the_budget_and_shrinks_with_the_network():
    small, large = RDBMUNet('T'), RDBMUNet('L')
    assert bytes_per_pixel(large) > bytes_per_pixel(small)
    assert tile_for(small, 2**30) > tile_for(large, 2**30) > tile_for(large, 2**27) >= 64
    assert tile_for(large, 1) == 64


@pytest.mark.parametrize(('tile', 'overlap'), [(63, 8), (64, 33), (64, -1), (64.0, 8), ('atuo', 8)])
def test_bad_sizes_are_named(tile, overlap):
    with pytest.raises(OptionError, match=r'(tile|tile_overlap): found'):
        TiledNetwork(None, tile, overlap)


def test_no_tiles_are_the_network_itself():
    network = RDBMUNet('T')
    assert tiled(network, None) is tiled(network, 0) is network
    assert tiled(network, 96, 64).overlap == 48
