"""The page of a comparison: a single file that opens offline from the file system."""
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
LARGEST = 1280
"""Maximum length in pixels of the longer side of a picture on the page."""
AMPLIFIED = 4
"""Factor by which difference maps multiply the mean absolute difference over the channels."""


def source(picture: Picture) -> str:
    """Return a BGR picture as the URL of an ``img`` element."""
    scale = min(1.0, LARGEST / max(picture.shape[:2]))
    if scale < 1:
        picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    content = cv2.imencode('.jpg', picture, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()
    return 'data:image/jpeg;base64,' + base64.b64encode(content).decode()


def difference(picture: Picture, clean: Picture) -> Picture:
    """Return a map of the amplified absolute difference, black where there is none."""
    gap = np.abs(picture.astype(np.int16) - clean).mean(axis=2) * AMPLIFIED
    return cv2.applyColorMap(np.clip(gap, 0, 255).astype(np.uint8), cv2.COLORMAP_INFERNO)


def picture_entry(dataset: str, name: str, pictures: Mapping[str, Picture], clean: Picture | None,
                  scores: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Return what the page shows of one test image.

    ``pictures`` is method -> restored picture, including the degraded one; ``scores`` is method -> metric -> score.
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

    ``images`` come from :func:`picture_entry`; ``faults`` is method -> why it failed. ``notes`` appear under the tables
    and say how scores were computed and what was left out; ``about``, such as versions, appears at the end.
    """
    content = plain({'title': title, 'tables': tables, 'images': images, 'faults': faults, 'notes': notes,
                     'about': json.dumps(plain(about), indent=1)})
    # Text in the data must not close the script element that holds it.
    data = json.dumps(content).replace('<', '\\u003c')
    path.write_text(TEMPLATE.read_text(encoding='utf-8').replace('"DATA"', data), encoding='utf-8')
