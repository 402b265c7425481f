"""Do networks tell darkness by its noise? Scores trainings of study.py on dark pictures with and without it.

    python scripts/study/study_darkness.py datasets/bsds500 -o docs/results/darkness_cpu.json   # where study.py ran
    python scripts/study/study_darkness.py --tables docs/results/darkness_cpu.json

One evaluation each. Beside PSNR: how much of the brightness that is missing comes back, as a share.
"""
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from foreign_damage import dim, jpeg
from score_weights import Picture, psnr
from study import LATEST, Row, Trained, keep, parsed, photos, shared_arguments
from study_layout import Figures, by_row, deviation, lay_out, spread
from tqdm import tqdm

from rdbm_plugin.data.degradations.lowlight import LowLight
from rdbm_plugin.evaluation.results import markdown
from rdbm_plugin.samplers import build_sampler

QUALITY = 91
"""Of JPEG files, in the middle of what foreign darkness has."""


def darkened(clean: Picture, number: int) -> Iterator[tuple[str, Picture]]:
    """Name and picture of every kind of darkness of a photo, in 8 bits."""
    damage = LowLight.draw(np.random.default_rng([number, 1]))
    own, silent = (kind.apply(clean, np.random.default_rng([number, 2]))
                   for kind in (damage, replace(damage, shot=0.0, read=0.0)))
    foreign = dim(clean, np.random.default_rng([number, 1]))
    for name, picture in (('own', own), ('own, JPEG', jpeg(own, QUALITY)), ('own, no noise', silent),
                          ('foreign, no JPEG', foreign), ('foreign, JPEG', jpeg(foreign, QUALITY))):
        yield name, (np.rint(255 * picture) / 255).astype(np.float32)


def score(row: Row, pictures: Sequence[tuple[str, Picture, Picture]]) -> dict[str, Any]:
    """Of each kind of darkness the mean PSNR and share of brightness; pictures: kind, dark and clean one."""
    trained, found = Trained(row), {}
    sampler = build_sampler({'steps': 1}, trained.bridge)
    for kind, dark, clean in pictures:
        made = trained.restore(dark, sampler)
        share = (made.mean() - dark.mean()) / (clean.mean() - dark.mean())
        found.setdefault(kind, []).append([psnr(made, clean), float(share)])
    return {'row': row.name, 'seed': row.seed, 'changes': row.recorded,
            'restored': {kind: np.mean(values, axis=0).round(4).tolist() for kind, values in found.items()}}


def tables(figures: Sequence[Figures]) -> dict[str, str]:
    """Name -> table, in Markdown."""
    kinds = list(figures[0]['restored'])

    def lines(place: int) -> list[list[str]]:
        return [[f'`{name}`', *(spread([run['restored'][kind][place] for run in runs]) for kind in kinds)]
                for name, runs in by_row(figures).items()]
    return {name: markdown([['row', *kinds], *lines(place)]) for place, name in enumerate(('PSNR', 'brightness'))}


def plots(figures: Sequence[Figures], plt: Any) -> dict[str, Any]:
    """Share of the missing brightness that comes back: rows downwards, a colour for each kind of darkness."""
    found = by_row(figures)
    canvas, axis = plt.subplots(figsize=(12, 1.5 + 0.25 * len(found)), layout='constrained')
    for kind in figures[0]['restored']:
        values = [[run['restored'][kind][1] for run in runs] for runs in found.values()]
        axis.errorbar([np.mean(each) for each in values], list(found), xerr=[deviation(each) for each in values],
                      fmt='o', ms=6, capsize=2, alpha=0.8, label=kind)
    axis.axvline(1, color='black', lw=0.8, ls='--')
    axis.invert_yaxis()
    axis.grid(axis='y', lw=0.3)
    axis.set(xlabel='share of the missing brightness')
    canvas.legend(loc='outside right', fontsize=8, title='darkness')
    return {'brightness': canvas}


def main() -> int:
    """Score what is trained, write figures, lay them out; return 1 if there is nothing, else 0."""
    args, wanted = parsed(shared_arguments(__doc__, 'darkness.json'))
    if not args.tables:
        there = [row for row in wanted if (row.folder / LATEST).is_file()]
        if not there:
            print('study_darkness: found no training in experiments/; run scripts/study/study.py first',
                  file=sys.stderr)
            return 1
        pictures = [(kind, dark, clean) for number, clean in photos(args) for kind, dark in darkened(clean, number)]
        keep([score(row, pictures) for row in tqdm(there, unit='training')], args)
    lay_out(args.tables or args.out, tables, plots)
    return 0


if __name__ == '__main__':
    sys.exit(main())
