"""Shapes with soft edges, an image to paint them on, and its photograph, for ETC.portrait.

Lengths are in face units unless a comment says px: 1 is half the width of a face, the origin lies
midway between the eyes, x grows to the right and y downwards. Colours are RGB from 0 to 255.
"""

import cv2
import numpy as np

cv2.setNumThreads(1)  # else the pixels would depend on the number of cores

WIDTH, HEIGHT = 384, 512  # px
MARGIN = 28  # px drawn beyond each edge of the picture, which is turned and shifted later
FRAME = (WIDTH + 2 * MARGIN, HEIGHT + 2 * MARGIN)  # px
UNIT = 84  # px in a face unit
ORIGIN = np.array([WIDTH / 2, 228]) + MARGIN  # px
STEP = 2  # px; layers are computed on a grid this coarse, then enlarged, for speed
X, Y = np.meshgrid(*((np.arange(0, n, STEP) + 0.5 - o) / UNIT for n, o in zip(FRAME, ORIGIN)))
X, Y = X.astype(np.float32), Y.astype(np.float32)
MIRROR = np.array([-1.0, 1.0])


def arc(start, through, end, count=14):
    """Points along a parabola from start to end that is at through halfway: float (count, 2)."""
    start, through, end = np.array([start, through, end], float)
    t = np.linspace(0, 1, count)[:, None]
    return start + t * (end - start) + 4 * t * (1 - t) * (through - (start + end) / 2)


def symmetric(*right):
    """A rounded outline, float (N, 2), from the points of the right half, top to bottom."""
    points = np.concatenate([right, np.array(right[::-1]) * MIRROR])
    for _ in range(3):  # corner cutting (Chaikin 1974)
        ahead = np.roll(points, -1, axis=0)
        points = np.stack([0.75 * points + 0.25 * ahead, 0.25 * points + 0.75 * ahead], 1)
        points = points.reshape(-1, 2)
    return points


def ribbon(line, width):
    """The outline of a stroke along a line (N, 2), tapered; width: a float, or N of them."""
    along = np.gradient(line, axis=0)
    across = along[:, ::-1] * MIRROR / np.linalg.norm(along, axis=1, keepdims=True)
    taper = np.sin(np.linspace(0.15, np.pi - 0.15, len(line))) ** 0.6
    half = across * (taper * width)[:, None] / 2
    return np.concatenate([line + half, (line - half)[::-1]])


def ellipse(x, y, x_radius, y_radius):
    angles = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    return np.stack([x + x_radius * np.cos(angles), y + y_radius * np.sin(angles)], 1)


def both(outline):
    return [outline, outline * MIRROR]


def paint(image, outlines, colour, soft=0.012, alpha=1.0):
    """Paint outlines into image in an RGB colour or from a layer as large as it; soft: of edges."""
    outlines = outlines if isinstance(outlines, list) else [outlines]
    outlines = [outline * UNIT + ORIGIN for outline in outlines]
    radius = round(2.4 * soft * UNIT)  # px; like a Gaussian blur with soft as its deviation
    reach = radius + 2
    left, top = np.maximum(np.min([o.min(0) for o in outlines], 0).astype(int) - reach, 0)
    corner = np.max([o.max(0) for o in outlines], 0).astype(int) + reach
    right, bottom = np.minimum(corner, FRAME)
    cover = np.zeros((bottom - top, right - left), np.uint8)
    for outline in outlines:  # in one call, fillPoly would leave overlaps empty
        fixed_point = np.round((outline - (left, top)) * 16).astype(np.int32)  # 4 fractional bits
        cv2.fillPoly(cover, [fixed_point], 255, cv2.LINE_AA, 4)
    cover = cv2.stackBlur(cover, (2 * radius + 1, 2 * radius + 1)) * np.float32(alpha / 255)
    area = image[top:bottom, left:right]
    source = colour[top:bottom, left:right] if np.ndim(colour) == 3 else np.float32(colour)
    area += (source - area) * cv2.merge([cover] * 3)


def enlarged(layer):
    return cv2.resize(layer, FRAME)


def photograph(image, rng):
    """Turn, scale and shift the drawing a little, and add a gradient of light and grain."""
    centre = np.add(ORIGIN, (0, 0.3 * UNIT))
    matrix = cv2.getRotationMatrix2D(centre, rng.uniform(-5, 5), rng.uniform(0.96, 1.08))
    matrix[:, 2] += rng.uniform(-9, 9, 2) - MARGIN  # px
    image = cv2.warpAffine(image, matrix, (WIDTH, HEIGHT), borderMode=cv2.BORDER_REPLICATE)
    gain = np.linspace(-1, 1, WIDTH) * rng.uniform(-0.1, 0.1) + rng.uniform(0.9, 1.08)
    gain = np.float32(gain + np.linspace(-1, 1, HEIGHT)[:, None] * rng.uniform(-0.1, 0.1))
    grain = rng.integers(-4, 5, (HEIGHT, WIDTH, 1), np.int8)
    image *= gain[..., None]
    image += grain
    return np.clip(image, 0, 255, out=image).astype(np.uint8)
