"""A Python that has imported torch, and BasicSR if wanted, and forks itself for every command that it is given.

    python tests/warm_python.py torch|all

Starting Python takes five seconds and more of imports; a fork takes none, and is as separate from all others as a
process of its own: it begins as this one, which has run nothing, and ends as any other Python, but for taking all that
was imported apart, which takes three seconds. Reads requests from standard input, one JSON object a line. Answers each
with the process number, and later with its exit status.
"""
import atexit
import gc
import json
import multiprocessing.util
import os
import resource
import runpy
import select
import signal
import sys
import threading
import warnings
from contextlib import suppress


def imports(what):
    """``torch``: nothing of BasicSR or ours, so that any order and any BasicSR is still possible; ``all``: both."""
    import cv2  # noqa: F401
    import torch
    import torchvision.transforms.functional  # noqa: F401
    if what == 'all':
        import matplotlib.figure  # noqa: F401
        import torch.utils.tensorboard  # noqa: F401

        import rdbm_plugin.commands.compare
        import rdbm_plugin.commands.doctor
        import rdbm_plugin.commands.pipeline
        import rdbm_plugin.commands.restore
        import rdbm_plugin.commands.test
        import rdbm_plugin.commands.train
        import rdbm_plugin.evaluation.comparison  # noqa: F401


def become(request):
    """Turn this process into the one that was asked for, and return when its program has ended."""
    os.setsid()
    os.chdir(request['cwd'])
    output = os.open(request['output'], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number, handle in ((0, os.open(os.devnull, os.O_RDONLY)), (1, output), (2, output)):
        os.dup2(handle, number)
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        signal.signal(number, handler)
    os.environ.update(request['env'])
    if request['file_size']:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request['file_size'],) * 2)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    first, *rest = request['arguments']
    if first == '-W':
        warnings.simplefilter(rest[0])
        first, *rest = rest[1:]
    if first == '-m':
        sys.path[:0] = [request['cwd'], *request['path']]
        sys.argv = rest
        runpy.run_module(rest[0], run_name='__main__', alter_sys=True)
    elif first == '-c':
        sys.path[:0] = [request['cwd'], *request['path']]
        sys.argv = ['-c', *rest[1:]]
        exec(compile(rest[0], '<string>', 'exec'), {'__name__': '__main__'})
    else:
        sys.path[:0] = [os.path.dirname(os.path.abspath(first)), *request['path']]
        sys.argv = [first, *rest]
        runpy.run_path(os.path.abspath(first), run_name='__main__')


def live(work, *arguments):
    """Do the work of a process, and end with the status and the last words that Python has."""
    status = 0
    try:
        work(*arguments)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        status = 1
        sys.excepthook(*sys.exc_info())
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        # A program may have closed it.
        with suppress(ValueError):
            stream.flush()
    os._exit(status & 0xff)


def forking(spawn):
    """multiprocessing starts Pythons that import all again; what it gives them to run is as well run in a fork."""
    def start(path, words, handles):
        child = os.fork()
        if not child:
            # As in a Python of its own, or it would keep open what tells others that its parent has ended.
            for handle in {int(name) for name in os.listdir('/proc/self/fd')} - {0, 1, 2, *handles}:
                with suppress(OSError):
                    os.close(handle)
            # What was to be done at the end of the other is not to be done here, such as to wait for its threads.
            atexit._clear()
            threading._threading_atexits.clear()
            sys.argv = ['-c', *words[words.index('-c') + 2:]]
            live(exec, words[words.index('-c') + 1], {'__name__': '__main__'})
        return child
    return start if os.path.isdir('/proc/self/fd') else spawn


def main():
    imports(sys.argv[1])
    if sys.argv[1] == 'all':
        multiprocessing.util.spawnv_passfds = forking(multiprocessing.util.spawnv_passfds)
    # Tests' own folder, which Python puts there.
    del sys.path[0]
    # Forks need not look through what they will never free.
    gc.freeze()
    print('ready', flush=True)
    children = set()
    while True:
        if select.select([sys.stdin.buffer.raw], [], [], 0.01)[0]:
            line = sys.stdin.buffer.raw.readline()
            if not line:
                return
            child = os.fork()
            if not child:
                live(become, json.loads(line))
            children.add(child)
            print(json.dumps({'started': child}), flush=True)
        for child in list(children):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                children.remove(child)
                print(json.dumps({'ended': child, 'status': os.waitstatus_to_exitcode(status)}), flush=True)


if __name__ == '__main__':
    main()
