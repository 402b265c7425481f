"""The page of a comparison: one file that works from the file system, offline."""
import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from rdbm_plugin.evaluation.pictures import Picture
from rdbm_plugin.evaluation.results import Table, plain

TEMPLATE = Path(__file__).with_name('page.html')
MARK = '"DATA"'
LARGEST = 1280
"""Pixels of the longer side of a picture on the page."""
AMPLIFIED = 4
"""Difference maps show this times the mean absolute difference of the channels."""


def source(picture: Picture) -> str:
    """A BGR picture as the address of an ``img`` element."""
    scale = min(1.0, LARGEST / max(picture.shape[:2]))
    if scale < 1:
        picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    content = cv2.imencode('.jpg', picture, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()
    return 'data:image/jpeg;base64,' + base64.b64encode(content).decode()


def difference(picture: Picture, clean: Picture) -> Picture:
    """Map of the absolute difference, amplified; black: none."""
    gap = np.abs(picture.astype(np.int16) - clean).mean(axis=2) * AMPLIFIED
    return cv2.applyColorMap(np.clip(gap, 0, 255).astype(np.uint8), cv2.COLORMAP_INFERNO)


def picture_entry(dataset: str, name: str, pictures: Mapping[str, Picture], clean: Picture | None,
                  scores: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """What the page shows of one test image.

    ``pictures`` is method -> restored, with the degraded one among them; ``scores`` is method -> metric -> score.
    """
    shown = {method: {'picture': source(picture), 'scores': dict(scores.get(method, {})),
                      'difference': None if clean is None else source(difference(picture, clean))}
             for method, picture in pictures.items()}
    if clean is not None:
        shown['clean'] = {'picture': source(clean), 'scores': {}, 'difference': None}
    return {'title': f'{dataset} / {name}', 'shown': shown}


def write_page(path: Path, title: str, tables: Sequence[Table], images: Sequence[Mapping[str, Any]],
               faults: Mapping[str, str], notes: Sequence[str], about: Mapping[str, Any]) -> None:
    """Write the page.

    ``images`` are of :func:`picture_entry`, ``faults`` is method -> why it failed. ``notes``, how numbers were made and
    what was left out, stand under the tables; ``about``, protocols, versions and the like, at the end.
    """
    content = plain({'title': title, 'tables': tables, 'images': images, 'faults': faults, 'notes': notes,
                     'about': json.dumps(plain(about), indent=1)})
    # No text in the data may end the script element that holds it.
    data = json.dumps(content).replace('<', '\\u003c')
    path.write_text(TEMPLATE.read_text(encoding='utf-8').replace(MARK, data), encoding='utf-8')
