"""What we rely on of the BasicSR around us, and how we find and mend it.

Importing anything from here lets BasicSR 1.4.2 be imported under torchvision 0.17 and later.
"""
from rdbm_plugin.basicsr_host.compat import provide_functional_tensor

provide_functional_tensor()
