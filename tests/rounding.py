"""How far apart two computations of the same may end in floating point, whatever the processor adds up in which order.

No figure here was measured: either float64 tells how much was rounded away, or the number of roundings does.
"""
import copy

UNIT = 2.0**-24
"""What one rounding in float32 moves a number by at most, as a share of it."""


def doubled(network):
    """A copy of a network in float64."""
    return copy.deepcopy(network).double()


def as_doubles(*tensors):
    """Tensors in float64; whole numbers stay what they are."""
    return [each.double() if each.is_floating_point() else each for each in tensors]


def within_rounding(found, single, exact):
    """Whether ``found`` may be another float32 computation of what ``single`` is one of; ``exact`` is that in float64.

    What lies between the latter two is the rounding of this very computation. Sums in another order are rounded
    otherwise, but as much: the largest of a thousand and more such errors, which are about normal, lies within 3 and 6
    deviations, so that one maximum is at most twice another; where both are differences of correlated ones, four times.
    Values that happen to be exact are allowed the roundings of their last steps.
    """
    error, own = (float((each.double() - exact).abs().max()) for each in (found.detach(), single.detach()))
    return error <= 4 * own + 4 * UNIT * max(1.0, float(exact.abs().max()))


def of_sums(count, magnitude=1.0):
    """What two float32 sums of ``count`` numbers, of absolute values that add up to ``magnitude``, may lie apart.

    Each addition rounds by at most UNIT of what is there so far; roundings of either sign grow with the root of their
    number, of which five deviations (of a uniform error, 1 / sqrt(3)) are allowed, for both sums.
    """
    return 2 * 5 / 3**0.5 * count**0.5 * UNIT * magnitude
