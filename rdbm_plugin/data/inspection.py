"""Checks of the images of a data set before training: whole images, or headers only."""
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image
from torch.utils.data import Dataset
from tqdm import tqdm

from rdbm_plugin.config.options import OptionError
from rdbm_plugin.data.clean_sources import open_clean
from rdbm_plugin.data.image_source import ImageError, ImageSource, decode_rgb, has_end
from rdbm_plugin.data.universal_paired_dataset import Task, UniversalPairedDataset, read_task

SHOWN = 5
"""Names listed in one finding."""
HEADERS = 2000
"""Files whose headers are checked before training."""


class Finding(NamedTuple):
    """One line of a report."""

    level: str
    """``ok``, ``note``, ``warning`` or ``error``."""
    where: str
    message: str


class Look(NamedTuple):
    """The result of looking at one image."""

    name: str
    fault: str | None
    size: tuple[int, int] = (0, 0)
    """Height, width."""
    kind: str = 'RGB'
    """RGB, gray, alpha or 16-bit."""
    digest: str = ''
    """Hash of the pixels, independent of the file format."""


def names(items: Iterable[str]) -> str:
    """Join the first few of many names."""
    items = list(items)
    return ', '.join(items[:SHOWN]) + (f' and {len(items) - SHOWN} more' if len(items) > SHOWN else '')


def look_at(source: ImageSource, index: int) -> Look:
    """Decode and describe one image."""
    name = source.path(index)
    try:
        content = source.read(index)
        rgb = decode_rgb(content, name)
    except ImageError as error:
        return Look(name, str(error))
    stored = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    channels = 1 if stored.ndim == 2 else stored.shape[2]
    kind = '16-bit' if stored.dtype == np.uint16 else {1: 'gray', 2: 'alpha', 3: 'RGB', 4: 'alpha'}[channels]
    return Look(name, None, rgb.shape[:2], kind, hashlib.blake2b(np.ascontiguousarray(rgb), digest_size=16).hexdigest())


def look_at_all(source: ImageSource, indices: Sequence[int], title: str) -> dict[int, Look]:
    """Look at many images in parallel, with a progress bar on stderr."""
    with ThreadPoolExecutor() as pool:
        looks = pool.map(lambda index: look_at(source, index), indices)
        return dict(zip(indices, tqdm(looks, total=len(indices), desc=title, unit='image', leave=False)))


def open_tasks(dataset: Mapping[str, Any]) -> list[Task]:
    """Open the tasks of a dataset block of UniversalPairedDataset or of one of BasicSR's paired data sets."""
    tasks = dataset.get('tasks')
    if not isinstance(tasks, Mapping):
        if not (dataset.get('dataroot_gt') and dataset.get('dataroot_lq')) or dataset.get('scale', 1) != 1:
            return []
        block = {key: dataset[key] for key in ('dataroot_gt', 'dataroot_lq', 'io_backend') if dataset.get(key)}
        if dataset.get('filename_tmpl', '{}') != '{}':
            block['pairing'] = {'template': dataset['filename_tmpl']}
        tasks = {str(dataset.get('name')): block}
    return [read_task(name, block, skip_unpaired=True) for name, block in tasks.items()]


def inspect_pairs(task: Task, where: str, dataset: Mapping[str, Any], seen: dict[str, str]) -> Iterator[Finding]:
    """Yield findings on one task of a dataset block; adds digest -> name of the clean images to ``seen``."""
    gt_indices, lq_indices, lonely_gt, lonely_lq = task.pairs
    if lonely_lq:
        level = 'warning' if dataset.get('skip_unpaired') else 'error'
        yield Finding(level, where, f'{len(lonely_lq)} degraded images have no clean one: {names(lonely_lq)}')
    if lonely_gt:
        yield Finding('note', where, f'{len(lonely_gt)} clean images have no degraded one: {names(lonely_gt)}')
    gt = {index: look._replace(size=tuple(length - 2 * task.gt_border for length in look.size))
          for index, look in look_at_all(task.gt, np.unique(gt_indices).tolist(), f'{where} gt').items()}
    lq = look_at_all(task.lq, np.unique(lq_indices).tolist(), f'{where} lq')
    yield from _inspect([*gt.values(), *lq.values()], where, dataset)
    differing = [f'{lq[b].name} {lq[b].size[1]}x{lq[b].size[0]} against {gt[a].size[1]}x{gt[a].size[0]}'
                 for a, b in zip(gt_indices, lq_indices)
                 if not (gt[a].fault or lq[b].fault) and gt[a].size != lq[b].size]
    if differing:
        yield Finding('error', where, f'{len(differing)} pairs of unequal size: {names(differing)}')
    seen.update((look.digest, look.name) for look in gt.values() if not look.fault)
    yield Finding('ok', where, f'{len(lq_indices)} pairs checked')


def inspect_clean(dataset: Mapping[str, Any], where: str, seen: dict[str, str]) -> Iterator[Finding]:
    """Yield findings on the clean images of a SyntheticUniversalDataset block; see :func:`inspect_pairs`."""
    source = open_clean(dataset['dataroot_gt'], dataset['phase'])
    files = [part for part in getattr(source, 'sources', [source]) if isinstance(part, ImageSource)]
    looks = [look for part in files for look in look_at_all(part, range(len(part)), where).values()]
    yield from _inspect(looks, where, dataset)
    seen.update((look.digest, look.name) for look in looks if not look.fault)
    yield Finding('ok', where, f'{len(source)} clean images, {len(looks)} files checked')


def _inspect(looks: list[Look], where: str, dataset: Mapping[str, Any]) -> Iterator[Finding]:
    if bad := [look.fault for look in looks if look.fault]:
        yield Finding('error', where, f'{len(bad)} of {len(looks)} images cannot be used: {names(bad)}')
    for kind, effect in (('gray', 'repeated to three channels'), ('alpha', 'alpha is dropped'),
                         ('16-bit', 'read as 16 bits; BasicSR\'s own data sets read 8')):
        if some := [look.name for look in looks if look.kind == kind and not look.fault]:
            yield Finding('warning', where, f'{len(some)} {kind} images ({effect}): {names(some)}')
    size = dataset.get('gt_size')
    if dataset['phase'] == 'train' and isinstance(size, int):
        small = [f'{look.name} {look.size[1]}x{look.size[0]}' for look in looks
                 if not look.fault and min(look.size) < size]
        made = dataset.get('type') == 'SyntheticUniversalDataset'
        if made and (fault := _too_large_crops(looks, dataset)):
            yield Finding('error', where, fault)
        elif small:
            yield Finding('warning' if made else 'error', where, f'{len(small)} images are smaller than gt_size {size}'
                          + (' and will be enlarged' if made else '') + f': {names(small)}')


def check_headers(dataset: Dataset, where: str) -> None:
    """Check the headers of a training set of ours, so that unusable images are found before training.

    Checks at most ``HEADERS`` evenly spaced files. LMDBs are skipped, as their images were checked when written.
    Raises OptionError if more than ``max_bad_share`` of them cannot be used, or crops are too large for most of them.
    """
    if isinstance(dataset, UniversalPairedDataset):
        sources = [source for task in dataset.tasks for source in (task.gt, task.lq)]
    else:
        sources = getattr(dataset.clean, 'sources', [dataset.clean])
    files = [(source, index) for source in sources if isinstance(source, ImageSource) and not source.is_lmdb
             for index in range(len(source))]
    files = files[::-(-len(files) // HEADERS) or 1]
    with ThreadPoolExecutor() as pool:
        looks = list(pool.map(lambda file: _look_at_header(*file), files))
    bad = [look.fault for look in looks if look.fault]
    if len(bad) > dataset.max_bad_share * len(looks):
        raise OptionError(f'{where}: {len(bad)} of {len(looks)} images cannot be used, more than max_bad_share '
                          f'{dataset.max_bad_share:g} allows: {names(bad)}')
    if fault := _too_large_crops(looks, dataset.opt):
        raise OptionError(f'{where}: {fault}')


def _too_large_crops(looks: Sequence[Look], dataset: Mapping[str, Any]) -> str | None:
    size, batch = dataset['gt_size'], dataset.get('batch_size_per_gpu', 1)
    small = [look for look in looks if not look.fault and 2 * min(look.size) < size]
    if len(small) <= len(looks) / 2:
        return None
    return (f'gt_size: found {size}, more than twice the shorter side of {len(small)} of {len(looks)} images '
            f'({small[0].name} {small[0].size[1]}x{small[0].size[0]}); a batch of {batch} pairs would take '
            f'{batch * 24 * size**2 / 2**20:,.0f} MiB even without a network. Set gt_size to fit the images.')


def _look_at_header(source: ImageSource, index: int) -> Look:
    name = source.path(index)
    try:
        with Image.open(name) as image, open(name, 'rb') as file:
            start = file.read(8)
            file.seek(max(0, Path(name).stat().st_size - 64))
            if has_end(start, file.read()):
                return Look(name, None, image.size[::-1])
    # On a damaged file, Pillow's decoders can raise any exception; OpenCV then decides.
    except Exception:
        pass
    try:
        return Look(name, None, source.decode(index).shape[:2])
    except ImageError as error:
        return Look(name, str(error))


def inspect_data(datasets: Mapping[str, Mapping[str, Any]], given: Iterable[str] = ()) -> Iterator[Finding]:
    """Yield findings on blocks of ``datasets:`` and images in both training and validation; skip ``given`` errors."""
    seen: dict[str, dict[str, str]] = {'train': {}, 'val': {}}
    for phase, dataset in datasets.items():
        side = seen['train' if dataset['phase'] == 'train' else 'val']
        where = f'datasets: {phase}'
        try:
            if dataset.get('type') == 'SyntheticUniversalDataset':
                yield from inspect_clean(dataset, where, side)
            else:
                for task in open_tasks(dataset):
                    yield from inspect_pairs(task, f'{where}: {task.name}', dataset, side)
        except OptionError as error:
            if not any(str(error) in message for message in given):
                yield Finding('error', where, str(error))
    if shared := seen['train'].keys() & seen['val'].keys():
        pairs = sorted(f'{seen["val"][digest]} = {seen["train"][digest]}' for digest in shared)
        yield Finding('error', 'datasets', f'{len(shared)} images are in training and in validation: {names(pairs)}')
