"""What covers part of a face and is no mask, for ETC.scene: hands, cups, scarves, beards.

x grows to the right and y downwards, in face units as in ETC.masks: the eyes are at y 0, the nose
at about 0.6, the mouth at 1, the chin at 1.7.
"""

import cv2
import numpy as np

from ETC.canvas import MIRROR, arc, ellipse, symmetric
from ETC.masks import Head, any_colour, grain


class Layer:
    """Shapes over a photo, uint8 RGB, on a face with these landmarks; light: from face_light."""

    def __init__(self, photo, points, light):
        self.photo, self.head, self.light = photo, Head(points), light
        self.x, self.y = self.head.coordinates(photo.shape[1::-1])

    def paint(self, outline, colour, soft, alpha=1.0):
        """Fill an outline with a colour or a layer of colours; soft: of edges, in px."""
        cover = np.zeros(self.photo.shape[:2], np.uint8)
        outline = np.asarray(outline) @ self.head.axes + self.head.origin
        cv2.fillPoly(cover, [np.round(outline * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
        cover = cv2.GaussianBlur(cover, (0, 0), max(soft, 0.1))[..., None] * np.float32(alpha / 255)
        colour = np.clip(np.asarray(colour, np.float32), 0, 255)
        self.photo[:] = np.clip(self.photo + cover * (colour - self.photo), 0, 255)

    def lit_colour(self, rng):
        """Any colour, in the light of the photo, float (3,)."""
        return any_colour(rng) * self.light.gain


def stroke(start, through, end, width):
    """The outline of a rounded stroke, float (N, 2)."""
    line = arc(start, through, end)
    along = np.gradient(line, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    normal = along[:, ::-1] * MIRROR
    turn = np.linspace(np.pi / 2, -np.pi / 2, 7)[1:-1, None]
    tip = np.cos(turn) * along[-1] + np.sin(turn) * normal[-1]
    sides = line + width / 2 * normal, line[-1] + width / 2 * tip, line - width / 2 * normal
    return np.concatenate([*sides[:2], sides[2][::-1]])


def draw_hand(layer, soft, rng):
    """Some fingers, or a whole hand, in front of the lower face."""
    skin, side = layer.light.skin * rng.uniform(0.8, 1.05), rng.choice([-1, 1])
    width, fingers = rng.uniform(0.2, 0.3), int(rng.integers(1, 5))
    tip = np.array([rng.uniform(-0.5, 0.3), rng.uniform(0.75, 1.3)])
    wrist = np.array([rng.uniform(0.5, 1.6), rng.uniform(2.4, 3.2)])
    lean = (tip - wrist) / np.linalg.norm(tip - wrist)
    across = lean[::-1] * (-1, 1)
    for finger in range(fingers):
        shift = across * (finger - (fingers - 1) / 2) * width * 0.95
        end = tip + shift - lean * 0.12 * abs(finger - 1.2)
        middle = (end + wrist + shift) / 2 + across * rng.uniform(-0.05, 0.05)
        shape = stroke(wrist + shift, middle, end, width) * (side, 1)
        layer.paint(np.add(shape, (0.02, 0.03)), skin * 0.55, soft + 1.5, 0.7)
        tone = rng.uniform(0.95, 1.05) * (1 - 0.12 * np.clip(layer.y - 1, 0, 2))
        layer.paint(shape, skin * tone[..., None], soft)
    palm = ellipse(*(wrist - lean * 0.1), width * fingers * 0.6, 0.6) * (side, 1)
    layer.paint(palm, skin * 0.9, soft)


def draw_cup(layer, soft, rng):
    """A cup, a phone or a microphone in front of the mouth, in a hand."""
    x, top, bottom = rng.uniform(-0.25, 0.25), rng.uniform(0.65, 1.0), rng.uniform(1.7, 2.4)
    half, taper = rng.uniform(0.3, 0.7), rng.uniform(0.7, 1.05)
    shape = [
        (x - half, top),
        (x + half, top),
        (x + taper * half, bottom),
        (x - taper * half, bottom),
    ]
    shade = 1.1 - 0.5 * np.clip((layer.x - x) / half, -1, 1) ** 2 * rng.uniform(0.3, 1)
    layer.paint(np.add(shape, (0.03, 0.04)), layer.light.skin * 0.4, soft + 3, 0.5)
    layer.paint(shape, layer.lit_colour(rng) * shade[..., None], soft)
    if rng.random() < 0.5:
        layer.paint(ellipse(x, top, half, 0.09), layer.lit_colour(rng), soft)
    skin = layer.light.skin * rng.uniform(0.85, 1.05)
    for finger in range(int(rng.integers(0, 5))):
        y = (top + bottom) / 2 + 0.25 * (finger - 1.5)
        shape = stroke((x + half + 0.3, y + 0.15), (x + half / 2, y), (x - half / 3, y), 0.24)
        layer.paint(shape, skin * rng.uniform(0.9, 1), soft)


def draw_scarf(layer, soft, rng):
    """A scarf, a collar or a turtleneck up to the chin, or just below the mouth."""
    top, wide = rng.uniform(1.28, 1.75), rng.uniform(0.8, 1.3)
    dip = rng.uniform(-0.1, 0.2)
    half = (0, top), (0.5 * wide, top - 0.3 * dip), (wide, top - dip), (wide + 0.3, top + 0.5)
    shape = symmetric(*half, (2.4, top + 1.4), (2.4, 6), (0, 6))
    folds = np.sin(layer.y * rng.uniform(2, 9) + layer.x * rng.uniform(-3, 3) + rng.uniform(0, 6))
    tone = 1 + rng.uniform(0, 0.2) * folds - 0.12 * np.abs(layer.x)
    fabric = layer.lit_colour(rng) * tone[..., None]
    if rng.random() < 0.3:
        wave = np.sin((layer.x + layer.y * rng.uniform(-1, 1)) * rng.uniform(8, 30))
        fabric += (wave > rng.uniform(-0.5, 0.5))[..., None] * (layer.lit_colour(rng) - fabric)
    layer.paint(np.add(shape, (0, -0.04)), layer.light.skin * 0.5, soft + 2, 0.5)
    layer.paint(shape, fabric, soft)


def draw_beard(layer, soft, rng):
    """A beard, with or without a moustache, of hair or of stubble."""
    tone = rng.choice([25, 50, 90, 150, 210]) + rng.uniform(-15, 15)
    colour = tone * (1 + rng.uniform(0, 0.3) * np.array([0.4, 0, -0.4]))
    hair = colour + 14 * grain(rng, *layer.photo.shape[:2])
    alpha = rng.choice([0.35, 0.7, 0.9])
    low = rng.uniform(1.75, 2.3)
    half = (0, low), (0.5, low - 0.1), (0.95, 1.3), (1.08, 0.55), (0.92, 0.5), (0.75, 0.95)
    if rng.random() < 0.3:  # a goatee
        half = (0, low), (0.3, low - 0.1), (0.42, 1.3), (0.4, 1.0)
    bare = layer.photo.copy()
    layer.paint(symmetric(*half, (0.4, 0.82), (0, 0.8)), hair, 0.07 * layer.head.unit, alpha)
    mouth = ellipse(0, 1.02, rng.uniform(0.3, 0.42), rng.uniform(0.08, 0.16))
    layer.paint(mouth, bare, 0.05 * layer.head.unit)


# The chance of each on a bare face, and on one with a mask.
OCCLUDERS = {draw_hand: (0.05, 0.02), draw_cup: (0.03, 0), draw_scarf: (0.03, 0.02)}
BEARD = 0.06  # the chance on a man's bare face


def occlude(photo, points, light, masked, male, soft, rng):
    """Perhaps draw something onto photo, uint8 RGB, in place.

    points: five landmarks, float (5, 2); light: from face_light of the bare face; soft: of edges in
    the photo, in px.
    """
    drawn = [draw_beard] if male and not masked and rng.random() < BEARD else []
    drawn += [draw for draw, chances in OCCLUDERS.items() if rng.random() < chances[masked]]
    if drawn:
        layer = Layer(photo, points, light)
        for draw in drawn:
            draw(layer, soft, rng)
