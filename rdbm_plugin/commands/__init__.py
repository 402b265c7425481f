"""The subcommands of rdbm; nothing imports them but rdbm_plugin.__main__."""
import rdbm_plugin.basicsr_host  # noqa: F401  lets BasicSR 1.4.2 be imported
