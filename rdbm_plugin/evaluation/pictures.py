"""Pictures and plots of results. Images are RGB, (H, W, 3) uint8. Needs torch and OpenCV; plots need matplotlib."""
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Picture = NDArray[np.uint8]


def to_picture(image: Tensor) -> Picture:
    """Convert (C, H, W) in [0, 1] with one or three channels to (H, W, 3) uint8; clip values outside the range."""
    array = (image.detach().float().clamp(0, 1) * 255).round().byte().cpu().permute(1, 2, 0).numpy()
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)))


def picture_grid(rows: Mapping[str, Sequence[Picture]], columns: Sequence[str], height: int = 240) -> Picture:
    """Draw rows of pictures scaled to the same height, with row names at the left and column names above."""
    band, gap = 24, 4
    scaled = {name: [_scale(picture, height) for picture in row] for name, row in rows.items()}
    widths = [gap + max(row[i].shape[1] for row in scaled.values()) for i in range(len(columns))]
    left = 12 + max(cv2.getTextSize(name, *_FONT, 1)[0][0] for name in rows)
    starts = [left + sum(widths[:i]) for i in range(len(columns))]
    canvas = np.full((band + len(rows) * (height + gap), left + sum(widths), 3), 255, np.uint8)
    for x, column in zip(starts, columns):
        _write(canvas, column, x + 2, 17)
    for line, (name, row) in enumerate(scaled.items()):
        top = band + line * (height + gap)
        _write(canvas, name, 6, top + height // 2)
        for x, picture in zip(starts, row):
            canvas[top:top + height, x:x + picture.shape[1]] = picture
    return canvas


def strip(pictures: Sequence[Picture], height: int = 160) -> Picture:
    """Join pictures side by side, scaled to the same height."""
    return np.concatenate([_scale(picture, height) for picture in pictures], axis=1)


def _scale(picture: Picture, height: int) -> Picture:
    width = max(1, round(picture.shape[1] * height / picture.shape[0]))
    shrinks = height < picture.shape[0]
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def plot_sweep(path: Path, rows: Sequence[Mapping[str, float]], columns: Sequence[str]) -> bool:
    """Plot each column over ``steps``; without matplotlib, write nothing and return False."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(3.6 * len(columns), 3.2), layout='constrained')
    steps = [row['steps'] for row in rows]
    for axis, column in zip(np.atleast_1d(figure.subplots(1, len(columns))), columns):
        axis.plot(steps, [row[column] for row in rows], marker='o')
        axis.set(title=column, xlabel='network evaluations', xscale='log', xticks=steps, xticklabels=steps)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=130)
    return True


_FONT = (cv2.FONT_HERSHEY_SIMPLEX, 0.5)


def _write(canvas: Picture, text: str, x: int, y: int) -> None:
    cv2.putText(canvas, text, (x, y), *_FONT, (0, 0, 0), 1, cv2.LINE_AA)
