"""U-Nets of plain published blocks, to compare RDBMUNet with, in speed (benchmark.py) and in what it learns (study.py).

``AttentionUNet``: residual blocks with group normalisation and attention on every level, as in DDPM (Ho et al., arXiv
2006.11239) and the code bases that restoration diffusion models were built on, which put linear attention (Shen et
al., arXiv 1812.01243) on all levels and full attention at the bottom. ``NafUNet``: blocks of NAFNet (Chen et al.,
arXiv 2204.04676). Both take (x_t, mu, t) and give a residual.
"""
from collections.abc import Callable
from math import gcd

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rdbm_plugin.archs.rdbm_unet_arch import sinusoids

LEVELS = 4


class Residual(nn.Module):
    """Two times group normalisation, SiLU and a 3x3 convolution, with the time added between."""

    def __init__(self, channels: int, time: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(gcd(8, channels), channels) for _ in range(2))
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.time = nn.Linear(time, channels)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(N, C, H, W), (N, time) -> (N, C, H, W)."""
        h = self.convs[0](F.silu(self.norms[0](x))) + self.time(F.silu(time))[:, :, None, None]
        return x + self.convs[1](F.silu(self.norms[1](h)))


class Attention(nn.Module):
    """Attention over all pixels of an image, softmax or linear, 4 heads of 32 channels."""

    def __init__(self, channels: int, linear: bool) -> None:
        super().__init__()
        self.linear = linear
        self.norm = nn.GroupNorm(1, channels)
        self.qkv = nn.Conv2d(channels, 3 * 128, 1, bias=False)
        self.out = nn.Conv2d(128, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        n, _, height, width = x.shape
        q, k, v = self.qkv(self.norm(x)).view(n, 3, 4, 32, height * width).unbind(1)
        if self.linear:
            context = k.softmax(-1) @ v.transpose(-1, -2)
            out = context.transpose(-1, -2) @ (q.softmax(-2) * 32**-0.5)
        else:
            q, k, v = (each.transpose(-1, -2) for each in (q, k, v))
            out = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2)
        return x + self.out(out.reshape(n, 128, height, width))


class AttentionBlock(nn.Module):
    """Two residual blocks and attention."""

    def __init__(self, channels: int, time: int, linear: bool = True) -> None:
        super().__init__()
        self.first, self.second = Residual(channels, time), Residual(channels, time)
        self.attention = Attention(channels, linear)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(N, C, H, W), (N, time) -> (N, C, H, W)."""
        return self.attention(self.second(self.first(x, time), time))


class NafBlock(nn.Module):
    """Layer normalisation, depthwise convolution, gate and channel attention, then a gated pair of 1x1 convolutions."""

    def __init__(self, channels: int, time: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(1, channels) for _ in range(2))
        self.wide = nn.Conv2d(channels, 2 * channels, 1)
        self.depthwise = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels)
        self.attention = nn.Conv2d(channels, channels, 1)
        self.narrow = nn.Conv2d(channels, channels, 1)
        self.gate = nn.Conv2d(channels, 2 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        self.time = nn.Linear(time, channels)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(N, C, H, W), (N, time) -> (N, C, H, W)."""
        a, b = self.depthwise(self.wide(self.norms[0](x) + self.time(time)[:, :, None, None])).chunk(2, dim=1)
        h = a * b
        x = x + self.narrow(h * self.attention(h.mean((2, 3), keepdim=True)))
        a, b = self.gate(self.norms[1](x)).chunk(2, dim=1)
        return x + self.out(a * b)


class PlainUNet(nn.Module):
    """Four levels with one of the blocks above on each, down and up, channels doubling."""

    def __init__(self, width: int, block: Callable[..., nn.Module], bottom: Callable[..., nn.Module]) -> None:
        super().__init__()
        channels = [width * 2**level for level in range(LEVELS)]
        time = 4 * width
        self.time = nn.Sequential(nn.Linear(64, time), nn.SiLU(), nn.Linear(time, time))
        self.head = nn.Conv2d(6, width, 3, padding=1)
        self.encoder = nn.ModuleList(block(each, time) for each in channels[:-1])
        self.down = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in zip(channels, channels[1:]))
        self.bottom = bottom(channels[-1], time)
        self.up = nn.ModuleList(nn.Sequential(nn.Conv2d(b, 4 * a, 1), nn.PixelShuffle(2))
                                for a, b in zip(channels, channels[1:]))
        self.decoder = nn.ModuleList(block(each, time) for each in channels[:-1])
        self.tail = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x_t: Tensor, mu: Tensor, t: Tensor) -> Tensor:
        """(N, 3, H, W), (N, 3, H, W), (N,) -> (N, 3, H, W); H and W multiples of 8."""
        time = self.time(sinusoids(t, 64).to(x_t.dtype))
        h, skips = self.head(torch.cat([x_t, mu], dim=1)), []
        for block, down in zip(self.encoder, self.down):
            h = block(h, time)
            skips.append(h)
            h = down(h)
        h = self.bottom(h, time)
        for block, up, skip in zip(reversed(self.decoder), reversed(self.up), reversed(skips)):
            h = block(up(h) + skip, time)
        return self.tail(h)


def attention_unet(width: int) -> PlainUNet:
    """Linear attention on all levels but the last, which has full attention."""
    return PlainUNet(width, AttentionBlock, lambda channels, time: AttentionBlock(channels, time, linear=False))


class NafBlocks(nn.ModuleList):
    """Two blocks of NAFNet."""

    def __init__(self, channels: int, time: int) -> None:
        super().__init__(NafBlock(channels, time) for _ in range(2))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(N, C, H, W), (N, time) -> (N, C, H, W)."""
        return self[1](self[0](x, time), time)


def naf_unet(width: int) -> PlainUNet:
    """Two blocks of NAFNet on all levels."""
    return PlainUNet(width, NafBlocks, NafBlocks)
