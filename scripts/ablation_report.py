"""Tables, plots and pictures of what scripts/ablations.py measured."""
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from rdbm_plugin.evaluation.pictures import picture_grid
from rdbm_plugin.evaluation.results import markdown, write_csv

Measured = Mapping[str, Any]
"""Content of one ablation.json."""
CLEAN = 'clean photo'
"""What the scores of restoring an undamaged photo are called."""
PLOTTED = ('uniform_zero', 'uniform_one', 'uniform_residual', 'zero', 'one', 'residual')


def mean_psnr(scores: Mapping[str, Mapping[str, Any]], tasks: Sequence[str]) -> float:
    """Every task counts the same."""
    return float(np.mean([scores[task]['psnr'] for task in tasks]))


def region(scores: Mapping[str, Mapping[str, Any]], tasks: Sequence[str], part: str, least: float = 0.01) -> float:
    """Mean PSNR of intact or damaged pixels over the tasks with at least that share of intact ones."""
    return float(np.mean([scores[task][part] for task in tasks if scores[task]['intact share'] >= least]))


def spread(values: Sequence[float]) -> str:
    """Mean, and standard deviation over seeds where there are several."""
    found = f'{np.mean(values):.2f}'
    return f'{found} ± {np.std(values, ddof=1):.2f}' if len(values) > 1 else found


class Table:
    """What was measured, by row and seed."""

    def __init__(self, found: Iterable[Measured], tasks: Sequence[str]) -> None:
        self.tasks = tasks
        self.rows: dict[str, list[Measured]] = {}
        for each in found:
            self.rows.setdefault(each['row'], []).append(each)

    def over_seeds(self, row: str, sampler: str, value: Callable[[Any], float]) -> list[float]:
        """``value`` of the scores of each seed, for one sampler."""
        return [value(each['restored'][sampler]) for each in self.rows[row] if sampler in each['restored']]

    def psnr(self, row: str, sampler: str) -> list[float]:
        """Average over the tasks, for each seed."""
        return self.over_seeds(row, sampler, lambda scores: mean_psnr(scores, self.tasks))

    def steps(self, row: str, kind: str = 'euler') -> list[int]:
        """Numbers of evaluations that were measured."""
        return [int(name.split()[-1]) for name in self.rows[row][0]['restored'] if name.rsplit(' ', 1)[0] == kind]

    def best(self, row: str) -> str:
        """The sampler with the highest mean over the seeds."""
        return max(self.rows[row][0]['restored'], key=lambda name: float(np.mean(self.psnr(row, name))))

    def by_evaluations(self, rows: Sequence[str]) -> list[list[str]]:
        """A row for each training, a column for each number of evaluations of euler."""
        steps = sorted({step for row in rows for step in self.steps(row)})
        table = [['row', 'seeds', *map(str, steps)]]
        for row in rows:
            scores = [self.psnr(row, f'euler {step}') for step in steps]
            table.append([row, str(len(self.rows[row])), *(spread(each) if each else '' for each in scores)])
        return table

    def by_task(self, rows: Sequence[str], sampler: Callable[[str], str]) -> list[list[str]]:
        """A row for each training, a column for each task."""
        degraded = next(iter(self.rows.values()))[0]['degraded']
        table = [['row', 'sampler', *self.tasks, 'average'],
                 ['degraded', '', *(f'{degraded[task]["psnr"]:.2f}' for task in self.tasks),
                  f'{mean_psnr(degraded, self.tasks):.2f}']]
        for row in rows:
            name = sampler(row)
            values = [self.over_seeds(row, name, lambda scores, task=task: scores[task]['psnr']) for task in self.tasks]
            table.append([row, name, *map(spread, values), spread(self.psnr(row, name))])
        return table

    def by_region(self, rows: Sequence[str], samplers: Sequence[str]) -> list[list[str]]:
        """PSNR of pixels that were intact, of those that were damaged, and of photos without any damage."""
        degraded = next(iter(self.rows.values()))[0]['degraded']
        table = [['row', 'sampler', 'intact pixels', 'damaged pixels', CLEAN],
                 ['degraded', '', *(f'{region(degraded, self.tasks, part):.2f}' for part in ('intact', 'damaged')), '']]
        for row in rows:
            for name in samplers:
                if name in self.rows[row][0]['restored']:
                    values = [self.over_seeds(row, name, lambda scores, part=part: region(scores, self.tasks, part))
                              for part in ('intact', 'damaged')]
                    clean = self.over_seeds(row, name, lambda scores: scores[CLEAN]['psnr'])
                    table.append([row, name, *map(spread, values), spread(clean)])
        return table


def write_report(found: Sequence[Measured], content: Mapping[str, Any], out: Path) -> None:
    """Write ``tables.md``, ``scores.csv``, ``scores.json`` and, with matplotlib, ``nfe.png`` and ``lambda.png``."""
    if not found:
        print('Nothing has been measured yet.')
        return
    out.mkdir(parents=True, exist_ok=True)
    table = Table(found, content['sets']['tasks'])
    groups = {group: [row for row in rows if row in table.rows] for group, rows in content['rows'].items()}
    everything = [row for rows in groups.values() for row in rows]
    text = ['Average PSNR of the tasks in dB, by network evaluations (solver euler)\n',
            markdown(table.by_evaluations(everything))]
    text += ['\nEach task at the number of evaluations that is best for the row, chosen on the same photos\n',
             markdown(table.by_task(everything, table.best))]
    text += ['\nPixels that were intact, pixels that were damaged (tasks with at least 1 % of intact ones), and photos '
             'without damage\n', markdown(table.by_region(everything, ('euler 1', 'euler 2', 'euler 10',
                                                                        'euler stochastic 2', 'euler stochastic 10')))]
    others = sorted({name for row in everything for name in table.rows[row][0]['restored']
                     if name.rsplit(' ', 1)[0] != 'euler'})
    several = [row for row in everything if len(table.rows[row][0]['restored']) > len(table.steps(row))]
    if several:
        text += ['\nOther solvers and starts\n', markdown([['row', *others], *(
            [row, *(spread(table.psnr(row, name)) if name in table.rows[row][0]['restored'] else '' for name in others)]
            for row in several)])]
    costs = [['row', 'parameters (M)', 'iterations', 'minutes']]
    for row in everything:
        first = table.rows[row][0]
        times = [each['minutes'] for each in table.rows[row] if each['minutes'] is not None]
        costs.append([row, f'{first["parameters"] / 1e6:.3f}', str(first['iterations']),
                      f'{np.mean(times):.1f}' if times else ''])
    text += ['\nCost of a training\n', markdown(costs)]
    (out / 'tables.md').write_text('\n'.join(text), encoding='utf-8')
    (out / 'scores.json').write_text(json.dumps(list(found), indent=1), encoding='utf-8')
    numbers = ('psnr', 'intact', 'damaged', 'intact share')
    write_csv(out / 'scores.csv', [
        ['row', 'seed', 'sampler', 'task', *numbers],
        *([each['row'], each['seed'], name, task, *(scores[key] for key in numbers)]
          for each in found for name, sampler in each['restored'].items() for task, scores in sampler.items())])
    print('\n'.join(text))
    draw_pictures(table, content['main'], out)
    if plot(table, out):
        print(f'\nTables, scores and plots: {out}')
    else:
        print(f'\nTables and scores: {out} (no plots: pip install matplotlib)')


def draw_pictures(table: Table, main: Sequence[str], out: Path) -> None:
    """The first image of each task as the main rows restore it with ten evaluations, or as many as were measured."""
    rows = [row for row in main if row in table.rows]
    if not rows:
        return

    def read(row: str, task: str, part: str) -> Any:
        return cv2.imread(str(Path(table.rows[row][0]['folder'], 'ablation', f'{task} {part}.png')))[..., ::-1]

    def shown(row: str) -> str:
        return f'euler {max(step for step in table.steps(row) if step <= 10)}'

    grid = {task: [read(rows[0], task, 'degraded'), *(read(row, task, shown(row)) for row in rows),
                   read(rows[0], task, 'clean')] for task in table.tasks}
    cv2.imwrite(str(out / 'pictures.png'), picture_grid(grid, ['degraded', *rows, 'clean'], 160)[..., ::-1])


def plot(table: Table, out: Path) -> bool:
    """PSNR over evaluations and over lambda; False, with nothing drawn, without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False

    def new() -> tuple[Any, Any]:
        figure = Figure(figsize=(7.6, 4.2), layout='constrained')
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        axes.grid(alpha=0.3)
        axes.set(xscale='log', ylabel='PSNR (dB), average of five tasks')
        return figure, axes

    def save(figure: Any, axes: Any, name: str) -> None:
        axes.legend(fontsize=8, loc='upper left', bbox_to_anchor=(1, 1))
        figure.savefig(out / name, dpi=130)

    bridges = [row for row in table.rows if len(table.steps(row)) > 1]
    shown = [row for row in PLOTTED if row in bridges] or bridges
    if shown:
        figure, axes = new()
        for row in shown:
            steps = table.steps(row)
            values = np.array([table.psnr(row, f'euler {step}') for step in steps])
            line, = axes.plot(steps, values.mean(1), marker='o', label=row,
                              ls=':' if row.startswith('uniform') else '-')
            axes.fill_between(steps, values.min(1), values.max(1), color=line.get_color(), alpha=0.15)
            axes.set(xticks=steps, xticklabels=steps)
        if 'regression' in table.rows:
            axes.axhline(np.mean(table.psnr('regression', 'euler 1')), color='black', ls='--', label='regression (1)')
        axes.minorticks_off()
        axes.set(xlabel='network evaluations')
        save(figure, axes, 'nfe.png')
    known = {'lambda_1': 1, 'residual': 10, 'lambda_100': 100}
    if all(row in table.rows for row in known):
        figure, axes = new()
        for step in (1, 2, 10):
            axes.plot(list(known.values()), [np.mean(table.psnr(row, f'euler {step}')) for row in known], marker='o',
                      label=f'{step} evaluation{"s" * (step > 1)}')
        axes.set(xlabel='lambda times 255')
        save(figure, axes, 'lambda.png')
    return True
