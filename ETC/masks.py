"""Masks drawn onto photos of faces, for ETC.sample.

A mask is drawn flat, as it looks from the front, and then bent around the head: a cylinder, turned
as far as the nose is from the middle of the face. x grows to the right and y downwards, in face
units: 1 is the distance from the eyes to the mouth, and the origin lies midway between the eyes.
t is a mask's own height: 0 at the upper and 1 at the lower edge.
"""

from types import SimpleNamespace

import cv2
import numpy as np

from ETC.canvas import MIRROR, arc, symmetric

# The flat drawing: px per unit of x and per unit of t.
ACROSS, ALONG = 84, 124
T, X = np.mgrid[-0.2 : 1.3 : 1 / ALONG, -1.3 : 1.3 : 1 / ACROSS].astype(np.float32)
ORIGIN = np.array([1.3 * ACROSS, 0.2 * ALONG])  # px
SIZE = X.shape[::-1]
GRAIN = np.random.default_rng(0).normal(size=(1024, 1024)).astype(np.float32)
# The head: its radius, and how far eyes and nose stand out from its axis.
RADIUS, EYES, NOSE = 1.25, 1.14, 1.62

BLUES = ((150, 196, 226), (122, 178, 214), (176, 212, 236), (96, 150, 204))
SURGICAL = (
    *BLUES, *BLUES, (240, 242, 244), (228, 230, 232), (232, 222, 214), (150, 206, 184),
    (96, 176, 164), (60, 124, 130), (32, 32, 36), (52, 54, 60), (240, 184, 200), (226, 206, 224),
    (120, 124, 132), (48, 62, 98),
)  # fmt: skip
# Of each kind: its weight when five kinds are drawn, how often it is patterned, how far it stands
# out, and the right half of its outline, points of x, in percent of the half width, and t.
KINDS = {
    "surgical": (0.31, 0.22, 0.1, (
        (0, 0), (22, 0), (62, 7), (102, 16), (100, 66), (78, 90), (30, 103), (0, 103),
    )),
    "kn95": (0.12, 0, 0.3, (
        (0, -6), (16, -3), (55, 12), (105, 24), (100, 50), (62, 86), (14, 108), (0, 110),
    )),
    "kf94": (0.09, 0, 0.26, (
        (0, -2), (20, 0), (70, 18), (106, 36), (100, 62), (66, 86), (34, 104), (0, 104),
    )),
    "n95": (0.11, 0, 0.34, (
        (0, -5), (20, 0), (62, 20), (92, 50), (92, 74), (68, 96), (30, 106), (0, 106),
    )),
    "cloth": (0.22, 0.62, 0.18, (
        (0, -4), (20, 0), (66, 14), (104, 20), (100, 56), (70, 86), (24, 106), (0, 106),
    )),
    "sports": (0.09, 0.12, 0.2, (
        (0, -6), (20, -2), (66, 12), (106, 14), (98, 52), (72, 82), (24, 106), (0, 108),
    )),
    "scarf": (0.06, 0.6, 0.1, (
        (0, 0), (30, 0), (80, 2), (130, -8), (130, 62), (90, 90), (34, 124), (0, 128),
    )),
}  # fmt: skip
CHANCES = [chance for chance, *_ in KINDS.values()]
# The chance of each: the nose bare, on or under the chin, over the eyes.
MISWORN = {"nose": 0.4, "chin": 0.4, "eyes": 0.2}


def face_frame(points):
    """Eyes' midpoint (2,) of five landmarks, and the vectors right and down, float (2,), whose
    lengths are a face unit: from the eyes to the mouth.
    """
    eyes, mouth = points[:2].mean(0), points[3:].mean(0)
    down = mouth - eyes
    across = points[1] - points[0] + points[4] - points[3]
    right = np.array([down[1], -down[0]])
    return eyes, right * (1 if right @ across > 0 else -1), down


def any_colour(rng):
    """RGB: strong, pale or dark, or nearly grey."""
    saturation, value = rng.choice([0.1, 0.35, 0.7, 0.9]), rng.choice([0.16, 0.45, 0.7, 0.92])
    hue, saturation = rng.uniform(0, 6), saturation * rng.uniform(0.6, 1)
    rgb = np.clip(np.abs((hue + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    return 255 * value * (1 + saturation * (rgb - 1))


def grain(rng, height, width):
    """Noise of deviation 1, float32 (height, width, 1)."""
    y, x = rng.integers(0, (1025 - height, 1025 - width))
    return GRAIN[y : y + height, x : x + width, None]


def noise(rng, rows, columns):
    """Smooth noise of about -1 to 1, float32 like the flat drawing, with this many hills."""
    return cv2.resize(
        rng.uniform(-1.4, 1.4, (rows, columns)).astype(np.float32), SIZE,
        interpolation=cv2.INTER_CUBIC,
    )  # fmt: skip


# Patterns paint image, the flat drawing, uint8 RGB, in place.


def checks(image, rng):
    step, colour = rng.uniform(0.05, 0.2), any_colour(rng)
    thin = rng.uniform(-0.3, 0.8)
    for wave in (np.sin(X * np.pi / step), np.sin(T * np.pi * 1.5 / step)):
        image[:] = image + (0.5 * (wave > thin))[..., None] * (colour - image)


def stripes(image, rng):
    angle, step = rng.choice([0, np.pi / 2, rng.uniform(0, np.pi)]), rng.uniform(0.06, 0.3)
    wave = np.sin((X * np.cos(angle) + T * 1.5 * np.sin(angle)) * np.pi / step)
    image[wave > rng.uniform(-0.5, 0.6)] = any_colour(rng)


def bands(image, rng):
    """As of a flag."""
    along = T * 1.2 if rng.random() < 0.6 else X / 2 + 0.5
    for number in range(1, rng.integers(2, 4)):
        image[along > number / 3 + rng.uniform(-0.05, 0.05)] = any_colour(rng)


def dots(image, rng):
    step, colour = int(rng.integers(10, 34)), any_colour(rng)
    radius = max(2, int(step * rng.uniform(0.15, 0.4)))
    for row, y in enumerate(range(0, SIZE[1], step)):
        for x in range(row % 2 * step // 2, SIZE[0], step):
            cv2.circle(image, (x, y), radius, colour, -1, cv2.LINE_AA)


def flowers(image, rng):
    """Blossoms and leaves."""
    colours = [any_colour(rng) for _ in range(3)]
    size, petals = rng.uniform(4, 14), int(rng.integers(3, 7))
    for x, y in rng.uniform(0, SIZE, (int(min(1600 / size, 200)), 2)):
        turn, scale = rng.uniform(0, 360), size * rng.uniform(0.6, 1.2)
        centre, colour = np.array([x, y]), colours[int(rng.integers(3))]
        for petal in range(petals):
            angle = turn + 360 * petal / petals
            place = centre + scale * 0.6 * np.array(
                [np.cos(np.radians(angle)), np.sin(np.radians(angle))]
            )
            axes = (max(1, int(scale * 0.55)), max(1, int(scale * 0.3)))
            cv2.ellipse(image, (*place.astype(int).tolist(),), axes, angle, 0, 360, colour, -1)
        cv2.circle(image, (int(x), int(y)), max(1, int(scale / 4)), colours[0], -1)


def camouflage(image, rng):
    scale = int(rng.integers(8, 22))
    for _ in range(int(rng.integers(1, 4))):
        image[noise(rng, scale, scale) > rng.uniform(0, 0.4)] = any_colour(rng)


def emblem(image, rng):
    """A mark or a mouth, in the middle or aside."""
    colour, x = any_colour(rng), rng.choice([0, 0, rng.uniform(-0.6, 0.6)])
    x, y = (np.array([x * ACROSS, rng.uniform(0.35, 0.7) * ALONG]) + ORIGIN).astype(int).tolist()
    kind, size, fill = rng.integers(3), int(rng.integers(6, 34)), int(rng.choice([-1, 3]))
    if kind == 0:
        cv2.circle(image, (x, y), size, colour, fill, cv2.LINE_AA)
    elif kind == 1:
        cv2.ellipse(image, (x, y), (2 * size, size), 0, 0, 180, colour, fill, cv2.LINE_AA)
    else:
        corners = rng.uniform(-size, size, (6, 2)) * (1.6, 1) + (x, y)
        cv2.fillPoly(image, [corners.astype(np.int32)], colour, cv2.LINE_AA)


PATTERNS = (checks, stripes, bands, dots, flowers, flowers, flowers, camouflage, emblem)


def choose_mask(rng, kind):
    """What makes a mask itself, however it's worn; kind: of KINDS."""
    _, patterned, bulge, outline = KINDS[kind]
    patterned = rng.random() < patterned
    if kind == "surgical":
        colour = np.array(SURGICAL[rng.integers(len(SURGICAL))])
    elif kind in ("kn95", "kf94", "n95") and rng.random() < 0.75:
        colour = rng.choice([242, 226, 200, 40]) + rng.uniform(-6, 6, 3)
    elif patterned or rng.random() < 0.6:
        colour = any_colour(rng)
    else:
        colour = rng.uniform(22, 66) + rng.uniform(-4, 8, 3)
    fabric = np.empty((*SIZE[::-1], 3), np.uint8)
    fabric[:] = np.clip(colour + rng.uniform(-6, 6, 3), 0, 255)
    if patterned:
        PATTERNS[rng.integers(len(PATTERNS))](fabric, rng)
    loops = (any_colour(rng), (236, 236, 236), colour * 0.9)[rng.choice(3, p=[0.15, 0.45, 0.4])]
    outline = np.array(outline) / 100
    outline[1:-1] += rng.uniform(-0.035, 0.035, (len(outline) - 2, 2))
    return SimpleNamespace(
        kind=kind,
        fabric=fabric,
        outline=outline,
        bulge=bulge,
        loops=np.clip(loops, 0, 255),
        valve=kind in ("kn95", "n95", "cloth") and rng.random() < 0.22,
        printed=kind in ("kn95", "n95") and rng.random() < 0.7,
        hem=rng.choice([0, rng.uniform(-0.25, 0.15)]),
    )


def relief(mask, half, rng):
    """How bright each point of the flat drawing is, without the light of the photo, about 1; and
    the slopes of its surface, across and along. All float32, like X.
    """
    kind = mask.kind
    x = X / half
    height = mask.bulge * 60 * np.maximum(1 - 0.7 * x**2 - 1.6 * (T - 0.42) ** 2, 0)
    creases = rng.uniform(0.4, 1.6)
    height += creases * (1.6 * noise(rng, 9, 6) + 0.8 * noise(rng, 26, 16))
    # Pulled from the loops to the nose and the chin.
    for _ in range(int(rng.integers(1, 5))):
        side, low = rng.choice([-1, 1]), rng.uniform(0.1, 0.75)
        line = T - low - rng.uniform(-0.5, 0.5) * (x * side - 1)
        fade = np.clip(x * side - rng.uniform(0, 0.4), 0, 1)
        height += creases * 2.4 * fade * np.exp(-((line / 0.03) ** 2))
    shade = np.ones_like(X)
    if kind == "surgical":
        pleats, top, depth = int(rng.integers(3, 5)), rng.uniform(0.2, 0.3), rng.uniform(3, 8)
        place = (T - top + 0.05 * x**2 * rng.uniform(-1, 2)) / (0.56 / pleats)
        inside = ((place > 0) & (place < pleats)).astype(np.float32)
        fold = place - np.floor(place)
        height += inside * depth * cv2.GaussianBlur(fold, (0, 0), 1.2)
        dark = cv2.GaussianBlur(inside * (fold < 0.12), (0, 0), 0.8)
        shade -= rng.uniform(0.04, 0.18) * dark * (1 - 0.4 * np.abs(x))
    elif kind in ("kn95", "sports") or (kind == "cloth" and rng.random() < 0.7):
        seam = 0.05 * np.sin(T * 3) * rng.uniform(-1, 1) + x
        height -= (16 if kind == "kn95" else 10) * np.sqrt(seam**2 + 0.002)
        shade -= 0.16 * np.exp(-((seam / 0.012) ** 2))
    elif kind == "kf94":
        for line in (0.3 + 0.12 * x**2, 0.72 - 0.14 * x**2):
            height -= 9 * np.sqrt((T - line) ** 2 + 0.001) * rng.uniform(0.6, 1.3)
            shade -= 0.14 * np.exp(-(((T - line) / 0.01) ** 2))
    elif kind == "n95":
        ring = np.sqrt((x / 0.92) ** 2 + ((T - 0.52) / 0.56) ** 2)
        height -= 4 * np.exp(-(((ring - rng.uniform(0.72, 0.86)) / 0.03) ** 2))
    else:  # folds that hang from ear to ear
        for depth in (4, 3, 2):
            swing = T - rng.uniform(0.1, 1) + 0.3 * x**2 * rng.uniform(0.3, 1.4)
            height += depth * np.exp(-((swing / rng.uniform(0.04, 0.1)) ** 2))
    if kind in ("cloth", "scarf") and rng.random() < 0.7:  # a weave
        height += rng.uniform(0.1, 0.5) * np.sin(X * ACROSS * 1.9) * np.sin(T * ALONG * 1.9)
    if mask.printed:
        side = rng.choice([-1, 1])
        for row, length in enumerate(rng.uniform(0.1, 0.3, rng.integers(2, 5))):
            line = (np.abs(x - side * 0.45) < length / 2) & (np.abs(T - 0.5 - 0.07 * row) < 0.018)
            shade -= 0.5 * (line & (np.sin(X * ACROSS * 1.1 + row) > -0.4))
    if mask.kind == "kn95" and rng.random() < 0.6:  # the weld along the edge
        edge = np.abs(T - 0.1 - 0.2 * np.abs(x)) < 0.008
        shade -= 0.2 * (edge & (np.sin(X * ACROSS * 0.9) > 0))
    # The wire over the nose.
    if kind != "scarf":
        wire = np.exp(-(((T - 0.07) / 0.022) ** 2) - (x / 0.3) ** 6)
        height += rng.uniform(0, 4) * wire
    slopes = [cv2.Sobel(height, -1, 1 - axis, axis, scale=1 / 8) for axis in range(2)]
    return shade, slopes


def flat_mask(mask, half, light, rng):
    """The mask from the front, uint8 RGBA; half: its half width; light: where it comes from, (x, y)
    of -1 to 1.
    """
    shade, (slope_x, slope_y) = relief(mask, half, rng)
    # Slopes per px; the light comes from above anyway.
    lit = -slope_x * (0.5 * light[0]) + slope_y * (0.55 + 0.3 * light[1])
    shade *= np.clip(1 + 0.5 * lit, 0.45, 1.5)
    outline = symmetric(*(mask.outline * (half, 1)))
    points = [np.round(outline * (ACROSS, ALONG) + ORIGIN).astype(np.int32)]
    image, cover = mask.fabric.astype(np.float32), np.zeros(SIZE[::-1], np.uint8)
    if mask.hem:
        cv2.polylines(shade, points, True, 1 + mask.hem, 6, cv2.LINE_AA)
    if mask.valve:
        draw_valve(image, shade, mask, half, rng)
    image *= shade[..., None]
    cv2.fillPoly(cover, points, 255, cv2.LINE_AA)
    return np.dstack([np.clip(image, 0, 255).astype(np.uint8), cover])


def draw_valve(image, shade, mask, half, rng):
    """Draw a valve into a mask's colours, float32 RGB, and its brightness, both in place."""
    x = 0 if mask.kind == "n95" else rng.choice([-0.5, 0.5]) * half
    centre = (np.array([x * ACROSS, 0.5 * ALONG]) + ORIGIN).astype(int).tolist()
    radius = int(rng.integers(11, 19))
    tone = float(rng.choice([236, 190, 60]))
    cv2.circle(shade, np.add(centre, (1, 3)).tolist(), radius + 2, 0.72, -1, cv2.LINE_AA)
    cv2.circle(shade, centre, radius, 1.0, -1, cv2.LINE_AA)
    cv2.circle(image, centre, radius, (tone, tone, tone), -1, cv2.LINE_AA)
    for offset in range(-radius // 2, radius, radius // 2):
        start = np.add(centre, (-radius // 2, offset)).tolist()
        cv2.line(shade, start, np.add(start, (radius, 0)).tolist(), 0.66, 2, cv2.LINE_AA)


def place(points, how, rng):
    """Upper and lower y, and the half width, of a mask worn on these landmarks; how: worn, or one
    of MISWORN.
    """
    eyes, _, down = face_frame(points)
    nose = float((points[2] - eyes) @ down / (down @ down))
    half = rng.uniform(0.95, 1.26)
    if how == "worn":
        top, bottom = min(rng.uniform(0.2, 0.58), nose - 0.08), rng.uniform(1.76, 2.36)
    elif how == "nose":
        top, bottom = max(rng.uniform(0.78, 1.1), nose + 0.18), rng.uniform(1.85, 2.4)
    elif how == "chin":
        top = rng.uniform(1.3, 1.8)  # further down, it would be outside of the crop
        bottom = top + rng.uniform(0.55, 0.95)
        half *= rng.uniform(0.85, 1.1)
    else:
        top, bottom = rng.uniform(-0.85, -0.4), rng.uniform(0.38, 0.72)
    return top, bottom, half


class Head:
    """The cylinder on which a face with these landmarks lies.

    turn: the sine of the angle to the right; axes: a face unit to the right and down, float (2, 2);
    origin: the midpoint of the eyes, float (2,); unit: a face unit, all in pixels but turn.
    """

    def __init__(self, points):
        eyes, right, down = face_frame(points)
        turn = float((points[2] - eyes) @ right / (right @ right)) / (NOSE - EYES)
        self.turn = np.clip(0.9 * turn, -0.65, 0.65)  # the sine of an angle
        # MTCNN's eyes and mouth are 1.85 face units wide together, in a face from the front.
        across = np.linalg.norm(points[1] - points[0]) + np.linalg.norm(points[4] - points[3])
        wide = across / np.linalg.norm(right) / 1.85 / np.sqrt(1 - self.turn**2)
        self.axes = np.array([right * np.clip(wide, 0.88, 1.12), down])
        self.origin = eyes
        self.unit = float(np.linalg.norm(down))

    def project(self, flat):
        """Points (N, 2), x and y in face units, from the flat drawing to pixels, where visible."""
        angle = np.arcsin(np.clip(flat[:, 0] / RADIUS, -1, 1)) + np.arcsin(self.turn)
        x = RADIUS * np.sin(angle) - EYES * self.turn
        return (np.stack([x, flat[:, 1]], 1) @ self.axes + self.origin)[np.abs(angle) < 1.5]

    def coordinates(self, size):
        """x and y of each pixel of an area of this size, in face units, of a flat face."""
        y, x = np.mgrid[: size[1], : size[0]].astype(np.float32)
        (a, b), (c, d) = np.linalg.inv(self.axes).astype(np.float32)
        x, y = x - np.float32(self.origin[0]), y - np.float32(self.origin[1])
        return a * x + c * y, b * x + d * y

    def unproject(self, size, top, bottom, bulge):
        """Where each pixel of an area of this size lies in the flat drawing of a mask from y top to
        bottom that stands out by bulge: two maps for cv2.remap.
        """
        x, y = self.coordinates(size)
        t = (y - np.float32(top)) / np.float32(bottom - top)
        middle = np.maximum(1 - x * x - 2 * (t - 0.45) ** 2, 0)
        sine = (x + np.float32(self.turn * EYES) - np.float32(self.turn * bulge) * middle) / RADIUS
        angle = np.arcsin(np.clip(sine, -1, 1)) - np.float32(np.arcsin(self.turn))
        x = RADIUS * np.sin(angle)
        x[(np.abs(sine) >= 1) | (np.abs(angle) > 1.5)] = 99  # outside of the flat drawing
        return x * ACROSS + np.float32(ORIGIN[0]), t * ALONG + np.float32(ORIGIN[1])


def draw_loops(layer, head, mask, top, bottom, half, rng):
    """Loops to the ears, or straps around the head, beside a mask drawn on layer, uint8 RGBA."""
    ears = rng.uniform((-0.05, 0.24), (0.12, 0.44))
    starts, x, width = (0.22, 0.6), rng.uniform(1.04, 1.16), rng.uniform(0.012, 0.03)
    if mask.kind == "n95" and rng.random() < 0.7:
        starts, ears = (0.5, 0.62), np.add(ears, (-0.3, 0.1))
    if mask.kind == "sports":
        width = rng.uniform(0.05, 0.14)
    cover = np.zeros(layer.shape[:2], np.uint8)
    for start, ear in zip(starts, ears):
        begin, end = (0.94 * half, top + start * (bottom - top)), (x, ear)
        loop = arc(begin, np.add(begin, end) / 2 + (rng.uniform(0, 0.04), 0.03), end)
        for flat in (loop, loop * MIRROR):
            line = np.round(head.project(flat) * 16).astype(np.int32)
            if len(line):  # on the side that is seen
                thick = max(1, round(width * head.unit))
                cv2.polylines(cover, [line], False, 255, thick, cv2.LINE_AA, 4)
    behind = cover > layer[..., 3]
    layer[behind, :3] = mask.loops
    layer[behind, 3] = cover[behind]


def face_light(image, points):
    """What a mask or a hand has in common with the face: the side the light comes from, (x, y) of
    -1 to 1; exposure and colour of the light, float32 (3,); the colour of the skin, float (3,); how
    colourful the photo is, 0 to 1; its grain.
    """
    eyes, right, down = face_frame(points)
    unit = np.linalg.norm(down)

    def patch(x, y):
        cx, cy = (eyes + x * right + y * down).astype(int)
        r = max(2, int(0.14 * unit))
        area = image[max(cy - r, 0) : cy + r, max(cx - r, 0) : cx + r]
        return area if area.size else image

    left, other, brow, chin = (
        patch(*at).reshape(-1, 3).mean(0)
        for at in ((-0.55, 0.6), (0.55, 0.6), (0, -0.45), (0, 1.4))
    )
    mean = (left + other + brow + chin) / 4
    side = (other.sum() - left.sum()) / (other.sum() + left.sum() + 1)
    above = (brow.sum() - chin.sum()) / (brow.sum() + chin.sum() + 1)
    # White is as bright as the brightest of the photo, and less so in a dark face.
    bright = np.percentile(image[::6, ::6].max(2), 95)
    exposure = np.clip((bright / 235) ** 0.7, 0.45, 1.02)
    exposure *= np.clip((mean.mean() / 150) ** 0.4, 0.72, 1.06)
    fine = cv2.Laplacian(cv2.cvtColor(patch(0, 0.5), cv2.COLOR_RGB2GRAY), cv2.CV_32F)
    return SimpleNamespace(
        side=np.clip([3 * side, 2 * above], -1, 1),
        skin=(left + other) / 2,
        gain=np.float32(exposure * (1 + 0.1 * (mean / mean.mean() - (1.16, 0.98, 0.86)))),
        colours=float(np.clip((mean.max() - mean.min()) / 22, 0, 1)),
        grain=float(np.clip(np.median(np.abs(fine)) / 6, 0.4, 5)),
    )


def wear(image, points, mask, how, blur, light, rng):
    """Draw a mask onto image, uint8 RGB, in place.

    points: five landmarks; mask: from choose_mask; how: worn, or one of MISWORN; blur: of edges in
    the photo, in px; light: from face_light.
    """
    top, bottom, half = place(points, how, rng)
    tilt, centre = np.radians(rng.normal(0, 2.5)), points.mean(0)
    tilted = (points - centre) @ [[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]]
    head = Head(tilted + centre)
    head.origin = head.origin + rng.uniform((-0.06, -0.03), (0.06, 0.03)) * head.unit
    reach = 1.35 * np.linalg.norm(head.axes[0])
    ends = head.origin + np.outer([min(top - 0.3, -0.2), bottom + 0.6], head.axes[1])
    low = np.maximum((ends.min(0) - reach).astype(int), 0)
    high = np.minimum((ends.max(0) + reach).astype(int), image.shape[1::-1])
    head.origin = head.origin - low
    area = image[low[1] : high[1], low[0] : high[0]]
    flat = flat_mask(mask, half, light.side, rng)
    maps = head.unproject(high - low, top, bottom, mask.bulge)
    layer = cv2.remap(flat, *maps, cv2.INTER_LINEAR, borderValue=0)
    if mask.kind != "scarf" and rng.random() < 0.5:  # else hair hides them
        draw_loops(layer, head, mask, top, bottom, half, rng)
    layer = cv2.GaussianBlur(layer, (0, 0), blur)
    # Nothing else changes than what is covered, and the skin around it.
    x, y, w, h = cv2.boundingRect(layer[..., 3])
    pad = int(0.2 * head.unit)
    inside = slice(max(y - pad, 0), y + h + pad), slice(max(x - pad, 0), x + w + pad)
    area, layer, left = area[inside], layer[inside], inside[1].start
    cover = layer[..., 3]
    shift = np.float32([[1, 0, -0.03 * head.unit * light.side[0]], [0, 1, 0.05 * head.unit]])
    shadow = cv2.warpAffine(cover, shift, cover.shape[::-1])
    shadow = cv2.GaussianBlur(shadow, (0, 0), 0.05 * head.unit)
    colour = layer[..., :3].astype(np.float32)
    if light.colours < 1:
        grey = colour.mean(2, keepdims=True)
        colour = grey + light.colours * (colour - grey)
    ramp = 1 + 0.3 * light.side[0] * (np.arange(cover.shape[1]) + left - head.origin[0]) / head.unit
    colour *= light.gain * np.clip(ramp, 0.6, 1.25).astype(np.float32)[:, None]
    colour += light.grain * grain(rng, *cover.shape)
    cover = cover[..., None] * np.float32(1 / 255)
    skin = area * (1 - np.float32(rng.uniform(0.25, 0.5) / 255) * shadow[..., None])
    area[:] = np.clip(skin + cover * (colour - skin), 0, 255)
