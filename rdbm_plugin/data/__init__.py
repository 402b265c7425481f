"""Data sets and degradations, pairing, and reading and writing of images."""
import rdbm_plugin.basicsr_host  # noqa: F401  lets BasicSR 1.4.2 be imported
