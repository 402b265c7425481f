"""Repeats a step whose loss or gradient was not finite, and names the first module where that arises.

    python scripts/upkeep/replay_step.py experiments/NAME/nonfinite_1234_rank0.pth

The dump is what RDBMModel writes when it ends a training (train: nonfinite_limit). Runs on the CPU, in float32 and,
if the training used amp, in that precision too; needs no training data.
"""
import json
import sys
from argparse import ArgumentParser
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from rdbm_plugin.__main__ import run
from rdbm_plugin.archs.checkpoint import read_safely
from rdbm_plugin.archs.precision import PRECISIONS, working_in
from rdbm_plugin.bridge import build_bridge
from rdbm_plugin.config.options import build
from rdbm_plugin.losses.objective import Objective, States

import_module('rdbm_plugin.registration')
lookup = import_module('rdbm_plugin.basicsr_host.lookup')
option_checks = import_module('rdbm_plugin.models.option_checks')


def main() -> int:
    """Print what is not finite, and return 1 if it could be repeated, else 0."""
    parser = ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('dump', help='the file that the error names')
    dump = read_safely(parser.parse_args().dump)
    options = json.loads(dump['options'])
    print(f'Iteration {dump["iteration"]}: {dump["losses"]}, norm of the gradient {dump["norm"]:g}')
    for name, tensor in {**dump['states'], **{f'weights {k}': v for k, v in dump['params'].items()}}.items():
        tell(name, tensor, dump)
    network = build('network_g', options['network_g'], lookup.registered('ARCH'))
    network.load_state_dict(dump['params'])
    bridge = build_bridge(options['bridge'], lookup.registered('BRIDGE'))
    amp = option_checks.check_training(options['train'], bridge).amp
    precisions = dict.fromkeys(('none', amp.replace('auto', 'bf16')))
    return int(max(repeat(network, options, States(**dump['states']), each) for each in precisions))


def tell(name: str, tensor: Tensor, dump: dict[str, Any]) -> None:
    """Say which samples of a tensor are not finite, if any are."""
    if not tensor.is_floating_point() or bool(tensor.isfinite().all()):
        return
    rows = tensor if tensor.dim() and len(tensor) == len(dump['names']) else ()
    which = [name for name, row in zip(dump['names'], rows) if not bool(row.isfinite().all())]
    print(f'  {name} is not finite{": " + ", ".join(which) if which else ""}')


def repeat(network: nn.Module, options: dict[str, Any], states: States, amp: str) -> bool:
    """Forward and backward pass with a look at the output of every module; whether anything was not finite."""
    first: list[str] = []

    def look(name: str) -> Any:
        def hook(module: nn.Module, given: Any, output: Tensor) -> None:
            if isinstance(output, Tensor) and not bool(output.isfinite().all()):
                first.append(f'output of {name or "the network"} ({type(module).__name__})')
        return hook

    hooks = [module.register_forward_hook(look(name)) for name, module in network.named_modules()]
    objective = Objective(build_bridge(options['bridge'], lookup.registered('BRIDGE')),
                          build('train: pixel_opt', options['train']['pixel_opt'], lookup.registered('LOSS')))
    network.zero_grad()
    with working_in(PRECISIONS[amp], 'cpu'):
        output = objective.output(states, network).float()
    value = objective.loss(output, states).mean()
    value.backward()
    for hook in hooks:
        hook.remove()
    if not bool(value.isfinite()):
        first.append('the pixel loss')
    first += [f'gradient of {name}' for name, p in reversed(list(network.named_parameters()))
              if p.grad is not None and not bool(p.grad.isfinite().all())]
    print(f'  amp: {amp}: ' + (f'first not finite: {first[0]}; {len(first)} in all' if first else 'all is finite'))
    return bool(first)


if __name__ == '__main__':
    sys.exit(run(main))
