"""``rdbm data``: download photo sets by name, verify them, and lay them out as our option files expect."""
from argparse import ArgumentParser
from pathlib import Path

from rdbm_plugin.data.fetching import SETS, fetch


def main() -> int:
    """List the photo sets, or fetch one."""
    parser = ArgumentParser(prog='rdbm data', description=__doc__.split(': ', 1)[1])
    actions = parser.add_subparsers(dest='action', required=True)
    actions.add_parser('list', help='list the photo sets')
    fetching = actions.add_parser('fetch', help='download, verify and unpack a set')
    fetching.add_argument('name', choices=SETS)
    fetching.add_argument('--root', default='datasets', help='folder of all data sets (default: datasets)')
    fetching.add_argument('--from', dest='source', metavar='SOURCE',
                          help='local archive or folder, or another URL')
    args = parser.parse_args()
    if args.action == 'list':
        for name, each in SETS.items():
            parts = ', '.join(f'{part} ({known.count})' for part, known in each.parts.items())
            print(f'{name}: {parts}\n  {each.terms}\n  {each.cite}\n  ' + '\n  '.join(each.urls))
    else:
        folder = fetch(args.name, Path(args.root), args.source)
        print(f'{args.name}: complete, in {folder}\nTerms: {SETS[args.name].terms}\nCite: {SETS[args.name].cite}')
    return 0
