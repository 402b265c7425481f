"""Synthetic degradations, one module each. Their results depend only on image, parameters and random generator.

Images are RGB, (H, W, 3) float32 in [0, 1]. ``draw(task, rng, ranges)`` draws parameters, ``degrade(image,
parameters, rng)`` applies them; the same ``numpy.random.Generator`` state gives the same result. Lengths are in
pixels, angles in radians. A plus sign chains tasks, applied from left to right: ``dehaze+derain+lowlight``.

To add one, write a frozen dataclass with ``draw`` and ``apply`` in a module of its own, cite its source, and add it to
DEGRADATIONS. For light and heavy forms, write a function ``draw_wide`` that takes a Strength, and add it to WIDE.
"""
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator

from rdbm_plugin.config.options import check_choice
from rdbm_plugin.data.degradations import blur, haze, lowlight, rain, snow
from rdbm_plugin.data.degradations.blur import Blur
from rdbm_plugin.data.degradations.camera import draw_camera
from rdbm_plugin.data.degradations.haze import Haze
from rdbm_plugin.data.degradations.lowlight import LowLight
from rdbm_plugin.data.degradations.rain import Rain
from rdbm_plugin.data.degradations.ranges import Ranges, Strength
from rdbm_plugin.data.degradations.shapes import Image
from rdbm_plugin.data.degradations.snow import Snow


@dataclass(frozen=True)
class Intact:
    """No damage: teaches a network to leave good photos as they are."""

    @classmethod
    def draw(cls, rng: Generator) -> 'Intact':
        """Draw nothing, as there are no parameters."""
        return cls()

    def apply(self, image: Image, rng: Generator) -> Image:
        """Return the image itself."""
        return image


TASKS: dict[str, Any] = {'derain': Rain, 'lowlight': LowLight, 'desnow': Snow, 'dehaze': Haze, 'deblur': Blur}
"""The five restoration tasks."""
DEGRADATIONS: dict[str, Any] = {**TASKS, 'intact': Intact}
WIDE = {'derain': rain.draw_wide, 'lowlight': lowlight.draw_wide, 'desnow': snow.draw_wide, 'dehaze': haze.draw_wide,
        'deblur': blur.draw_wide}
NARROW = Ranges()


def draw(task: str, rng: Generator, ranges: Ranges = NARROW) -> list[Any]:
    """Draw the parameters of ``task``: one or more dataclasses for each of its chained degradations.

    Raises:
        OptionError: ``task`` names an unknown degradation.
    """
    names = [check_choice('tasks', name, DEGRADATIONS) for name in task.split('+')]
    if names == ['intact'] or (ranges.ranges == 'mixed' and rng.random() < 0.5):
        ranges = NARROW
    if ranges.ranges == 'narrow':
        parts = [DEGRADATIONS[name].draw(rng) for name in names]
        if not ranges.camera:
            return parts
    else:
        if rng.random() < ranges.second:
            names.append(str(rng.choice([name for name in WIDE if name not in names] or ['intact'])))
        strength = Strength(rng.uniform(*ranges.strength), rng)
        parts = [part for name in names for part in (WIDE[name](strength) if name in WIDE else [Intact()])]
    return parts + draw_camera(rng) if rng.random() < ranges.camera else parts


def degrade(image: Image, parameters: Sequence[Any], rng: Generator) -> Image:
    """Apply drawn ``parameters`` and round to 8 bits, as a camera or a file would; same shape, in [0, 1]."""
    for degradation in parameters:
        image = np.clip(degradation.apply(image, rng), 0, 1)
    return (np.rint(image * 255) / np.float32(255)).astype(np.float32)
