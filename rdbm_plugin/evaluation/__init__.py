"""Scores, costs, tables and pictures of restored images, and the comparison of methods."""
import rdbm_plugin.basicsr_host  # noqa: F401  lets BasicSR 1.4.2 be imported
