"""Scores of a test: per image, their means, and the files with both."""
import csv
import json
import math
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import yaml

from rdbm_plugin.evaluation.set_measures import Share, combined, of_images

Table = list[list[str]]
PACKAGES = ('rdbm_plugin', 'basicsr', 'torch', 'torchvision', 'numpy', 'opencv-python', 'pyiqa', 'torch-fidelity')


@dataclass(frozen=True)
class ImageScore:
    """Scores of a restored image and its input by each metric, or its share in a measure of the set.

    ``seconds`` is the wall time of the restoration, ``image`` the name within the data set.
    """

    images: ClassVar[int] = 1
    image: str
    restored: dict[str, float | Share]
    degraded: dict[str, float | Share]
    seconds: float
    evaluations: int


@dataclass(frozen=True)
class SetScore:
    """Means over the images of one data set, or over data sets.

    ``seconds`` is the median over the images, which a slow first image does not affect.
    """

    images: int
    restored: dict[str, float]
    degraded: dict[str, float]
    seconds: float
    evaluations: float

    @classmethod
    def of(cls, scores: 'Sequence[ImageScore | SetScore]') -> 'SetScore':
        """Average over the images of a set, or over sets, which count equally whatever their numbers of images."""
        middle = np.median if isinstance(scores[0], ImageScore) else np.mean
        return cls(sum(each.images for each in scores), _joint([each.restored for each in scores]),
                   _joint([each.degraded for each in scores]), float(middle([each.seconds for each in scores])),
                   float(np.mean([each.evaluations for each in scores])))


def _joint(scores: Sequence[Mapping[str, float | Share]]) -> dict[str, float]:
    return {metric: combined([each[metric] for each in scores]) for metric in scores[0]
            if all(metric in each for each in scores)}


def with_average(sets: Mapping[str, SetScore]) -> dict[str, SetScore]:
    """Return the sets, followed by their ``average`` if there are several."""
    return {**sets, **({'average': SetScore.of([*sets.values()])} if len(sets) > 1 else {})}


def digits(values: Iterable[float]) -> int:
    """Return the number of decimals to print: 2 for values such as PSNR, 4 for values such as SSIM."""
    return 2 if max((abs(value) for value in values if math.isfinite(value)), default=0) >= 2 else 4


def _titles(metrics: Sequence[str]) -> list[str]:
    return [title for metric in metrics for title in (f'{metric} degraded', metric)]


def summary(sets: Mapping[str, SetScore]) -> Table:
    """Return a heading and one row per set, with the scores of degraded and restored images by each metric."""
    rows = with_average(sets)
    metrics = list(next(iter(rows.values())).restored)
    table = [['set', 'images', *_titles(metrics), 's/image', 'evaluations']]
    places = {metric: digits(each.restored[metric] for each in rows.values()) for metric in metrics}
    for name, each in rows.items():
        scores = [f'{group[metric]:.{places[metric]}f}' for metric in metrics
                  for group in (each.degraded, each.restored)]
        table.append([name, str(each.images), *scores, f'{each.seconds:.3g}', f'{each.evaluations:g}'])
    return table


def aligned(table: Table) -> str:
    """Format a table for the console, with the first column left-aligned and the others right-aligned."""
    widths = [max(map(len, column)) for column in zip(*table)]
    return '\n'.join('  '.join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in table)


def gain_table(sets: Mapping[str, SetScore], metric: str) -> str:
    """Format the degraded and restored scores and the gain of each set and of their average, for the console."""
    rows = with_average(sets)
    places = digits(each.restored[metric] for each in rows.values())
    table = [[metric, 'degraded', 'restored', 'gain', 'images']]
    for name, each in rows.items():
        before, after = each.degraded[metric], each.restored[metric]
        table.append([name, f'{before:.{places}f}', f'{after:.{places}f}', f'{after - before:+.{places}f}',
                      str(each.images)])
    return aligned(table)


def markdown(table: Table) -> str:
    """Format a table in GitHub's Markdown; the first column is text, the others are numbers."""
    rule = ['---', *['---:'] * (len(table[0]) - 1)]
    return '\n'.join('| ' + ' | '.join(row) + ' |' for row in (table[0], rule, *table[1:])) + '\n'


def write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Write rows to a CSV file."""
    with path.open('w', newline='', encoding='utf-8') as file:
        csv.writer(file).writerows(rows)


def write_results(folder: Path, images: Mapping[str, Sequence[ImageScore]], opt: Mapping[str, Any]) -> None:
    """Write ``table.csv``, ``table.md``, ``images.csv``, ``options.yml`` and ``results.json`` into a folder.

    ``images`` is data set -> scores of its images, ``opt`` the options of the test.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sets = {name: SetScore.of(scores) for name, scores in images.items()}
    table = summary(sets)
    write_csv(folder / 'table.csv', table)
    (folder / 'table.md').write_text(markdown(table), encoding='utf-8')
    metrics = list(of_images(next(iter(images.values()))[0].restored))
    rows = [[name, each.image, *(group[metric] for metric in metrics for group in (each.degraded, each.restored)),
             f'{each.seconds:.4f}', each.evaluations] for name, scores in images.items() for each in scores]
    write_csv(folder / 'images.csv', [['set', 'image', *_titles(metrics), 'seconds', 'evaluations'], *rows])
    options = plain(opt)
    (folder / 'options.yml').write_text(yaml.safe_dump(options, sort_keys=False, allow_unicode=True), encoding='utf-8')
    content = {
        'sets': {name: vars(score) for name, score in with_average(sets).items()},
        'metrics': (options.get('val') or {}).get('metrics') or {},
        'versions': versions(), 'command': sys.argv, 'options': options}
    (folder / 'results.json').write_text(json.dumps(plain(content), indent=1), encoding='utf-8')


def versions() -> dict[str, str]:
    """Return the versions of Python, the platform and every installed package that scores depend on."""
    found = {'python': platform.python_version(), 'platform': platform.platform()}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def plain(value: Any) -> Any:
    """Convert options to types that JSON and YAML can hold; infinite scores become text."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(value)
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
