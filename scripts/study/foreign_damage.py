"""Damage by other formulas than the package's own, which no training may use: what strangers' photos are like.

Images are RGB, (H, W, 3) float32 in [0, 1]; a numpy Generator decides all. Everything is drawn with OpenCV, in other
spaces and by other laws than in ``rdbm_plugin.data.degradations``, so that a network can gain nothing by knowing those.
"""
import cv2
import numpy as np


def linear(image):
    """sRGB -> light, IEC 61966-2-1."""
    return np.where(image <= 0.04045, image / 12.92, ((image + 0.055) / 1.055)**2.4)


def srgb(light):
    """Light -> sRGB."""
    light = np.clip(light, 0, 1)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light**(1 / 2.4) - 0.055)


def screen(below, above):
    """Blending of two layers as picture editors do it."""
    return 1 - (1 - below) * (1 - above)


def rain(image, rng):
    """Drawn line segments of one wind, near ones longer and softer, screened over a slightly greyed picture."""
    height, width = image.shape[:2]
    wind, sheet = rng.uniform(-25, 25), np.zeros((height, width), np.float32)
    for _ in range(int(height * width * rng.uniform(1e-3, 4e-3))):
        near = rng.random()**2
        length, angle = 6 + 26 * near, np.deg2rad(90 + wind + rng.normal(0, 2))
        start = rng.uniform((0, 0), (width, height))
        end = start + length * np.array([np.cos(angle), np.sin(angle)])
        cv2.line(sheet, *(tuple(int(v) for v in np.rint(16 * p)) for p in (start, end)),
                 float(rng.uniform(0.15, 0.7)), 1 + int(near > 0.6), cv2.LINE_AA, 4)
    sheet = cv2.GaussianBlur(sheet, (0, 0), rng.uniform(0.4, 0.9))[..., None]
    return screen(image * rng.uniform(0.85, 1), sheet * rng.uniform(0.5, 0.9))


def fog(image, rng):
    """exp(-b d), d from the vanishing line outwards and stirred by noise of three octaves; grey air."""
    height, width = image.shape[:2]
    rows = np.abs(np.linspace(0, 1, height) - rng.uniform(0.2, 0.45))[:, None]
    depth = np.repeat(1 / (0.25 + rows), width, axis=1)
    for octave in (3, 6, 12):
        noise = rng.normal(0, 0.5 / octave, (octave, octave))
        depth = depth * (1 + cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC))
    through = np.exp(-rng.uniform(0.25, 0.8) * depth)[..., None]
    return image * through + rng.uniform(0.7, 0.95) * (1 - through)


def snow(image, rng):
    """Discs of three distances, blurred along the fall, laid over with their own opacity."""
    height, width = image.shape[:2]
    for size in (1.0, 2.0, 3.5):
        layer = np.zeros((height, width), np.float32)
        for _ in range(int(height * width * rng.uniform(4e-3, 16e-3) / size**2)):
            centre = tuple(int(v) for v in rng.uniform((0, 0), (16 * width, 16 * height)))
            cv2.circle(layer, centre, int(16 * size * rng.uniform(0.6, 1.4)), float(rng.uniform(0.4, 1)), -1,
                       cv2.LINE_AA, 4)
        layer = cv2.filter2D(layer, -1, walk(rng, int(3 + 3 * size), 0.1))
        image = image + (rng.uniform(0.9, 1) - image) * np.clip(layer, 0, 1)[..., None]
    return image


def walk(rng, length, wobble):
    """Kernel of a point that moves with a velocity that drifts, its path drawn into a grid."""
    side = 2 * length + 1
    kernel = np.zeros((side, side), np.float32)
    angle, point, path = rng.uniform(0, 2 * np.pi), np.zeros(2), []
    for _ in range(length * 4):
        angle += rng.normal(0, wobble)
        point = point + 0.25 * np.array([np.cos(angle), np.sin(angle)])
        path.append(point)
    for x, y in np.clip(np.rint(np.array(path) - np.mean(path, axis=0)).astype(int) + length, 0, side - 1):
        kernel[y, x] += 1
    return kernel / kernel.sum()


def shake(image, rng):
    """A shaken hand over 5 to 19 pixels, in the picture's own values."""
    return cv2.filter2D(image, -1, walk(rng, int(rng.integers(5, 20)), 0.25), borderType=cv2.BORDER_REFLECT)


def dim(image, rng):
    """Less light by 2.5 to 4.5 stops in linear light, and counted photons."""
    light = linear(image) * 2**-rng.uniform(2.5, 4.5)
    photons = rng.uniform(2000, 12000)
    return srgb(rng.poisson(light * photons) / photons)


def jpeg(image, quality):
    """What a JPEG file keeps."""
    coded = cv2.imencode('.jpg', np.rint(255 * image[..., ::-1]).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.imdecode(coded[1], cv2.IMREAD_COLOR)[..., ::-1] / 255


def dark(image, rng):
    """Less light, counted photons, and a JPEG file."""
    return jpeg(dim(image, rng), int(rng.integers(85, 98)))


KINDS = {'rain': rain, 'fog': fog, 'snow': snow, 'shake': shake, 'dark': dark}


def damage(kind, image, rng):
    """A picture damaged by one of KINDS, rounded to 8 bits."""
    return (np.rint(np.clip(KINDS[kind](image.astype(np.float32), rng), 0, 1) * 255) / 255).astype(np.float32)
