"""RDBM under mmengine's Runner. Needs mmengine."""
import rdbm_plugin.basicsr_host  # noqa: F401  makes BasicSR 1.4.2 importable
