"""Haze: Koschmieder's law over a depth map, after Narasimhan & Nayar (IJCV 2002)."""
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator

from rdbm_plugin.data.degradations.ranges import Strength
from rdbm_plugin.data.degradations.shapes import Image, clouds, follow_edges


@dataclass(frozen=True)
class Haze:
    """Scattering over a depth map that a guided filter (He, Sun & Tang, TPAMI 2013) aligns with the image's edges.

    beta: optical depth at distance 1; airlight: (r, g, b); slope, relief: of the background's depth; objects: number
    of nearer objects; patches: unevenness of the haze; glow: unevenness of its light.
    """

    beta: float
    airlight: tuple[float, float, float]
    slope: float
    relief: float
    objects: int
    patches: float = 0.0
    glow: float = 0.0

    @classmethod
    def draw(cls, rng: Generator) -> 'Haze':
        """Draw beta 0.6-1.8, airlight 0.7-1 with a tint of +-0.02, slope 0-0.8 (farther at the top), relief 0-0.5 and
        0-3 objects; beta and airlight have the ranges of RESIDE (Li et al., IEEE TIP 2019)."""
        air = rng.uniform(0.7, 1) + rng.uniform(-0.02, 0.02, 3)
        return cls(rng.uniform(0.6, 1.8), tuple(np.clip(air, 0, 1).tolist()), rng.uniform(0, 0.8), rng.uniform(0, 0.5),
                   int(rng.integers(4)))

    def apply(self, image: Image, rng: Generator) -> Image:
        """Return J t + A (1 - t) with t = exp(-beta depth)."""
        optical = np.float32(self.beta) * self.depth(image, rng)
        air = np.float32(self.airlight)
        if self.patches:
            optical *= np.exp(np.float32(self.patches) * (2 * clouds(image.shape[:2], rng, rng.uniform(0.3, 0.8)) - 1))
        if self.glow:
            air = air * (1 - np.float32(self.glow) * clouds(image.shape[:2], rng, rng.uniform(0.3, 0.8)))[..., None]
        transmission = np.exp(-optical)[..., None]
        return air + (image - air) * transmission

    def depth(self, image: Image, rng: Generator) -> Image:
        """Draw a depth map with a mean of about 1, (H, W): rising ground with hills, and nearer objects."""
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


def draw_wide(strength: Strength) -> list[Any]:
    """Draw beta 0.15-2.6 and airlight 0.55-1 with a tint of +-0.08; a third has patches, a third an uneven light."""
    rng = strength.rng
    air = rng.uniform(0.55, 1) + rng.uniform(-0.08, 0.08, 3)
    level = rng.random() < 0.3
    slope, relief, objects = (0.0, 0.0, 0) if level else (rng.uniform(0, 1), rng.uniform(0, 0.8), int(rng.integers(4)))
    return [Haze(strength.decades(0.15, 2.6), tuple(np.clip(air, 0, 1).tolist()), slope, relief, objects,
                 rng.uniform(0, 1) * (rng.random() < 0.35), rng.uniform(0, 0.8) * (rng.random() < 0.35))]


def draw_mist(strength: Strength) -> Haze:
    """Draw thin, gray haze of uniform depth: the rain or snow between the visible drops or flakes."""
    air = strength.rng.uniform(0.5, 0.95)
    return Haze(strength.between(0.02, 0.7), (air, air, air), 0.0, 0.0, 0, strength.rng.uniform(0, 0.6))
