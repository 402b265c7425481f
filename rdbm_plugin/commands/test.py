"""``rdbm test``: BasicSR's test with the plugin registered, for one or several numbers of network evaluations."""
import json
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from rdbm_plugin.basicsr_host import compat, lookup
from rdbm_plugin.config.options import OptionError, build

EXPLANATION = """rdbm test also takes:
  --steps N,N,...       test with each of these numbers of network evaluations, and write tables and a plot of
                        scores and costs to results/NAME_steps
and BasicSR's arguments:
"""


def main() -> None:
    """Test with BasicSR's command-line arguments; results/ is created in the working directory."""
    parser = ArgumentParser(add_help=False)
    parser.add_argument('--steps')
    given, rest = parser.parse_known_args()
    sys.argv[1:] = rest
    if {'-h', '--help'} & set(rest):
        print(EXPLANATION)

    lookup.need_registries()
    from basicsr import test

    from rdbm_plugin.commands import pipeline
    pipeline.check_before_writing(test)
    compat.distribute_on_cpus()
    if given.steps is None:
        test.test_pipeline(str(Path.cwd()))
    elif all(part.isdigit() for part in given.steps.split(',')):
        sweep(sorted({int(part) for part in given.steps.split(',')}))
    else:
        raise OptionError(f'--steps: found {given.steps!r}; expected whole numbers with commas, such as 1,2,5,10.')
    compat.end_distributed()


def sweep(steps: list[int]) -> None:
    """Test with each number of steps, and write tables and a plot; check first that the sampler accepts all of them."""
    from basicsr import test
    from basicsr.utils import get_root_logger, mkdir_and_rename

    from rdbm_plugin.models.option_checks import check_bridge
    arguments = list(sys.argv)
    opt, _ = test.parse_options(str(Path.cwd()), is_train=False)
    if not isinstance((opt.get('val') or {}).get('sampler'), dict):
        raise OptionError('--steps: the option file has no "val: sampler:" block in which to set steps.')
    for each in steps:
        check_bridge({**opt, 'val': {**opt['val'], 'sampler': {**opt['val']['sampler'], 'steps': each}}})
    found = {}
    for each in steps:
        name = f'{opt["name"]}_steps_{each}'
        sys.argv = [*arguments, '--force_yml', f'name={name}', f'val:sampler:steps={each}']
        compat.new_log()
        test.test_pipeline(str(Path.cwd()))
        found[each] = Path('results', name, 'results.json')
    if opt['rank'] == 0:
        folder = Path('results', f'{opt["name"]}_steps')
        mkdir_and_rename(str(folder))
        results = {each: json.loads(path.read_text(encoding='utf-8')) for each, path in found.items()}
        get_root_logger().info(f'{folder.absolute()}:\n{write_sweep(folder, results)}')


def write_sweep(folder: Path, results: dict[int, dict[str, Any]]) -> str:
    """Write ``table.csv``, ``table.md``, ``table.json`` and, with matplotlib, ``plot.png``; return the table as text.

    ``results`` maps steps to the content of ``results.json``.
    """
    from rdbm_plugin.archs.complexity import giga_multiply_adds
    from rdbm_plugin.evaluation.pictures import plot_sweep
    from rdbm_plugin.evaluation.results import aligned, digits, markdown, write_csv
    options = next(iter(results.values()))['options']
    cost = giga_multiply_adds(build('network_g', options['network_g'], lookup.registered('ARCH')))
    rows = []
    for steps, result in results.items():
        average = result['sets'].get('average') or next(iter(result['sets'].values()))
        rows.append({'steps': steps, 'images': average['images'],
                     **{name: float(value) for name, value in average['restored'].items()},
                     's/image': average['seconds'], 'evaluations': average['evaluations'],
                     'multiply-adds at 256x256 (G)': cost * average['evaluations']})
    metrics = list(rows[0])[2:-3]
    places = {'images': 0, **{metric: digits(row[metric] for row in rows) for metric in metrics}}
    table = [list(rows[0]), *[[f'{value:.{places[key]}f}' if key in places else f'{value:.4g}'
                               for key, value in row.items()] for row in rows]]
    write_csv(folder / 'table.csv', table)
    (folder / 'table.md').write_text(markdown(table), encoding='utf-8')
    (folder / 'table.json').write_text(json.dumps(rows, indent=1), encoding='utf-8')
    plotted = plot_sweep(folder / 'plot.png', rows, [*metrics, 's/image'])
    return aligned(table) + ('' if plotted else '\n(no plot.png: pip install matplotlib)')
