"""Runs any network of BasicSR's registry as the network of a bridge. Needs BasicSR."""
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rdbm_plugin.archs.rdbm_unet_arch import pad_to_multiple, sinusoids, zero
from rdbm_plugin.config.options import build, check_int


class BridgeBackbone(nn.Module):
    """A network for one image, between a convolution of x_t and mu and a convolution that makes the prediction.

    The time scales and shifts the backbone's input; the last convolution also receives x_t and mu. A backbone that
    takes more than three channels (``num_in_ch``, ``in_chans``) needs the same number in ``in_channels``.

    ::

        network_g:
          type: BridgeBackbone
          backbone: {type: EDSR, num_in_ch: 3, num_out_ch: 3, num_feat: 22, num_block: 4, upscale: 1}

    Args:
        backbone: Option block of a network whose output has the height and width of its input.
        in_channels, out_channels: Channels that the backbone takes and returns.
        num_in_ch: Channels of x_t, of mu, and of the output.
        multiple: Number that must divide the sides of the backbone's input (8 for Restormer; the window size for
            SwinIR and similar networks). The input is padded by reflection, and the output cropped.

    Raises:
        OptionError: The backbone cannot be built, or a number is out of its range.
    """

    time_channels = 64

    def __init__(self, backbone: Mapping[str, Any], in_channels: int = 3, out_channels: int = 3,
                 num_in_ch: int = 3, multiple: int = 1) -> None:
        super().__init__()
        from rdbm_plugin.basicsr_host.lookup import registered
        check_int('num_in_ch', num_in_ch, 1)
        self.multiple = check_int('multiple', multiple, 1)
        self.backbone = build('backbone', backbone, registered('ARCH'))
        width = check_int('in_channels', in_channels, 1)
        self.head = nn.Conv2d(2 * num_in_ch, width, 3, padding=1)
        self.time = nn.Sequential(nn.Linear(self.time_channels, self.time_channels), nn.SiLU(),
                                  zero(nn.Linear(self.time_channels, 2 * width)))
        self.tail = zero(nn.Conv2d(check_int('out_channels', out_channels, 1) + 2 * num_in_ch, num_in_ch, 3, padding=1))

    def forward(self, x_t: Tensor, mu: Tensor, t: Tensor) -> Tensor:
        """(N, num_in_ch, H, W) in about [-1, 1] and (N,) -> (N, num_in_ch, H, W); zero before training."""
        both = torch.cat([x_t, mu], dim=1)
        scale, shift = self.time(sinusoids(t, self.time_channels).to(x_t.dtype))[:, :, None, None].chunk(2, dim=1)
        found = self._through_backbone(pad_to_multiple(self.head(both) * (1 + scale) + shift, self.multiple))
        return self.tail(torch.cat([found[..., :mu.shape[-2], :mu.shape[-1]], both], dim=1))

    def _through_backbone(self, x: Tensor) -> Tensor:
        try:
            return self.backbone(x)
        except (RuntimeError, AssertionError, ValueError) as error:
            height, width = x.shape[-2:]
            if height % 64 == width % 64 == 0 or 'memory' in str(error):
                raise
            raise RuntimeError(f'{type(self.backbone).__name__} cannot take {width}x{height} pixels: {error}. If it '
                               'needs sides that are multiples of a number, set network_g: multiple (8 for Restormer, '
                               'the window size for SwinIR and similar networks).') from error
