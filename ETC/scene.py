"""Portraits of 384 x 512 from public photos of faces, for ETC.sample, and seven shots of each.

A photo that shows head and shoulders is cropped. One that shows a face only is given the rest.
"""

import cv2
import numpy as np

from ETC.canvas import FRAME, HEIGHT, MARGIN, MIRROR, WIDTH, arc, symmetric
from ETC.masks import (
    CHANCES,
    KINDS,
    MISWORN,
    any_colour,
    choose_mask,
    face_frame,
    face_light,
    grain,
    wear,
)
from ETC.occluders import occlude
from ETC.portrait import SHOTS

# A face unit is the distance from the eyes to the mouth here, other than in ETC.canvas.
# What has to be around the eyes for a photo to be cropped: to the sides, above and below.
ROOM = (1.35, 1.1, 2.0)
FACE_UNIT = (62, 132)  # px; the range that is drawn from
GRID = (FRAME[0] // 2, FRAME[1] // 2)  # what is drawn around a face is coarse
MAX_FACE_UNIT = 140  # px, in a cropped photo
MAX_ZOOM = 2


def scaled(photo, points, zoom):
    """A photo, uint8 RGB, and the landmarks in it, float (5, 2), enlarged by zoom."""
    how = cv2.INTER_AREA if zoom < 1 else cv2.INTER_CUBIC
    size = [max(1, round(side * zoom)) for side in photo.shape[1::-1]]
    factor = np.divide(size, photo.shape[1::-1])
    return cv2.resize(photo, size, interpolation=how), points * factor


def portrait(photo, points, rng):
    """A picture as large as FRAME, uint8 RGB, the landmarks in it, and how soft its edges are, as
    the deviation of a blur in px. photo: uint8 RGB; points: its landmarks, float (5, 2).
    """
    eyes, _, down = face_frame(points)
    unit = np.linalg.norm(down)
    sides = np.array([*eyes, *(np.array(photo.shape[1::-1]) - eyes)]) / unit  # left, up, right ..
    wanted = min(rng.uniform(*FACE_UNIT), MAX_ZOOM * unit)
    if min(sides[0], sides[2]) > ROOM[0] and sides[1] > ROOM[1] and sides[3] > ROOM[2]:
        # As much around the face as there is.
        filled = max(wanted, WIDTH / (sides[0] + sides[2]), HEIGHT / (sides[1] + sides[3]))
        if filled <= min(MAX_FACE_UNIT, MAX_ZOOM * unit):
            zoom = filled / unit
            image, points = scaled(photo, points, zoom)
            at = face_frame(points)[0]
            corner = at - (WIDTH / 2, HEIGHT * rng.uniform(0.34, 0.42))
            room = np.array(image.shape[1::-1]) - (WIDTH, HEIGHT)
            corner = np.round(np.clip(corner, 0, np.maximum(room, 0))) - MARGIN
            shift = np.float32([[1, 0, -corner[0]], [0, 1, -corner[1]]])
            image = cv2.warpAffine(image, shift, FRAME, borderMode=cv2.BORDER_REFLECT_101)
            return image, points - corner, softness(zoom)
    zoom = wanted / unit
    image, points = scaled(photo, points, zoom)
    return *complete(image, points, rng), softness(zoom)


def softness(zoom):
    """The deviation, in px, of the blur of edges in a photo enlarged by zoom."""
    return 0.35 + 0.45 * max(zoom - 0.8, 0)


def smooth(x, low, high):
    """0 up to low, 1 from high, and a smooth step between them."""
    x = np.clip((x - low) / (high - low), 0, 1)
    return x * x * (3 - 2 * x)


def draw_wall(base, rng):
    """A place out of focus around a colour, float32 RGB on the grid."""
    rows, columns = 71, 55
    image = np.empty((rows, columns, 3), np.float32)
    image[:] = base + np.linspace(rng.uniform(-20, 30), rng.uniform(-30, 15), rows)[:, None, None]
    kind = rng.integers(4)
    for _ in range(int((0, 5, 12, 40)[kind])):
        x, y = rng.integers(-6, (columns, rows)).tolist()
        w, h = (rng.integers(3, (26, 44)) if kind < 3 else rng.integers(2, 9, 2)).tolist()
        colour = base + rng.uniform(-50, 50) + rng.uniform(-18, 18, 3)
        if kind == 1:  # frames and furniture
            cv2.rectangle(image, (x, y), (x + w, y + h), colour, -1)
        else:  # leaves, lights
            colour = colour * (0.72, 0.84, 0.62) if kind == 2 else colour + rng.uniform(-20, 50)
            cv2.ellipse(image, (x, y), (w // 2, h // 2), 0, 0, 360, colour, -1)
    image = cv2.GaussianBlur(image, (0, 0), (4, rng.uniform(0.7, 3), 3, 1.6)[kind])
    image += np.linspace(-1, 1, columns)[:, None] * rng.uniform(-18, 18)
    return cv2.resize(image, GRID, interpolation=cv2.INTER_CUBIC)


class Backdrop:
    """What is drawn around a face, float32 RGB on a grid of every second pixel: image. x and y: in
    face units, from the eyes; unit and origin: a face unit and the eyes, in cells of the grid.
    """

    def __init__(self, unit, origin):
        self.unit, self.origin, self.image = unit, origin, None
        y, x = np.mgrid[: GRID[1], : GRID[0]].astype(np.float32)
        self.x, self.y = (x - np.float32(origin[0])) / unit, (y - np.float32(origin[1])) / unit

    def paint(self, outline, colour, soft, alpha=1.0):
        """Fill an outline, in face units, with a colour or a layer; soft: of edges, in cells."""
        cover = np.zeros(GRID[::-1], np.uint8)
        outline = np.asarray(outline) * self.unit + self.origin
        cv2.fillPoly(cover, [np.round(outline * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
        cover = cv2.GaussianBlur(cover, (0, 0), soft) * np.float32(alpha / 255)
        self.image += cover[..., None] * (np.float32(colour) - self.image)


def complete(photo, points, rng):
    """A face on a portrait: behind it a wall, below it neck and clothes. Hair isn't drawn: networks
    would learn genders and ages from it. Returns the picture and the landmarks in it.
    """
    eyes, _, down = face_frame(points)
    unit = np.float32(np.linalg.norm(down))
    origin = np.array([WIDTH / 2 + rng.uniform(-14, 14), HEIGHT * rng.uniform(0.36, 0.43)]) + MARGIN
    if 0.8 * unit < eyes[1] < 0.43 * HEIGHT and rng.random() < 0.25:
        origin[1] = eyes[1] + MARGIN - 8  # the photo's upper edge cuts off the head here too
    # Upright, as what is drawn around it.
    turn = np.array([[down[1], -down[0]], [down[0], down[1]]]) / np.linalg.norm(down)
    shift = np.float32(np.column_stack([turn, origin - turn @ eyes]))
    known = cv2.warpAffine(known_pixels(photo), shift, FRAME)
    photo = cv2.warpAffine(photo, shift, FRAME, borderMode=cv2.BORDER_REPLICATE)
    points = (points - eyes) @ turn.T + origin

    scene = Backdrop(unit / 2, origin / 2)
    x, y = scene.x, scene.y
    small = cv2.resize(photo, GRID, interpolation=cv2.INTER_AREA).astype(np.float32)
    cheeks = [
        np.median(small[(np.abs(x - at) < 0.18) & (np.abs(y - 0.62) < 0.2)], axis=0)
        for at in (-0.5, 0.5)
    ]
    skin = np.mean(cheeks, axis=0)
    # Where the light comes from: -0.3, the left, to 0.3.
    side = float(np.clip((cheeks[1].sum() - cheeks[0].sum()) / (np.sum(cheeks) + 1), -0.3, 0.3))
    scene.image = draw_wall(rng.uniform(55, 255) + rng.uniform(-14, 14, 3), rng)
    # Of a head that is turned aside, more is seen behind.
    behind = 1.3 * (origin[0] - points[2, 0]) / unit
    draw_body(scene, skin, side, 0.5 * behind, rng)
    grey = scene.image.mean(2, keepdims=True)  # beside a black and white photo
    scene.image = grey + min(float(np.ptp(skin)) / 20, 1) * (scene.image - grey)

    picture = cv2.resize(scene.image, FRAME, interpolation=cv2.INTER_CUBIC)
    picture += 2 * grain(rng, *FRAME[::-1])
    # The photo fades out towards its border, and has round corners.
    edge = cv2.distanceTransform(cv2.copyMakeBorder(known, 1, 1, 1, 1, 0), cv2.DIST_L2, 3)
    alpha = smooth(edge[1:-1:2, 1:-1:2] / unit, 0, rng.uniform(0.12, 0.34))
    left, top, width, height = np.array(cv2.boundingRect(known), np.float32) / unit
    x, y = x + origin[0] / unit - left - width / 2, y + origin[1] / unit - top - height / 2
    outline = (2 * np.abs(x) / width) ** 5 + (2 * np.abs(y) / height) ** 5
    alpha *= 1 - smooth(outline, rng.uniform(0.35, 0.7), 1.1)
    picture += cv2.resize(np.float32(alpha), FRAME)[..., None] * (photo - picture)
    return np.clip(picture, 0, 255).astype(np.uint8), points


def known_pixels(photo):
    """255 where a photo, uint8 RGB, shows something: not in the black corners of a turned one."""
    height, width = photo.shape[:2]
    black = np.uint8(photo.max(2) < 8)
    for corner in ((0, 0), (width - 1, 0), (0, height - 1), (width - 1, height - 1)):
        if black[corner[::-1]] == 1:
            cv2.floodFill(black, None, corner, 2)
    empty = cv2.dilate(np.uint8(black == 2), np.ones((5, 5), np.uint8))
    return np.uint8(255) * (1 - empty)


def draw_body(scene, skin, side, lean, rng):
    """Neck and clothes; side: where the light comes from; lean: x of the middle."""
    x, y = scene.x - np.float32(lean), scene.y
    neck = rng.uniform(0.64, 0.82)
    shade = 1 - 0.34 * smooth(np.abs(x) / neck, 0.3, 1.1) + np.float32(side) * x
    shade *= 0.76 + 0.24 * smooth(y, 1.8, 2.5)  # the shadow of the chin
    # Some clothes reach up to the chin, where a mask may hang too.
    shoulder, drop = rng.uniform(1.9, 2.5), rng.uniform(1.7, 2.6)
    half = ((0, 0.9), (neck, 0.9), (neck * 0.96, 1.9), (neck + 0.3, 2.2), (shoulder, 2.8))
    outline = np.add(symmetric(*half, (shoulder, 9), (0, 9)), (lean, 0))
    scene.paint(outline, skin * shade[..., None], 1.0)

    cloth, plain = np.clip(any_colour(rng) * 0.9 + 8, 10, 235), rng.random() < 0.4
    folds = rng.normal(0, 1, (14, 9)).astype(np.float32)
    folds = cv2.resize(folds, GRID, interpolation=cv2.INTER_CUBIC)
    tone = (
        1
        + (0 if plain else 0.08) * folds
        - 0.14 * smooth(np.abs(x), 0.8, 2.2)
        + np.float32(0.7 * side) * x
    )
    tone = (tone * (0.8 + 0.2 * smooth(y, drop - 0.5, drop + 0.7)))[..., None]
    fabric = tone * cloth
    if not plain and rng.random() < 0.4:
        wave = np.sin(
            (y if rng.random() < 0.5 else x) * np.pi / rng.uniform(0.1, 0.3) + 0.4 * folds
        )
        fabric += smooth(wave, 0, 0.4)[..., None] * (tone * any_colour(rng) - fabric)
    deep = drop - 0.25 + rng.choice([0, 0.15, 0.5, 1.0])
    edge = neck + 0.12, drop - 0.45
    neckline = np.array([edge, (0, deep + 0.2), edge]) * [[-1, 1], [1, 1], [1, 1]]  # a V
    if deep < drop:
        neckline = arc(neckline[0], (0, deep), edge)
    body = np.array([(shoulder, drop + 0.25), (shoulder + 0.45, drop + 1), (shoulder + 0.6, 9)])
    body = np.add(np.concatenate([neckline, body, body[::-1] * MIRROR]), (lean, 0))
    scene.paint(np.add(body, (0, -0.06)), skin * 0.6, 1.6, 0.5)
    scene.paint(body, fabric, 1.0)
    if not plain and rng.random() < 0.6:  # a collar
        half = np.array(
            [(neck, drop - 0.7), (neck + 0.2, drop - 0.3), (0.5, drop + 0.35), (0.02, deep + 0.1)]
        )
        for collar in (half, half * MIRROR):
            scene.paint(np.add(collar, (lean, 0.05)), fabric * np.float32(0.6), 1.4)
            scene.paint(np.add(collar, (lean, 0)), tone * np.clip(cloth * 1.12 + 8, 0, 250), 0.8)


def shoot(image, points, mask, how, male, blur, rng):
    """One shot, uint8 RGB (HEIGHT, WIDTH, 3), of what portrait returns: moved a little, in a light
    of its own. mask: from choose_mask, or None; how and blur: as of wear; male: as of occlude.
    """
    centre = points.mean(0)
    matrix = cv2.getRotationMatrix2D(centre, rng.uniform(-6, 6), rng.uniform(0.92, 1.1))
    matrix[:, 2] += rng.uniform(-16, 16, 2) - MARGIN
    photo = cv2.warpAffine(image, matrix, (WIDTH, HEIGHT), borderMode=cv2.BORDER_REFLECT_101)
    points = points @ matrix[:, :2].T + matrix[:, 2]
    light = face_light(photo, points)
    if mask is not None:
        wear(photo, points, mask, how, blur, light, rng)
    occlude(photo, points, light, mask is not None, male, blur, rng)
    # Contrast around grey, saturation and temperature, in one matrix.
    gain = rng.uniform(0.86, 1.14) * (1 + rng.normal(0, 0.035) * np.array([1, 0, -1]))
    saturation, contrast = rng.uniform(0.82, 1.15), rng.uniform(0.9, 1.12)
    mix = saturation * np.eye(3) + (1 - saturation) * np.array([0.299, 0.587, 0.114])
    mix = contrast * gain[:, None] * mix
    offset = 118 * (1 - contrast) * np.ones((3, 1))
    photo = cv2.transform(photo, np.hstack([mix, offset]))
    sharpness = rng.uniform(-1, 1)
    if sharpness < -0.2:
        photo = cv2.GaussianBlur(photo, (0, 0), 0.2 - 0.8 * sharpness)
    elif sharpness > 0.5:
        photo = cv2.addWeighted(
            photo, 1 + sharpness, cv2.GaussianBlur(photo, (0, 0), 1), -sharpness, 0
        )
    return photo


def draw_shots(photos, male, rng):
    """{shot: (photo, JPEG quality)} of a person's photos, [(uint8 RGB, landmarks)]."""
    used = [portrait(*photo, rng) for photo in photos]
    kinds = rng.choice(list(KINDS), 5, replace=False, p=CHANCES).tolist()
    kinds.append(str(rng.choice([kind for kind in kinds if kind != "scarf"])))  # worn incorrectly
    misworn = str(rng.choice(list(MISWORN), p=list(MISWORN.values())))
    result = {}
    for number, shot in enumerate(SHOTS):
        image, points, blur = used[number % len(used)]
        how = misworn if shot == "incorrect_mask" else "worn"
        mask = None if shot == "normal" else choose_mask(rng, kinds[number])
        photo = shoot(image, points, mask, how, male, blur, rng)
        result[shot] = photo, int(rng.integers(50, 96))
    return result
