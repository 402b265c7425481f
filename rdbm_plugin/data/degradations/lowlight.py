"""Darkness: less light, and shot and read noise in it, after Foi et al. (IEEE TIP 2008)."""
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from rdbm_plugin.data.degradations.shapes import Image


@dataclass(frozen=True)
class LowLight:
    """Exposure loss in linear light. gain; gamma of the tone curve; shot and read noise; gains of red and blue."""

    gain: float
    gamma: float
    shot: float
    read: float
    red: float
    blue: float

    @classmethod
    def draw(cls, rng: Generator) -> 'LowLight':
        """gain 0.03-0.2 (log-uniform), gamma 2-2.4, shot 0-1e-3, read 0-4e-3, red and blue 0.85-1.15."""
        return cls(float(np.exp(rng.uniform(np.log(0.03), np.log(0.2)))), rng.uniform(2.0, 2.4),
                   rng.uniform(0, 1e-3), rng.uniform(0, 4e-3), rng.uniform(0.85, 1.15), rng.uniform(0.85, 1.15))

    def apply(self, image: Image, rng: Generator) -> Image:
        """Expose less, add sensor noise, encode again."""
        light = image**2.2 * (np.float32([self.red, 1, self.blue]) * np.float32(self.gain))
        noise = rng.standard_normal(image.shape, dtype=np.float32)
        light = light + noise * np.sqrt(self.shot * light + self.read**2, dtype=np.float32)
        return np.clip(light, 0, 1) ** np.float32(1 / self.gamma)
