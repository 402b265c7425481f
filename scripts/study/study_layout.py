"""Tables and plots of the figures of scripts/study/study.py."""
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from suites import read_suite

from rdbm_plugin.evaluation.results import markdown

SETS = ('own', 'foreign', 'intact')
TOLD = ('1', '10')
"""Evaluations of the tables that do not show all."""
Figures = Mapping[str, Any]
"""Of one training: what ``score`` of that script gives."""


def figures_in(path: Path) -> list[Figures]:
    """What a file of figures has; nothing if there is none."""
    return json.loads(path.read_text(encoding='utf-8')) if path.is_file() else []


def mean_of(kinds: Mapping[str, Any], group: str, place: int = 0) -> float:
    """Mean over the kinds of a set: PSNR, or detail at place 1."""
    return float(np.mean([value[place] for kind, value in kinds.items() if kind.split()[0] == group]))


def deviation(values: Any) -> Any:
    """Standard deviation over the seeds, the first axis; 0 if there is one."""
    return np.std(values, axis=0, ddof=min(1, len(values) - 1))


def spread(values: Sequence[float]) -> str:
    """Mean, and standard deviation over the seeds if there are several."""
    return f'{np.mean(values):.2f}' + (f' ± {deviation(values):.2f}' if len(values) > 1 else '')


def by_row(figures: Sequence[Figures]) -> dict[str, list[Figures]]:
    """Name of a row -> figures of its seeds."""
    found: dict[str, list[Figures]] = {}
    for each in figures:
        found.setdefault(each['row'], []).append(each)
    return found


def tables(figures: Sequence[Figures], suite: Path) -> dict[str, str]:
    """Name -> table, in Markdown: one for each claim of the suite file, then those of all rows."""
    found = by_row(figures)
    if kinds := darkness(figures):
        return {name: markdown([['row', *kinds], *(
            [f'`{row}`', *(spread([run['restored']['1'][kind][place] for run in runs]) for kind in kinds)]
            for row, runs in found.items())]) for place, name in enumerate(('PSNR', 'brightness'))}
    unit = spent(figures[0])
    few = [(group, step) for group in SETS[:2] for step in ('1', '2', '10')] + [(SETS[2], '1')]
    every = counts(figures)
    of_claims = {f'claim {name}': of_detail(rows) if detail else of_psnr(rows, few, unit)
                 for name, detail, rows in claims(found, suite)}
    return {**of_claims, **{group: of_psnr(found, [(group, step) for step in every], unit) for group in SETS},
            'kinds': by_kind(found), 'detail': of_detail(found),
            **of_speed(found, read_suite(suite).get('against', {}))}


def darkness(figures: Sequence[Figures]) -> list[str]:
    """Kinds of darkness that figures are about; none if they are about the three sets."""
    kinds = list(figures[0]['restored']['1'])
    return [] if 'intact' in kinds else kinds


def counts(figures: Iterable[Figures]) -> list[str]:
    """Numbers of evaluations that figures have, ascending."""
    return sorted({label for each in figures for label in each['restored'] if label.isdigit()}, key=int)


def claims(found: Mapping[str, Sequence[Figures]], suite: Path) -> Iterator[tuple[str, bool, dict[str, Any]]]:
    """Claims of a suite file that there are figures for: name, whether it is about detail, and the figures by row.

    A file without claims is one about PSNR, of all rows.
    """
    for name, claim in read_suite(suite).get('claims', {'all': {'rows': list(found)}}).items():
        if rows := {row: found[row] for row in claim['rows'] if row in found}:
            yield name, claim.get('table') == 'detail', rows


def spent(run: Figures) -> float:
    """Compute of a training and of that which it starts from."""
    return run['iterations'] * run['compute'] + run.get('before', 0)


def of_psnr(found: Mapping[str, Sequence[Figures]], columns: Sequence[tuple[str, str]], unit: float) -> str:
    """PSNR by row and column: a set, and how many evaluations; compute is that of the training, in units."""
    return markdown([['row', 'seeds', 'iterations', 'compute', *map(', '.join, columns)], *(
        [f'`{name}`', str(len(runs)), f'{runs[0]["iterations"]:,}', f'{spent(runs[0]) / unit:.2f}',
         *(spread([mean_of(run['restored'][step], group) for run in runs]) if step in runs[0]['restored'] else ''
           for group, step in columns)] for name, runs in found.items())])


def by_kind(found: Mapping[str, Sequence[Figures]]) -> str:
    """PSNR of every kind of damage, with one and with ten evaluations."""
    degraded = next(iter(found.values()))[0]['degraded']
    kinds = [kind for kind in degraded if kind != 'intact']
    lines = [['degraded', '', *(f'{degraded[kind]:.2f}' for kind in kinds)]]
    for name, each in found.items():
        lines += [[f'`{name}`', step, *(spread([run['restored'][step][kind][0] for run in each]) for kind in kinds)]
                  for step in TOLD if step in each[0]['restored']]
    return markdown([['row', 'evaluations', *kinds], *lines])


def of_detail(found: Mapping[str, Sequence[Figures]]) -> str:
    """PSNR and detail on foreign damage with one and ten evaluations, and with noise."""
    lines = [[f'`{name}`', label, *(spread([mean_of(run['restored'][label], 'foreign', place) for run in each])
                                    for place in (0, 1))]
             for name, each in found.items() for label in sampled(each)]
    return markdown([['row', 'sampler', 'PSNR', 'detail, dB'], *lines])


def of_speed(found: Mapping[str, Sequence[Figures]], against: Mapping[str, str]) -> dict[str, str]:
    """Training loss over the last tenth, and when a row first has that of the row it is compared with, if any is."""
    lines = []
    for name, other in against.items():
        curves = [{run['seed']: np.array(run['losses']) for run in found.get(row, ()) if run.get('losses')}
                  for row in (name, other)]
        cells = []
        for seed in curves[0].keys() & curves[1].keys():
            own, theirs = (curve[seed] for curve in curves)
            tenth = max(1, len(own) // 10)
            means, end = np.convolve(own[:, 1], np.full(tenth, 1 / tenth), 'valid'), theirs[-tenth:, 1].mean()
            cells.append((means[-1], end, 100 * own[tenth - 1:, 0][means <= end].min(initial=np.inf) / own[-1, 0]))
        if cells:
            loss, end, share = zip(*cells)
            lines.append([f'`{name}`', f'`{other}`', str(len(cells)), f'{np.mean(loss):.4f}', f'{np.mean(end):.4f}',
                          spread(share)])
    head = ['row', 'against', 'seeds', 'final loss', 'of the other', 'that loss after, % of the iterations']
    return {'speed': markdown([head, *lines])} if lines else {}


def plots(figures: Sequence[Figures], plt: Any, suite: Path) -> dict[str, Any]:
    """Name -> plot of a claim: PSNR on both kinds of damage over evaluations, detail over PSNR if it is about that."""
    if kinds := darkness(figures):
        return {'brightness': of_brightness(by_row(figures), kinds, plt)}
    return {name: (of_sharpness if detail else over_evaluations)(rows, plt)
            for name, detail, rows in claims(by_row(figures), suite)}


def over_evaluations(found: Mapping[str, Sequence[Figures]], plt: Any) -> Any:
    """PSNR over evaluations of both kinds of damage; one evaluation as a line across."""
    canvas, axes = plt.subplots(1, 2, figsize=(12, 4), layout='constrained')
    for name, runs in found.items():
        steps = counts(runs)
        for axis, group in zip(axes, SETS):
            values = np.array([[mean_of(run['restored'][step], group) for step in steps] for run in runs])
            line = axis.errorbar(list(map(int, steps)), values.mean(0), deviation(values), label=name, marker='o', ms=4,
                                 capsize=2)
            if len(steps) == 1:
                axis.axhline(values.mean(), color=line[0].get_color(), lw=0.8, ls='--')
    every = counts(run for runs in found.values() for run in runs)
    for axis, group in zip(axes, SETS):
        axis.set(xscale='log', xlabel='network evaluations', ylabel='PSNR, dB', title=f'{group} damage')
        axis.set_xticks(list(map(int, every)), every)
        axis.minorticks_off()
    canvas.legend(*axes[0].get_legend_handles_labels(), loc='outside right', fontsize=8)
    return canvas


def of_sharpness(found: Mapping[str, Sequence[Figures]], plt: Any) -> Any:
    """Detail over PSNR on foreign damage: a colour for each row, a mark for each sampler."""
    canvas, axis = plt.subplots(figsize=(12, 4), layout='constrained')
    marks: dict[str, str] = {}
    for number, (name, runs) in enumerate(found.items()):
        axis.plot([], [], 's', color=f'C{number}', label=name)
        for label in sampled(runs):
            mark = marks.setdefault(label, 'ov^D*Xph<>'[len(marks) % 10])
            point = [np.mean([mean_of(run['restored'][label], 'foreign', place) for run in runs]) for place in (0, 1)]
            axis.plot(*point, mark, ms=7, color=f'C{number}')
    for label, mark in marks.items():
        axis.plot([], [], mark, color='grey', label=label)
    axis.set(xlabel='PSNR, dB', ylabel='detail less that of the clean photo, dB', title='foreign damage')
    canvas.legend(loc='outside right', fontsize=8)
    return canvas


def of_brightness(found: Mapping[str, Sequence[Figures]], kinds: Sequence[str], plt: Any) -> Any:
    """Share of the missing brightness that comes back: rows downwards, a colour for each kind of darkness."""
    canvas, axis = plt.subplots(figsize=(12, 1.5 + 0.25 * len(found)), layout='constrained')
    for kind in kinds:
        values = [[run['restored']['1'][kind][1] for run in runs] for runs in found.values()]
        axis.errorbar([np.mean(each) for each in values], list(found), xerr=[deviation(each) for each in values],
                      fmt='o', ms=6, capsize=2, alpha=0.8, label=kind)
    axis.axvline(1, color='black', lw=0.8, ls='--')
    axis.invert_yaxis()
    axis.grid(axis='y', lw=0.3)
    axis.set(xlabel='share of the missing brightness')
    canvas.legend(loc='outside right', fontsize=8, title='darkness')
    return canvas


def sampled(runs: Sequence[Figures]) -> list[str]:
    """Samplers of a row whose detail is shown: few and many evaluations, and all with noise."""
    return [label for label in runs[0]['restored'] if label in TOLD or not label.isdigit()]


def page(tables: Mapping[str, str]) -> str:
    """Tables under their names."""
    return '\n'.join(f'## {name}\n\n{table}' for name, table in tables.items())


def lay_out(path: Path, suite: Path) -> None:
    """Print the tables of a file of figures, and write them and the plots, if there is matplotlib, beside it."""
    figures = figures_in(path)
    text = page(tables(figures, suite))
    print(text, end='')
    path.with_suffix('.md').write_text(text, encoding='utf-8')
    try:
        import matplotlib
    except ImportError:
        print('no plot: pip install matplotlib')
        return
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    for name, canvas in plots(figures, plt, suite).items():
        canvas.savefig(path.with_name(f'{path.stem}_{name}.png'), dpi=110)
