"""The network of IR-SDE (Luo et al., arXiv 2301.11699) and GOUB (Yue et al., arXiv 2312.10299). Needs torch only.

Structure and parameter names follow DenoisingUNet_arch.py and module_util.py in the public code
(github.com/Algolzw/image-restoration-sde, github.com/Hammour-steak/ECDB), so that its weights can be loaded.
"""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rdbm_plugin.archs.rdbm_unet_arch import pad_to_multiple, sinusoids
from rdbm_plugin.config.options import check_int

HEADS, HEAD_CHANNELS = 4, 32


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each pixel, with a gain but no offset."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        var, mean = torch.var_mean(x, dim=1, correction=0, keepdim=True)
        return (x - mean) * (var + (1e-5 if x.dtype == torch.float32 else 1e-3)).rsqrt() * self.g


class Attention(nn.Module):
    """Linear attention (Shen et al., arXiv 1812.01243) over all pixels, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        width = HEADS * HEAD_CHANNELS
        layers = {'to_qkv': nn.Conv2d(channels, 3 * width, 1, bias=False),
                  'to_out': nn.Sequential(nn.Conv2d(width, channels, 1), ChannelNorm(channels))}
        self.fn = nn.ModuleDict({'norm': ChannelNorm(channels), 'fn': nn.ModuleDict(layers)})

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        size, layers = x.shape[-2:], self.fn['fn']
        qkv = layers['to_qkv'](self.fn['norm'](x)).flatten(2)
        query, key, value = qkv.unflatten(1, (3, HEADS, HEAD_CHANNELS)).unbind(1)
        context = (value / (size[0] * size[1])) @ key.softmax(dim=-1).transpose(-1, -2)
        found = context @ (query.softmax(dim=-2) * HEAD_CHANNELS**-0.5)
        return x + layers['to_out'](found.flatten(1, 2).unflatten(2, size))


class TimedBlock(nn.Module):
    """Two 3x3 convolutions with SiLU, the first scaled and shifted by the time, added to the input."""

    def __init__(self, channels_in: int, channels_out: int, time_channels: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(time_channels, 2 * channels_out))
        self.block1 = nn.ModuleDict({'proj': _conv(channels_in, channels_out)})
        self.block2 = nn.ModuleDict({'proj': _conv(channels_out, channels_out)})
        self.res_conv = nn.Identity() if channels_in == channels_out else _conv(channels_in, channels_out, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(N, channels_in, H, W) and (N, time_channels) -> (N, channels_out, H, W)."""
        scale, shift = self.mlp(time)[:, :, None, None].chunk(2, dim=1)
        h = F.silu(self.block1['proj'](x) * (1 + scale) + shift)
        return F.silu(self.block2['proj'](h)) + self.res_conv(x)


class ConditionalUNet(nn.Module):
    """U-Net with linear attention that takes x_t - mu, mu and the time.

    Published weights predict the noise for images in [0, 1], and take the node as t. They need ``prediction: noise``,
    ``timesteps: 100``, ``eps: 0.005``, and ``unit_range: true`` here. IR-SDE's weights also need the bridge IRSDE and
    ``start: stochastic``; GOUB's need OUBridge and ``silent_node: 100``. Copy max_sigma from their option files.

    Args:
        in_nc, out_nc: Channels of x_t, and of mu; channels of the output.
        nf: Channels at full resolution.
        depth: Number of levels. Each level doubles the channels; each but the last halves the resolution.
        unit_range: Whether the weights expect images in [0, 1]; if so, x_t and mu are converted from [-1, 1].
        silent_node: Node at which the output is 0: GOUB's networks are not trained at node T; its sampler uses 0 there.

    Raises:
        OptionError: An argument is out of its range.
    """

    def __init__(self, in_nc: int = 3, out_nc: int = 3, nf: int = 64, depth: int = 4, unit_range: bool = False,
                 silent_node: int | None = None) -> None:
        super().__init__()
        self.nf, self.stride, time = check_int('nf', nf, 4), 2 ** check_int('depth', depth, 1), 4 * nf
        self.unit_range = bool(unit_range)
        self.silent_node = None if silent_node is None else check_int('silent_node', silent_node, 0)
        self.init_conv = _conv(2 * check_int('in_nc', in_nc, 1), nf, 7)
        self.time_mlp = nn.Sequential(nn.Identity(), nn.Linear(nf // 2 * 2, time), nn.GELU(), nn.Linear(time, time))
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for level in range(depth):
            fine, coarse = nf * 2**level, nf * 2 ** (level + 1)
            down = nn.Conv2d(fine, coarse, 4, 2, 1) if level < depth - 1 else _conv(fine, coarse)
            up = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(coarse, fine, 3, 1, 1))
            self.downs.append(nn.ModuleList([*_blocks(fine, fine, time), down]))
            self.ups.insert(0, nn.ModuleList([*_blocks(coarse + fine, coarse, time),
                                              up if level else _conv(coarse, fine)]))
        self.mid_block1, self.mid_block2, self.mid_attn = _blocks(coarse, coarse, time)
        self.final_res_block = TimedBlock(2 * nf, nf, time)
        self.final_conv = nn.Conv2d(nf, check_int('out_nc', out_nc, 1), 3, 1, 1)

    def forward(self, x_t: Tensor, mu: Tensor, t: Tensor) -> Tensor:
        """x_t and mu, (N, in_nc, H, W), mu in [-1, 1], and nodes (N,) -> (N, out_nc, H, W); any H and W."""
        height, width = mu.shape[-2:]
        if self.unit_range:
            x_t, mu = (x_t + 1) / 2, (mu + 1) / 2
        first = h = self.init_conv(pad_to_multiple(torch.cat([x_t - mu, mu], dim=1), self.stride))
        time, skips = self.time_mlp(sinusoids(t, self.nf, with_slowest=True).to(x_t.dtype)), []
        for block1, block2, attention, down in self.downs:
            skips.append(block1(h, time))
            skips.append(attention(block2(skips[-1], time)))
            h = down(skips[-1])
        h = self.mid_block2(self.mid_attn(self.mid_block1(h, time)), time)
        for block1, block2, attention, up in self.ups:
            h = block1(torch.cat([h, skips.pop()], dim=1), time)
            h = up(attention(block2(torch.cat([h, skips.pop()], dim=1), time)))
        out = self.final_conv(self.final_res_block(torch.cat([h, first], dim=1), time))[..., :height, :width]
        return out if self.silent_node is None else out * (t != self.silent_node).to(out)[:, None, None, None]


def _blocks(channels: int, channels_out: int, time: int) -> tuple[TimedBlock, TimedBlock, Attention]:
    return TimedBlock(channels, channels_out, time), TimedBlock(channels, channels_out, time), Attention(channels_out)


def _conv(channels_in: int, channels_out: int, size: int = 3) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, size, padding=size // 2, bias=False)
