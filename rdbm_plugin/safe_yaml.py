"""Importing this module registers the plugin where option files are read by a safe YAML loader, which follows no tags.

The one tag in our option files, ``plugin: !!python/name:rdbm_plugin.registration.__version__``, then stands for the
version, as everywhere; no other tag is let in, and reading runs no code.
"""
from __future__ import annotations

import yaml

from rdbm_plugin.registration import __version__

TAG = 'tag:yaml.org,2002:python/name:rdbm_plugin.registration.__version__'

for _name in ('SafeLoader', 'CSafeLoader', 'FullLoader', 'CFullLoader'):
    if hasattr(yaml, _name):
        getattr(yaml, _name).add_constructor(TAG, lambda loader, node: __version__)
