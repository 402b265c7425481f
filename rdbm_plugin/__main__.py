"""The ``rdbm`` command: dispatch only."""
import sys
from importlib import import_module

from rdbm_plugin import __version__
from rdbm_plugin.basicsr_host import compat
from rdbm_plugin.config.options import OptionError

COMMANDS = {
    'train': 'train a model from an option file',
    'test': 'test a model from an option file',
    'restore': 'restore image files with trained weights',
    'compare': 'compare any BasicSR models and finished results',
    'demo': 'a page on this machine to try weights on photos',
    'options': 'list and copy the option files that come with the package',
    'data': 'fetch photo sets by name',
    'doctor': 'check option file, data, installation and code base',
}


def main() -> int:
    """Run ``rdbm COMMAND ...`` and return the exit status: 2 for an error in command line or option file."""
    arguments = sys.argv[1:]
    if arguments[:1] == ['--version']:
        print(f'rdbm_plugin {__version__}')
        return 0
    if not arguments or arguments[0] not in COMMANDS:
        lines = [f'  {name:<8} {purpose}' for name, purpose in COMMANDS.items()]
        print('usage: rdbm COMMAND [...]\n\n' + '\n'.join(lines)
              + '\n\nrdbm COMMAND --help lists the arguments of a command.')
        asked = arguments[:1] in (['-h'], ['--help'])
        return 0 if asked else 2
    compat.keep_freed_memory()
    command = arguments[0]
    sys.argv = [f'rdbm {command}', *arguments[1:]]
    try:
        return import_module(f'rdbm_plugin.commands.{command}').main() or 0
    except OptionError as error:
        print(f'rdbm {command}: {error}', file=sys.stderr)
        return 2


if __name__ == '__main__':
    sys.exit(main())
