"""The canvas of ETC.portrait: its units, and shapes with soft edges painted on it.

Lengths are in face units unless a comment says px: 1 is half the width of a face, the origin lies
midway between the eyes, x grows to the right and y downwards. Colours are RGB from 0 to 255.
"""

import cv2
import numpy as np

cv2.setNumThreads(1)  # with more, the same seed would draw other pixels on other machines

WIDTH, HEIGHT = 384, 512  # px
MARGIN = 28  # px drawn around the picture, so that turning and shifting it bares no edge
FRAME = (WIDTH + 2 * MARGIN, HEIGHT + 2 * MARGIN)  # px
UNIT = 84  # px in a face unit
ORIGIN = np.array([WIDTH / 2, 228]) + MARGIN  # px
STEP = 2  # px; layers are computed on a coarser grid and enlarged, for speed
X, Y = np.meshgrid(*((np.arange(0, n, STEP) + 0.5 - o) / UNIT for n, o in zip(FRAME, ORIGIN)))
X, Y = X.astype(np.float32), Y.astype(np.float32)
MIRROR = np.array([-1.0, 1.0])


def arc(start, through, end, count=14):
    """The points of a parabola that passes through the second point halfway."""
    start, through, end = np.array([start, through, end], float)
    t = np.linspace(0, 1, count)[:, None]
    return start + t * (end - start) + 4 * t * (1 - t) * (through - (start + end) / 2)


def symmetric(*right):
    """A rounded outline from the points of its right half, from top to bottom."""
    points = np.concatenate([right, np.array(right[::-1]) * MIRROR])
    for _ in range(3):  # cutting the corners three times rounds them
        ahead = np.roll(points, -1, axis=0)
        points = np.stack([0.75 * points + 0.25 * ahead, 0.25 * points + 0.75 * ahead], 1)
        points = points.reshape(-1, 2)
    return points


def ribbon(line, width):
    """The outline of a stroke along a line; width is one number, or one for each point."""
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
    """Fill outlines with a colour or from a layer as large as the image; soft blurs the edge."""
    outlines = outlines if isinstance(outlines, list) else [outlines]
    outlines = [outline * UNIT + ORIGIN for outline in outlines]
    radius = round(2.4 * soft * UNIT)  # px; as soft as a Gaussian blur of this deviation
    reach = radius + 2
    left, top = np.maximum(np.min([o.min(0) for o in outlines], 0).astype(int) - reach, 0)
    corner = np.max([o.max(0) for o in outlines], 0).astype(int) + reach
    right, bottom = np.minimum(corner, FRAME)
    cover = np.zeros((bottom - top, right - left), np.uint8)
    for outline in outlines:  # one by one: together, fillPoly leaves their overlaps empty
        fixed_point = np.round((outline - (left, top)) * 16).astype(np.int32)  # 4 fractional bits
        cv2.fillPoly(cover, [fixed_point], 255, cv2.LINE_AA, 4)
    cover = cv2.stackBlur(cover, (2 * radius + 1, 2 * radius + 1)) * np.float32(alpha / 255)
    area = image[top:bottom, left:right]
    source = colour[top:bottom, left:right] if np.ndim(colour) == 3 else np.float32(colour)
    area += (source - area) * cv2.merge([cover] * 3)


def enlarged(layer):
    return cv2.resize(layer, FRAME)
