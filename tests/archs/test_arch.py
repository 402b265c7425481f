"""Size, shape and start of the U-Net, and the wrapper around other networks."""
import pytest
import torch
from rounding import of_sums
from torch import nn
from torch.nn import functional

from rdbm_plugin import OptionError, RDBMUNet
from rdbm_plugin.archs.bridge_backbone_arch import BridgeBackbone
from rdbm_plugin.archs.complexity import giga_multiply_adds
from rdbm_plugin.archs.rdbm_unet_arch import VARIANTS
from rdbm_plugin.config.options import build

PAPER = {'T': (0.45, None), 'B': (3.65, 23.97), 'L': (7.73, 32.93)}


def size(net):
    """Millions of parameters and billions of multiply-adds at 3x256x256."""
    return sum(p.numel() for p in net.parameters()) / 1e6, giga_multiply_adds(net)


def test_multiply_adds_of_a_known_network():
    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, 3, 1)

        def forward(self, x_t, mu, t):
            return self.second(self.first(x_t))

    assert giga_multiply_adds(Two(), size=100) == pytest.approx(100**2 * (3 * 8 * 9 + 8 * 3) / 1e9)


@pytest.mark.parametrize('variant', PAPER)
def test_variants_have_the_papers_size(variant):
    millions, giga = size(RDBMUNet(variant))
    assert millions == pytest.approx(PAPER[variant][0], rel=0.02)
    if PAPER[variant][1]:
        assert giga <= PAPER[variant][1]


def test_variant_s_lies_between_t_and_b():
    t, s, b = (size(RDBMUNet(variant)) for variant in 'TSB')
    assert t[0] < s[0] < b[0] and t[1] < s[1] < b[1]


@pytest.mark.parametrize('variant', VARIANTS)
def test_output_is_zero_before_training_and_every_parameter_learns(variant):
    torch.manual_seed(0)
    net = RDBMUNet(variant)
    x_t, mu = torch.rand(2, 2, 3, 32, 32)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    assert not net(x_t, mu, torch.tensor([3, 100])).any()
    for _ in range(3):  # the zero layers open one after the other
        optimizer.zero_grad()
        (net(x_t, mu, torch.tensor([3, 100])) - 1).square().mean().backward()
        optimizer.step()
    assert all(p.grad.any() for p in net.parameters())


@pytest.mark.parametrize('shape', [(1, 1), (1, 37), (7, 5), (33, 64), (65, 129)])
def test_any_height_and_width(shape):
    net = RDBMUNet('T')
    torch.nn.init.normal_(net.tail.weight)
    x = torch.rand(2, 3, *shape)
    assert net(x, x, torch.tensor([1, 2])).shape == x.shape


def test_one_image_does_not_see_the_others_of_its_batch():
    net = RDBMUNet('T').double()
    torch.nn.init.normal_(net.tail.weight)
    x_t, mu = torch.rand(2, 3, 3, 24, 40, dtype=torch.float64)
    t = torch.tensor([1, 50, 100])
    whole = net(x_t, mu, t)
    for i in range(3):
        torch.testing.assert_close(net(x_t[i:i + 1], mu[i:i + 1], t[i:i + 1]), whole[i:i + 1])


def test_time_changes_the_output():
    torch.manual_seed(0)
    net = RDBMUNet('T')
    for layer in (net.tail, net.bottom[0].conv_out):
        torch.nn.init.normal_(layer.weight)
    x = torch.rand(1, 3, 16, 16)
    outputs = [net(x, x, torch.tensor([t])) for t in (1, 50, 99, 100)]
    assert all(not torch.allclose(a, b) for a, b in zip(outputs, outputs[1:]))


def test_what_the_state_holds_can_be_passed_on():
    net = RDBMUNet('T')
    net.tail.bias.data[:3] = 1
    x_t, mu = torch.rand(2, 2, 3, 17, 24)
    assert torch.equal(net(x_t, mu, torch.tensor([3, 100])), x_t - mu)


def test_channels_can_be_chosen():
    net = RDBMUNet('T', num_in_ch=1)
    x = torch.rand(1, 1, 16, 16)
    assert net(x, x, torch.tensor([1])).shape == x.shape


@pytest.mark.parametrize(('block', 'words'), [
    ({'type': 'RDBMUNet', 'variant': 'XL'}, ['network_g: variant', "'XL'", 'B, L, S, T']),
    ({'type': 'RDBMUNet', 'varient': 'T'}, ["unknown key 'varient'", "Did you mean 'variant'?"]),
    ({'type': 'RDBMUNet', 'num_in_ch': 0}, ['num_in_ch', 'found 0']),
    ({'type': 'RDBMUnet'}, ['network_g: type', "Did you mean 'RDBMUNet'?"]),
])
def test_bad_options_are_named(block, words):
    with pytest.raises(OptionError) as error:
        build('network_g', block, {'RDBMUNet': RDBMUNet})
    for word in words:
        assert word in str(error.value)


class Unshuffling(nn.Module):
    """As Restormer, it takes multiples of 8 alone."""

    def __init__(self):
        super().__init__()
        self.same = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return functional.pixel_shuffle(functional.pixel_unshuffle(self.same(x), 8), 8)


def backbone_of(**options):
    from basicsr.utils.registry import ARCH_REGISTRY
    if 'Unshuffling' not in ARCH_REGISTRY:
        ARCH_REGISTRY.register(Unshuffling)
    torch.manual_seed(0)
    return BridgeBackbone({'type': 'Unshuffling'}, **options)


def test_a_backbone_that_does_not_pad_gets_multiples():
    x_t, mu, t = torch.rand(1, 3, 21, 45), torch.rand(1, 3, 21, 45), torch.tensor([50.0])
    with pytest.raises(RuntimeError, match=r'Unshuffling cannot take 45x21 pixels: .*network_g: multiple'):
        backbone_of()(x_t, mu, t)
    net = backbone_of(multiple=8)
    torch.nn.init.normal_(net.tail.weight)
    out = net(x_t, mu, t)
    assert out.shape == x_t.shape and out.std() > 0
    # The backbone is 1x1 and unshuffling is undone, so that padding may not be seen within the picture.
    whole = backbone_of(multiple=1)
    whole.load_state_dict(net.state_dict())
    padded = [functional.pad(each, (0, 3, 0, 3), mode='reflect') for each in (x_t, mu)]
    # The first and the last layer see one pixel further each.
    allowed = of_sums(net.tail.weight[0].numel(), float(net.tail.weight.abs().sum((1, 2, 3)).max()))
    torch.testing.assert_close(out[..., :19, :43], whole(*padded, t)[..., :19, :43], atol=allowed, rtol=0)
