"""Bridges between a degraded image mu and its clean image x0. Needs torch only."""
from collections.abc import Mapping
from typing import Any

from rdbm_plugin.bridge.bridge import MODULATIONS, PREDICTIONS, ResidualBridge, Step
from rdbm_plugin.bridge.family import I2SB, IRSDE, BrownianBridge, FlowMatching, OUBridge, UniDB, VEBridge, VPBridge
from rdbm_plugin.bridge.schedules import SCHEDULES
from rdbm_plugin.config.options import build

__all__ = ['BRIDGES', 'MODULATIONS', 'PREDICTIONS', 'SCHEDULES', 'ResidualBridge', 'Step', 'build_bridge']

BRIDGES: dict[str, type] = {cls.__name__: cls for cls in (
    ResidualBridge, FlowMatching, BrownianBridge, VEBridge, VPBridge, OUBridge, I2SB, UniDB, IRSDE)}


def build_bridge(opt: Mapping[str, Any] | None = None, types: Mapping[str, Any] = BRIDGES) -> ResidualBridge:
    """Build the ``bridge:`` block of an option file, such as ``{'type': 'OUBridge'}``; without it, the paper's bridge.

    Raises:
        OptionError: Naming the key, what was found and what is allowed.
    """
    return build('bridge', opt, types, default='ResidualBridge')
