"""Finds what the surrounding BasicSR offers, in its registries or, in forks from before these existed, by scans.

Forks like NAFNet, Restormer and Retinexformer keep the layout of BasicSR 1.2: ``basicsr/models/archs``, no registries.
They look for a class by name in all modules of a folder whose names end in ``_arch``, ``_model`` or ``_dataset``.
"""
import inspect
import sys
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import rdbm_plugin
from rdbm_plugin.bridge import BRIDGES
from rdbm_plugin.config.options import OptionError
from rdbm_plugin.samplers import SAMPLERS

REGISTERED = {'BRIDGE': tuple(f'rdbm_plugin.bridge:{name}' for name in BRIDGES),
              'SAMPLER': tuple(f'rdbm_plugin.samplers:{name}' for name in SAMPLERS), **rdbm_plugin.REGISTERED}

_SCANNED = {'ARCH': ('basicsr.models.archs', '_arch'), 'MODEL': ('basicsr.models', '_model'),
            'DATASET': ('basicsr.data', '_dataset'), 'LOSS': ('basicsr.models.losses', ''),
            'METRIC': ('basicsr.metrics', '')}
"""Registry -> the package that takes its place in a fork, and how the names of its modules end."""


@cache
def has_registries() -> bool:
    """Whether this BasicSR has registries, as all versions since 1.3 do."""
    return find_spec('basicsr.archs') is not None


def need_registries() -> None:
    """Raise OptionError without BasicSR, or in a fork without registries, which trains and tests by its own scripts."""
    # Files that remain of an uninstalled basicsr still make a package.
    if find_spec('basicsr') is None or find_spec('basicsr.models') is None:
        raise OptionError('BasicSR is not installed: pip install --no-build-isolation basicsr, or put the folder of a '
                          'checkout on PYTHONPATH.')
    if not has_registries():
        raise OptionError('this basicsr is a fork without registries; use its own scripts, python basicsr/train.py and '
                          'basicsr/test.py, after "rdbm doctor --install-into FOLDER".')


def registered(name: str) -> dict[str, Any]:
    """Return all classes or functions in a registry of BasicSR, such as 'ARCH', by name, including the plugin's.

    BasicSR also finds names with a suffix, such as SRVGGNetCompact_basicsr, without it.
    """
    ours = {key: getattr(import_module(module), key) for module, key in (each.split(':') for each in REGISTERED[name])}
    if not has_registries():
        return {**_scanned(name), **ours}
    found = dict(iter(getattr(import_module('basicsr.utils.registry'), f'{name}_REGISTRY', {})))
    return {**ours, **{key.removesuffix('_basicsr'): value for key, value in found.items()}, **found}


def of_basicsr(name: str) -> dict[str, Any]:
    """Return the same as :func:`registered`, or nothing if BasicSR is not installed."""
    return registered(name) if find_spec('basicsr') is not None else {}


def _scanned(name: str) -> dict[str, Any]:
    if name not in _SCANNED:
        return {}
    package, ending = _SCANNED[name]
    import_module(package)
    modules = [module for key, module in list(sys.modules.items())
               if key.startswith(package) and key.endswith(ending) and key.count('.') <= package.count('.') + 1]
    return {key: value for module in modules for key, value in vars(module).items()
            if (inspect.isclass(value) or inspect.isfunction(value)) and not key.startswith('_')}


def metric_arguments(metric: str, options: Mapping[str, Any], image: Any = None, clean: Any = None) -> dict[str, Any]:
    """Return the keyword arguments for a metric, as BasicSR's calculate_metric passes them.

    ``options`` is the metric's block under ``val: metrics:``. Metrics of forks name the first image differently, and
    reject unknown arguments: the key ``better``, which is for BasicSR itself, and ``clean`` as ``img2``.
    """
    parameters = inspect.signature(registered('METRIC')[metric]).parameters
    any_key = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    names = (name for name, each in parameters.items() if each.kind is each.POSITIONAL_OR_KEYWORD)
    first = 'img' if 'img' in parameters else next(names, 'img')
    arguments = {first: image, **{key: value for key, value in options.items() if key != 'type'}}
    if 'better' not in parameters and not any_key:
        arguments.pop('better', None)
    return {**arguments, 'img2': clean} if 'img2' in parameters or (any_key and clean is not None) else arguments


def needs_clean(metric: str) -> bool:
    """Whether a metric needs the ground truth."""
    parameter = inspect.signature(registered('METRIC')[metric]).parameters.get('img2')
    return parameter is not None and parameter.default is inspect.Parameter.empty
