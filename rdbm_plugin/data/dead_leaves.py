"""Random textures with the statistics of natural images, for training without photos. Needs NumPy and OpenCV."""
import cv2
import numpy as np
from numpy.typing import NDArray

from rdbm_plugin.config.options import check_int


class DeadLeaves:
    """Random textures of occluding shapes; image i is always the same.

    Shapes of all sizes, with a density of radii proportional to r^-3, occlude one another, which gives the edges, flat
    parts and scale invariance of natural images (Lee, Mumford & Huang, IJCV 2001). Networks trained on them restore
    photos (Achddou, Gousseau & Ladjal, CVIU 2023). Colours follow two hues; large leaves have a gradient and grain.

    Args:
        count: Number of images.
        size: Height and width of an image in pixels.
        seed: Seed of all images.
    """

    def __init__(self, count: int, size: int = 256, seed: int = 0) -> None:
        self.count, self.size, self.seed = check_int('dead_leaves', count, 1), size, seed

    def __len__(self) -> int:
        return self.count

    def stem(self, index: int) -> str:
        """Return a name made of the index, as there is no file."""
        return f'dead_leaves_{index:06d}'

    path = stem

    def decode(self, index: int) -> NDArray[np.uint8]:
        """Draw image ``index``: RGB, (size, size, 3) uint8."""
        rng = np.random.default_rng([self.seed, index])
        size = self.size
        hues = rng.uniform(0, 1, (2, 3))
        image = np.full((size, size, 3), _colour(hues, rng), np.uint8)
        small, large = rng.uniform(2.5, 8), rng.uniform(0.15, 0.5) * size
        covered = 0.0
        while covered < 5 * size * size:
            # Inverse of the cumulative distribution of a density r^-3 between the two radii.
            radius = (small**-2 - rng.random() * (small**-2 - large**-2)) ** -0.5
            covered += 3 * radius**2
            _leaf(image, radius, _colour(hues, rng), rng)
        return cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.8))


def _leaf(image: NDArray[np.uint8], radius: float, colour: NDArray[np.float64], rng: np.random.Generator) -> None:
    """Draw a polygon or a bean; large shapes have a gradient and grain."""
    corners = int(rng.integers(3, 9))
    if corners < 7:
        angles = rng.uniform(0, 2 * np.pi) + np.arange(corners) * (2 * np.pi / corners)
        spokes = radius * rng.uniform(0.6, 1.4, corners)
    else:
        angles = np.arange(24) * (2 * np.pi / 24)
        spokes = radius * (1 + 0.4 * rng.random() * np.cos(2 * (angles - rng.uniform(0, np.pi))))
    size, reach = len(image), int(np.ceil(radius * 1.5))
    centre = rng.integers(-reach, size + reach, 2)
    corner = np.maximum(centre - reach, 0)
    part = image[corner[1]:centre[1] + reach + 1, corner[0]:centre[0] + reach + 1]
    if not part.size:
        return
    outline = centre - corner + spokes[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    outline = [np.rint(outline * 16).astype(np.int32).reshape(-1, 1, 2)]
    if radius < 8:
        drawn = np.ascontiguousarray(part)
        cv2.fillPoly(drawn, outline, colour.tolist(), cv2.LINE_AA, 4)
        part[:] = drawn
        return
    mask = cv2.fillPoly(np.zeros(part.shape[:2], np.uint8), outline, 255, cv2.LINE_AA, 4)[..., None] / np.float32(255)
    slope = np.float32(rng.normal(0, 40, 2) / radius)
    rows, columns = (np.arange(length, dtype=np.float32) for length in part.shape[:2])
    shade = (rows * slope[0])[:, None] + columns * slope[1]
    shade += np.float32(abs(rng.normal(0, 10))) * rng.standard_normal(part.shape[:2], dtype=np.float32) - shade.mean()
    leaf = np.clip(np.float32(colour) + shade[..., None], 0, 255)
    part[:] = np.rint(part + mask * (leaf - part))


def _colour(hues: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    tint = hues[int(rng.integers(2))]
    return 255 * np.clip(rng.uniform(0.05, 1.0) * (1 + 0.5 * (tint - tint.mean())) + rng.normal(0, 0.03, 3), 0, 1)
