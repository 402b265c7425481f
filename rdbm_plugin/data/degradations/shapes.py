"""Parts of several degradations: blur kernels, random maps, and maps that follow the edges of an image."""
import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Image = NDArray[np.float32]
"""RGB, (H, W, 3) in [0, 1], or a map, (H, W)."""


def disk(radius: float) -> NDArray[np.bool_]:
    """Return a square mask, of odd side, of the pixels within ``radius`` of the centre."""
    reach = int(np.ceil(radius))
    y, x = np.ogrid[-reach:reach + 1, -reach:reach + 1]
    return x * x + y * y <= radius * radius + 0.5


def line(length: float, angle: float) -> Image:
    """Return a line kernel of sum 1 through the centre; angle 0 is vertical."""
    ends = np.array([[np.sin(angle), np.cos(angle)]]) * (length / 2)
    return rasterize(np.concatenate([-ends, ends]), length)


def rasterize(path: NDArray[np.float64], extent: float) -> Image:
    """Draw an (n, 2) path of (x, y), scaled to ``extent`` pixels, as an anti-aliased kernel of sum 1.

    The mean of the path is in the centre, as a kernel off centre would shift the image by an arbitrary amount.
    """
    path = path * (extent / max(float(np.ptp(path, axis=0).max()), 1e-6))
    path = path - path.mean(0)
    reach = int(np.ceil(np.abs(path).max()))
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.uint8)
    points = np.rint((path + reach) * 16).astype(np.int32).reshape(-1, 1, 2)
    cv2.polylines(kernel, [points], False, 255, 1, cv2.LINE_AA, 4)
    return (kernel / max(float(kernel.sum()), 1.0)).astype(np.float32)


def clouds(size: tuple[int, int], rng: Generator, persistence: float) -> Image:
    """Draw smooth noise of four octaves, (H, W), stretched to [0, 1]; a higher ``persistence`` makes it rougher."""
    height, width = size
    total = np.zeros(size, np.float32)
    for octave in range(4):
        cells = rng.random((2 + 2**octave,) * 2, dtype=np.float32)
        total += persistence**octave * cv2.resize(cells, (width, height), interpolation=cv2.INTER_CUBIC)
    return (total - total.min()) / max(float(np.ptp(total)), 1e-6)


def follow_edges(values: Image, guide: Image, radius: int) -> Image:
    """Apply the guided filter: make ``values`` a locally linear function of ``guide``; both (H, W)."""
    def mean(x: Image) -> Image:
        return cv2.blur(x, (2 * radius + 1,) * 2, borderType=cv2.BORDER_REFLECT_101)

    mean_guide, mean_values = mean(guide), mean(values)
    slope = (mean(guide * values) - mean_guide * mean_values) / (mean(guide * guide) - mean_guide**2 + 1e-3)
    return mean(slope) * guide + mean(mean_values - slope * mean_guide)
