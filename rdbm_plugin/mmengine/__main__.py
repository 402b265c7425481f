"""``python -m rdbm_plugin.mmengine CONFIG``: train under mmengine."""
import sys
from importlib.util import find_spec

from rdbm_plugin.config.options import OptionError


def main() -> int:
    """Train, and return the exit status: 2 for an error in the command line or the config."""
    try:
        if find_spec('mmengine') is None:
            raise OptionError('mmengine is not installed: pip install mmengine')
        from rdbm_plugin.mmengine.launch import launch
        launch()
    except OptionError as error:
        print(f'rdbm_plugin.mmengine: {error}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
