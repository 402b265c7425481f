"""The restored pictures of a comparison: from option files of any BasicSR model, or from folders."""
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from typing import Any

import cv2
import torch
from basicsr.data import build_dataset
from basicsr.models import build_model
from basicsr.utils import tensor2img
from torch.utils.data import Dataset, default_collate

from rdbm_plugin.archs.checkpoint import find_network
from rdbm_plugin.config.atomic_write import write_atomically
from rdbm_plugin.config.options import OptionError
from rdbm_plugin.evaluation.cost import Cost, measure
from rdbm_plugin.evaluation.pictures import Picture
from rdbm_plugin.evaluation.results import plain
from rdbm_plugin.evaluation.scoring import image_name

TIMED_IMAGES = 3


@dataclass
class Method:
    """One row of the comparison."""

    name: str
    folder: Path
    """Holds the restored pictures as ``SET/IMAGE.png`` or, as BasicSR names them, ``SET/IMAGE_SUFFIX.png``."""
    opt: dict[str, Any] | None = None
    """Options to run the method with; None for a folder of finished results."""
    cost: Cost | None = None
    fault: str | None = None
    """Why the method failed."""
    gaps: list[str] = field(default_factory=list)
    """What is missing from a folder of finished results, or does not fit and is left out."""

    def folders(self, dataset: str) -> list[Path]:
        """Return the existing folders that may hold the restored pictures of a test set."""
        return [root for root in (self.folder / 'visualization' / dataset, self.folder / dataset) if root.is_dir()]


def read_sets(opt: Mapping[str, Any]) -> dict[str, Dataset]:
    """Return name -> data set of each test or validation block, in file order; raise OptionError if there is none."""
    blocks = [block for phase, block in opt['datasets'].items() if not phase.startswith('train')]
    if not blocks:
        raise OptionError('datasets: no test_ or val_ block in the file that defines the test sets.')
    return {block['name']: build_dataset(deepcopy(block)) for block in blocks}


def items(sets: Mapping[str, Dataset]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield the set, the image name and a batch of one for every test image."""
    for dataset, images in sets.items():
        for index in range(len(images)):
            data = default_collate([images[index]])
            yield dataset, image_name(data), data


def run(method: Method, sets: Mapping[str, Dataset], tell: Callable[[], object], timed: bool = True) -> None:
    """Restore the images not yet restored with the same options and weights; measure the cost if ``timed``.

    The folder of the method is created, or emptied if other options filled it. ``tell`` is called before each image.
    """
    opt = {**method.opt, 'dist': False, 'rank': 0, 'world_size': 1, 'is_train': False}
    done = {'fingerprint': fingerprint(opt, sets)}
    note = method.folder / 'made_with.json'
    if method.folder.exists() and not note.is_file():
        raise OptionError(f'{method.folder}: holds files that are not from an earlier comparison; choose another -o.')
    if note.is_file() and json.loads(note.read_text(encoding='utf-8')) != done:
        shutil.rmtree(method.folder)
    method.folder.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(done), encoding='utf-8')
    model, timing = build_model(opt), []
    for dataset, name, data in items(sets):
        tell()
        if len(timing) < TIMED_IMAGES:
            timing.append(data['lq'])
        target = method.folder / dataset / f'{name}.png'
        if target.is_file():
            continue
        model.feed_data(data)
        model.test()
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, cv2.imencode('.png', tensor2img([model.get_current_visuals()['result']]))[1].tobytes())
    if timed:
        method.cost = measure(model, timing)
    del model
    torch.cuda.empty_cache()


def fingerprint(opt: Mapping[str, Any], sets: Mapping[str, Dataset]) -> str:
    """Return a hash of everything that determines the restored pictures."""
    checkpoint = find_network(opt['path']['pretrain_network_g'])
    parts = {key: opt.get(key) for key in ('model_type', 'manual_seed', 'bridge', 'network_g', 'scale')}
    parts['val'] = {key: value for key, value in (opt.get('val') or {}).items() if key not in ('metrics', 'pbar')}
    parts['sets'] = {name: {key: value for key, value in images.opt.items() if key != 'phase'}
                     for name, images in sets.items()}
    parts['weights'] = hashlib.sha256(checkpoint.read_bytes()).hexdigest(), opt['path'].get('param_key_g')
    return hashlib.sha256(json.dumps(plain(parts), sort_keys=True).encode()).hexdigest()


def find_picture(method: Method, dataset: str, name: str) -> Path:
    """Return the file with the restored picture of a test image; raise OptionError unless there is exactly one."""
    folder = method.folder
    for root in method.folders(dataset):
        parent = root / Path(name).parent
        stem = escape(Path(name).name)
        found: list[Path] = []
        for pattern in (f'{stem}.*', f'{stem}_{escape(folder.name)}.*', f'{stem}_*.*'):
            found = found or [path for path in parent.glob(pattern) if path.is_file()]
        if len(found) > 1:
            raise OptionError(f'{folder}: {len(found)} pictures could be {dataset}/{name}: '
                              f'{", ".join(path.name for path in sorted(found)[:3])}; keep one.')
        if found:
            return found[0]
    raise OptionError(f'{folder}: no picture of {dataset}/{name}; expected {dataset}/{name}.png or '
                      f'visualization/{dataset}/{name}_SUFFIX.png.')


def read_picture(path: Path, clean: Picture | None) -> Picture:
    """Return a restored picture, BGR; raise OptionError if it is unreadable or its size is not the ground truth's."""
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if picture is None:
        raise OptionError(f'{path}: not a readable image.')
    if clean is not None and picture.shape != clean.shape:
        found, wanted = (f'{each.shape[1]}x{each.shape[0]}' for each in (picture, clean))
        raise OptionError(f'{path}: is {found}, but its ground truth is {wanted}.')
    return picture


def unique_names(names: Sequence[str]) -> list[str]:
    """Return the names, with a number appended to each repeated one."""
    counts = [names[:place + 1].count(name) for place, name in enumerate(names)]
    return [name if count == 1 else f'{name} ({count})' for name, count in zip(names, counts)]
