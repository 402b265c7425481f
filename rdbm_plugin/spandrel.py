"""Loads bridge checkpoints in programs that use spandrel, such as chaiNNer and ComfyUI.

Importing this module registers the architecture with spandrel. Needs spandrel: ``pip install spandrel``::

    import spandrel
    import rdbm_plugin.spandrel
    model = spandrel.ModelLoader().load_from_file('net_g_latest.pth')
    restored = model(image)                  # (N, 3, H, W) in [0, 1], any size; float32, half or bfloat16

The model contains the sampler, with the number of evaluations of the option file. It also splits large images into
tiles itself, because the network needs statistics of the whole image.
"""
from functools import wraps
from pathlib import Path

import spandrel
import torch
from torch import Tensor, nn

from rdbm_plugin.archs.checkpoint import OPTIONS, options_in, with_options
from rdbm_plugin.archs.precision import working_in
from rdbm_plugin.config.options import OptionError
from rdbm_plugin.inference.restorer import build_parts
from rdbm_plugin.inference.tiling import TiledNetwork, tile_for
from rdbm_plugin.inference.training_options import options_of
from rdbm_plugin.samplers import Sampler

_OF_RDBMUNET = {'time_in.weight', 'context.near.0.weight', 'head.weight', 'tail.weight'}


class BridgeArchitecture(spandrel.Architecture[nn.Module]):
    """Bridge networks, detected by the options in their state; older RDBMUNet checkpoints are rejected with advice."""

    def __init__(self) -> None:
        super().__init__(id='RDBM', detect=lambda state: OPTIONS in state or state.keys() >= _OF_RDBMUNET)

    def load(self, state_dict: spandrel.StateDict) -> spandrel.ImageModelDescriptor[nn.Module]:
        """Return the network with its sampler.

        Raises:
            spandrel.UnsupportedModelError: The state holds no options.
            OptionError: An option cannot be used.
            RuntimeError: The parameters do not fit the network in the options.
        """
        options = options_in(state_dict)
        if options is None:
            raise spandrel.UnsupportedModelError(
                'This checkpoint of an older rdbm_plugin does not say which bridge it was trained with. Put its option '
                'file beside it under the same name (net_g_latest.yml), or write a checkpoint that contains the '
                'options: python scripts/model_conversion/convert_weights.py OLD.pth NEW.pth --opt OPTION_FILE')
        network, sampler = build_parts(options)
        # Programs that save the network's state then save the options with it.
        network.register_buffer(OPTIONS, state_dict[OPTIONS])
        return spandrel.ImageModelDescriptor(
            network.to(memory_format=torch.channels_last).eval(), state_dict, self, purpose='Restoration',
            tags=[getattr(network, 'variant', type(network).__name__), f'NFE {sampler.nfe}'], supports_half=True,
            supports_bfloat16=True, scale=1, input_channels=3, output_channels=3,
            tiling=spandrel.ModelTiling.INTERNAL, call_fn=lambda network, image: restore(network, sampler, image))


def restore(network: nn.Module, sampler: Sampler, image: Tensor) -> Tensor:
    """Return restored images, (N, 3, H, W) in [0, 1]; the network runs in its own precision, the sampler in float32."""
    dtype = next(network.parameters()).dtype
    lq = image.float().contiguous(memory_format=torch.channels_last)
    with working_in(dtype, image.device):
        tiles = TiledNetwork(network, tile_for(network))

    def evaluate(x_t: Tensor, mu: Tensor, t: Tensor) -> Tensor:
        with working_in(dtype, image.device):
            return tiles(x_t, mu, t).float()

    residual = sampler(evaluate, 2 * lq - 1, list(range(len(lq)))).residual
    return (lq + residual / 2).clamp(0, 1).to(image.dtype)


_read = spandrel.ModelLoader.load_state_dict_from_file


@wraps(_read)
def _read_with_options(self: spandrel.ModelLoader, path: str | Path) -> spandrel.StateDict:
    state = _read(self, path)
    try:
        older = OPTIONS not in state and state.keys() >= _OF_RDBMUNET
        return with_options(state, options_of(Path(path))) if older else state
    except OptionError:
        # BridgeArchitecture.load reports what is missing; the parameters themselves are readable.
        return state


# Only this method knows which file a state comes from. It returns the states of other networks unchanged.
spandrel.ModelLoader.load_state_dict_from_file = _read_with_options
spandrel.MAIN_REGISTRY.add(spandrel.ArchSupport.from_architecture(
    BridgeArchitecture(), before=tuple(each.architecture.id for each in spandrel.MAIN_REGISTRY)))
