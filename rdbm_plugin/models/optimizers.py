"""Optimizers by name: those of torch.optim and, if timm is installed, those of timm. Needs torch only."""
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from inspect import signature
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rdbm_plugin.config.options import OptionError, check_choice, check_keys


def optimizer_class(block: Mapping[str, Any]) -> type[Optimizer]:
    """Return the class that ``train: optim_g: type`` names, after checking the other keys of the block.

    Raises:
        OptionError: The optimizer is unknown, perhaps because timm is not installed, or does not take one of the keys.
    """
    kind = block.get('type')
    known = _classes(torch.optim)
    # torch's Muon does not support convolutions.
    known.pop('Muon', None)
    if kind not in known:
        timm = timm_optimizers()
        if not timm:
            raise OptionError(f'train: optim_g: type: found {kind!r}; torch.optim has {", ".join(sorted(known))}. Muon '
                              'and many others need timm 1.0.31 or later; run: pip install --upgrade timm')
        known = {**timm, **known}
    cls = known[check_choice('train: optim_g: type', kind, known)]
    check_keys('train: optim_g', {'params': (), **{k: v for k, v in block.items() if k != 'type'}}, cls)
    return cls


def try_optimizer(block: Mapping[str, Any]) -> None:
    """Raise OptionError if the optimizer of ``train: optim_g`` fails in a step: many check their values only there."""
    cls = optimizer_class(block)
    settings = {key: value for key, value in block.items() if key not in ('type', 'fused', 'capturable')}
    weight = nn.Parameter(torch.zeros(8, 8))
    weight.grad = torch.zeros_like(weight)
    try:
        cls([weight], **settings).step()
    except Exception as error:
        raise OptionError(f'train: optim_g: {cls.__name__} fails with these values: {error}') from None


def make_optimizer(kind: str, params: Sequence[Tensor], lr: float, **settings: Any) -> Optimizer:
    """Build the optimizer ``kind`` for ``params``: fused if possible, else capturable by CUDA graphs if possible.

    Raises:
        OptionError: See :func:`optimizer_class`.
    """
    cls, device = optimizer_class({'type': kind, 'lr': lr, **settings}), params[0].device.type
    takes = signature(cls).parameters
    if 'foreach' not in settings and 'fused' in takes and device in ('cpu', 'cuda'):
        # Older torch has fused optimizers only on GPUs.
        with suppress(RuntimeError):
            return cls(params, lr=lr, **{'fused': True, **settings})
    if 'capturable' in takes and device == 'cuda':
        settings = {'capturable': True, **settings}
    return cls(params, lr=lr, **settings)


@lru_cache
def timm_optimizers() -> dict[str, type[Optimizer]]:
    """Map the names of timm's optimizers to their classes; empty if timm is not installed."""
    try:
        from timm import optim
        from timm.optim import muon
    except ImportError:
        return {}
    return {**_classes(optim), 'Muon': _muon(muon)}


def _classes(module: Any) -> dict[str, type[Optimizer]]:
    return {name: cls for name, cls in vars(module).items()
            if isinstance(cls, type) and issubclass(cls, Optimizer) and cls is not Optimizer}


def _muon(module: Any) -> type[Optimizer]:
    in_float32 = partial(module.zeropower_via_newtonschulz, dtype=torch.float32)

    class Muon(module.Muon):
        """timm's Muon, which on CPUs orthogonalizes its matrices in float32.

        timm uses bfloat16: on a CPU without bfloat16 instructions that takes longer than the rest of a step.
        """

        def step(self, closure: Any = None) -> Any:
            if self.param_groups[0]['params'][0].device.type != 'cpu':
                return super().step(closure)
            with patch.object(module, 'zeropower_via_newtonschulz', in_float32):
                return super().step(closure)

    return Muon
