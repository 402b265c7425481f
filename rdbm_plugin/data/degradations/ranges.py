"""From how much to how much damage is drawn: the narrow ranges of versions up to 0.1, or wide ones with a strength."""
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from rdbm_plugin.config.options import OptionError, check_choice, check_number


@dataclass
class Ranges:
    """The ``degradations:`` block of a data set.

    Args:
        ranges: ``narrow``: what versions up to 0.1 drew, for old figures; ``wide``: what photos of strangers show;
            ``mixed``: either, half of the samples each.
        strength: Lowest and highest strength of wide damage, 0 (hardly visible) to 1 (heavy); drawn uniformly.
        camera: Share of samples with sensor noise or JPEG after the damage, as a camera adds them; of the wide ones
            if there are any. Default: 0.4, or none of narrow ranges.
        second: Share of wide samples with another of the five tasks on top.

    Raises:
        OptionError: A value is out of its range; the message names the key.
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
        """Pixels around a crop that reach into it: about half the longest streak or shake."""
        return 12 if self.ranges == 'narrow' else 20


class Strength:
    """Draws numbers of a sample around its strength, 0 (light) to 1 (heavy), so that it is heavy in most respects."""

    def __init__(self, value: float, rng: Generator) -> None:
        self.value, self.rng = value, rng

    def between(self, light: float, heavy: float) -> float:
        """A number about as far from ``light`` to ``heavy`` as the strength is."""
        share = np.clip(self.value + self.rng.uniform(-0.3, 0.3), 0, 1)
        return float(light + (heavy - light) * share)

    def decades(self, light: float, heavy: float) -> float:
        """The same for positive numbers, in their logarithm."""
        return float(np.exp(self.between(np.log(light), np.log(heavy))))
