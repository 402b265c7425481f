"""Run a comparison, from test sets to tables, pictures and page. Needs BasicSR."""
import json
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from basicsr.utils import get_root_logger, tensor2img
from tqdm import tqdm

from rdbm_plugin.config.options import OptionError
from rdbm_plugin.data.image_source import SUFFIXES
from rdbm_plugin.data.inspection import names
from rdbm_plugin.evaluation import page, pictures, results
from rdbm_plugin.evaluation.methods import Method, find_picture, items, read_picture, read_sets, run
from rdbm_plugin.evaluation.pictures import Picture
from rdbm_plugin.evaluation.results import ImageScore, SetScore
from rdbm_plugin.evaluation.scoring import scores
from rdbm_plugin.evaluation.set_measures import of_images
from rdbm_plugin.evaluation.tables import DEGRADED, Scores, all_tables, latex, long_table

CROP = 96
"""Side length in pixels of the crops in the grid."""


class Comparison:
    """Scores several methods on the test sets of ``file`` by its metrics, and writes the results to ``out``."""

    def __init__(self, file: str, opt: Mapping[str, Any], out: Path) -> None:
        self.metrics = (opt.get('val') or {}).get('metrics') or {}
        if not self.metrics:
            raise OptionError(f'{file}: val: metrics: missing; without metrics there is nothing to compare.')
        self.better = {name: each.get('better', 'higher') for name, each in self.metrics.items()}
        self.sets = read_sets(opt)
        self.total = sum(map(len, self.sets.values()))
        self.file, self.out = file, out
        self.found: dict[str, dict[str, list[ImageScore]]] = {}
        self.shown: list[dict[str, Any]] = []
        self.crops: dict[str, dict[str, Picture]] = {}

    def restore(self, methods: Sequence[Method], timed: bool) -> None:
        """Run the methods that have options. A method that fails records its fault; the others still run."""
        for method in (each for each in methods if each.opt is not None and not each.fault):
            with tqdm(total=self.total, desc=f'Restore {method.name}', unit='image', leave=False) as bar:
                try:
                    run(method, self.sets, bar.update, timed)
                except Exception as error:
                    method.fault = f'{type(error).__name__}: {error}'
                    get_root_logger().error(f'{method.name} failed:\n{traceback.format_exc()}')

    def score(self, methods: Sequence[Method], page_images: int) -> None:
        """Score all pictures as they are on disk.

        A method that was run here must have every picture. From a folder of finished results, all that match count.
        """
        counts: Counter[str] = Counter()
        used: dict[str, set[Path]] = {method.name: set() for method in methods}
        for dataset, image, data in tqdm(items(self.sets), total=self.total, desc='Score', unit='image', leave=False):
            pictures = {DEGRADED: tensor2img([data['lq'][0]])}
            clean = tensor2img([data['gt'][0]]) if 'gt' in data else None
            for method in (each for each in methods if not each.fault):
                try:
                    path = find_picture(method, dataset, image)
                    used[method.name].add(path)
                    pictures[method.name] = read_picture(path, clean)
                except OptionError as error:
                    if method.opt is None:
                        method.gaps.append(str(error))
                    else:
                        method.fault = str(error)
            for name, picture in pictures.items():
                if clean is None or picture.shape == clean.shape:
                    entry = ImageScore(image, scores(picture, clean, self.metrics, dataset), {}, 0.0, 0)
                    self.found.setdefault(name, {}).setdefault(dataset, []).append(entry)
            counts[dataset] += 1
            if counts[dataset] <= page_images:
                self._show(dataset, image, pictures, clean)
        for method in (each for each in methods if each.opt is None and not each.fault):
            self._note_gaps(method, used[method.name])

    def _note_gaps(self, method: Method, used: set[Path]) -> None:
        if method.name not in self.found:
            method.fault = method.gaps[0]
            return
        there = {path for dataset in self.sets for folder in method.folders(dataset)
                 for path in folder.rglob('*') if path.suffix.lower() in SUFFIXES}
        others = sorted(str(path.relative_to(method.folder)) for path in there - used)
        if others:
            method.gaps.append(f'{method.folder}: {len(others)} pictures belong to no test image: {names(others)}')

    def _show(self, dataset: str, image: str, pictures: Mapping[str, Picture], clean: Picture | None) -> None:
        last = {name: of_images(sets[dataset][-1].restored) for name, sets in self.found.items()
                if sets.get(dataset) and sets[dataset][-1].image == image}
        self.shown.append(page.picture_entry(dataset, image, pictures, clean, last))
        if dataset not in self.crops:
            self.crops[dataset] = zoomed(pictures, clean)

    def rows(self, methods: Sequence[Method]) -> list[Scores]:
        """Return the mean scores of the degraded images and of every method that did not fail."""
        costs = {method.name: method.cost for method in methods if not method.fault}
        counts = {name: sum(map(len, self.found[name].values())) for name in costs}
        incomplete = {name: f'{name} ({count} of {self.total} images)' for name, count in counts.items()
                      if count < self.total}
        scored = {name: results.with_average({dataset: self._score(images, dataset)
                                              for dataset, images in sets.items()})
                  for name, sets in self.found.items() if name == DEGRADED or name in costs}
        return [Scores(incomplete.get(name, name), {dataset: each.restored for dataset, each in sets.items()},
                       costs.get(name), {dataset: each.images for dataset, each in sets.items()})
                for name, sets in scored.items()]

    def _score(self, images: Sequence[ImageScore], dataset: str) -> SetScore:
        """Score a set. Measures of whole sets depend on the number of images, so an incomplete set has none."""
        complete = len(images) == len(self.sets[dataset])
        return SetScore.of([each if complete else replace(each, restored=of_images(each.restored)) for each in images])

    def write(self, methods: Sequence[Method]) -> None:
        """Write tables, grid and page, and print the tables."""
        rows = self.rows(methods)
        faults = {method.name: method.fault for method in methods if method.fault}
        gaps = {method.name: method.gaps for method in methods if method.gaps and not method.fault}
        protocols = [protocol(name, block) for name, block in self.metrics.items()]

        marked = all_tables(rows, self.better, '**{}**', '<u>{}</u>')
        results.write_csv(self.out / 'table.csv', long_table(rows, list(self.metrics)))
        alone = of_images(next(iter(self.found[DEGRADED].values()))[0].restored)
        results.write_csv(self.out / 'images.csv', [['method', 'set', 'image', *alone], *(
            [name, dataset, each.image, *map(repr, of_images(each.restored).values())]
            for name, sets in self.found.items() for dataset, images in sets.items() for each in images)])
        (self.out / 'table.md').write_text('\n'.join([*map(results.markdown, marked), *(
            f'- {line}' for line in protocols), '']), encoding='utf-8')
        (self.out / 'table.tex').write_text(latex(rows, self.better) + ''.join(
            f'% {line}\n' for line in protocols), encoding='utf-8')
        about = {'test sets and metrics from': self.file, 'metrics': self.metrics, 'left out': gaps,
                 'multiply-adds': 'of one evaluation at 3x256x256', 'versions': results.versions(),
                 'options': {method.name: method.opt for method in methods if method.opt}}
        content = {'faults': faults, 'rows': [row._asdict() for row in rows], **about}
        (self.out / 'comparison.json').write_text(json.dumps(results.plain(content), indent=1), encoding='utf-8')
        title = 'Comparison of ' + (', '.join(method.name for method in methods) if len(methods) <= 3 else
                                    f'{len(methods)} methods')
        notes = [f'{name}: {gap}' for name, each in gaps.items() for gap in each]
        page.write_page(self.out / 'page.html', title, marked, self.shown, faults, [*protocols, *notes], about)
        self._write_grid(faults)
        print('\n\n'.join(map(results.aligned, all_tables(rows, self.better))), '', *protocols, sep='\n')
        for name, each in gaps.items():
            print(f'\n{name}: {len(each)} gaps: {names(each)}')
        for name, fault in faults.items():
            print(f'\n{name} failed: {fault}')
        print(f'\n{self.out / "page.html"}')

    def _write_grid(self, faults: Mapping[str, str]) -> None:
        columns = [name for name in dict.fromkeys(name for crops in self.crops.values() for name in crops)
                   if name not in faults]
        # Finished results that lack a set show white pictures there.
        rows = {dataset: [crops.get(name, np.full_like(crops[DEGRADED], 255))[..., ::-1] for name in columns]
                for dataset, crops in self.crops.items()}
        grid = pictures.picture_grid(rows, columns)
        cv2.imwrite(str(self.out / 'crops.png'), grid[..., ::-1])


def protocol(name: str, block: Mapping[str, Any]) -> str:
    """Return the line under a table that says how a metric was computed."""
    options = ', '.join(f'{key} {value}' for key, value in block.items() if key != 'type')
    return f'{name}: {block["type"]}' + (f' ({options})' if options else '')


def zoomed(pictures: Mapping[str, Picture], clean: Picture | None) -> dict[str, Picture]:
    """Return an overview that frames the region where the pictures differ most, and this crop of each picture."""
    shown, degraded = {**pictures, **({} if clean is None else {'clean': clean})}, pictures[DEGRADED]
    same = [picture for picture in shown.values() if picture.shape == degraded.shape]
    spread = np.std(np.stack(same).astype(np.float32), axis=0).mean(axis=2)
    height, width = (min(CROP, length) for length in spread.shape)
    share = cv2.blur(spread, (width, height), anchor=(0, 0), borderType=cv2.BORDER_REPLICATE)
    share = share[:spread.shape[0] - height + 1, :spread.shape[1] - width + 1]
    top, left = map(int, np.unravel_index(share.argmax(), share.shape))
    overview = cv2.rectangle(degraded.copy(), (left, top), (left + width, top + height), (0, 0, 255), 2)
    crops = {name: picture[top:top + height, left:left + width] for name, picture in shown.items()}
    return {'where': overview, **crops}
