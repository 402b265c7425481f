"""Checks option values and builds objects from option blocks. Needs the standard library only."""
import difflib
import inspect
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from typing import Any


class OptionError(ValueError):
    """A value in the option file cannot be used; the message names the key, the value and what is allowed."""


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Put the name of a block before the message of an OptionError about its values."""
    try:
        yield
    except OptionError as error:
        raise OptionError(f'{where}: {error}') from None


def suggest(name: str, allowed: Iterable[str]) -> str:
    """Return a sentence that suggests the nearest of ``allowed``, to end an error message; empty if none is near."""
    near = difflib.get_close_matches(name, allowed, n=1)
    return f' Did you mean {near[0]!r}?' if near else ''


def check_choice(key: str, value: Any, allowed: Iterable[str]) -> str:
    """Return ``value`` if it is one of ``allowed``, else raise OptionError naming ``key``."""
    allowed = sorted(allowed)
    if not isinstance(value, str) or value not in allowed:
        raise OptionError(f'{key}: found {value!r}; allowed are {", ".join(allowed)}.{suggest(str(value), allowed)}')
    return value


def check_int(key: str, value: Any, low: int, high: int | None = None) -> int:
    """Return ``value`` if it is a whole number in [low, high], else raise OptionError naming ``key``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        allowed = f'from {low} to {high}' if high is not None else f'of at least {low}'
        raise OptionError(f'{key}: found {value!r}; allowed is a whole number {allowed}.')
    return value


def check_number(key: str, value: Any, low: float = -math.inf, high: float = math.inf, *,
                 above: float = -math.inf) -> float:
    """Return a number, or text such as '10/255', as a float if it is finite, in [low, high] and > ``above``."""
    try:
        # Fractions are exact. YAML reads 1e-4 as text.
        number = float(Fraction(value.replace(' ', '')) if isinstance(value, str) else value)
        if isinstance(value, bool) or not math.isfinite(number):
            raise ValueError
    except (ValueError, TypeError, ZeroDivisionError):
        raise OptionError(f'{key}: found {value!r}; expected a finite number or a fraction such as 10/255.') from None
    if not (low <= number <= high and number > above):
        bounds = [f'> {above:g}'] * (above > -math.inf) + [f'>= {low:g}'] * (low > -math.inf)
        bounds += [f'<= {high:g}'] * (high < math.inf)
        raise OptionError(f'{key}: found {value!r}; allowed is a number {" and ".join(bounds)}.')
    return number


def check_block(opt: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return a copy of the block ``key`` of ``opt``; raise OptionError if there is none."""
    found = opt.get(key)
    if not isinstance(found, Mapping):
        raise OptionError(f'{key}: found {found!r}; expected a block of "key: value" lines.')
    return dict(found)


def check_keys(where: str, options: Mapping[str, Any], target: Any, kind: str = '') -> None:
    """Raise OptionError if ``options`` has a key that ``target``, of type ``kind``, does not take, or lacks a key."""
    parameters = dict(inspect.signature(target).parameters)
    names = [n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key in options:
        if key not in names and not takes_any:
            # Naming the type helps when a key is left over from another type.
            raise OptionError(f'{where}: unknown key {key!r}{kind and f" of {kind}"}; allowed are type, '
                              f'{", ".join(names)}.{suggest(str(key), names)}')
    missing = [n for n in names if parameters[n].default is inspect.Parameter.empty and n not in options]
    if missing:
        raise OptionError(f'{where}: key {missing[0]!r} is missing.')


def build(where: str, options: Mapping[str, Any] | None, types: Mapping[str, Any], default: str | None = None,
          **given: Any) -> Any:
    """Build ``types[options['type']](**given, **rest of options)``.

    Args:
        where: Name of the option block, for error messages, such as ``'bridge'`` or ``'val: sampler'``.
        options: The block itself; None counts as an empty block.
        types: Name -> class.
        default: Type to use if the block names none.
        given: Arguments that the program sets, not the option file.

    Raises:
        OptionError: The block is not a mapping, its type is unknown, or a key is unknown, missing or out of range.
    """
    options = {} if options is None else check_block({where: options}, where)
    kind = check_choice(f'{where}: type', options.pop('type', default), types)
    for key in given:
        if key in options:
            raise OptionError(f'{where}: unknown key {key!r}; it is set by the program.')
    check_keys(where, {**given, **options}, types[kind], kind)
    with naming(where):
        return types[kind](**given, **options)
