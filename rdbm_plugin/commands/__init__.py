"""The subcommands of rdbm; nothing imports them but rdbm_plugin.__main__."""
