"""Trains in forked processes, which saves the seconds of importing torch, and kills each of them without warning.

    python tests/kills.py KILLS SEED -- arguments of rdbm train

Every second kill comes while a file is being written, the others at random moments. Prints what it found as JSON.
"""
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from rdbm_plugin.__main__ import main
from rdbm_plugin.commands import pipeline  # noqa: F401  imports BasicSR once for all
from rdbm_plugin.models.checkpoints import check_intact


def start(arguments):
    child = os.fork()
    if child:
        return child
    with open('kills.log', 'a') as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    torch.set_num_threads(1)
    sys.argv = ['rdbm', *arguments]
    status = 1
    try:
        status = main()
    finally:
        sys.stdout.flush()
        os._exit(status)


def iterations():
    return sorted(int(path.stem) for path in Path().glob('experiments/*/training_states/*.state'))


def kill_one(arguments, rng, while_saving):
    """Start, kill, and return the iterations before and after, and whether a file was left half written."""
    before, child = iterations(), start(arguments)
    until = time.monotonic() + 60
    while iterations() == before and time.monotonic() < until:
        time.sleep(0.002)
    time.sleep(rng.uniform(0, 0.3))
    while while_saving and not list(Path().glob('experiments/*/*/.*.partial')) and time.monotonic() < until:
        pass
    os.kill(child, signal.SIGKILL)
    killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    for path in (*Path().glob('experiments/*/models/*.pth'), *Path().glob('experiments/*/training_states/*.state')):
        check_intact(path)
    partial = bool(list(Path().glob('experiments/*/*/.*.partial')))
    return {'killed': killed, 'before': max(before, default=0), 'after': max(iterations()), 'partial': partial}


def run(kills, seed, arguments):
    rng = random.Random(seed)
    rounds = [kill_one(arguments, rng, number % 2) for number in range(kills)]
    status = os.waitstatus_to_exitcode(os.waitpid(start(arguments), 0)[1])
    print(json.dumps({'rounds': rounds, 'status': status}))


if __name__ == '__main__':
    run(int(sys.argv[1]), int(sys.argv[2]), sys.argv[4:])
