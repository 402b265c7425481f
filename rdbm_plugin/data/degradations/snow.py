"""Snow: moving flakes in front of the scene and a veil, after Liu et al. (Snow100K, IEEE TIP 2018)."""
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator

from rdbm_plugin.data.degradations.haze import draw_mist
from rdbm_plugin.data.degradations.ranges import Strength
from rdbm_plugin.data.degradations.shapes import Image, disk, line


@dataclass(frozen=True)
class Snow:
    """Flakes at three depths. density: share of seed pixels; radius: of the nearest; motion, angle: length and
    direction of motion; veil: white haze; pale: loss of colour of the scene; uneven: how much opacities vary."""

    density: float
    radius: float
    motion: float
    angle: float
    opacity: float
    veil: float
    pale: float = 0.0
    uneven: float = 0.0

    @classmethod
    def draw(cls, rng: Generator) -> 'Snow':
        """Draw density 0.05-0.4 %, radius 1.5-4, motion 1-7, any angle, opacity 0.7-1, veil 0-0.2."""
        return cls(rng.uniform(5e-4, 4e-3), rng.uniform(1.5, 4), rng.uniform(1, 7), rng.uniform(0, np.pi),
                   rng.uniform(0.7, 1), rng.uniform(0, 0.2))

    def apply(self, image: Image, rng: Generator) -> Image:
        """Cover ``image`` with near-white flakes; distant flakes are smaller, fainter and more numerous."""
        height, width = image.shape[:2]
        clear = np.ones((height, width), np.float32)
        for far in (1.0, 0.6, 0.35):
            seeds = (rng.random((height, width), dtype=np.float32) < self.density / far).astype(np.float32)
            if self.uneven:
                seeds *= 1 - np.float32(self.uneven) * rng.random((height, width), dtype=np.float32)
            flakes = cv2.dilate(seeds, disk(self.radius * far).astype(np.uint8))
            flakes = cv2.filter2D(flakes, -1, line(self.motion * far, self.angle), borderType=cv2.BORDER_REFLECT_101)
            flakes = cv2.GaussianBlur(flakes, (0, 0), 0.4 + 0.3 * self.radius * far)
            clear *= 1 - np.float32(self.opacity * (0.5 + 0.5 * far)) * np.minimum(flakes, 1)
        if self.pale:
            image = image + np.float32(self.pale) * (image.mean(axis=2, keepdims=True) - image)
        veiled = image + self.veil * (0.9 - image)
        return 0.96 - (0.96 - veiled) * clear[..., None]


def draw_wide(strength: Strength) -> list[Any]:
    """Draw powder (radius 0.7) to soft flakes (radius 7) whose opacities differ up to tenfold, with a veil of 0 to 0.4;
    half paler by up to 0.6, a third with mist."""
    rng = strength.rng
    size = rng.random()
    parts: list[Any] = [Snow(strength.decades(5e-4, 1.2e-2) * 0.25**size, 0.7 * 10**size, strength.between(1, 14),
                             rng.uniform(0, np.pi), strength.between(0.4, 1), strength.between(0, 0.4),
                             strength.between(0, 0.6) if rng.random() < 0.5 else 0.0, rng.uniform(0, 0.9))]
    if rng.random() < 0.33:
        parts.append(draw_mist(strength))
    return parts
