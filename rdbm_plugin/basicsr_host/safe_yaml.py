"""Importing this module lets the ``plugin:`` line of our option files through safe YAML loaders. Needs PyYAML.

Its tag then stands for the plugin's version, as everywhere. No other tag is let in, and reading runs no code.
"""
import yaml

from rdbm_plugin import __version__

TAG = 'tag:yaml.org,2002:python/name:rdbm_plugin.registration.__version__'


def _let_in(loader: type) -> None:
    if 'yaml_constructors' in vars(loader):
        loader.add_constructor(TAG, lambda reader, node: __version__)
    # PyYAML gives a loader that was derived and changed a table of its own.
    for derived in loader.__subclasses__():
        _let_in(derived)


_let_in(yaml.constructor.SafeConstructor)
