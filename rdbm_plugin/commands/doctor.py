"""``rdbm doctor``: checks an option file, its data and the installation before any time is spent on training."""
from __future__ import annotations

import json
import platform
import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from rdbm_plugin.data.inspection import Finding, inspect_data
from rdbm_plugin.options import OptionError, suggest

KNOWN = {
    '': {'name', 'model_type', 'scale', 'num_gpu', 'manual_seed', 'plugin', 'bridge', 'datasets', 'network_g', 'path',
         'train', 'val', 'logger', 'dist_params', 'find_unused_parameters', 'auto_resume', 'is_train', 'dist', 'rank',
         'world_size', 'root_path'},
    'train': {'ema_decay', 'node_t_share', 'own_start_share', 'amp', 'optim_g', 'scheduler', 'total_iter',
              'warmup_iter', 'pixel_opt', 'perceptual_opt'},
    'val': {'val_freq', 'save_img', 'pbar', 'suffix', 'sampler', 'metrics', 'tile', 'tile_overlap'},
    'logger': {'print_freq', 'save_checkpoint_freq', 'use_tb_logger', 'wandb'},
    'path': {'pretrain_network_g', 'param_key_g', 'strict_load_g', 'resume_state', 'root', 'experiments_root',
             'models', 'training_states', 'log', 'visualization', 'results_root'},
}
"""Block -> the keys that BasicSR and RDBMModel read there; '' is the top of the file."""


def main() -> int:
    """Read the command line, print the report, and return 1 if there is an error in it, else 0."""
    parser = ArgumentParser(prog='rdbm doctor', description='Check an option file, its data and the installation.')
    parser.add_argument('-opt', required=True, help='option file')
    parser.add_argument('--force_yml', nargs='+', help='changes, as for rdbm train')
    parser.add_argument('--json', action='store_true', help='print the report as JSON')
    parser.add_argument('--no-images', action='store_true', help='do not look into the images')
    args = parser.parse_args()
    changes = ['--force_yml', *args.force_yml] if args.force_yml else []
    with redirect_stdout(sys.stderr):
        findings = list(examine(['-opt', args.opt, *changes], images=not args.no_images))
    failed = any(finding.level == 'error' for finding in findings)
    if args.json:
        print(json.dumps({'file': args.opt, 'ok': not failed, 'findings': [f._asdict() for f in findings]}, indent=1))
    else:
        print(report(args.opt, findings))
    return int(failed)


def report(file: str, findings: list[Finding]) -> str:
    """The findings as text, errors last."""
    order = ('ok', 'note', 'warning', 'error')
    lines = [f'{finding.level:<8} {finding.where}: {finding.message}'
             for finding in sorted(findings, key=lambda finding: order.index(finding.level))]
    errors, warnings = (sum(finding.level == level for finding in findings) for level in ('error', 'warning'))
    return '\n'.join([*lines, f'{file}: {errors} errors, {warnings} warnings'])


def examine(arguments: list[str], images: bool = True) -> Iterator[Finding]:
    """All findings on the option file that ``arguments`` (``-opt FILE --force_yml ...``) name."""
    yield from check_installation()
    import rdbm_plugin.registration  # noqa: F401
    from rdbm_plugin import compat
    from rdbm_plugin.preflight import check_file, checks
    try:
        training = 'train' in check_file(arguments)
    except OptionError as error:
        yield Finding('error', 'file', str(error))
        return
    opt = compat.read_options(arguments, training)
    yield from check_keys_of(opt)
    told = []
    try:
        for check in checks(opt):
            try:
                check()
            except OptionError as error:
                told.append(str(error))
    except OptionError as error:
        told.append(str(error))
    yield from (Finding('error', 'options', message) for message in told)
    if not told:
        yield Finding('ok', 'options', 'every block can be built')
    yield from check_loading(opt)
    if images:
        yield from inspect_data(opt['datasets'], told)


def check_installation() -> Iterator[Finding]:
    """Versions that do not fit, and a second BasicSR in the way."""
    found = {}
    for package in ('torch', 'torchvision', 'basicsr'):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    yield Finding('ok', 'installation', ', '.join(
        [f'Python {platform.python_version()}', *(f'{name} {number or "without a version"}'
                                                  for name, number in found.items())]))
    needs = [line.split(';')[0].replace(' ', '') for line in (found['torchvision'] and requires('torchvision')) or ()]
    wanted = next((need for need in needs if need.startswith('torch==')), None)
    if wanted and found['torch'] and found['torch'].split('+')[0] != wanted.removeprefix('torch=='):
        yield Finding('error', 'installation', f'torchvision {found["torchvision"]} needs {wanted}, found torch '
                                               f'{found["torch"]}; install both together from one index.')
    folders = {str(Path(entry or '.').resolve() / 'basicsr') for entry in ['.', *sys.path]
               if (Path(entry or '.') / 'basicsr').is_dir()}
    if len(folders) > 1:
        import basicsr
        yield Finding('warning', 'installation',
                      f'{len(folders)} folders named basicsr on the path: {", ".join(sorted(folders))}; in use '
                      f'is {Path(basicsr.__file__ or "?").parent}. Uninstall one, or set PYTHONPATH.')


def check_keys_of(opt: Mapping[str, Any]) -> Iterator[Finding]:
    """Keys that nobody reads, and lines that are missing."""
    ours = str(opt.get('model_type', '')).startswith('RDBM')
    for block, known in KNOWN.items():
        content = opt.get(block) if block else opt
        for key in content if isinstance(content, Mapping) else ():
            if key not in known:
                hint = suggest(str(key), known)
                inner = ' Check its indentation.' if block and key in KNOWN[''] else ''
                yield Finding('error' if ours and (hint or inner) else 'warning', block or 'top of the file',
                              f'key {key!r} is not known to be read by anyone.{hint}{inner}')
    mine = [str(dataset.get('type')) for dataset in opt.get('datasets', {}).values()]
    if 'plugin' not in opt and (ours or any('Universal' in name for name in mine)):
        yield Finding('error', 'top of the file',
                      'the line "plugin: !!python/name:rdbm_plugin.registration.__version__" is missing; '
                      "BasicSR's own scripts will not find the plugin.")
    if any(phase.startswith('val') for phase in opt.get('datasets', {})) and not opt.get('val'):
        yield Finding('warning', 'val', 'there are validation sets, but no val: block; nothing will be validated.')


def check_loading(opt: Mapping[str, Any]) -> Iterator[Finding]:
    """Loader settings of the training set that hurt."""
    train = opt['datasets'].get('train')
    if not train:
        return
    if train.get('prefetch_mode') == 'cpu' and not train.get('num_worker_per_gpu'):
        yield Finding('error', 'datasets: train', 'prefetch_mode cpu with num_worker_per_gpu 0: two threads would read '
                                                  'the same data set, and runs would not repeat; use workers.')
    if train.get('type') == 'SyntheticUniversalDataset' and train.get('tasks'):
        batch, count = train.get('batch_size_per_gpu', 0), len(train['tasks'])
        if batch % count:
            yield Finding('note', 'datasets: train', f'batch_size_per_gpu {batch} is no multiple of the {count} tasks: '
                                                     'they are balanced over batches, not within each.')
