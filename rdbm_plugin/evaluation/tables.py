"""Tables of a comparison: console, CSV, Markdown and LaTeX."""
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rdbm_plugin.evaluation.cost import Cost
from rdbm_plugin.evaluation.results import Table, digits

DEGRADED = 'degraded'
"""Name of the row with the scores of the inputs; never the best."""
COSTS = ('parameters (M)', 'evaluations', 'multiply-adds (G)', 'multiply-adds of an image (G)', 'ms/image',
         'peak memory (MiB)')
"""Multiply-adds are at 3x256x256."""


class Scores(NamedTuple):
    """Means of one method: data set -> metric -> value, 'average' among the sets if there are several."""

    method: str
    sets: dict[str, dict[str, float]]
    cost: Cost | None
    images: Mapping[str, int]
    """Data set -> number of its images."""


def cost_cells(cost: Cost | None) -> list[str]:
    """One cell for each of COSTS; empty where it was not measured."""
    if cost is None:
        return [''] * len(COSTS)
    memory = '' if cost.memory is None else f'{cost.memory:.0f}'
    return [f'{cost.parameters:.3f}', f'{cost.evaluations:g}', f'{cost.multiply_adds:.2f}',
            f'{cost.multiply_adds * cost.evaluations:.2f}', f'{cost.milliseconds:.1f}', memory]


def ranking(values: Mapping[str, float], better: str) -> tuple[set[str], set[str]]:
    """Names of the best and of the second best; equal values share a place."""
    order = sorted({value for value in values.values() if not math.isnan(value)}, reverse=better == 'higher')
    places = [{name for name, value in values.items() if value == each} for each in order[:2]]
    return (*places, set(), set())[:2]


def metric_table(rows: Sequence[Scores], metric: str, better: str, best: str = '{}', second: str = '{}') -> Table:
    """Methods by data sets and their numbers of images; ``best`` and ``second`` are put around what deserves it.

    Values are ranked as they are printed, so that what looks equal is equal.
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
    images = {dataset: max(row.images.get(dataset, 0) for row in rows) for dataset in columns}
    heading = [metric, *(f'{dataset} ({images[dataset]})' for dataset in columns)]
    return [heading, *([name, *(each.get(dataset, '') for dataset in columns)] for name, each in cells.items())]


def cost_table(rows: Sequence[Scores]) -> Table:
    """Methods by costs."""
    return [['cost', *COSTS], *([row.method, *cost_cells(row.cost)] for row in rows if row.cost is not None)]


def all_tables(rows: Sequence[Scores], metrics: Mapping[str, str], best: str = '{}', second: str = '{}') -> list[Table]:
    """One for each metric (name -> better) and one of the costs, as far as there is something in them."""
    made = [metric_table(rows, metric, better, best, second) for metric, better in metrics.items()]
    return [table for table in [*made, cost_table(rows)] if len(table) > 1]


def long_table(rows: Sequence[Scores], metrics: Sequence[str]) -> Table:
    """One row a method and data set, with all metrics in full precision and the costs; for further work."""
    return [['method', 'set', 'images', *metrics, *COSTS],
            *([row.method, dataset, str(row.images[dataset]),
               *(repr(values[metric]) if metric in values else '' for metric in metrics), *cost_cells(row.cost)]
              for row in rows for dataset, values in row.sets.items())]


def latex(rows: Sequence[Scores], metrics: Mapping[str, str]) -> str:
    """:func:`all_tables` as ``tabular`` blocks; the best bold, the second underlined."""
    return '\n'.join(map(_tabular, all_tables(rows, metrics, r'\textbf{{{}}}', r'\underline{{{}}}')))


def _tabular(table: Table) -> str:
    head, *body = [[_tex(cell) if number == 0 or row == 0 else cell for number, cell in enumerate(cells)]
                   for row, cells in enumerate(table)]
    lines = [' & '.join(row) + r' \\' for row in (head, *body)]
    columns = 'r' * (len(head) - 1)
    return '\n'.join([rf'\begin{{tabular}}{{l{columns}}}', r'\hline', lines[0], r'\hline', *lines[1:], r'\hline',
                      r'\end{tabular}', ''])


def _tex(text: str) -> str:
    special = {'\\': r'\textbackslash{}', '~': r'\textasciitilde{}', '^': r'\textasciicircum{}',
               **{letter: f'\\{letter}' for letter in '&%$#_{}'}}
    return ''.join(special.get(letter, letter) for letter in text)
