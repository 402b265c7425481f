"""The ``rdbm`` command: dispatches to the commands, and handles their errors and exit statuses."""
import logging
import os
import re
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from rdbm_plugin import __version__
from rdbm_plugin.basicsr_host import compat
from rdbm_plugin.config.options import OptionError

COMMANDS = {
    'train': 'train a model from an option file',
    'test': 'test a model from an option file',
    'restore': 'restore image files with trained weights',
    'compare': 'compare any BasicSR models and finished results',
    'demo': 'serve a local page for trying weights on photos',
    'options': 'list and copy the option files that come with the package',
    'data': 'fetch photo sets by name',
    'doctor': 'check an option file, its data, the installation and the code base',
}

_FAULT = re.compile(r"out of memory|can't allocate memory|DataLoader worker|Scale mismatches")
"""How torch and BasicSR word errors that come from data or memory; they end in one line, without a traceback."""


def main() -> int:
    """Run ``rdbm COMMAND ...`` and return the exit status; see :func:`run`."""
    return run(_dispatch)


def run(command: Callable[[], int | None]) -> int:
    """Run a command or script, report its errors in one line, and return the exit status.

    2: error in the command line or option file. 1: fault of data, memory, disk or installation. 141: the reader of the
    output is gone (SIGPIPE in shells).
    """
    try:
        try:
            return command() or 0
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        _log_traceback()
        # Python would flush its buffers again at exit, and report the broken pipe.
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return 141
    except OptionError as error:
        text, status = str(error), 2
    except Exception as error:
        if not (isinstance(error, (OSError, MemoryError, ModuleNotFoundError)) or _FAULT.search(str(error))):
            raise
        _log_traceback()
        text, status = _sentence(error), 1
    print(f'{Path(sys.argv[0]).stem}: {text}', file=sys.stderr)
    return status


def _dispatch() -> int | None:
    command, *arguments = sys.argv[1:] or ['']
    if command == '--version':
        print(f'rdbm_plugin {__version__}')
        return 0
    if command not in COMMANDS:
        lines = [f'  {name:<8} {purpose}' for name, purpose in COMMANDS.items()]
        print('usage: rdbm COMMAND [...]\n\n' + '\n'.join(lines)
              + '\n\nrdbm COMMAND --help lists the arguments of a command.')
        return 0 if command in ('-h', '--help') else 2
    compat.keep_freed_memory()
    sys.argv = [f'rdbm {command}', *arguments]
    return import_module(f'rdbm_plugin.commands.{command}').main()


def _log_traceback() -> None:
    """Log the current exception to the log file of the training or test, if there is one."""
    logging.raiseExceptions = False  # logging may fail too, on a full disk
    record = logging.LogRecord('basicsr', logging.ERROR, __file__, 0, 'Stopped by an error.', (), sys.exc_info())
    for handler in logging.getLogger('basicsr').handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)


def _sentence(error: Exception) -> str:
    lines = str(error).strip().splitlines() or ['out of memory']
    # torch passes on a worker's whole traceback.
    text = (lines[-1].partition(': ')[2] or lines[-1]) if lines[0].startswith('Caught ') else lines[0]
    return f'{text}; pip install {error.name}' if isinstance(error, ModuleNotFoundError) else text


if __name__ == '__main__':
    sys.exit(main())
