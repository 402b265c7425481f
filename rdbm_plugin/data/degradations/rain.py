"""Rain: streaks over the scene and a veil, after Garg & Nayar (IJCV 2007)."""
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator

from rdbm_plugin.data.degradations.shapes import Image, line


@dataclass(frozen=True)
class Rain:
    """Streak layers. density: share of seed pixels a layer; length; angle from vertical; strength; veil: white haze."""

    layers: int
    density: float
    length: float
    angle: float
    strength: float
    veil: float

    @classmethod
    def draw(cls, rng: Generator) -> 'Rain':
        """1-3 layers, density 0.2-1 %, length 9-27, angle +-0.6, strength 0.5-0.9, veil 0-0.12."""
        return cls(int(rng.integers(1, 4)), rng.uniform(0.002, 0.01), rng.uniform(9, 27), rng.uniform(-0.6, 0.6),
                   rng.uniform(0.5, 0.9), rng.uniform(0, 0.12))

    def apply(self, image: Image, rng: Generator) -> Image:
        """Screen the streaks over ``image``: a streak brightens and never darkens."""
        height, width = image.shape[:2]
        layer = np.zeros((height, width), np.float32)
        for index in range(self.layers):
            far = 0.7**index
            seeds = (rng.random((height, width), dtype=np.float32) < self.density).astype(np.float32)
            kernel = line(self.length * far, self.angle + rng.uniform(-0.05, 0.05))
            streaks = cv2.filter2D(seeds, -1, kernel * len(kernel) ** 0.5, borderType=cv2.BORDER_REFLECT_101)
            layer = np.maximum(layer, far * np.minimum(streaks * 2, 1))
        layer = cv2.GaussianBlur(layer, (0, 0), 0.6)[..., None] * self.strength
        veiled = image + self.veil * (0.85 - image)
        return veiled + layer * (1 - veiled)
