"""Checkpoints of bridges for programs that load networks with spandrel, such as chaiNNer and ComfyUI.

Importing it registers them. Needs spandrel: ``pip install spandrel``::

    import rdbm_plugin.spandrel
    model = spandrel.ModelLoader().load_from_file('net_g_latest.pth')
    restored = model(image)                  # (N, 3, H, W) in [0, 1], any size; float32, half or bfloat16

The sampler is inside, with the evaluations of the option file, and so are tiles: the network knows the whole image.
"""
from functools import wraps
from pathlib import Path

import torch
from spandrel import (
    MAIN_REGISTRY,
    Architecture,
    ArchSupport,
    ImageModelDescriptor,
    ModelLoader,
    ModelTiling,
    StateDict,
    UnsupportedModelError,
)
from torch import Tensor, nn

from rdbm_plugin.archs.checkpoint import OPTIONS, options_in, with_options
from rdbm_plugin.archs.precision import working_in
from rdbm_plugin.config.options import OptionError
from rdbm_plugin.inference.restorer import build_parts
from rdbm_plugin.inference.tiling import TiledNetwork, tile_for
from rdbm_plugin.inference.training_options import options_of
from rdbm_plugin.samplers import Sampler

_OF_RDBMUNET = {'time_in.weight', 'context.near.0.weight', 'head.weight', 'tail.weight'}


class BridgeArchitecture(Architecture[nn.Module]):
    """Networks of bridges, known by the options among their parameters; older ones of RDBMUNet are refused in words."""

    def __init__(self) -> None:
        super().__init__(id='RDBM', detect=lambda state: OPTIONS in state or _is_of_rdbm_unet(state))

    def load(self, state_dict: StateDict) -> ImageModelDescriptor[nn.Module]:
        """The network with its sampler.

        Raises:
            UnsupportedModelError: There are no options, or they or the parameters cannot be used.
        """
        try:
            options = options_in(state_dict)
            if options is None:
                raise OptionError(
                    'the checkpoint does not say which bridge it was trained with, as those of older versions. Put '
                    'its option file beside it under the same name (net_g_latest.yml), or write one that does: python '
                    'scripts/convert_weights.py OLD.pth NEW.pth --opt OPTION_FILE')
            network, sampler = build_parts(options)
            # Whoever saves the network's state saves the options with it.
            network.register_buffer(OPTIONS, state_dict[OPTIONS])
            name = options['network_g'].get('variant', options['network_g']['type'])
            channels = options['network_g'].get('num_in_ch', 3)
            return ImageModelDescriptor(
                network.to(memory_format=torch.channels_last).eval(), state_dict, self, purpose='Restoration',
                tags=[name, f'{sampler.nfe} evaluations'], supports_half=True, supports_bfloat16=True, scale=1,
                input_channels=channels, output_channels=channels, tiling=ModelTiling.INTERNAL,
                call_fn=lambda network, image: restore(network, sampler, image))
        except (OptionError, RuntimeError) as error:
            raise UnsupportedModelError(f'rdbm_plugin: {error}') from error


def restore(network: nn.Module, sampler: Sampler, image: Tensor) -> Tensor:
    """Restored images, (N, C, H, W) in [0, 1], in the precision of ``network``; the sampler works in float32."""
    dtype = next(network.parameters()).dtype
    lq = image.float().contiguous(memory_format=torch.channels_last)
    with working_in(dtype, image.device):
        tiles = TiledNetwork(network, tile_for(network, channels=image.shape[1]))

    def evaluate(x_t: Tensor, mu: Tensor, t: Tensor) -> Tensor:
        with working_in(dtype, image.device):
            return tiles(x_t, mu, t).float()

    residual = sampler(evaluate, 2 * lq - 1, list(range(len(lq)))).residual
    return (lq + residual / 2).clamp(0, 1).to(image.dtype)


def _is_of_rdbm_unet(state: StateDict) -> bool:
    return state.keys() >= _OF_RDBMUNET


_read = ModelLoader.load_state_dict_from_file


@wraps(_read)
def _read_with_options(self: ModelLoader, path: str | Path) -> StateDict:
    state = _read(self, path)
    if OPTIONS in state or not _is_of_rdbm_unet(state):
        return state
    try:
        return with_options(state, options_of(Path(path)))
    except OptionError:
        # It may not be meant for BridgeArchitecture.load, which says what is missing.
        return state


# Only here is it known which file the parameters are of; those of other networks are passed on.
ModelLoader.load_state_dict_from_file = _read_with_options
MAIN_REGISTRY.add(ArchSupport.from_architecture(
    BridgeArchitecture(), before=tuple(each.architecture.id for each in MAIN_REGISTRY)))
