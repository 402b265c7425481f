"""Restores a photo with a network exported as ONNX. Needs numpy, pillow and onnxruntime, and neither torch nor BasicSR.

    python scripts/model_conversion/export_network.py rdbm_plugin/inference/weights/rdbm_t.pth rdbm.onnx
    python scripts/examples/example_onnx.py rdbm.onnx photo.png restored.png
"""
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def restore(session: onnxruntime.InferenceSession, mu: np.ndarray) -> np.ndarray:
    """Degraded images, (N, 3, H, W) float32 in [-1, 1] -> restored ones."""
    z = np.zeros_like(mu)
    for t, z_weight, residual_weight in json.loads(session.get_modelmeta().custom_metadata_map['plan']):
        residual, = session.run(None, {'x_t': mu + z, 'mu': mu, 't': np.full(len(mu), t, np.int64)})
        z = z_weight * z + residual_weight * residual
    return mu + z


if __name__ == '__main__':
    if len(sys.argv) != 4 or Path(sys.argv[3]).exists():
        sys.exit('Expected: example_onnx.py NETWORK.onnx PHOTO OUT, and no file OUT yet.')
    model, source, target = sys.argv[1:]
    session = onnxruntime.InferenceSession(model, providers=['CPUExecutionProvider'])
    photo = np.asarray(ImageOps.exif_transpose(Image.open(source)).convert('RGB'), np.float32) / 255
    restored = restore(session, 2 * photo.transpose(2, 0, 1)[None] - 1)[0].transpose(1, 2, 0)
    Image.fromarray(np.rint(255 * np.clip((restored + 1) / 2, 0, 1)).astype(np.uint8)).save(target)
