"""Reverse processes of the bridges. Needs torch only."""
from collections.abc import Mapping
from typing import Any

from rdbm_plugin.bridge import ResidualBridge
from rdbm_plugin.config.options import build
from rdbm_plugin.samplers.bridge_sampler import BridgeSampler
from rdbm_plugin.samplers.parallel_sampler import ParallelSampler
from rdbm_plugin.samplers.sampler import Sampler, SampleResult, TrajectoryPoint

__all__ = ['SAMPLERS', 'BridgeSampler', 'ParallelSampler', 'SampleResult', 'Sampler', 'TrajectoryPoint',
           'build_sampler']

SAMPLERS: dict[str, type] = {cls.__name__: cls for cls in (BridgeSampler, ParallelSampler)}


def build_sampler(opt: Mapping[str, Any] | None, bridge: ResidualBridge,
                  types: Mapping[str, Any] = SAMPLERS) -> Sampler:
    """Build the ``val: sampler:`` block of an option file; without it, 10 deterministic steps.

    Raises:
        OptionError: Naming the key, what was found and what is allowed.
    """
    return build('val: sampler', opt, types, default='BridgeSampler', bridge=bridge)
