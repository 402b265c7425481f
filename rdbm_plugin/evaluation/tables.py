"""Tables of a comparison: console, CSV, Markdown and LaTeX."""
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rdbm_plugin.evaluation.cost import Cost
from rdbm_plugin.evaluation.results import Table, digits

DEGRADED = 'degraded'
"""Name of the row with the scores of the inputs, which is never ranked."""
COSTS = ('parameters (M)', 'evaluations', 'multiply-adds (G)', 'multiply-adds of an image (G)', 'ms/image',
         'peak memory (MiB)')
"""Multiply-adds are at 3x256x256."""


class Scores(NamedTuple):
    """Mean scores of one method: data set -> metric -> value, including the set 'average' if there are several sets."""

    method: str
    sets: dict[str, dict[str, float]]
    cost: Cost | None
    images: Mapping[str, int]
    """Data set -> number of its images."""


def cost_cells(cost: Cost | None) -> list[str]:
    """Return one cell for each of COSTS, empty if it was not measured."""
    if cost is None:
        return [''] * len(COSTS)
    memory = '' if cost.memory is None else f'{cost.memory:.0f}'
    return [f'{cost.parameters:.3f}', f'{cost.evaluations:g}', f'{cost.multiply_adds:.2f}',
            f'{cost.multiply_adds * cost.evaluations:.2f}', f'{cost.milliseconds:.1f}', memory]


def ranking(values: Mapping[str, float], better: str) -> tuple[set[str], set[str]]:
    """Return the names of the best and of the second best; equal values share a rank."""
    order = sorted({value for value in values.values() if not math.isnan(value)}, reverse=better == 'higher')
    places = [{name for name, value in values.items() if value == each} for each in order[:2]]
    return (*places, set(), set())[:2]


def metric_table(rows: Sequence[Scores], metric: str, better: str, best: str = '{}', second: str = '{}') -> Table:
    """Return a table of methods by data sets; ``best`` and ``second`` format the best and second-best values.

    The heading gives the number of images of each set. Values are ranked as printed, so equal-looking ones tie.
    """
    columns = list(dict.fromkeys(dataset for row in rows for dataset in row.sets))
    places = digits(row.sets[dataset][metric] for row in rows for dataset in row.sets if metric in row.sets[dataset])
    cells = {row.method: {dataset: f'{row.sets[dataset][metric]:.{places}f}' for dataset in row.sets
                          if metric in row.sets[dataset]} for row in rows}
    for dataset in columns:
        values = {name: float(each[dataset]) for name, each in cells.items() if dataset in each and name != DEGRADED}
        for names, mark in zip(ranking(values, better), (best, second)):
            for name in names:
                cells[name][dataset] = mark.format(cells[name][dataset])
    heading = [metric, *(f'{dataset} ({max(row.images.get(dataset, 0) for row in rows)})' for dataset in columns)]
    return [heading, *([name, *(each.get(dataset, '') for dataset in columns)] for name, each in cells.items())]


def all_tables(rows: Sequence[Scores], metrics: Mapping[str, str], best: str = '{}', second: str = '{}') -> list[Table]:
    """Return the non-empty ones of a table for each metric (name -> better) and a table of costs."""
    made = [metric_table(rows, metric, better, best, second) for metric, better in metrics.items()]
    costs = [['cost', *COSTS], *([row.method, *cost_cells(row.cost)] for row in rows if row.cost is not None)]
    return [table for table in [*made, costs] if len(table) > 1]


def long_table(rows: Sequence[Scores], metrics: Sequence[str]) -> Table:
    """Return one row per method and data set for further analysis: all metrics in full precision, and the costs."""
    return [['method', 'set', 'images', *metrics, *COSTS],
            *([row.method, dataset, str(row.images[dataset]),
               *(repr(values[metric]) if metric in values else '' for metric in metrics), *cost_cells(row.cost)]
              for row in rows for dataset, values in row.sets.items())]


def latex(rows: Sequence[Scores], metrics: Mapping[str, str]) -> str:
    """Format :func:`all_tables` as ``tabular`` blocks, with the best value in bold and the second underlined."""
    return '\n'.join(map(_tabular, all_tables(rows, metrics, r'\textbf{{{}}}', r'\underline{{{}}}')))


def _tabular(table: Table) -> str:
    head, *body = [' & '.join(_tex(cell) if 0 in (row, column) else cell for column, cell in enumerate(cells)) + r' \\'
                   for row, cells in enumerate(table)]
    columns = 'r' * (len(table[0]) - 1)
    return '\n'.join([rf'\begin{{tabular}}{{l{columns}}}', r'\hline', head, r'\hline', *body, r'\hline',
                      r'\end{tabular}', ''])


def _tex(text: str) -> str:
    special = {'\\': r'\textbackslash{}', '~': r'\textasciitilde{}', '^': r'\textasciicircum{}',
               **{letter: f'\\{letter}' for letter in '&%$#_{}'}}
    return text.translate(str.maketrans(special))
