"""Importing this module adds the plugin's classes to BasicSR's registries, and does nothing else.

An option file does this with one line, because BasicSR's YAML loader imports what the tag names::

    plugin: !!python/name:rdbm_plugin.registration.__version__

A fork without registries finds the classes by scanning the files that ``rdbm doctor --install-into`` writes.
"""
from importlib import import_module
from importlib.util import find_spec

from rdbm_plugin import __version__
from rdbm_plugin.basicsr_host import lookup
from rdbm_plugin.config.options import OptionError

__all__ = ['__version__']

if lookup.has_registries():
    _registry = import_module('basicsr.utils.registry')
    for _name in ('BRIDGE', 'SAMPLER'):
        if not hasattr(_registry, f'{_name}_REGISTRY'):
            setattr(_registry, f'{_name}_REGISTRY', _registry.Registry(_name.lower()))
    BRIDGE_REGISTRY, SAMPLER_REGISTRY = _registry.BRIDGE_REGISTRY, _registry.SAMPLER_REGISTRY
    for _registry_name, _entries in lookup.REGISTERED.items():
        for _module, _name in (entry.split(':') for entry in _entries):
            if _name not in getattr(_registry, f'{_registry_name}_REGISTRY'):
                getattr(_registry, f'{_registry_name}_REGISTRY').register(getattr(import_module(_module), _name))
    __all__ += ['BRIDGE_REGISTRY', 'SAMPLER_REGISTRY']
elif find_spec('basicsr.models.rdbm_model') is None:
    raise OptionError('plugin: this basicsr is a fork without registries and does not find the plugin; run "rdbm '
                      'doctor --install-into FOLDER" with the folder that contains basicsr/.')
