"""Scores weights on whole photos: damage of the kind trained on, damage by other formulas, and no damage.

    python scripts/study/score_weights.py FOLDER [--checkpoint FILE ...] [--steps 1 2 5] [--count 40] [--out FILE.json]

FOLDER holds clean photos that training never saw. PSNR in dB of RGB in 8 bits: of each kind the mean over the photos,
of the undamaged photos the mean and the lowest. Needs the package without BasicSR, and OpenCV.
"""
import json
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from foreign_damage import KINDS, damage, dim, jpeg
from numpy.typing import NDArray
from tqdm import tqdm

from rdbm_plugin import Restorer
from rdbm_plugin.data.clean_sources import CleanSource, open_clean
from rdbm_plugin.data.degradations import TASKS, Ranges, degrade, draw
from rdbm_plugin.data.degradations.lowlight import LowLight
from rdbm_plugin.data.image_source import to_float
from rdbm_plugin.evaluation.protocols import psnr_rgb
from rdbm_plugin.evaluation.results import aligned

Picture = NDArray[np.float32]


def arguments() -> Namespace:
    """The command line."""
    parser = ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('photos', metavar='FOLDER')
    parser.add_argument('--checkpoint', nargs='+', default=['shipped'], help='weights, or folders of experiments')
    parser.add_argument('--steps', nargs='+', type=int, default=[2], help='network evaluations')
    parser.add_argument('--count', type=int, help='of photos, evenly spread over the folder (default: all)')
    parser.add_argument('--kinds', nargs='+', default=['own', 'foreign', 'intact'],
                        choices=['own', 'wide', 'foreign', 'intact'])
    parser.add_argument('--device', default='auto')
    parser.add_argument('--out', default='scores.json')
    return parser.parse_args()


def damaged(clean: Picture, number: int, kinds: list[str]) -> Iterator[tuple[str, Picture]]:
    """Name and picture of every damage of a photo; a pure function of the photo and its number."""
    for place, task in enumerate(TASKS):
        for kind, ranges in (('own', 'narrow'), ('wide', 'wide')):
            if kind in kinds:
                rng = np.random.default_rng([number, place])
                yield f'{kind} {task}', degrade(clean, draw(task, rng, Ranges(ranges)), rng)
    for place, kind in enumerate(KINDS if 'foreign' in kinds else ()):
        yield f'foreign {kind}', damage(kind, clean, np.random.default_rng([number, place]))
    if 'intact' in kinds:
        yield 'intact', clean


def darkened(clean: Picture, number: int) -> Iterator[tuple[str, Picture]]:
    """Name and picture of every kind of darkness of a photo, in 8 bits: of both formulas, with and without noise or a
    JPEG file of a quality in the middle of what foreign darkness has."""
    damage = LowLight.draw(np.random.default_rng([number, 1]))
    own, silent = (kind.apply(clean, np.random.default_rng([number, 2]))
                   for kind in (damage, replace(damage, shot=0.0, read=0.0)))
    foreign = dim(clean, np.random.default_rng([number, 1]))
    for name, picture in (('own', own), ('own, JPEG', jpeg(own, 91)), ('own, no noise', silent),
                          ('foreign, no JPEG', foreign), ('foreign, JPEG', jpeg(foreign, 91))):
        yield name, (np.rint(255 * picture) / 255).astype(np.float32)


def psnr(image: Picture, clean: Picture) -> float:
    """In dB, of 8 bits; at most 100."""
    return min(100.0, psnr_rgb(np.rint(image * 255), np.rint(clean * 255)))


def score(photos: CleanSource, args: Namespace) -> dict[str, dict[str, list[float]]]:
    """Row -> kind -> PSNR of each photo."""
    chosen = np.linspace(0, len(photos) - 1, min(args.count or len(photos), len(photos))).round().astype(int)
    rows = {f'{name}, {steps} evaluations': Restorer(name, steps=steps, device=args.device)
            for name in args.checkpoint for steps in args.steps}
    found: dict[str, dict[str, list[float]]] = {name: {} for name in ('degraded', *rows)}
    for number in tqdm(chosen, unit='photo'):
        clean = to_float(photos.decode(number))
        for kind, picture in damaged(clean, int(number), args.kinds):
            for name, restore in rows.items():
                found[name].setdefault(kind, []).append(psnr(restore(picture), clean))
            found['degraded'].setdefault(kind, []).append(psnr(picture, clean))
    return found


def main() -> None:
    """Score, print a line for each kind, and write all figures."""
    args = arguments()
    found = score(open_clean(args.photos, 'test'), args)
    kinds = list(found['degraded'])
    groups = {f'{group} mean': [kind for kind in kinds if kind.startswith(group)]
              for group in ('own', 'wide', 'foreign')}
    groups = {**{kind: [kind] for kind in kinds}, **{name: those for name, those in groups.items() if those}}
    # One row a kind: terminals are narrow.
    table = [['PSNR', *found], *([name, *(f'{np.mean([np.mean(each[kind]) for kind in those]):.2f}'
                                          for each in found.values())] for name, those in groups.items())]
    if 'intact' in kinds:
        table.append(['intact, lowest', *(f'{min(each["intact"]):.2f}' for each in found.values())])
    print(aligned(table))
    Path(args.out).write_text(json.dumps({'arguments': vars(args), 'psnr': found}, indent=1), encoding='utf-8')


if __name__ == '__main__':
    main()
