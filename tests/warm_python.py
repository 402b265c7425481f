"""A Python that has imported torch and BasicSR, and forks itself for every command that it is given.

Starting Python takes five seconds and more of imports; a fork takes none, and is as separate from all others as a
process of its own: it begins as this one, which has run nothing, and ends as any other Python. Reads requests from
standard input, one JSON object a line, and answers each with the exit status.
"""
import json
import os
import runpy
import signal
import sys
import time

TIMEOUT = 600


def imports():
    """What commands and scripts of ours import sooner or later."""
    import matplotlib.figure  # noqa: F401
    import torch
    import torch.utils.tensorboard

    import rdbm_plugin.commands.compare
    import rdbm_plugin.commands.doctor
    import rdbm_plugin.commands.pipeline
    import rdbm_plugin.commands.restore
    import rdbm_plugin.commands.test
    import rdbm_plugin.commands.train
    import rdbm_plugin.evaluation.comparison  # noqa: F401
    torch.set_num_threads(1)


def become(request):
    """Turn this process into the one that was asked for, and return when its program has ended."""
    os.chdir(request['cwd'])
    output = os.open(request['output'], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number, handle in ((0, os.open(os.devnull, os.O_RDONLY)), (1, output), (2, output)):
        os.dup2(handle, number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(request['env'])
    first, *rest = request['arguments']
    if first == '-m':
        module, *rest = rest
        sys.path[:0] = [request['cwd'], *request['path']]
        sys.argv = [module, *rest]
        runpy.run_module(module, run_name='__main__', alter_sys=True)
    else:
        sys.path[:0] = [os.path.dirname(first), *request['path']]
        sys.argv = [first, *rest]
        runpy.run_path(first, run_name='__main__')


def wait(child):
    """Its exit status as subprocess gives it; one that does not end is killed."""
    until = time.monotonic() + TIMEOUT
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.005)


def main():
    imports()
    print('ready', flush=True)
    for line in iter(sys.stdin.buffer.readline, b''):
        child = os.fork()
        if not child:
            # What is raised here ends the process as it would end any Python, exit handlers included.
            become(json.loads(line))
            return
        print(json.dumps(wait(child)), flush=True)


if __name__ == '__main__':
    main()
