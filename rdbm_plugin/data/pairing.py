"""Rules that pair degraded images with clean ones by name."""
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from string import digits
from typing import Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

from rdbm_plugin.config.options import OptionError, suggest
from rdbm_plugin.data.image_source import SUFFIXES, ImageSource, same_stems

Label = Callable[[str], 'str | None']
"""Name without suffix -> what both names of a pair share; None: the image is not of this side."""


class Pairs(NamedTuple):
    """Pairs as indices into the two sources, ordered by degraded image, and the names of images without a partner."""

    gt: NDArray[np.int64]
    lq: NDArray[np.int64]
    lonely_gt: list[str]
    lonely_lq: list[str]

    @classmethod
    def of(cls, pairs: Sequence[tuple[int, int]], lonely_gt: list[str], lonely_lq: list[str]) -> 'Pairs':
        """Build from one (gt, lq) tuple of indices for each pair."""
        return cls(*np.array(pairs, np.int64).reshape(-1, 2).T, lonely_gt, lonely_lq)


def _extract(pattern: str, stem: str) -> str | None:
    """Replace the last part of a path by group 1 of the pattern that it matches; None if it does not match."""
    path = PurePosixPath(stem)
    found = re.fullmatch(pattern, path.name, re.DOTALL)
    return str(path.with_name(found[1])) if found else None


def _template(texts: Any) -> tuple[Label, Label]:
    lq, gt = (texts, '{}') if isinstance(texts, str) else _two('template', texts, "['{}', '{}gt']")
    for text in (lq, gt):
        if text.count('{}') != 1:
            raise OptionError(f"template: found {text!r}; expected a name with one '{{}}' in place of what both names "
                              "of a pair share, e.g. '{}_rain'.")
    return tuple(partial(_extract, '(.+)'.join(map(re.escape, text.split('{}')))) for text in (gt, lq))


def _many_to_one(separator: str) -> tuple[Label, Label]:
    if not isinstance(separator, str) or not separator:
        raise OptionError(f"many_to_one: found {separator!r}; expected the separator that follows the clean image's "
                          "name in a degraded image's name, e.g. '_' for 0001_0.8_0.2 -> 0001.")
    return str, partial(_extract, f'(.+?)(?:{re.escape(separator)}.*)?')


def _without_folder(folder: str, stem: str) -> str | None:
    *parts, name = PurePosixPath(stem).parts
    if folder not in parts:
        return None
    parts.remove(folder)
    return str(PurePosixPath(*parts, name))


def _folder(pair: Any) -> tuple[Label, Label]:
    lq, gt = _two('folder', pair, '[blur, sharp]')
    return partial(_without_folder, gt), partial(_without_folder, lq)


RULES: dict[str, Callable[..., tuple[Label, Label]]] = {
    'same': lambda: (str, str), 'template': _template, 'many_to_one': _many_to_one, 'folder': _folder,
    'prefix': lambda pair: _template([f'{start}{{}}' for start in _two('prefix', pair, '[rain-, norain-]')])}
"""Rule -> function that makes its two labels (clean, degraded)."""


def find_pairs(gt: ImageSource, lq: ImageSource, rule: str | Mapping[str, Any] = 'same') -> Pairs:
    """Pair the images of two sources by name.

    Args:
        gt: Clean images.
        lq: Degraded images.
        rule: How names are matched. Suffixes are ignored, sub-folders count.

            - ``same``: equal names.
            - ``{template: '{}_rain'}``: the degraded image's name, where ``{}`` is the name of its clean image;
              ``{template: ['{}', '{}gt']}``: degraded, clean.
            - ``{many_to_one: '_'}``: 0001_0.8_0.2 -> 0001, the part before the first separator. Sub-folders of degraded
              images count only if clean images are in sub-folders too.
            - ``{prefix: [rain-, norain-]}``: degraded, clean.
            - ``{folder: [blur, sharp]}``: the part of the path that differs; both roots may be the same.
            - ``{meta_info: FILE}``: one pair per line: the clean and the degraded name with suffixes, separated by
              commas or spaces, or one name for both. Anything after the names, as in BasicSR's files, is ignored.

    Raises:
        OptionError: The rule is unknown, or names are ambiguous.
    """
    name, values = _parse(rule)
    if name == 'meta_info':
        return _from_meta_info(gt, lq, values)
    labels = RULES[name](*values)
    for side in (gt, lq):
        if twice := same_stems(side):
            raise OptionError(f'{side.root}: {len(twice)} names occur with several suffixes, first {twice[0]!r}; '
                              'keep only one of each, as images are paired by name.')
    labels_gt, labels_lq = (list(map(label, side.stems())) for label, side in zip(labels, (gt, lq)))
    if name == 'many_to_one' and not any('/' in label for label in labels_gt):
        labels_lq = [PurePosixPath(label).name for label in labels_lq]
    clean = {label: index for index, label in enumerate(labels_gt) if label is not None}
    pairs = [(clean[label], index) for index, label in enumerate(labels_lq) if label in clean]
    taken, shared = {index for index, _ in pairs}, gt.root == lq.root
    # A file without a label belongs to the other side if both sides share a folder or it is in the degraded folder.
    lonely_gt = [gt.name(index) for index, label in enumerate(labels_gt) if index not in taken and (
        label is not None or not (shared or lq.root in (gt.root / gt.name(index)).parents))]
    lonely_lq = [lq.name(index) for index, label in enumerate(labels_lq)
                 if label not in clean and (label is not None or not shared)]
    return Pairs.of(pairs, lonely_gt, lonely_lq)


def joined(parts: Sequence[Pairs], gt: Sequence[ImageSource], lq: Sequence[ImageSource]) -> Pairs:
    """Concatenate the pairs of several folders; the indices of each folder continue those of the previous one."""
    found = [np.concatenate([part[side] + start for part, start in zip(parts, np.cumsum([0, *map(len, sources)]))])
             for side, sources in enumerate((gt, lq))]
    return Pairs(*found, [name for part in parts for name in part.lonely_gt],
                 [name for part in parts for name in part.lonely_lq])


def better_rule(gt: ImageSource, lq: ImageSource, found: int) -> str:
    """Advise the rule that pairs most images, if a rule that the names suggest pairs more than ``found``.

    The start and end shared by all names of a side, or by its most common form, tell sides apart; digits tell images.
    """
    def shape(side: ImageSource, commonest: bool) -> str:
        names = [PurePosixPath(stem).name for stem in side.stems()]
        if commonest:
            forms = [re.sub(r'\d+', '0', name) for name in names]
            form = Counter(forms).most_common(1)[0][0]
            names = [name for name, each in zip(names, forms) if each == form]
        start, end = (os.path.commonprefix(each) for each in (names, [name[::-1] for name in names]))  # noqa: RUF071
        return f'{start.rstrip(digits)}{{}}{end[::-1].lstrip(digits)}' if len(names) > 1 else '{}'

    templates = [[shape(lq, commonest), shape(gt, commonest)] for commonest in (False, True)]
    rules = ['same', *({'template': each[0] if each[1] == '{}' else each} for each in templates),
             *({'many_to_one': separator} for separator in '_-.')]
    counts = [len(find_pairs(gt, lq, rule).lq) for rule in rules]
    if max(counts) <= found:
        return 'set "pairing" to the rule that pairs them'
    rule = yaml.safe_dump({'pairing': rules[counts.index(max(counts))]}, default_flow_style=True, width=1000)[1:-2]
    return f'"{rule}" pairs {max(counts)} of {len(lq)}'


def _from_meta_info(gt: ImageSource, lq: ImageSource, values: list[Any]) -> Pairs:
    file = Path(str(values[0])).expanduser()
    if not file.is_file():
        raise OptionError(f'meta_info: no file {str(file)!r} (looked in {file.absolute()}).')
    table_gt, table_lq = ({source.stem(i): i for i in range(len(source))} for source in (gt, lq))
    pairs, missing_gt, missing_lq = [], [], []
    for line in filter(None, map(str.strip, file.read_text(encoding='utf-8').splitlines())):
        names = [part for part in re.split(r'[,\s]+', line) if part.lower().endswith(SUFFIXES)][:2]
        if not names:
            raise OptionError(f'meta_info: {file}: found the line {line!r}; expected image names with suffixes.')
        clean, degraded = (str(PurePosixPath(name).with_suffix('')) for name in (names[0], names[-1]))
        if clean not in table_gt:
            missing_gt.append(names[0])
        if degraded not in table_lq:
            missing_lq.append(names[-1])
        if clean in table_gt and degraded in table_lq:
            pairs.append((table_gt[clean], table_lq[degraded]))
    return Pairs.of(pairs, missing_gt, missing_lq)


def _parse(rule: Any) -> tuple[str, list[Any]]:
    name, value = next(iter(rule.items())) if isinstance(rule, Mapping) and len(rule) == 1 else (rule, None)
    allowed = [*RULES, 'meta_info']
    if name not in allowed or (name == 'same') != (value is None):
        shown = dict(rule) if isinstance(rule, Mapping) else rule
        raise OptionError(f'pairing: found {shown!r}; allowed are '
                          'same, {template: TEXT}, {many_to_one: SEPARATOR}, {prefix: [DEGRADED, CLEAN]}, '
                          '{folder: [DEGRADED, CLEAN]}, {meta_info: FILE}.'
                          + ('' if name in allowed else suggest(str(name), allowed)))
    return name, [] if value is None else [value]


def _two(rule: str, value: Any, example: str) -> tuple[str, str]:
    if not isinstance(value, (list, tuple)) or len(value) != 2 or not all(isinstance(part, str) for part in value):
        raise OptionError(f'{rule}: found {value!r}; expected two strings, degraded and clean, e.g. {example}.')
    return value[0], value[1]
