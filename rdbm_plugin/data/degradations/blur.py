"""Blur: camera shake as a random trajectory, after Boracchi & Foi (IEEE TIP 2012), or defocus."""
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator

from rdbm_plugin.data.degradations.shapes import Image, disk, rasterize


@dataclass(frozen=True)
class Blur:
    """Camera shake or defocus. defocus: disk instead of trajectory; size: kernel extent; wander: how curved."""

    defocus: bool
    size: float
    wander: float

    @classmethod
    def draw(cls, rng: Generator) -> 'Blur':
        """A quarter defocus of diameter 3-7; else shake of extent 5-15 with wander 0-0.5."""
        if rng.random() < 0.25:
            return cls(True, rng.uniform(3, 7), 0.0)
        return cls(False, rng.uniform(5, 15), rng.uniform(0, 0.5))

    def apply(self, image: Image, rng: Generator) -> Image:
        """Convolve with the kernel."""
        if self.defocus:
            kernel = disk(self.size / 2).astype(np.float32)
        else:
            turns = np.cumsum(rng.normal(0, self.wander, 40)) + rng.uniform(0, 2 * np.pi)
            kernel = rasterize(np.cumsum(np.stack([np.cos(turns), np.sin(turns)], 1), 0), self.size)
        return cv2.filter2D(image, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT_101)
