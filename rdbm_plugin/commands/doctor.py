"""``rdbm doctor``: check an option file, its data, the installation and the code base, and repair the code base."""
import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from importlib.metadata import distributions, requires
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rdbm_plugin.basicsr_host import lookup
from rdbm_plugin.basicsr_host.codebase import KINDS, PLUGIN, installation, installed, look_at, mending, undoing
from rdbm_plugin.config.option_file import read_option_file
from rdbm_plugin.config.option_keys import unknown_keys
from rdbm_plugin.config.options import OptionError
from rdbm_plugin.data.inspection import Finding, inspect_data
from rdbm_plugin.evaluation.results import versions

DESCRIPTION = """Check the installation and, with -opt, an option file and its data. --fix repairs the BasicSR that
Python imports, or the one in --codebase; --install-into lets a code base find the plugin; --undo reverts both."""
OPTIONS = 'options/train_rdbm_universal.yml'


def arguments() -> Namespace:
    """Parse the command line."""
    parser = ArgumentParser(prog='rdbm doctor', description=DESCRIPTION)
    parser.add_argument('-opt', help='option file to check')
    parser.add_argument('--force_yml', nargs='+', default=[], help='changes to the option file, as in rdbm train')
    parser.add_argument('--json', action='store_true', help='print the report as JSON')
    parser.add_argument('--no-images', action='store_true', help='skip the check of the images')
    parser.add_argument('--pace', action='store_true', help='time the loader and the training step of -opt')
    parser.add_argument('--codebase', metavar='FOLDER', help='folder of basicsr/ (default: the one Python imports)')
    action = parser.add_mutually_exclusive_group()
    action.add_argument('--fix', action='store_true', help='edit the import that fails with torchvision 0.17 and later')
    action.add_argument('--install-into', metavar='FOLDER', help='write the files that let this code base find the '
                                                                'plugin; they depend on its kind')
    action.add_argument('--undo', action='store_true', help='revert --fix and --install-into')
    parser.add_argument('--dry-run', action='store_true', help='only show what would be written')
    args = parser.parse_args()
    args.edits = args.fix or args.install_into or args.undo
    if args.dry_run and not args.edits:
        parser.error('--dry-run requires --fix, --install-into or --undo')
    if args.edits and (args.opt or args.json or args.force_yml):
        parser.error('-opt, --force_yml and --json cannot be combined with --fix, --install-into or --undo')
    if args.install_into and args.codebase:
        parser.error('--install-into already names the code base; remove --codebase')
    return args


def main() -> int:
    """Change a code base, or print the report and return 1 if it contains an error, else 0."""
    args = arguments()
    if args.edits:
        change_codebase(args)
        return 0
    with redirect_stdout(sys.stderr):
        findings = [*check_installation(), *check_codebase(args.codebase)]
        if args.opt:
            findings += examine(args.opt, args.force_yml, images=not args.no_images, pace=args.pace)
    errors, warnings = (sum(finding.level == level for finding in findings) for level in ('error', 'warning'))
    if args.json:
        print(json.dumps({'file': args.opt, 'ok': not errors, 'findings': [f._asdict() for f in findings]}, indent=1))
    else:
        for finding in sorted(findings, key=lambda finding: ('ok', 'note', 'warning', 'error').index(finding.level)):
            print(f'{finding.level:<8} {finding.where}: {finding.message}')
        print(f'{args.opt or "installation"}: {errors} errors, {warnings} warnings')
    return int(errors > 0)


def change_codebase(args: Namespace) -> None:
    """Change a code base as requested, and print its kind and every change."""
    root = args.install_into or args.codebase or installed()
    if root is None:
        raise OptionError('BasicSR is not installed; name the folder of a code base with --codebase.')
    found = look_at(root)
    changes = (mending if args.fix else undoing if args.undo else installation)(found)
    print(f'{found.root}: {KINDS[found.kind]}.\n')
    encoding = sys.stdout.encoding or 'utf-8'
    for change in changes:
        print(change.show().encode(encoding, 'backslashreplace').decode(encoding))
    for done, change in enumerate(changes if not args.dry_run else ()):
        try:
            change.make()
        except OptionError as error:
            before = f' {done} of {len(changes)} files were changed already; --undo reverts them.' if done else ''
            raise OptionError(f'{error}{before}') from None
    print(f'{len(changes)} file(s) {"would be " * args.dry_run}changed.' if changes else 'Nothing to change.')
    for finding in check_codebase(found.root) if not args.dry_run else ():
        if finding.level != 'ok':
            print(f'{finding.level}: {finding.message}')
    if args.install_into and (found.root / OPTIONS).is_file():
        print(f'To train: {found.how_to_train(OPTIONS)}')


def check_codebase(folder: str | Path | None) -> Iterator[Finding]:
    """Report the kind of BasicSR in a folder, by default the one that Python imports, and its problems."""
    folder = folder or installed()
    if folder is None:
        yield Finding('warning', 'codebase', 'BasicSR is not installed; "rdbm restore" works, but training does not: '
                                             'pip install --no-build-isolation basicsr')
        return
    try:
        found = look_at(folder)
    except OptionError as error:
        yield Finding('error', 'codebase', str(error))
        return
    yield Finding('ok', 'codebase', f'{found.root}: {KINDS[found.kind]}')
    if found.kind == PLUGIN:
        yield Finding('note', 'codebase', f'its requirements name {found.pinned or "no BasicSR"}; BasicSR 1.3.4.9 to '
                                          f'1.4.2 work. To train: {found.how_to_train("OPTIONS.yml")}, with an option '
                                          'file from the options folder of rdbm_plugin.')
    if found.unfinished:
        yield Finding('error', 'codebase', f'{found.root}/basicsr/version.py is missing, so basicsr cannot be '
                                           'imported. Installing the code base creates it; run there: '
                                           'pip install --no-build-isolation -e .')
    if found.stages:
        yield Finding('note', 'codebase', f'{found.script} expects the stages of progressive training. For a single '
                                          'stage, add to datasets: train: "iters: [500000]" with your total_iter, '
                                          '"gt_sizes: [256]" with gt_size, and "mini_batch_sizes: [20]" with '
                                          'batch_size_per_gpu. All code bases with stages read these keys.')
    # find_spec of the module itself proves nothing, because rdbm makes it importable.
    torchvision = getattr(find_spec('torchvision'), 'submodule_search_locations', None) or []
    if found.outdated and not any(Path(each, 'transforms/functional_tensor.py').is_file() for each in torchvision):
        yield Finding('note', 'codebase', f'{found.outdated[0]} imports a module that torchvision has removed; "rdbm" '
                                          'works, but BasicSR\'s own scripts need "rdbm doctor --fix".')
    if not found.package and any(distributions(name='basicsr')):
        yield Finding('warning', 'codebase', f'{found.root}/basicsr has no __init__.py, so Python prefers the basicsr '
                                             'installed by pip; --install-into writes that file.')


def check_installation() -> Iterator[Finding]:
    """Report mismatched versions and a second BasicSR on the path."""
    found = versions()
    named = [f'{name} {found.get(name, "without a version")}' for name in ('torch', 'torchvision', 'basicsr')]
    yield Finding('ok', 'installation', ', '.join([f'Python {found["python"]}', *named]))
    needs = [line.split(';')[0].replace(' ', '') for line in ('torchvision' in found and requires('torchvision')) or ()]
    wanted = next((need for need in needs if need.startswith('torch==')), None)
    if wanted and 'torch' in found and found['torch'].split('+')[0] != wanted.removeprefix('torch=='):
        yield Finding('error', 'installation', f'torchvision {found["torchvision"]} needs {wanted}, found torch '
                                               f'{found["torch"]}; install both together from one index.')
    folders = sorted({str(each) for entry in ['.', *sys.path] if (each := Path(entry).resolve() / 'basicsr').is_dir()})
    if len(folders) > 1:
        import basicsr
        yield Finding('warning', 'installation',
                      f'{len(folders)} folders named basicsr on the path: {", ".join(folders)}; Python '
                      f'imports {Path(basicsr.__file__ or "?").parent}. Uninstall one, or set PYTHONPATH.')


def examine(file: str, changes: Sequence[str] = (), images: bool = True, pace: bool = False) -> Iterator[Finding]:
    """Report all findings on an option file with the ``KEY:KEY=VALUE`` changes applied."""
    try:
        lookup.need_registries()
        from rdbm_plugin.commands import pipeline, preflight
        from rdbm_plugin.commands.pace import pace as measured_pace
        opt = pipeline.read_options(file, changes, 'train' in read_option_file(file, changes))
    except OptionError as error:
        yield Finding('error', 'file', str(error))
        return
    yield from check_keys(opt)
    errors = [str(fault) for fault in preflight.faults(opt, headers=False)]
    yield from (Finding('error', 'options', message) for message in errors)
    if not errors:
        yield Finding('ok', 'options', 'every block can be built')
    train = opt['datasets'].get('train') or {}
    if train.get('type') == 'SyntheticUniversalDataset' and train.get('tasks'):
        batch, count = train.get('batch_size_per_gpu', 0), len(train['tasks'])
        if batch % count:
            yield Finding('note', 'datasets: train', f'batch_size_per_gpu {batch} is not a multiple of the {count} '
                                                     'tasks, which are balanced across batches, not within each.')
    if images:
        yield from inspect_data(opt['datasets'], errors)
    if pace and train and not errors:
        yield measured_pace(opt)


def check_keys(opt: Mapping[str, Any]) -> Iterator[Finding]:
    """Report keys that nothing reads, and a missing line that loads the plugin."""
    ours = str(opt.get('model_type', '')).startswith('RDBM')
    for key in unknown_keys(opt):
        if not (ours and key.mistaken):
            yield Finding('warning', key.block or 'top of the file', key.message)
    types = [str(dataset.get('type')) for dataset in opt.get('datasets', {}).values()]
    if 'plugin' not in opt and (ours or any('Universal' in name for name in types)):
        yield Finding('error', 'top of the file',
                      'the line "plugin: !!python/name:rdbm_plugin.registration.__version__" is missing; '
                      "without it, BasicSR's own scripts do not find the plugin.")
