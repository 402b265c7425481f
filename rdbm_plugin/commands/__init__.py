"""The subcommands of rdbm; only rdbm_plugin.__main__ imports them."""
import rdbm_plugin.basicsr_host  # noqa: F401  lets BasicSR 1.4.2 be imported
