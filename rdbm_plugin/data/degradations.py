"""The five synthetic degradations: each a parameter set that draws itself, and a pure function of image and numbers.

Images are RGB, (H, W, 3) float32 in [0, 1]. ``draw(task, rng)`` draws parameters, ``degrade(image, parameters, rng)``
applies them; the same ``numpy.random.Generator`` state gives the same result. Lengths are in pixels, angles in
radians. Tasks are chained by a plus sign, applied from left to right: ``dehaze+derain+lowlight``.

Sources of the models: haze after Koschmieder's law as used by Narasimhan & Nayar (IJCV 2002); low light in linear
light with shot and read noise after Foi et al. (IEEE TIP 2008); camera-shake kernels as random trajectories after
Boracchi & Foi (IEEE TIP 2012); rain and snow as bright, motion-blurred layers over the scene plus a veil after
Garg & Nayar (IJCV 2007) and Liu et al. (Snow100K, IEEE TIP 2018).
"""
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from rdbm_plugin.config.options import check_choice

Image = NDArray[np.float32]


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
            kernel = _line(self.length * far, self.angle + rng.uniform(-0.05, 0.05))
            streaks = cv2.filter2D(seeds, -1, kernel * len(kernel) ** 0.5, borderType=cv2.BORDER_REFLECT_101)
            layer = np.maximum(layer, far * np.minimum(streaks * 2, 1))
        layer = cv2.GaussianBlur(layer, (0, 0), 0.6)[..., None] * self.strength
        veiled = image + self.veil * (0.85 - image)
        return veiled + layer * (1 - veiled)


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


@dataclass(frozen=True)
class Snow:
    """Flakes at three depths. density: share of seed pixels; radius of the nearest; motion: length, angle; opacity."""

    density: float
    radius: float
    motion: float
    angle: float
    opacity: float
    veil: float

    @classmethod
    def draw(cls, rng: Generator) -> 'Snow':
        """density 0.05-0.4 %, radius 1.5-4, motion 1-7, any angle, opacity 0.7-1, veil 0-0.2."""
        return cls(rng.uniform(5e-4, 4e-3), rng.uniform(1.5, 4), rng.uniform(1, 7), rng.uniform(0, np.pi),
                   rng.uniform(0.7, 1), rng.uniform(0, 0.2))

    def apply(self, image: Image, rng: Generator) -> Image:
        """Cover ``image`` with near-white flakes; far flakes are smaller, fainter and more."""
        height, width = image.shape[:2]
        clear = np.ones((height, width), np.float32)
        for far in (1.0, 0.6, 0.35):
            seeds = (rng.random((height, width), dtype=np.float32) < self.density / far).astype(np.float32)
            flakes = cv2.dilate(seeds, _disk(self.radius * far).astype(np.uint8))
            flakes = cv2.filter2D(flakes, -1, _line(self.motion * far, self.angle), borderType=cv2.BORDER_REFLECT_101)
            flakes = cv2.GaussianBlur(flakes, (0, 0), 0.4 + 0.3 * self.radius * far)
            clear *= 1 - np.float32(self.opacity * (0.5 + 0.5 * far)) * np.minimum(flakes, 1)
        veiled = image + self.veil * (0.9 - image)
        return 0.96 - (0.96 - veiled) * clear[..., None]


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
        depth = _follow_edges(depth.astype(np.float32), image.mean(axis=2), radius=max(min(size) // 12, 1))
        return np.clip(depth, 0.1, 2)


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
            kernel = _disk(self.size / 2).astype(np.float32)
        else:
            turns = np.cumsum(rng.normal(0, self.wander, 40)) + rng.uniform(0, 2 * np.pi)
            kernel = _rasterize(np.cumsum(np.stack([np.cos(turns), np.sin(turns)], 1), 0), self.size)
        return cv2.filter2D(image, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT_101)


@dataclass(frozen=True)
class Intact:
    """No damage: what a network needs to see to leave good photos as they are."""

    @classmethod
    def draw(cls, rng: Generator) -> 'Intact':
        """Nothing is drawn."""
        return cls()

    def apply(self, image: Image, rng: Generator) -> Image:
        """The image itself."""
        return image


TASKS: dict[str, Any] = {'derain': Rain, 'lowlight': LowLight, 'desnow': Snow, 'dehaze': Haze, 'deblur': Blur}
"""The five restoration tasks."""
DEGRADATIONS: dict[str, Any] = {**TASKS, 'intact': Intact}
MARGIN = 12
"""Pixels around a crop that reach into it: half the largest kernel, rounded up."""


def draw(task: str, rng: Generator) -> list[Any]:
    """Parameters of ``task``, one set for each of its chained degradations.

    Raises:
        OptionError: ``task`` names an unknown degradation.
    """
    return [DEGRADATIONS[check_choice('tasks', name, DEGRADATIONS)].draw(rng) for name in task.split('+')]


def degrade(image: Image, parameters: Sequence[Any], rng: Generator) -> Image:
    """Apply what :func:`draw` gave and round to 8 bits, as a camera or a file would; same shape, [0, 1]."""
    for degradation in parameters:
        image = np.clip(degradation.apply(image, rng), 0, 1)
    return (np.rint(image * 255) / np.float32(255)).astype(np.float32)


def _follow_edges(values: Image, guide: Image, radius: int) -> Image:
    """Guided filter: ``values`` as a locally linear function of ``guide``; both (H, W)."""
    def mean(x: Image) -> Image:
        return cv2.blur(x, (2 * radius + 1,) * 2, borderType=cv2.BORDER_REFLECT_101)

    mean_guide, mean_values = mean(guide), mean(values)
    slope = (mean(guide * values) - mean_guide * mean_values) / (mean(guide * guide) - mean_guide**2 + 1e-3)
    return mean(slope) * guide + mean(mean_values - slope * mean_guide)


def _disk(radius: float) -> NDArray[np.bool_]:
    reach = int(np.ceil(radius))
    y, x = np.ogrid[-reach:reach + 1, -reach:reach + 1]
    return x * x + y * y <= radius * radius + 0.5


def _line(length: float, angle: float) -> Image:
    """A line kernel of sum 1 through the centre; angle 0 is vertical."""
    ends = np.array([[np.sin(angle), np.cos(angle)]]) * (length / 2)
    return _rasterize(np.concatenate([-ends, ends]), length)


def _rasterize(path: NDArray[np.float64], extent: float) -> Image:
    """Draw an (n, 2) path of (x, y), scaled to ``extent`` pixels, as an anti-aliased kernel of sum 1.

    Its mean lies in the centre: a kernel off centre shifts the image by an amount that nobody can tell from it.
    """
    path = path * (extent / max(float(np.ptp(path, axis=0).max()), 1e-6))
    path = path - path.mean(0)
    reach = int(np.ceil(np.abs(path).max()))
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.uint8)
    points = np.rint((path + reach) * 16).astype(np.int32).reshape(-1, 1, 2)
    cv2.polylines(kernel, [points], False, 255, 1, cv2.LINE_AA, 4)
    return (kernel / max(float(kernel.sum()), 1.0)).astype(np.float32)


