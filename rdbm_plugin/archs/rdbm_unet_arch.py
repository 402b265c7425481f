"""The restoration network of the bridge. Needs torch only."""
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rdbm_plugin.config.options import check_choice, check_int

VARIANTS = {
    'T': ((16, 40, 64, 80), (1, 1, 1, 1)),
    'S': ((24, 48, 88, 112), (1, 2, 2, 1)),
    'B': ((40, 80, 144, 176), (2, 2, 2, 2)),
    'L': ((40, 96, 192, 224), (1, 1, 3, 3)),
}
"""Channels of the levels, each at half the resolution of the one before, and their residual blocks on the way down and
again up, at the bottom once. T, B and L have the paper's parameter counts (0.45, 3.65 and 7.73 M, within 2 %)."""
DARKEST = 0.02
"""Least standard deviation that images are divided by, so that noise in black ones is not amplified."""
WINDOW = 64
"""Side in pixels of the windows that the context's standard deviations are taken in."""
STRIP = 512
"""Rows that the context sums up at once; a multiple of WINDOW."""


class ResidualBlock(nn.Module):
    """3x3 convolution, scale and shift by time and context, SiLU, 3x3 convolution (zero at first), sum."""

    def __init__(self, channels: int, time_channels: int) -> None:
        super().__init__()
        self.conv_in = _conv(channels, channels, 3, padding=1)
        self.time = nn.Linear(time_channels, 2 * channels)
        self.conv_out = zero(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(N, C, H, W) and (N, time_channels) -> (N, C, H, W)."""
        scale, shift = self.time(time)[:, :, None, None].chunk(2, dim=1)
        return x + self.conv_out(F.silu(torch.addcmul(shift, self.conv_in(x), 1 + scale)))


class Context(nn.Module):
    """Statistics of the whole image: mean and standard deviation of mu and of learned features at two scales.

    Standard deviations are averages over windows of WINDOW pixels, as whole photos vary more than the crops of a
    training (the inconsistency of Chu et al., arXiv 2112.04491). Windows do not overlap, so strips can be summed up.

    Args:
        num_in_ch: Channels of x_t and of mu each.
        channels: Of the learned part.
    """

    width = 48

    def __init__(self, num_in_ch: int, channels: int) -> None:
        super().__init__()
        self.near = nn.Sequential(nn.Conv2d(2 * num_in_ch, self.width, 4, stride=4), nn.SiLU(),
                                  nn.Conv2d(self.width, self.width, 1), nn.SiLU())
        self.far = nn.Sequential(nn.Conv2d(self.width, self.width, 2, stride=2), nn.SiLU(),
                                 nn.Conv2d(self.width, self.width, 1), nn.SiLU())
        self.out = nn.Linear(4 * self.width + 2, channels)

    def forward(self, x_t: Tensor, mu: Tensor) -> Tensor:
        """(N, C, H, W) both -> (N, 2 + channels): mean and standard deviation of mu, then the learned part."""
        strips = list(zip(x_t.split(STRIP, dim=2), mu.split(STRIP, dim=2)))
        mean, std = _average([_windows(part.mean(1, keepdim=True), WINDOW, part.square().mean(1, keepdim=True))
                              for _, part in strips])
        std = std.clamp(min=DARKEST)
        near, far = [], []
        for strip in strips:
            fine = self.near(pad_to_multiple(standardise(torch.cat(strip, dim=1), mean[:, 0], std[:, 0]), 8))
            coarse = self.far(fine)
            near.append(_windows(fine, WINDOW // 4))
            far.append(_windows(coarse, WINDOW // 8))
        found = torch.cat([*_average(near), *_average(far), mean, std.log()], dim=1)
        return torch.cat([mean, std, self.out(found.to(x_t.dtype)).to(mean.dtype)], dim=1)


def _windows(x: Tensor, size: int, square: Tensor | None = None) -> Tensor:
    """Sums of the means and standard deviations of windows of about ``size`` squared, and their number: (3, N, C).

    ``square`` is the mean square of each pixel, by default that of x.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    with torch.autocast(x.device.type, enabled=False):
        rows, columns = (_split(length, max(1, round(length / size)), x) for length in x.shape[-2:])
        mean, second = (rows @ each @ columns.T for each in (x, x.square() if square is None else square.to(x.dtype)))
    std = (second - mean.square()).clamp(min=1e-6).sqrt()
    return torch.stack([mean.sum((2, 3)), std.sum((2, 3)), torch.full_like(mean[:, :, 0, 0], len(rows) * len(columns))])


def _average(sums: list[Tensor]) -> tuple[Tensor, Tensor]:
    mean, std, count = torch.stack(sums).sum(0)
    return mean / count, std / count


def _split(length: int, count: int, like: Tensor) -> Tensor:
    """(count, length): averages over ``count`` windows of as equal length as can be."""
    window = torch.arange(length, device=like.device) * count // length
    member = F.one_hot(window, count).T.to(like.dtype)
    return member / member.sum(1, keepdim=True)


class RDBMUNet(nn.Module):
    """U-Net of 3x3 convolutions, for a bridge or any other task of two images and a time.

    Statistics of the whole image are taken once, by ``context``, and given to all blocks beside the time. Everything
    else sees a bounded window, so large images can be restored tile by tile: there are no attention and normalisation
    layers. The output is ``trust * (x_t - mu) + gain * mu + offset`` for each pixel: haze and exposure are affine in
    the image, and what the state holds of the residual need not pass through the network.

    Args:
        variant: ``T``, ``S``, ``B`` or ``L``.
        num_in_ch: Channels of x_t, of mu and of the output each.

    Raises:
        OptionError: An argument is out of its range.
    """

    time_channels = 64

    def __init__(self, variant: str = 'T', num_in_ch: int = 3) -> None:
        super().__init__()
        self.variant = check_choice('variant', variant, VARIANTS)
        channels, blocks = VARIANTS[variant]
        check_int('num_in_ch', num_in_ch, 1)
        self.stride = 2 ** (len(channels) - 1)
        self.time_in = nn.Linear(self.time_channels, self.time_channels)
        self.time_out = nn.Linear(self.time_channels, self.time_channels)
        self.context = Context(num_in_ch, self.time_channels)
        self.head = _conv(2 * num_in_ch, channels[0], 3, padding=1)
        self.encoder, self.down = nn.ModuleList(), nn.ModuleList()
        self.decoder, self.up = nn.ModuleList(), nn.ModuleList()
        for fine, coarse, count in zip(channels, channels[1:], blocks):
            self.encoder.append(self._blocks(fine, count))
            self.down.append(_conv(fine, coarse, 2, stride=2))
            self.up.append(_up(coarse, fine, finest=not self.up))
            self.decoder.append(self._blocks(fine, count))
        self.bottom = self._blocks(channels[-1], blocks[-1])
        self.tail = zero(nn.Conv2d(channels[0], 3 * num_in_ch, 3, padding=1))

    def _blocks(self, channels: int, count: int) -> nn.ModuleList:
        return nn.ModuleList(ResidualBlock(channels, self.time_channels) for _ in range(count))

    def forward(self, x_t: Tensor, mu: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        """The prediction, (N, num_in_ch, H, W); zero before training.

        Args:
            x_t: State of the bridge, (N, num_in_ch, H, W), any H and W, range about [-1, 1].
            mu: Degraded image, (N, num_in_ch, H, W) in [-1, 1].
            t: Node of the bridge, (N,), from 0 to T.
            context: ``self.context(x_t, mu)`` of the whole image, where x_t and mu are a part of it.
        """
        height, width = x_t.shape[-2:]
        context = self.context(x_t, mu) if context is None else context
        mean, std, learned = context.tensor_split((1, 2), dim=1)
        time = F.silu(self.time_in(sinusoids(t, self.time_channels).to(x_t.dtype)) + learned.to(x_t.dtype))
        time = F.silu(self.time_out(time))
        both = standardise(torch.cat([x_t, mu], dim=1), mean[:, 0], std[:, 0])
        h = self.head(pad_to_multiple(both, self.stride))
        skips = []
        for blocks, down in zip(self.encoder, self.down):
            for block in blocks:
                h = block(h, time)
            skips.append(h)
            h = down(h)
        for block in self.bottom:
            h = block(h, time)
        for blocks, up, skip in zip(reversed(self.decoder), reversed(self.up), reversed(skips)):
            h = up(h) + skip
            for block in blocks:
                h = block(h, time)
        trust, gain, offset = self.tail(h)[..., :height, :width].chunk(3, dim=1)
        return trust * (x_t - mu) + gain * mu + offset


def standardise(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(x - mean) / std of (N, C, H, W) with mean and std (N,)."""
    return (x - mean[:, None, None, None]) / std[:, None, None, None]


def _conv(*args: int, **kwargs: int) -> nn.Conv2d:
    """A convolution that keeps the variance; torch's initialisation, three times weaker, loses signal at each level."""
    conv = nn.Conv2d(*args, **kwargs)
    nn.init.kaiming_normal_(conv.weight, nonlinearity='linear')
    nn.init.zeros_(conv.bias)
    return conv


def zero(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    """Make a layer give zero before training."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _up(coarse: int, fine: int, finest: bool) -> nn.Sequential:
    """Twice the resolution. Shuffled pixels keep fine detail, but at the coarser levels their grid would be seen."""
    if not finest:
        return nn.Sequential(_conv(coarse, fine, 1), nn.Upsample(scale_factor=2, mode='bilinear'))
    conv = _conv(coarse, 4 * fine, 1)
    # Starts without a grid (ICNR, Aitken et al., arXiv 1707.02937).
    conv.weight.data = conv.weight.data[::4].repeat_interleave(4, dim=0)
    return nn.Sequential(conv, nn.PixelShuffle(2))


def sinusoids(t: Tensor, channels: int, with_slowest: bool = False) -> Tensor:
    """(N,) -> (N, channels): sines and cosines of periods from 2 pi up to 2 pi 1e4 (Vaswani et al., arXiv 1706.03762).

    The slowest of these periods is left out unless ``with_slowest``.
    """
    count = channels // 2
    rates = torch.exp(torch.arange(count, device=t.device) * (-math.log(1e4) / (count - int(with_slowest))))
    angles = t.float()[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Extend the right and lower edge by reflection, or by repetition where the image is too small for that."""
    height, width = x.shape[-2:]
    bottom, right = -height % multiple, -width % multiple
    if not (bottom or right):
        return x
    mode = 'reflect' if bottom < height and right < width else 'replicate'
    return F.pad(x, (0, right, 0, bottom), mode=mode)
