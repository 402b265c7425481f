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
"""Channels and number of residual blocks of each level; each has half the resolution of the one before. The blocks are
on the way down and again on the way up, at the bottom only once. T, B and L have the paper's parameter counts (0.45,
3.65 and 7.73 M) within 2 %."""
DARKEST = 0.02
"""Lower bound of the standard deviation that images are divided by; it keeps noise in black images from growing."""
WINDOW = 64
"""Side length, in pixels, of the windows in which the context measures standard deviations."""
STRIP = 512
"""Rows that the context processes at once; a multiple of WINDOW."""


class ResidualBlock(nn.Module):
    """Residual block: 3x3 convolution, scale and shift by time and context, SiLU, 3x3 convolution (zero at first)."""

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

    Standard deviations are averages over windows of WINDOW pixels, because whole photos vary more than training crops
    (the inconsistency of Chu et al., arXiv 2112.04491). Windows do not overlap, so the sums of strips can be added.

    Args:
        num_in_ch: Channels of x_t, and of mu.
        channels: Channels of the learned part.
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
        """x_t and mu, (N, C, H, W) -> (N, 2 + channels): mean and standard deviation of mu, then the learned part."""
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
    """Return (3, N, C): the means of all windows, summed; their standard deviations, summed; the number of windows.

    Windows are about ``size`` x ``size``. ``square`` holds the mean square of each pixel; default: the square of x.
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
    """Return a (count, length) matrix that averages over ``count`` windows of nearly equal length."""
    window = torch.arange(length, device=like.device) * count // length
    member = F.one_hot(window, count).T.to(like.dtype)
    return member / member.sum(1, keepdim=True)


class RDBMUNet(nn.Module):
    """U-Net of 3x3 convolutions, for a bridge or any other task with two images and a time as input.

    ``context`` computes statistics of the whole image once; all blocks receive them together with the time. Everything
    else has a bounded receptive field, without attention or normalisation layers, so large images can be restored tile
    by tile. The output is ``trust * (x_t - mu) + gain * mu + offset`` at each pixel, because haze and exposure are
    affine in the image, and the residual that the state already contains need not pass through the network.

    Args:
        variant: ``T``, ``S``, ``B`` or ``L``.
        num_in_ch: Channels of x_t, of mu, and of the output.

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
        """Return the prediction, (N, num_in_ch, H, W); it is zero before training.

        Args:
            x_t: State of the bridge, (N, num_in_ch, H, W), any H and W, range about [-1, 1].
            mu: Degraded image, (N, num_in_ch, H, W) in [-1, 1].
            t: Node of the bridge, (N,), from 0 to T.
            context: ``self.context(x_t, mu)`` of the whole image; needed if x_t and mu are a tile of it.
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
    """Return (x - mean) / std for x (N, C, H, W), mean (N,) and std (N,)."""
    return (x - mean[:, None, None, None]) / std[:, None, None, None]


def _conv(*args: int, **kwargs: int) -> nn.Conv2d:
    """A convolution that keeps the variance; torch's default, three times weaker, loses signal at each level."""
    conv = nn.Conv2d(*args, **kwargs)
    nn.init.kaiming_normal_(conv.weight, nonlinearity='linear')
    nn.init.zeros_(conv.bias)
    return conv


def zero(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    """Initialise a layer so that its output is zero before training."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _up(coarse: int, fine: int, finest: bool) -> nn.Sequential:
    """Double the resolution. Pixel shuffle keeps fine detail, but at coarser levels its grid would be visible."""
    if not finest:
        return nn.Sequential(_conv(coarse, fine, 1), nn.Upsample(scale_factor=2, mode='bilinear'))
    conv = _conv(coarse, 4 * fine, 1)
    # Four equal channels per output channel: training starts without a grid (ICNR, Aitken et al., arXiv 1707.02937).
    conv.weight.data = conv.weight.data[::4].repeat_interleave(4, dim=0)
    return nn.Sequential(conv, nn.PixelShuffle(2))


def sinusoids(t: Tensor, channels: int, with_slowest: bool = False) -> Tensor:
    """(N,) -> (N, channels): sines and cosines of periods from 2 pi up to 2 pi 1e4 (Vaswani et al., arXiv 1706.03762).

    Without ``with_slowest``, the periods stop one step before the longest.
    """
    count = channels // 2
    rates = torch.exp(torch.arange(count, device=t.device) * (-math.log(1e4) / (count - int(with_slowest))))
    angles = t.float()[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Pad the right and lower edge by reflection, or by replication if the image is too small for reflection."""
    height, width = x.shape[-2:]
    bottom, right = -height % multiple, -width % multiple
    if not (bottom or right):
        return x
    mode = 'reflect' if bottom < height and right < width else 'replicate'
    return F.pad(x, (0, right, 0, bottom), mode=mode)
