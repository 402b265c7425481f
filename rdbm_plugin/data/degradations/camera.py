"""Damage by the camera, after any other: shot and read noise (Foi et al., IEEE TIP 2008), then JPEG (ITU-T T.81)."""
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator

from rdbm_plugin.data.degradations.shapes import Image


@dataclass(frozen=True)
class SensorNoise:
    """Noise in linear light with the variance ``shot * light + read**2``."""

    shot: float
    read: float

    def apply(self, image: Image, rng: Generator) -> Image:
        """Decode to linear light, add noise and encode again."""
        light = image ** np.float32(2.2)
        light = light + rng.standard_normal(image.shape, dtype=np.float32) * np.sqrt(
            np.float32(self.shot) * light + np.float32(self.read**2))
        return np.clip(light, 0, 1) ** np.float32(1 / 2.2)


@dataclass(frozen=True)
class Jpeg:
    """JPEG compression. quality: 1 to 100, on libjpeg's scale."""

    quality: int

    def apply(self, image: Image, rng: Generator) -> Image:
        """Encode and decode 8-bit pixels."""
        pixels = np.rint(image[..., ::-1] * 255).astype(np.uint8)
        coded = cv2.imencode('.jpg', pixels, [cv2.IMWRITE_JPEG_QUALITY, self.quality])[1]
        return cv2.imdecode(coded, cv2.IMREAD_COLOR)[..., ::-1] / np.float32(255)


def draw_camera(rng: Generator) -> list[Any]:
    """Draw noise (shot 1e-5 to 2e-3, read 0 to 0.003), JPEG (quality 40 to 95), or both."""
    noise = SensorNoise(float(np.exp(rng.uniform(np.log(1e-5), np.log(2e-3)))), rng.uniform(0, 0.003))
    jpeg = Jpeg(int(rng.integers(40, 96)))
    return [[noise], [jpeg], [noise, jpeg]][rng.integers(3)]
