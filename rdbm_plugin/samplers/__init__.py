"""Reverse processes of the bridges. Needs torch and nothing of BasicSR."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rdbm_plugin.bridge import ResidualBridge
from rdbm_plugin.options import build
from rdbm_plugin.samplers.bridge_sampler import BridgeSampler, SampleResult, TrajectoryPoint

__all__ = ['SAMPLERS', 'BridgeSampler', 'SampleResult', 'TrajectoryPoint', 'build_sampler']

SAMPLERS: dict[str, type] = {'BridgeSampler': BridgeSampler}


def build_sampler(opt: Mapping[str, Any] | None, bridge: ResidualBridge,
                  types: Mapping[str, Any] = SAMPLERS) -> BridgeSampler:
    """Build the ``val: sampler:`` block of an option file; without it, 10 deterministic steps.

    Raises:
        OptionError: Naming the key, what was found and what is allowed.
    """
    return build('val: sampler', opt, types, default='BridgeSampler', bridge=bridge)
