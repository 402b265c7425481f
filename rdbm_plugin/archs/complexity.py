"""Cost of a network. Needs torch only."""
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def giga_multiply_adds(network: nn.Module, size: int = 256) -> float:
    """Return the multiply-adds, in 1e9, of one evaluation on a ``size`` x ``size`` image, by torch's FlopCounterMode.

    Restoration papers report this number as GFLOPs or GMACs. FlopCounterMode counts two operations per multiply-add.
    """
    parameter = next(network.parameters())
    image = torch.zeros(1, 3, size, size, device=parameter.device, dtype=parameter.dtype)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(image, image, torch.ones(1, dtype=torch.int64, device=parameter.device))
    return counter.get_total_flops() / 2e9
