"""``rdbm data``: fetch photo sets by name, checked and laid out as our option files read them."""
from argparse import ArgumentParser
from pathlib import Path

from rdbm_plugin.data.fetching import SETS, fetch


def main() -> int:
    """Read the command line and do it."""
    parser = ArgumentParser(prog='rdbm data', description=__doc__.split(': ', 1)[1])
    actions = parser.add_subparsers(dest='action', required=True)
    actions.add_parser('list', help='what can be fetched')
    fetching = actions.add_parser('fetch', help='download, check and unpack a set')
    fetching.add_argument('name', choices=SETS)
    fetching.add_argument('--root', default='datasets', help='folder of all data sets (default: datasets)')
    fetching.add_argument('--from', dest='source', metavar='SOURCE',
                          help='archive or folder that you have, or another address')
    args = parser.parse_args()
    if args.action == 'list':
        for name, each in SETS.items():
            parts = ', '.join(f'{part} ({known.count})' for part, known in each.parts.items())
            print(f'{name}: {parts}\n  {each.terms}\n  {each.cite}\n  ' + '\n  '.join(each.urls))
        return 0
    folder = fetch(args.name, Path(args.root), args.source)
    print(f'{args.name}: whole, in {folder}\nTerms: {SETS[args.name].terms}\nCite: {SETS[args.name].cite}')
    return 0
