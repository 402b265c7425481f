"""Makes the pictures of README.md and docs/ anew: damage at three strengths, samples, and what weights make of them.

    python scripts/upkeep/make_pictures.py [--checkpoint FILE] [--out docs]        # pip install scikit-learn matplotlib

From photos that training never saw and that may be shown: of scikit-image (chelsea, coffee, rocket, astronaut; public
domain and CC0) and scikit-learn (china; danielbuechele, CC BY 2.0). Needs the package without BasicSR.
"""
from argparse import ArgumentParser
from importlib.resources import files
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from rdbm_plugin import Restorer
from rdbm_plugin.data.degradations import TASKS, Ranges, degrade, draw
from rdbm_plugin.data.image_source import to_float
from rdbm_plugin.data.photo_file import Photo, read_photo, write_photo
from rdbm_plugin.evaluation.pictures import picture_grid

Picture = NDArray[np.float32]
PHOTOS = {'derain': ('sklearn.datasets.images', 'china.jpg'), 'lowlight': ('skimage.data', 'coffee.png'),
          'desnow': ('skimage.data', 'rocket.jpg'), 'dehaze': ('sklearn.datasets.images', 'china.jpg'),
          'deblur': ('skimage.data', 'chelsea.png')}
SAMPLES = {'rainy': 'derain', 'dark': 'lowlight', 'snowy': 'desnow', 'hazy': 'dehaze'}
SIZE = 451, 300
"""Width and height of all pictures."""


def clean(task: str) -> Picture:
    """The photo that a task is shown on, cut to SIZE."""
    module, name = PHOTOS[task]
    photo = to_float(read_photo(Path(str(files(module))) / name).rgb)
    scale = max(SIZE[0] / photo.shape[1], SIZE[1] / photo.shape[0])
    photo = cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    top, left = (photo.shape[0] - SIZE[1]) // 2, (photo.shape[1] - SIZE[0]) // 2
    return np.ascontiguousarray(photo[top:top + SIZE[1], left:left + SIZE[0]])


def damaged(task: str, strength: float, seed: int = 0) -> Picture:
    """The photo of a task with wide damage of a strength."""
    rng = np.random.default_rng([seed, list(TASKS).index(task)])
    return degrade(clean(task), draw(task, rng, Ranges('wide', (strength, strength), 0, 0)), rng)


def to_bytes(image: Picture) -> NDArray[np.uint8]:
    """[0, 1] -> 8 bits."""
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def main() -> None:
    """Write all pictures."""
    parser = ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--checkpoint', default='shipped', help='weights (default: those of the package)')
    parser.add_argument('--out', type=Path, default=Path(__file__).resolve().parents[2] / 'docs')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--steps', type=int, help='network evaluations (default: as the weights have it)')
    args = parser.parse_args()
    restore = Restorer(args.checkpoint, steps=args.steps)
    (args.out / 'samples').mkdir(parents=True, exist_ok=True)
    strengths = {task: [to_bytes(clean(task)), *(to_bytes(damaged(task, each, args.seed)) for each in (0.1, 0.5, 1))]
                 for task in TASKS}
    write_photo(args.out / 'strengths.jpg', Photo(picture_grid(strengths, ['clean', '0.1', '0.5', '1'], 150)))
    rows = {task: [damaged(task, 0.5, args.seed), clean(task)] for task in TASKS}
    grid = {task: [to_bytes(before), restore(to_bytes(before)), to_bytes(after)]
            for task, (before, after) in rows.items()}
    write_photo(args.out / 'before_after.jpg', Photo(picture_grid(grid, ['degraded', 'restored', 'clean'], 200)))
    for name, task in SAMPLES.items():
        write_photo(args.out / f'samples/{name}.jpg', Photo(grid[task][0]))
    shown = {name: [grid[task][0], grid[task][1]] for name, task in SAMPLES.items()}
    write_photo(args.out / 'restored.jpg', Photo(picture_grid(shown, ['before', 'after'], 260)))


if __name__ == '__main__':
    main()
