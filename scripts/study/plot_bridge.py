"""Draws the bridges of option files.

    python scripts/study/plot_bridge.py options/train_rdbm_universal.yml options/suites/family.yml --out plots

writes three pictures: coefficients.png (weight of the residual and scale of the noise over time, one line a file),
rnr.png (residual-to-noise ratio of the first file: one curve for pi = residual against a fan for pi = 1) and
noise_map.png (where a photo gets how much noise; dark: none). Needs matplotlib.
"""
import sys
from argparse import ArgumentParser, Namespace
from importlib import import_module
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
import torch
from suites import changes_of, is_suite, read_suite, rows_of

from rdbm_plugin.__main__ import run
from rdbm_plugin.bridge import ResidualBridge, build_bridge
from rdbm_plugin.config.option_file import read_option_file
from rdbm_plugin.data.clean_sources import open_clean
from rdbm_plugin.data.degradations import degrade, draw
from rdbm_plugin.data.image_source import to_float
from rdbm_plugin.evaluation.pictures import picture_grid

matplotlib.use('Agg')
import matplotlib.pyplot as plt

import_module('rdbm_plugin.registration')
lookup = import_module('rdbm_plugin.basicsr_host.lookup')

RESIDUALS = (0.01, 0.05, 0.2, 1.0)


def arguments() -> Namespace:
    """The command line."""
    parser = ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('files', nargs='+', help='option files with a bridge: block, and suites of them')
    parser.add_argument('--out', type=Path, default=Path('.'), help='folder of the pictures')
    parser.add_argument('--photos', default='embedded', help='clean photos for the noise map, as dataroot_gt')
    parser.add_argument('--task', default='derain', help='degradation of the noise map')
    return parser.parse_args()


def read(file: str) -> dict[str, dict[str, Any]]:
    """Name -> bridge block of an option file, or of the rows of a suite."""
    if not is_suite(file):
        content = read_option_file(file)
        return {str(content['name']): dict(content.get('bridge') or {})}
    suite, folder = read_suite(Path(file)), Path(file).resolve().parent
    return {name: dict(read_option_file(folder / row.get('base', suite['base']), changes_of(row['changes']))['bridge'])
            for name, row in rows_of(suite).items()}


def coefficients(bridges: dict[str, ResidualBridge]) -> plt.Figure:
    """Weight of the residual and scale of the noise over t / T."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout='constrained')
    for index, (name, bridge) in enumerate(bridges.items()):
        u = np.linspace(0, 1, bridge.timesteps + 1)
        style = {'label': name, 'linestyle': ('-', '--', ':')[index // 10 % 3]}
        axes[0].plot(u, bridge.mean_coef, **style)
        axes[1].plot(u, bridge.std_coef * (bridge.modulation != 'zero'), **style)
    axes[0].set(title=r'weight of the residual $\Theta_t$', xlabel='t / T  (0: clean, 1: degraded)')
    axes[1].set(title=r'scale of the noise $\Sigma_t$', xlabel='t / T  (0: clean, 1: degraded)')
    figure.legend(*axes[0].get_legend_handles_labels(), loc='outside right upper', fontsize='small')
    return figure


def rnr(bridge: ResidualBridge, steps: int = 10) -> plt.Figure:
    """Residual-to-noise ratio in dB: pi = residual has one curve for all pixels, pi = 1 one for each residual."""
    figure, axis = plt.subplots(figsize=(6, 3.8), layout='constrained')
    t = np.arange(1, bridge.timesteps)
    decibels = 10 * bridge.rnr[1:-1].log10().numpy()
    for value in RESIDUALS:
        axis.plot(t, decibels + 20 * np.log10(value), color='tab:orange', alpha=0.8, linewidth=1)
        axis.annotate(f'{value:g}', (t[-1], decibels[-1] + 20 * np.log10(value)), fontsize='x-small')
    axis.plot([], [], color='tab:orange', label=r'$\pi = 1$, pixels of residual ' + ', '.join(map(str, RESIDUALS)))
    axis.plot(t, decibels, color='tab:blue', linewidth=2.2, label=r'$\pi$ = residual, all pixels')
    nodes = [node for node in bridge.nodes(steps) if 0 < node < bridge.timesteps]
    axis.plot(nodes, decibels[np.array(nodes) - 1], 'o', color='tab:blue', markersize=4,
              label=f'nodes of {steps} evaluations')
    axis.axhline(0, color='gray', linewidth=0.8)
    axis.set(xlabel='node t', ylabel='residual-to-noise ratio (dB)')
    axis.legend(fontsize='small')
    return figure


def noise_map(photos: str, task: str) -> list[np.ndarray]:
    """Clean, degraded, and how strong the noise of each pixel is for pi = 1 and pi = residual."""
    photo = to_float(open_clean(photos, 'val').decode(0))
    scale = 400 / photo.shape[1]
    photo = cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    rng = np.random.default_rng(0)
    degraded = degrade(photo, draw(task, rng), rng)
    residual = torch.from_numpy(2 * (photo - degraded))
    shown = [np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8) for image in (photo, degraded)]
    for modulation in ('one', 'residual'):
        pi = build_bridge({'modulation': modulation}).modulate(residual, torch.ones_like(residual))
        # The root shows slight noise too; 1 is the brightest.
        level = np.sqrt(np.clip(pi.abs().mean(2).numpy(), 0, 1))
        shown.append(cv2.applyColorMap(np.rint(level * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1])
    return shown


def main() -> None:
    """Draw all pictures."""
    args = arguments()
    blocks = {name: block for file in args.files for name, block in read(file).items()}
    bridges = {name: build_bridge(block, lookup.registered('BRIDGE')) for name, block in blocks.items()}
    pictures = noise_map(args.photos, args.task)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, figure in (('coefficients', coefficients(bridges)), ('rnr', rnr(next(iter(bridges.values()))))):
        figure.savefig(args.out / f'{name}.png', dpi=110)
    titles = ('clean', 'degraded', 'noise for pi = 1', 'noise for pi = residual')
    cv2.imwrite(str(args.out / 'noise_map.png'), picture_grid({args.task: pictures}, titles)[..., ::-1])
    print('Pictures:', ', '.join(str(args.out / f'{name}.png') for name in ('coefficients', 'rnr', 'noise_map')))


if __name__ == '__main__':
    sys.exit(run(main))
