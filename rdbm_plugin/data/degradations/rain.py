"""Rain: streaks over the scene and a veil, after Garg & Nayar (IJCV 2007).

In wide ranges, streaks vary within an image, as drops vary in distance, size and focus. There may also be mist, and
drops on the lens that refract and blur the scene behind them (Qian et al., CVPR 2018).
"""
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator

from rdbm_plugin.data.degradations.haze import draw_mist
from rdbm_plugin.data.degradations.ranges import Strength
from rdbm_plugin.data.degradations.shapes import Image, line


@dataclass(frozen=True)
class Rain:
    """Streak layers. density: share of seed pixels; angle: from vertical; veil: white haze; width: blur of streaks."""

    layers: int
    density: float
    length: float
    angle: float
    strength: float
    veil: float
    width: float = 0.6

    @classmethod
    def draw(cls, rng: Generator) -> 'Rain':
        """Draw 1-3 layers, density 0.2-1 %, length 9-27, angle +-0.6, strength 0.5-0.9, veil 0-0.12."""
        return cls(int(rng.integers(1, 4)), rng.uniform(0.002, 0.01), rng.uniform(9, 27), rng.uniform(-0.6, 0.6),
                   rng.uniform(0.5, 0.9), rng.uniform(0, 0.12))

    def apply(self, image: Image, rng: Generator) -> Image:
        """Blend the streaks over ``image`` by screening, so that they brighten it and never darken it."""
        height, width = image.shape[:2]
        layer = np.zeros((height, width), np.float32)
        for index in range(self.layers):
            far = 0.7**index
            seeds = (rng.random((height, width), dtype=np.float32) < self.density).astype(np.float32)
            kernel = line(self.length * far, self.angle + rng.uniform(-0.05, 0.05))
            streaks = cv2.filter2D(seeds, -1, kernel * len(kernel) ** 0.5, borderType=cv2.BORDER_REFLECT_101)
            layer = np.maximum(layer, far * np.minimum(streaks * 2, 1))
        layer = cv2.GaussianBlur(layer, (0, 0), self.width)[..., None] * self.strength
        veiled = image + self.veil * (0.85 - image)
        return veiled + layer * (1 - veiled)


@dataclass(frozen=True)
class Streaks:
    """Streaks of one wind at several distances, all different. count: of distances; cover: share of the image that
    streaks of one distance cover; length, width: of the nearest; angle: from vertical; strength: of the brightest."""

    count: int
    cover: float
    length: float
    width: float
    angle: float
    strength: float

    def apply(self, image: Image, rng: Generator) -> Image:
        """Blend tapered streaks over ``image`` by screening; distant ones are shorter, thinner and fainter."""
        for near in np.linspace(0.25, 1, self.count):
            length, width = self.length * near * rng.uniform(0.6, 1.4), self.width * near * rng.uniform(0.6, 1.4)
            kernel = cv2.GaussianBlur(line(length, self.angle + rng.normal(0, 0.06)), (0, 0), 0.4 + width / 2)
            bright = rng.uniform(0.2, 1, image.shape[:2]).astype(np.float32)
            seeds = bright * (rng.random(image.shape[:2]) < self.cover / (length * (1 + width)))
            sheet = cv2.filter2D(seeds, -1, kernel / kernel.max(), borderType=cv2.BORDER_REFLECT_101)
            brightest = np.float32(self.strength * (0.4 + 0.6 * near))
            image = image + brightest * np.minimum(sheet, 1)[..., None] * (1 - image)
        return image


@dataclass(frozen=True)
class LensDrops:
    """Drops on the lens. radius: of the largest; bend: how far they displace the scene behind them, in radii."""

    count: int
    radius: float
    bend: float

    def apply(self, image: Image, rng: Generator) -> Image:
        """Displace the scene behind each drop along the drop's slope, blur it and brighten it slightly."""
        height, width = image.shape[:2]
        y, x = np.mgrid[:height, :width].astype(np.float32)
        surface = np.zeros((height, width), np.float32)
        for _ in range(self.count):
            radius = self.radius * rng.uniform(0.3, 1)
            far = ((x - rng.uniform(0, width)) / radius)**2 + ((y - rng.uniform(0, height)) / (radius * rng.uniform(
                1, 1.4)))**2
            surface = np.maximum(surface, 1 - far)
        surface = cv2.GaussianBlur(np.maximum(surface, 0), (0, 0), 1 + self.radius / 8)
        slope_y, slope_x = np.gradient(surface)
        reach = np.float32(self.bend * self.radius**2)
        behind = cv2.GaussianBlur(image, (0, 0), 0.5 + self.radius / 5)
        behind = cv2.remap(behind, x - reach * slope_x, y - reach * slope_y, cv2.INTER_LINEAR,
                           borderMode=cv2.BORDER_REFLECT_101)
        cover = np.clip(surface * 3, 0, 1)[..., None]
        return image + cover * (np.float32(0.95) * behind + np.float32(0.05) - image)


def draw_wide(strength: Strength) -> list[Any]:
    """Draw drizzle to downpour: half with streaks that all differ, half with mist, a sixth with 3 to 30 lens drops."""
    rng = strength.rng
    angle = rng.uniform(-0.8, 0.8)
    if rng.random() < 0.5:
        parts: list[Any] = [Streaks(int(rng.integers(2, 6)), strength.decades(0.02, 0.25), strength.decades(8, 60),
                                    rng.uniform(0, 3), angle, strength.between(0.3, 0.95))]
    else:
        parts = [Rain(int(rng.integers(1, 4)), strength.decades(3e-4, 1.5e-2), strength.decades(6, 38), angle,
                      strength.between(0.2, 0.95), strength.between(0, 0.15), rng.uniform(0.35, 1.1))]
    if rng.random() < 0.5:
        parts.append(draw_mist(strength))
    if rng.random() < 0.17:
        parts.append(LensDrops(round(strength.between(3, 30)), strength.between(3, 12), rng.uniform(0.3, 1)))
    return parts
