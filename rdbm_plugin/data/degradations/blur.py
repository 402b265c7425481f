"""Blur: camera shake as a random trajectory, after Boracchi & Foi (IEEE TIP 2012), or defocus.

With rotation, the shake varies across the image, as described by Whyte et al. (IJCV 2012).
"""
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator

from rdbm_plugin.data.degradations.ranges import Strength
from rdbm_plugin.data.degradations.shapes import Image, disk, rasterize


@dataclass(frozen=True)
class Blur:
    """Camera shake or defocus. defocus: disk instead of trajectory; size: kernel extent; wander: how much it curves."""

    defocus: bool
    size: float
    wander: float

    @classmethod
    def draw(cls, rng: Generator) -> 'Blur':
        """Draw defocus of diameter 3-7 in a quarter of the cases; else shake of extent 5-15 with wander 0-0.5."""
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


@dataclass(frozen=True)
class LinearBlur:
    """Blur averaged in linear light, so that highlights spread.

    kernel: disk (defocus) or path (shake); size: its extent; wander: how much it curves; rotation: of the camera
    during the exposure; gamma: 2.2, or 1 to average encoded values as software does.
    """

    kernel: str
    size: float
    wander: float
    rotation: float
    gamma: float

    def apply(self, image: Image, rng: Generator) -> Image:
        """Average the views of a moving and rotating camera, or convolve with the disk of a defocused lens."""
        light = image ** np.float32(self.gamma)
        if self.kernel == 'disk':
            light = Blur(True, self.size, 0.0).apply(light, rng)
        else:
            light = self._shaken(light, rng)
        return np.clip(light, 0, 1) ** np.float32(1 / self.gamma)

    def _shaken(self, light: Image, rng: Generator) -> Image:
        turns = np.cumsum(rng.normal(0, self.wander, 40)) + rng.uniform(0, 2 * np.pi)
        path = np.cumsum(np.stack([np.cos(turns), np.sin(turns)], 1), 0)
        if self.rotation == 0:
            return cv2.filter2D(light, -1, rasterize(path, self.size), borderType=cv2.BORDER_REFLECT_101)
        path *= self.size / max(float(np.ptp(path, axis=0).max()), 1e-6)
        poses = np.linspace(0, len(path) - 1, int(np.ceil(self.size)) + 2)
        x, y = (np.interp(poses, np.arange(len(path)), path[:, axis]) for axis in (0, 1))
        angles = np.degrees(self.rotation) * np.linspace(-0.5, 0.5, len(poses))
        height, width = light.shape[:2]
        centre = (rng.uniform(0, width), rng.uniform(0, height))
        mean = np.zeros_like(light)
        for dx, dy, angle in zip(x - x.mean(), y - y.mean(), angles):
            pose = cv2.getRotationMatrix2D(centre, angle, 1)
            pose[:, 2] += dx, dy
            mean += cv2.warpAffine(light, pose, (width, height), borderMode=cv2.BORDER_REFLECT_101)
        return mean / len(poses)


def draw_wide(strength: Strength) -> list[Any]:
    """Draw defocus of diameter 2-9 in a fifth of the cases; else shake of 2-31 pixels, half with rotation 0-0.08."""
    rng = strength.rng
    gamma = 2.2 if rng.random() < 0.6 else 1.0
    if rng.random() < 0.2:
        return [LinearBlur('disk', strength.between(2, 9), 0, 0, gamma)]
    rotation = strength.between(0, 0.08) if rng.random() < 0.5 else 0.0
    return [LinearBlur('path', strength.decades(2, 31), rng.uniform(0, 0.5), rotation, gamma)]
