"""RDBM under mmengine's Runner. Needs mmengine."""
import rdbm_plugin.basicsr_host  # noqa: F401  lets BasicSR 1.4.2 be imported
