"""Ranges of the drawn damage: the narrow ranges of versions up to 0.1, or wide ranges with a strength."""
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from rdbm_plugin.config.options import OptionError, check_choice, check_number


@dataclass
class Ranges:
    """The ``degradations:`` block of a data set.

    Args:
        ranges: ``narrow``: as in versions up to 0.1, to reproduce their figures; ``wide``: as varied as real photos;
            ``mixed``: half of the samples each.
        strength: Lowest and highest strength of wide damage, 0 (hardly visible) to 1 (heavy); drawn uniformly.
        camera: Share of samples (of wide samples, if ``mixed``) with sensor noise or JPEG after the damage, as cameras
            add them; default 0.4, or 0 if ``narrow``.
        second: Share of wide samples with another of the five tasks on top.

    Raises:
        OptionError: A value is out of range; the message names the key.
    """

    ranges: str = 'narrow'
    strength: Sequence[float] = (0.0, 1.0)
    camera: float | None = None
    second: float = 0.1

    def __post_init__(self) -> None:
        check_choice('ranges', self.ranges, ('narrow', 'wide', 'mixed'))
        if not isinstance(self.strength, Sequence) or len(self.strength) != 2:
            raise OptionError(f'strength: found {self.strength!r}; expected [lowest, highest], each from 0 to 1.')
        lowest = check_number('strength', self.strength[0], 0, 1)
        self.strength = lowest, check_number('strength', self.strength[1], lowest, 1)
        if self.camera is None:
            self.camera = 0.0 if self.ranges == 'narrow' else 0.4
        self.camera = check_number('camera', self.camera, 0, 1)
        self.second = check_number('second', self.second, 0, 1)

    @property
    def margin(self) -> int:
        """Pixels around a crop that can affect it: about half the length of the longest streak or shake."""
        return 12 if self.ranges == 'narrow' else 20


class Strength:
    """Draws all numbers of a sample near its strength, 0 (light) to 1 (heavy), so that they are similarly heavy."""

    def __init__(self, value: float, rng: Generator) -> None:
        self.value, self.rng = value, rng

    def between(self, light: float, heavy: float) -> float:
        """Draw a number whose position between ``light`` and ``heavy`` is within 0.3 of the strength."""
        share = np.clip(self.value + self.rng.uniform(-0.3, 0.3), 0, 1)
        return float(light + (heavy - light) * share)

    def decades(self, light: float, heavy: float) -> float:
        """Draw a positive number in the same way, on a logarithmic scale."""
        return float(np.exp(self.between(np.log(light), np.log(heavy))))
