"""Low light: less light with shot and read noise, after Foi et al. (IEEE TIP 2008).

In wide ranges, the light varies across the image as in a Retinex model (Land & McCann, JOSA 1971), and a tone curve is
applied that is not a power law, as in cameras (Grossberg & Nayar, CVPR 2003).
"""
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator

from rdbm_plugin.data.degradations.ranges import Strength
from rdbm_plugin.data.degradations.shapes import Image, clouds, follow_edges


@dataclass(frozen=True)
class LowLight:
    """Exposure loss in linear light. gamma: of the tone curve; shot, read: noise; red, blue: gains of the channels."""

    gain: float
    gamma: float
    shot: float
    read: float
    red: float
    blue: float

    @classmethod
    def draw(cls, rng: Generator) -> 'LowLight':
        """Draw gain 0.03-0.2 (log-uniform), gamma 2-2.4, shot 0-1e-3, read 0-4e-3, red and blue 0.85-1.15."""
        return cls(float(np.exp(rng.uniform(np.log(0.03), np.log(0.2)))), rng.uniform(2.0, 2.4),
                   rng.uniform(0, 1e-3), rng.uniform(0, 4e-3), rng.uniform(0.85, 1.15), rng.uniform(0.85, 1.15))

    def apply(self, image: Image, rng: Generator) -> Image:
        """Reduce the exposure, add sensor noise and encode again."""
        light = image**2.2 * (np.float32([self.red, 1, self.blue]) * np.float32(self.gain))
        noise = rng.standard_normal(image.shape, dtype=np.float32)
        light = light + noise * np.sqrt(self.shot * light + self.read**2, dtype=np.float32)
        return np.clip(light, 0, 1) ** np.float32(1 / self.gamma)


@dataclass(frozen=True)
class UnevenLight:
    """Light that varies across the image. kind: backlight, lamps or vignette; floor: share of light in the dark."""

    kind: str
    floor: float

    def apply(self, image: Image, rng: Generator) -> Image:
        """Multiply linear light by a map from ``floor`` to 1."""
        light = np.clip(getattr(self, f'_{self.kind}')(image, rng), 0, 1)
        return image * ((self.floor + (1 - self.floor) * light) ** np.float32(1 / 2.2))[..., None]

    def _backlight(self, image: Image, rng: Generator) -> Image:
        # Bright surfaces (sky, windows) are where the light comes from, behind the dark ones.
        bright = image.mean(axis=2)
        bright = np.clip((bright - np.quantile(bright, 0.3)) * 2, 0, 1)
        light = 0.7 * bright + 0.3 * clouds(image.shape[:2], rng, 0.4)
        return follow_edges(light, image.mean(axis=2), radius=max(min(image.shape[:2]) // 12, 1))

    def _lamps(self, image: Image, rng: Generator) -> Image:
        height, width = image.shape[:2]
        y, x = np.ogrid[:height, :width]
        light = np.zeros((height, width), np.float32)
        for _ in range(rng.integers(1, 4)):
            reach = rng.uniform(0.15, 0.6) * max(height, width)
            far = (x - rng.uniform(0, width))**2 + (y - rng.uniform(0, height))**2
            light += (1 / (1 + far / reach**2)**2).astype(np.float32)
        return light

    def _vignette(self, image: Image, rng: Generator) -> Image:
        height, width = image.shape[:2]
        y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)
        return (1 / (1 + rng.uniform(0.3, 1.5) * (x * x + y * y) / 2)**2).astype(np.float32)


@dataclass(frozen=True)
class ToneCurve:
    """A camera's tone curve over encoded values. contrast: of an S-curve, < 0 flattens; black: value clipped to 0."""

    contrast: float
    black: float

    def apply(self, image: Image, rng: Generator) -> Image:
        """Clip the blacks, then apply the S-curve."""
        image = np.clip((image - self.black) / (1 - self.black), 0, 1).astype(np.float32)
        return image + np.float32(self.contrast) * image * (1 - image) * (2 * image - 1)


def draw_wide(strength: Strength) -> list[Any]:
    """Draw gain 0.6 to 0.02, gamma 1.8-2.6, red and blue 0.75-1.3; half with uneven light, half with a tone curve."""
    rng = strength.rng
    parts: list[Any] = []
    gain = strength.decades(0.6, 0.02)
    if rng.random() < 0.5:
        parts.append(UnevenLight(str(rng.choice(['backlight', 'lamps', 'vignette'])), strength.decades(0.5, 0.03)))
        gain = gain**rng.uniform(0.3, 1)
    noisy = rng.random() < 0.7
    parts.append(LowLight(gain, rng.uniform(1.8, 2.6), rng.uniform(0, 1e-3) * noisy, rng.uniform(0, 4e-3) * noisy,
                          rng.uniform(0.75, 1.3), rng.uniform(0.75, 1.3)))
    if rng.random() < 0.5:
        parts.append(ToneCurve(rng.uniform(-0.5, 0.9), rng.uniform(0, 0.03)))
    return parts
