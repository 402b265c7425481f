"""Haze: Koschmieder's law over a depth map, as used by Narasimhan & Nayar (IJCV 2002)."""
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator

from rdbm_plugin.data.degradations.shapes import Image, follow_edges


@dataclass(frozen=True)
class Haze:
    """Scattering over a depth map. beta: optical depth at distance 1; airlight (r, g, b); slope and relief of the
    background's depth; objects that stand before it.

    The depth map follows the edges of the image by a guided filter (He, Sun & Tang, TPAMI 2013), as depth does where
    things end.
    """

    beta: float
    airlight: tuple[float, float, float]
    slope: float
    relief: float
    objects: int

    @classmethod
    def draw(cls, rng: Generator) -> 'Haze':
        """beta 0.6-1.8, airlight 0.7-1 with a tint of +-0.02, slope 0-0.8 (farther at the top), relief 0-0.5,
        0-3 objects.

        beta and airlight have the range of RESIDE (Li et al., IEEE TIP 2019).
        """
        air = rng.uniform(0.7, 1) + rng.uniform(-0.02, 0.02, 3)
        return cls(rng.uniform(0.6, 1.8), tuple(np.clip(air, 0, 1).tolist()), rng.uniform(0, 0.8), rng.uniform(0, 0.5),
                   int(rng.integers(4)))

    def apply(self, image: Image, rng: Generator) -> Image:
        """J t + A (1 - t) with t = exp(-beta depth)."""
        transmission = np.exp(-np.float32(self.beta) * self.depth(image, rng))[..., None]
        air = np.float32(self.airlight)
        return air + (image - air) * transmission

    def depth(self, image: Image, rng: Generator) -> Image:
        """A depth map of mean about 1, (H, W): a rising ground with hills, and nearer objects."""
        height, width = size = image.shape[:2]
        hills = cv2.resize(rng.random((4, 4), dtype=np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
        plane = np.linspace(0.5, -0.5, height, dtype=np.float32)[:, None]
        depth = 1 + self.slope * plane + self.relief * (hills - 0.5)
        for _ in range(self.objects):
            centre = (int(rng.uniform(0, width)), int(rng.uniform(0.4, 1) * height))
            axes = (max(1, int(rng.uniform(0.05, 0.25) * width)), max(1, int(rng.uniform(0.1, 0.5) * height)))
            mask = cv2.ellipse(np.zeros(size, np.uint8), centre, axes, rng.uniform(-20, 20), 0, 360, 1, -1) > 0
            depth = np.where(mask, np.float32(rng.uniform(0.6, 0.9)) * depth, depth)
        depth = follow_edges(depth.astype(np.float32), image.mean(axis=2), radius=max(min(size) // 12, 1))
        return np.clip(depth, 0.1, 2)
