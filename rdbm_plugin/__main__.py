"""The ``rdbm`` command: dispatch, and how all commands end."""
import logging
import os
import re
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


_FAULT = re.compile(r"out of memory|can't allocate memory|DataLoader worker|Scale mismatches")
"""Of data and memory, in the words of torch and BasicSR."""


def main() -> int:
    """Run ``rdbm COMMAND ...`` and return the exit status.

    It is 2 for an error in command line or option file, 1 for a fault of data, memory, disk or installation, and 141,
    which is SIGPIPE in shells, if nobody reads the output any more.
    """
    try:
        try:
            return _run()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        _log_traceback()
        # Python would write what it still holds once more, and complain.
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return 141


def _run() -> int:
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
    except BrokenPipeError:
        raise
    except Exception as error:
        if not (isinstance(error, (OSError, MemoryError, ModuleNotFoundError)) or _FAULT.search(str(error))):
            raise
        _log_traceback()
        print(f'rdbm {command}: {_sentence(error)}', file=sys.stderr)
        return 1


def _log_traceback() -> None:
    """Into the log file of a training or test, where there is one."""
    logging.raiseExceptions = False  # the disk may be full
    record = logging.LogRecord('basicsr', logging.ERROR, __file__, 0, 'Ended by an error.', (), sys.exc_info())
    for handler in logging.getLogger('basicsr').handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)


def _sentence(error: Exception) -> str:
    lines = str(error).strip().splitlines() or ['out of memory']
    # torch passes on the whole traceback of a worker.
    text = (lines[-1].partition(': ')[2] or lines[-1]) if lines[0].startswith('Caught ') else lines[0]
    return f'{text}; pip install {error.name}' if isinstance(error, ModuleNotFoundError) else text


if __name__ == '__main__':
    sys.exit(main())
