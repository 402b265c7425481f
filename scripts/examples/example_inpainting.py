"""Restores a photo of which part of the pixels is known to be intact, with and without using that knowledge.

    python scripts/examples/example_inpainting.py [--checkpoint experiments/train_rdbm_quickstart]

covers a held-out photo with rain and with snow, both without veil, and takes the pixels that this changed by less than
2/255 as known, as a mask from elsewhere would say. Restores the rest without any retraining. Writes inpainting.png
and prints the PSNR of both.
"""
import sys
from argparse import ArgumentParser, Namespace
from dataclasses import replace

import cv2
import numpy as np
import torch
from torch import Tensor

from rdbm_plugin import Restorer
from rdbm_plugin.config.options import OptionError
from rdbm_plugin.data.clean_sources import open_clean
from rdbm_plugin.data.degradations import degrade, draw
from rdbm_plugin.data.image_source import to_float
from rdbm_plugin.evaluation.pictures import picture_grid, to_picture
from rdbm_plugin.evaluation.protocols import psnr
from rdbm_plugin.samplers.consistency import known_pixels


def arguments() -> Namespace:
    """The command line."""
    parser = ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--checkpoint', default='shipped',
                        help='weights of a training, or its folder (default: those of the package)')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--steps', type=int, default=10)
    parser.add_argument('--out', default='inpainting.png')
    return parser.parse_args()


def score(image: Tensor, gt: Tensor) -> float:
    """PSNR in RGB of images in [0, 1]."""
    return psnr(255 * image.clamp(0, 1).numpy(), 255 * gt.numpy(), crop_border=0)


def main() -> int:
    """Restore, print, write the picture, and return the exit status."""
    args = arguments()
    try:
        restorer = Restorer(args.checkpoint, steps=args.steps, device='cpu')
    except (OptionError, OSError) as error:
        print(f'example_inpainting: {error}', file=sys.stderr)
        return 1
    network, sampler = restorer.network, restorer.sampler
    clean = to_float(open_clean('embedded', 'val').decode(0))
    rows = {}
    for task in ('derain', 'desnow'):
        rng = np.random.default_rng(args.seed)
        degraded = degrade(clean, [replace(each, veil=0.0) for each in draw(task, rng)], rng)
        lq, gt = (torch.from_numpy(image).permute(2, 0, 1)[None] for image in (degraded, clean))
        known = (lq - gt).abs().amax(dim=1, keepdim=True) < 2 / 255
        mu = 2 * lq - 1
        with torch.inference_mode():
            plain = (sampler(network, mu).x0 + 1) / 2
            guided = (sampler(network, mu, consistency=known_pixels(known, mu)).x0 + 1) / 2
        print(f'{task}: {float(known.float().mean()):.0%} of the pixels known; PSNR degraded {score(lq, gt):.2f}, '
              f'restored {score(plain, gt):.2f}, with known pixels {score(guided, gt):.2f}')
        rows[task] = [to_picture(image[0]) for image in (lq, known.float(), plain, guided, gt)]
    columns = ('degraded', 'known (white)', 'restored', 'restored with known pixels', 'clean')
    cv2.imwrite(args.out, picture_grid(rows, columns)[..., ::-1])
    print(f'Picture: {args.out}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
