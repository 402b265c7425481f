"""Restores a photo of which part of the pixels is known to be intact, with and without using that knowledge.

    python scripts/example_inpainting.py -opt options/train_rdbm_quickstart.yml \\
        --checkpoint experiments/train_rdbm_quickstart/models/net_g_latest.pth

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
from benchmark_samplers import load, psnr

from rdbm_plugin.config.options import OptionError
from rdbm_plugin.data.degradations import degrade, draw
from rdbm_plugin.evaluation.pictures import picture_grid, to_picture
from rdbm_plugin.samplers import build_sampler
from rdbm_plugin.samplers.consistency import known_pixels


def arguments() -> Namespace:
    """The command line."""
    parser = ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('-opt', required=True, help='option file')
    parser.add_argument('--checkpoint', required=True)
    parser.add_argument('--param-key', default='params_ema')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--steps', type=int, default=10)
    parser.add_argument('--out', default='inpainting.png')
    return parser.parse_args(namespace=Namespace(size=None, device='cpu'))


def main() -> int:
    """Restore, print, write the picture, and return the exit status."""
    args = arguments()
    try:
        bridge, network, items = load(args)
        sampler = build_sampler({'steps': args.steps}, bridge)
    except (OptionError, OSError) as error:
        print(f'example_inpainting: {error}', file=sys.stderr)
        return 1
    clean = items[0]['gt'].permute(1, 2, 0).numpy()
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
        print(f'{task}: {float(known.float().mean()):.0%} of the pixels known; PSNR degraded {psnr(lq, gt):.2f}, '
              f'restored {psnr(plain, gt):.2f}, with known pixels {psnr(guided, gt):.2f}')
        rows[task] = [to_picture(image[0]) for image in (lq, known.float(), plain, guided, gt)]
    columns = ('degraded', 'known (white)', 'restored', 'restored with known pixels', 'clean')
    cv2.imwrite(args.out, picture_grid(rows, columns)[..., ::-1])
    print(f'Picture: {args.out}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
