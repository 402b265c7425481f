"""``rdbm test``: BasicSR's test with the plugin registered."""
from __future__ import annotations

from pathlib import Path


def main() -> None:
    """Read BasicSR's arguments from the command line and test; results/ is made in the working directory."""
    from basicsr import test

    import rdbm_plugin.registration  # noqa: F401
    from rdbm_plugin import compat
    compat.check_before_writing(test)
    test.test_pipeline(str(Path.cwd()))
