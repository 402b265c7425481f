"""Tables and pictures of results. Images are RGB, (H, W, 3) uint8."""
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Picture = NDArray[np.uint8]


def gain_table(scores: Mapping[str, tuple[float | None, float]], metric: str) -> str:
    """A text table with one row a data set and their average.

    Args:
        scores: Data set -> (score of the degraded input, None without ground truth; score of the restoration).
        metric: Name for the heading.
    """
    rows = dict(scores)
    if len(scores) > 1:
        degraded, restored = zip(*scores.values())
        rows['average'] = (None if None in degraded else float(np.mean(degraded)), float(np.mean(restored)))
    width = max(map(len, [*rows, metric]))
    digits = 2 if max(restored for _, restored in rows.values()) >= 2 else 4
    lines = [f'{metric:<{width}}  degraded  restored     gain']
    for name, (degraded, restored) in rows.items():
        before = ' ' * 8 if degraded is None else f'{degraded:8.{digits}f}'
        gain = '' if degraded is None else f'{restored - degraded:+9.{digits}f}'
        lines.append(f'{name:<{width}}  {before}  {restored:8.{digits}f}{gain}')
    return '\n'.join(lines)


def to_picture(image: Tensor) -> Picture:
    """(C, H, W) in [0, 1], one or three channels -> (H, W, 3) uint8; values outside are clipped."""
    array = (image.detach().float().clamp(0, 1) * 255).round().byte().cpu().permute(1, 2, 0).numpy()
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)))


def picture_grid(rows: Mapping[str, Sequence[Picture]], columns: Sequence[str], height: int = 240) -> Picture:
    """Rows of pictures scaled to one height, with the row's name at its left and the columns' names above."""
    band, gap = 24, 4
    scaled = {name: [_scale(picture, height) for picture in row] for name, row in rows.items()}
    widths = [max(row[i].shape[1] for row in scaled.values()) for i in range(len(columns))]
    left = 12 + max(_text_width(name) for name in rows)
    canvas = np.full((band + len(rows) * (height + gap), left + sum(widths) + gap * len(widths), 3), 255, np.uint8)
    for line, (name, row) in enumerate(scaled.items()):
        top = band + line * (height + gap)
        _write(canvas, name, 6, top + height // 2)
        x = left
        for width, picture in zip(widths, row):
            canvas[top:top + height, x:x + picture.shape[1]] = picture
            x += width + gap
    x = left
    for width, column in zip(widths, columns):
        _write(canvas, column, x + 2, 17)
        x += width + gap
    return canvas


def strip(pictures: Sequence[Picture], height: int = 160) -> Picture:
    """Pictures side by side, scaled to one height."""
    return np.concatenate([_scale(picture, height) for picture in pictures], axis=1)


def _scale(picture: Picture, height: int) -> Picture:
    width = max(1, round(picture.shape[1] * height / picture.shape[0]))
    shrinks = height < picture.shape[0]
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def plot_sweep(path: Path, rows: Sequence[Mapping[str, float]], columns: Sequence[str]) -> bool:
    """Plot each column over ``steps``; False, with nothing written, where matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(3.6 * len(columns), 3.2), layout='constrained')
    FigureCanvasAgg(figure)
    steps = [row['steps'] for row in rows]
    for axis, column in zip(np.atleast_1d(figure.subplots(1, len(columns))), columns):
        axis.plot(steps, [row[column] for row in rows], marker='o')
        axis.set(title=column, xlabel='network evaluations', xscale='log', xticks=steps, xticklabels=steps)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=130)
    return True


_FONT = (cv2.FONT_HERSHEY_SIMPLEX, 0.5)


def _text_width(text: str) -> int:
    return cv2.getTextSize(text, *_FONT, 1)[0][0]


def _write(canvas: Picture, text: str, x: int, y: int) -> None:
    cv2.putText(canvas, text, (x, y), *_FONT, (0, 0, 0), 1, cv2.LINE_AA)
