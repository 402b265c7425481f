"""The surrounding BasicSR: what it offers, how it finds the plugin, and workarounds for its quirks.

Importing this package makes BasicSR 1.4.2 importable under torchvision 0.17 and later.
"""
from rdbm_plugin.basicsr_host.compat import provide_functional_tensor

provide_functional_tensor()
