"""Do networks tell darkness by its noise? Scores trainings of scripts/study.py on dark pictures with and without it.

    python scripts/study_darkness.py datasets/bsds500 -o docs/results/darkness_cpu.json   # where study.py trained them
    python scripts/study_darkness.py --tables docs/results/darkness_cpu.json

One evaluation each. Beside PSNR: how much of the brightness that is missing comes back, as a share.
"""
import json
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from score_weights import Picture, psnr
from study import LATEST, Figures, Row, Trained, arguments, figures_in, in_order, photos, rows, spread
from tqdm import tqdm

from foreign_damage import dim, jpeg  # isort: skip
from rdbm_plugin.config.atomic_write import write_atomically
from rdbm_plugin.config.options import OptionError
from rdbm_plugin.data.degradations.lowlight import LowLight
from rdbm_plugin.evaluation.results import markdown
from rdbm_plugin.samplers import build_sampler

QUALITY = 91
"""Of JPEG files, in the middle of what foreign darkness has."""


def darkened(clean: Picture, number: int) -> Iterator[tuple[str, Picture]]:
    """Name and picture of every kind of darkness of a photo, in 8 bits."""
    damage = LowLight.draw(np.random.default_rng([number, 1]))

    def own(kind: LowLight) -> Picture:
        return kind.apply(clean, np.random.default_rng([number, 2]))
    foreign = dim(clean, np.random.default_rng([number, 1]))
    silent = replace(damage, shot=0.0, read=0.0)
    for name, picture in (('own', own(damage)), ('own, JPEG', jpeg(own(damage), QUALITY)),
                          ('own, no noise', own(silent)),
                          ('foreign, no JPEG', foreign), ('foreign, JPEG', jpeg(foreign, QUALITY))):
        yield name, (np.rint(255 * picture) / 255).astype(np.float32)


def score(row: Row, args: Namespace) -> dict[str, Any]:
    """Of each kind of darkness the mean PSNR and share of brightness."""
    trained, found = Trained(row), {}
    sampler = build_sampler({'steps': 1}, trained.bridge)
    for number, clean in photos(args):
        for kind, picture in darkened(clean, number):
            made = trained.restore(picture, sampler)
            share = (made.mean() - picture.mean()) / (clean.mean() - picture.mean())
            found.setdefault(kind, []).append([psnr(made, clean), float(share)])
    return {'row': row.name, 'seed': row.seed, 'changes': row.recorded,
            'restored': {kind: np.mean(values, axis=0).round(4).tolist() for kind, values in found.items()}}


def tables(figures: Sequence[Figures]) -> dict[str, str]:
    """Name -> table, in Markdown."""
    names = dict.fromkeys(each['row'] for each in figures)
    kinds = list(figures[0]['restored'])

    def lines(place: int) -> list[list[str]]:
        return [[f'`{name}`', *(spread([each['restored'][kind][place] for each in figures if each['row'] == name])
                                for kind in kinds)] for name in names]
    return {name: markdown([['row', *kinds], *lines(place)]) for place, name in enumerate(('PSNR', 'brightness'))}


def main() -> int:
    """Score what is trained, write figures, print tables; return 1 if there is nothing, 2 on a wrong name, else 0."""
    args = arguments(purpose=__doc__)
    if not args.tables:
        try:
            there = [row for row in rows(args) if (row.folder / LATEST).is_file()]
        except OptionError as error:
            print(f'study_darkness: {error}', file=sys.stderr)
            return 2
        found = [score(row, args) for row in tqdm(there, unit='training')]
        if not found:
            print('study_darkness: found no training in experiments/; run scripts/study.py first', file=sys.stderr)
            return 1
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(args.out, json.dumps(in_order(found, args), indent=1).encode())
    for name, table in tables(figures_in(args.tables or args.out)).items():
        print(f'{name}\n\n{table}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
