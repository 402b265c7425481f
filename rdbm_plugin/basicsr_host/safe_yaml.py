"""Importing this module makes safe YAML loaders accept the ``plugin:`` line of our option files. Needs PyYAML.

The line's tag then gives the plugin's version, as in other loaders. Other tags stay forbidden; reading runs no code.
"""
import yaml

from rdbm_plugin import __version__

TAG = 'tag:yaml.org,2002:python/name:rdbm_plugin.registration.__version__'


def _let_in(loader: type) -> None:
    if 'yaml_constructors' in vars(loader):
        loader.add_constructor(TAG, lambda reader, node: __version__)
    # A derived loader has its own table once it adds a constructor.
    for derived in loader.__subclasses__():
        _let_in(derived)


_let_in(yaml.constructor.SafeConstructor)
