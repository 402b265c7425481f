"""Turns weights of a training into another layout: BasicSR's .pth, a plain .pth, mmengine's .pth, or safetensors.

    python scripts/model_conversion/convert_weights.py experiments/NAME/models/net_g_latest.pth rdbm.safetensors
    python scripts/model_conversion/convert_weights.py rdbm.safetensors net_g.pth
    python scripts/model_conversion/convert_weights.py net_g.pth network.pth --plain
    python scripts/model_conversion/convert_weights.py net_g.pth small.pth --half
    python scripts/model_conversion/convert_weights.py work_dirs/NAME/iter_3000.pth net_g.pth     # of mmengine
    python scripts/model_conversion/convert_weights.py net_g.pth start.pth --mmengine             # for its load_from

Reads all that the plugin reads as weights, also checkpoints of mmengine and the files of IR-SDE and GOUB. The suffix of
OUT decides what it writes. A .pth of BasicSR's layout and a .safetensors also hold the options that the network is run
with, so that programs with spandrel, which see nothing else, can run it.
"""
import sys
from argparse import ArgumentParser
from pathlib import Path

from rdbm_plugin.__main__ import run
from rdbm_plugin.archs import checkpoint
from rdbm_plugin.config.options import OptionError
from rdbm_plugin.inference.training_options import options_of
from rdbm_plugin.models.checkpoints import save_atomically


def main() -> None:
    """Read the command line and convert."""
    parser = ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('source', help='.pth or .safetensors')
    parser.add_argument('out', type=Path, help='.pth or .safetensors; must not exist')
    parser.add_argument('--param_key', default='params_ema', help='weights to take: params_ema (default) or params')
    parser.add_argument('--opt', help='option file of the training; default: what SOURCE holds itself, else the one '
                        'beside it or in the folder of its experiment')
    layout = parser.add_mutually_exclusive_group()
    layout.add_argument('--plain', dest='layout', action='store_const', const='plain',
                        help='write names and tensors alone')
    layout.add_argument('--mmengine', dest='layout', action='store_const', const='mmengine',
                        help='write a .pth that mmengine loads into BridgeRestorer')
    parser.add_argument('--half', action='store_true', help='in half precision: half the size, as the shipped file')
    parser.set_defaults(layout='basicsr')
    args = parser.parse_args()
    if args.out.exists():
        raise OptionError(f'{args.out}: exists already; choose another name.')
    parameters = checkpoint.read_parameters(args.source, args.param_key)
    if args.half:
        parameters = {name: value.half() if value.is_floating_point() else value for name, value in parameters.items()}
    whole, lacking = parameters, ''
    if args.layout == 'basicsr':
        try:
            whole = checkpoint.with_options(parameters, options_of(checkpoint.find_network(args.source), args.opt))
        except OptionError as error:
            if args.opt:
                raise
            lacking = f'; programs with spandrel will refuse it: {error}'
    if args.out.suffix == '.safetensors':
        checkpoint.write_safetensors(whole, args.out)
    elif args.out.suffix == '.pth':
        basicsr = {'params': parameters} if lacking else {'params': parameters, checkpoint.SELF_CONTAINED: whole}
        layouts = {'basicsr': basicsr, 'plain': parameters, 'mmengine': checkpoint.to_mmengine(parameters)}
        save_atomically(layouts[args.layout], args.out)
    else:
        raise OptionError(f'{args.out}: expected a name that ends in .pth or .safetensors.')
    print(f'{args.out}: {sum(value.numel() for value in parameters.values()):,} parameters{lacking}')


if __name__ == '__main__':
    sys.exit(run(main))
