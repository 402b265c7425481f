"""Turns weights of a training into a safetensors file or back into BasicSR's layout; the suffix of OUT decides.

    python scripts/convert_weights.py experiments/NAME/models/net_g_latest.pth rdbm.safetensors
    python scripts/convert_weights.py rdbm.safetensors net_g.pth
"""
from __future__ import annotations

import sys
from argparse import ArgumentParser
from pathlib import Path

from rdbm_plugin.models.checkpoint import read_parameters, write_safetensors
from rdbm_plugin.models.saving import save_whole
from rdbm_plugin.options import OptionError


def main() -> None:
    """Read the command line and convert."""
    parser = ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('source', help='.pth or .safetensors')
    parser.add_argument('out', type=Path, help='.pth or .safetensors; must not exist')
    parser.add_argument('--param_key', default='params_ema', help='weights to take: params_ema (default) or params')
    args = parser.parse_args()
    if args.out.exists():
        raise OptionError(f'{args.out}: exists already; choose another name.')
    parameters = read_parameters(args.source, args.param_key)
    if args.out.suffix == '.safetensors':
        write_safetensors(parameters, args.out)
    elif args.out.suffix == '.pth':
        save_whole({'params': parameters}, args.out)
    else:
        raise OptionError(f'{args.out}: expected a name that ends in .pth or .safetensors.')
    print(f'{args.out}: {sum(value.numel() for value in parameters.values()):,} parameters')


if __name__ == '__main__':
    try:
        main()
    except OptionError as error:
        sys.exit(str(error))
