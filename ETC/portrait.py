"""Portraits of people who don't exist, for ETC.sample: head and shoulders, masked or not.

Gender and age show in many features, most of them above the mask. Units are those of ETC.canvas.
"""

from types import SimpleNamespace

import cv2
import numpy as np

from ETC.canvas import (
    MIRROR,
    STEP,
    UNIT,
    X,
    Y,
    arc,
    both,
    ellipse,
    enlarged,
    paint,
    photograph,
    ribbon,
    symmetric,
)

SHOTS = ("mask1", "mask2", "mask3", "mask4", "mask5", "incorrect_mask", "normal")

SKINS = ((240, 208, 184), (232, 192, 162), (220, 174, 138), (196, 144, 106), (156, 106, 76))
HAIRS = ((28, 24, 24), (44, 30, 24), (78, 50, 32), (112, 74, 44), (150, 116, 78))
IRISES = ((58, 36, 22), (84, 54, 30), (70, 96, 74), (74, 104, 140))
LIPS = ((176, 92, 84), (192, 60, 70), (160, 40, 62), (200, 96, 100))
WHITE_HAIR = np.float32([216, 216, 220])
# Volume: how far hair stands off the skull; length: the y to which it hangs, 0 for short hair;
# curl: how far strands swing. A few styles are worn by both genders, whose faces still differ.
STYLES = {  # volume, length, curl, chance for men, chance for women
    "crop": (0.10, 0, 0.01, 0.42, 0.00),
    "quiff": (0.26, 0, 0.02, 0.24, 0.00),
    "buzz": (0.03, 0, 0.00, 0.14, 0.00),
    "curls": (0.24, 0, 0.05, 0.14, 0.06),
    "bun": (0.08, 0, 0.01, 0.00, 0.10),
    "bob": (0.17, 1.25, 0.01, 0.06, 0.24),
    "long": (0.14, 2.3, 0.01, 0.00, 0.34),
    "waves": (0.18, 2.2, 0.05, 0.00, 0.26),
}
MASKS = (  # kind and colour
    *(("surgical", c) for c in ((126, 178, 214), (228, 232, 236), (44, 44, 48), (226, 170, 186))),
    *(("folded", c) for c in ((234, 234, 230), (60, 62, 68), (190, 196, 208))),
    *(("cloth", c) for c in ((58, 84, 128), (150, 58, 62), (92, 120, 92))),
)
MASK_SHAPES = {  # the right half, with heights from 0 to 1
    "surgical": ((0, 0), (0.22, 0.02), (0.92, 0.2), (0.9, 0.62), (0.64, 0.93), (0, 1.0)),
    "folded": ((0, -0.08), (0.24, 0), (0.97, 0.28), (0.95, 0.52), (0.5, 0.9), (0, 1.12)),
    "cloth": ((0, -0.04), (0.24, 0), (0.95, 0.2), (0.93, 0.52), (0.6, 0.9), (0, 1.06)),
}
# The y of a mask's upper and lower edge, worn correctly and incorrectly.
WORN = (0.30, 1.60)
MISWORN = {"nose out": (0.70, 1.64), "chin": (1.14, 1.76), "eyes": (-0.46, 0.42)}


def draw_traits(rng, gender, age):
    """Choose what a person's shots have in common; nothing else depends on gender and age.

    gender: "female" or "male"; age: in years; rng: a numpy Generator.
    """
    male = gender == "male"
    # Steep around the borders of the classes, 30 and 60, and nearly flat between them.
    lines = np.interp(age, (26, 34, 55, 65, 80), (0, 0.40, 0.58, 1.0, 1.15))
    grey = np.interp(age, (27, 35, 55, 65, 70), (0, 0.16, 0.30, 0.92, 1.0))
    receding = np.interp(age, (28, 45, 75), (0, 0.12, 0.24) if male else (0, 0.02, 0.08))
    if male and rng.random() < np.interp(age, (30, 60), (0, 0.4)):
        receding += 0.35
    chances = [style[3 if male else 4] for style in STYLES.values()]
    style = str(rng.choice(list(STYLES), p=chances))
    skin = np.float32(SKINS[rng.integers(len(SKINS))]) * rng.uniform(0.95, 1.04)
    shades = 5 if skin[0] > 210 else 2  # darker skin has dark hair and eyes
    lip = np.array(LIPS[rng.integers(len(LIPS))])
    bristles = rng.choice([0, rng.uniform(0.15, 0.35), 0.9], p=[0.4, 0.4, 0.2])
    return SimpleNamespace(
        male=male,
        age=age,
        skin=skin,
        dark=skin * (0.46, 0.34, 0.30),  # the shadows and lines of the skin
        style=style,
        hair=np.float32(HAIRS[rng.integers(shades)]),
        lines=float(lines * rng.uniform(0.9, 1.1)),  # depth of wrinkles
        grey=min(float(grey * rng.uniform(0.9, 1.1)), 1.0),  # share of grey hair
        receding=receding + rng.uniform(-0.03, 0.05),  # how far the hairline has moved up
        fringe=0 if male or rng.random() < 0.6 else rng.uniform(0.2, 0.38),  # how far it hangs down
        beard=bristles if male else 0,  # density
        jaw=rng.uniform(0.76, 0.86) if male else rng.uniform(0.62, 0.72),
        eye=rng.uniform(0.92, 1.04) if male else rng.uniform(1.06, 1.2),
        brow=rng.uniform(0.085, 0.115) if male else rng.uniform(0.035, 0.055),
        nose=rng.uniform(1.0, 1.25) if male else rng.uniform(0.82, 1.0),
        iris=IRISES[rng.integers(min(shades, len(IRISES)))],
        lip=skin * (0.80, 0.60, 0.60) if male or rng.random() < 0.25 else lip,
        earring=not male and rng.random() < 0.7,
        clothes=np.float32(rng.uniform(22, 158, 3)),
        collar=rng.uniform(0.0, 0.5),  # depth of the neckline
        backdrop=rng.uniform(70, 225) + rng.uniform(-22, 22, (2, 3)),  # upper and lower colour
        masks=rng.permutation(len(MASKS))[:5],
        misworn=str(rng.choice(list(MISWORN))),
        texture=int(rng.integers(2**31)),  # the seed of hair, skin and backdrop
    )


def relief(traits):
    """The height of a face at each point of the grid, as a sum of hills and hollows."""
    old = traits.lines
    hills = (  # x, y, x radius, y radius, height; mirrored where x is not 0
        (0.43, -0.01, 0.25, 0.15, -0.11),  # eye sockets
        (0.42, -0.25, 0.32, 0.09, 0.05),  # brows
        (0, 0.12, 0.10, 0.34, 0.17),  # bridge of the nose
        (0, 0.48, 0.14 * traits.nose, 0.13, 0.20),  # tip of the nose
        (0.17 * traits.nose, 0.54, 0.08, 0.08, 0.08),  # wings of the nose
        (0.58, 0.36, 0.24, 0.20, 0.07),  # cheeks
        (0.62, 0.80, 0.18, 0.22, -0.05 * old),  # hollow cheeks
        (0, 0.92, 0.34, 0.18, 0.07),  # mouth
        (0, 1.12, 0.22, 0.05, -0.04),  # below the lips
        (0, 1.30, 0.22, 0.13, 0.08),  # chin
        (0.46, 1.18, 0.14, 0.16, 0.05 * old),  # jowls
        (0.42, 0.22, 0.17, 0.06, 0.035 * old),  # bags under the eyes
        (0.86, -0.35, 0.12, 0.25, -0.06 * old),  # temples
    )
    x, y, x_radius, y_radius, height = np.array(hills, np.float32).T[:, :, None]
    across = np.exp(-(((X[0] - x) / x_radius) ** 2))
    across += np.where(x > 0, np.exp(-(((X[0] + x) / x_radius) ** 2)), 0)
    down = height * np.exp(-(((Y[:, 0] - y) / y_radius) ** 2))
    ball = 1 - (X / 1.12) ** 2 - ((Y - 0.05) / 1.62) ** 2
    return down.T @ across + 0.75 * np.sqrt(np.maximum(ball, 0.03))


def shaded(height, light):
    """The brightness of a surface of this height under the light, around 1."""
    slopes = [cv2.Sobel(height, -1, 1 - i, i, scale=UNIT / STEP / 8) for i in range(2)]
    facing = light[2] - light[0] * slopes[0] - light[1] * slopes[1]
    return 0.50 + 0.62 * np.maximum(facing, 0) / np.sqrt(1 + slopes[0] ** 2 + slopes[1] ** 2)


def skin_layer(traits, light):
    """Lit skin: redder in the shadows, and blotchy with age."""
    noise = np.random.default_rng(traits.texture).normal(size=(56, 44)).astype(np.float32)
    blotches = 1 + (0.006 + 0.022 * traits.lines) * cv2.resize(noise, X.shape[::-1])
    shade = shaded(relief(traits), light) * blotches
    return enlarged(np.dstack([tone * shade**p for tone, p in zip(traits.skin, (0.8, 1.05, 1.15))]))


def hair_layer(traits, light):
    """Hair all over the picture: strands with a sheen, greying from the temples."""
    noise = np.random.default_rng(traits.texture).normal(size=(1, 1024)).astype(np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), 2.0)[0] * 2.7  # smooth, scaled back to deviation 1
    swing = STYLES[traits.style][2] * np.sin(5 * Y + 3 * X)
    angle = np.arctan2(X, Y + 1.9) + swing  # strands fan out from a point above the head
    strands = noise[(angle * 130).astype(int) % 1024]
    temples = np.clip(2.5 * np.abs(X) - 1.2, 0, 1) * min(traits.grey, 0.4)
    grey = np.clip(1.2 * traits.grey + 1.2 * temples + 0.3 * traits.grey * strands - 0.1, 0, 1)
    tone = 1 + 0.12 * strands + 0.3 * np.exp(-(((Y + 1.12) / 0.2) ** 2)) + 0.25 * light[0] * X
    return enlarged((traits.hair + grey[..., None] * (WHITE_HAIR - traits.hair)) * tone[..., None])


def draw_backdrop(traits, rng):
    """A wall with a gradient of light and a few objects out of focus."""
    wall = np.empty((37, 29, 3), np.float32)  # px; blurred by being enlarged
    wall[:] = np.linspace(*traits.backdrop, 37)[:, None]
    things = np.random.default_rng(traits.texture)
    for _ in range(things.integers(0, 5)):
        corner = things.integers(0, 28, 2) + rng.integers(-1, 2, 2)
        colour = traits.backdrop[0] + things.uniform(-30, 30, 3)
        cv2.rectangle(wall, corner, corner + things.integers(3, 16, 2), colour, -1)
    return enlarged(cv2.GaussianBlur(wall, (0, 0), 1.5))


def draw_body(image, traits, light):
    """Neck and clothes."""
    neck, width = (0.62, 1.95) if traits.male else (0.48, 1.6)
    flesh = np.maximum(0.85 + 0.2 * light[0] * X - 0.35 * (X / neck) ** 2, 0.35)
    outline = symmetric((0, 1), (neck, 1), (neck, 1.75), (neck + 0.5, 2.1), (1.4, 3.6))
    paint(image, outline, enlarged(flesh[..., None] * traits.skin))
    paint(image, ellipse(0, 1.42, neck * 0.9, 0.35), traits.dark, 0.06, 0.75)
    folds = 1 - 0.12 * (X / 1.6) ** 2 + 0.06 * np.sin(4 * X + traits.jaw * 50) + 0.2 * light[0] * X
    edge = arc((neck + 0.1, 1.74), (0.42, 2.0 + traits.collar * 0.6), (-0.02, 2.07 + traits.collar))
    shoulder = arc((width + 0.1, 4.0), (width - 0.08, 2.3), (neck + 0.1, 1.74))
    outline = np.concatenate([edge, [(-0.02, 4.0)], shoulder])
    paint(image, both(outline), enlarged(folds[..., None] * traits.clothes))
    paint(image, both(ribbon(edge, 0.09)), traits.clothes * 0.72)


def draw_head(image, traits, skin):
    """Ears, the bare face, and a blush."""
    paint(image, both(ellipse(1.02, 0.16, 0.13, 0.27)), traits.skin * 0.82, 0.02)
    paint(image, both(ellipse(1.04, 0.14, 0.06, 0.17)), traits.skin * 0.58, 0.03, 0.7)
    upper = ((0, -1.45), (0.5, -1.42), (0.86, -1.1), (1.0, -0.5), (1.0, 0.2), (0.93, 0.65))
    chin = 0.6 * traits.jaw - 0.07
    paint(image, symmetric(*upper, (traits.jaw, 1.10), (chin, 1.46), (0.1, 1.52)), skin, 0.015)
    if not traits.male:
        paint(image, both(ellipse(0.6, 0.45, 0.2, 0.16)), (206, 96, 96), 0.08, 0.25)


def draw_ageing(image, traits):
    """Wrinkles, bags under the eyes and spots."""
    rng, depth = np.random.default_rng(traits.texture), min(traits.lines, 1.1)
    half = [
        *(arc((0, y - 0.05), (0.26, y - 0.04), (0.54, y + 0.02)) for y in (-0.47, -0.59, -0.71)),
        *(arc((0.70, 0.4 * y), (0.79, y), (0.87, 1.9 * y)) for y in (-0.12, 0.0, 0.1)),
        arc((0.22, 0.14), (0.42, 0.27), (0.64, 0.16)),  # bags under the eyes
        arc((0.25, 0.56), (0.42, 0.70), (0.46, 0.96)),  # from nose to mouth
        arc((0.08, -0.34), (0.06, -0.24), (0.09, -0.14)),  # a frown
        arc((0.40, 1.02), (0.43, 1.12), (0.38, 1.24)),
    ]
    lines = [line + rng.normal(0, 0.008, 2) for right in half for line in both(right)]
    width = 0.03 + 0.018 * depth
    glint = np.minimum(traits.skin * 1.12, 255)
    lines = [ribbon(line, width) for line in lines]
    paint(image, [np.add(line, (0, 0.035)) for line in lines], glint, 0.02, 0.4 * depth)
    paint(image, lines, traits.dark, 0.016, 0.62 * depth)
    paint(image, both(ellipse(0.43, 0.17, 0.2, 0.06)), traits.dark, 0.05, 0.12 + 0.2 * depth)
    for _ in range(int(26 * max(traits.lines - 0.6, 0))):
        spot = ellipse(*rng.uniform((-0.85, -0.95), (0.85, 0.5)), *rng.uniform(0.015, 0.04, 2))
        paint(image, spot, traits.dark, 0.012, rng.uniform(0.2, 0.45))


def draw_eye(image, traits, side, pose):
    """An eye with lids and lashes; side: -1 or 1."""
    size, droop, flip = traits.eye, 0.035 * traits.lines, (side, 1)
    inner, outer = (0.43 - 0.21 * size, 0.03), (0.43 + 0.21 * size, droop)
    upper = arc(inner, (0.43, (-0.13 * pose.open + droop) * size), outer)
    lower = arc(inner, (0.43, 0.10 * size), outer)
    if not traits.male:  # shadow on the lid, and long lashes at the corner
        lid = np.concatenate([upper, upper[::-1] - (0, 0.11)])
        paint(image, lid * flip, traits.skin * (0.55, 0.38, 0.42), 0.03, 0.6)
        lash = arc(outer, np.add(outer, (0.05, -0.04)), np.add(outer, (0.11, -0.10)))
        paint(image, ribbon(lash * flip, 0.045), (30, 20, 18), 0.01, 0.9)
    paint(image, np.concatenate([upper, lower[::-1]]) * flip, (226, 218, 212))
    for radius, colour in ((0.118, (24, 18, 16)), (0.102, traits.iris), (0.052, (8, 8, 10))):
        iris = ellipse(0.43 + side * pose.gaze, -0.015, radius * size, radius * size)
        lids = [np.interp(iris[:, 0], *line.T) for line in (upper, lower)]
        iris[:, 1] = np.clip(iris[:, 1], *lids)
        paint(image, iris * flip, colour)
    paint(image, ellipse(side * 0.43 + pose.gaze - 0.03, -0.05, 0.022, 0.022), (250, 250, 250))
    paint(image, ribbon(upper * flip, 0.11), traits.dark, 0.03, 0.45)
    paint(image, ribbon(upper * flip, 0.042 if traits.male else 0.075), (30, 20, 18), 0.01, 0.95)
    paint(image, ribbon(lower * flip, 0.025), (30, 20, 18), 0.012, 0.35 if traits.male else 0.75)
    crease = upper - (0, 0.075 - 0.5 * droop)
    paint(image, ribbon(crease * flip, 0.03), traits.dark, 0.012, 0.7)


def draw_brows_and_nose(image, traits, pose):
    height, peak = (-0.235, 0.05) if traits.male else (-0.30, 0.10)
    height -= pose.brow
    brow = arc((0.14, height + 0.02), (0.46, height - peak), (0.78, height + 0.05))
    colour = traits.hair + 0.6 * max(traits.grey - 0.15, 0) * (WHITE_HAIR - traits.hair)
    thickness = np.linspace(1.25, 0.6, len(brow)) * traits.brow
    paint(image, both(ribbon(np.add(brow, (0, 0.06)), 0.14)), traits.dark, 0.05, 0.35)
    paint(image, both(ribbon(brow, thickness)), colour * 0.85, 0.014, 0.9)
    wing = 0.17 * traits.nose
    sides = arc((0.13, -0.1), (0.09, 0.15), (0.12, 0.4))
    paint(image, both(ribbon(sides, 0.07)), traits.dark, 0.04, 0.25)
    sides = arc((wing, 0.44), (wing + 0.08, 0.54), (wing, 0.62))
    paint(image, both(ribbon(sides, 0.05)), traits.dark, 0.02, 0.5)
    paint(image, both(ellipse(wing * 0.62, 0.615, 0.062, 0.03)), traits.dark * 0.5, 0.016, 0.9)
    paint(image, ellipse(0, 0.68, 0.2, 0.05), traits.dark, 0.05, 0.4)


def draw_mouth(image, traits, pose):
    """Lips, and teeth in a broad smile."""
    lift, gap = 0.06 * pose.smile, 0.1 * max(pose.smile - 0.4, 0)
    full = 0.055 if traits.male else 0.085
    right = np.array([0.36 + lift, 0.92 - lift])
    left = right * MIRROR
    above, below = arc(left, (0, 0.92 - gap * 0.3), right), arc(left, (0, 0.93 + gap), right)
    top, bottom = arc(left, (0, 0.90 - full), right), arc(left, (0, 0.95 + gap + full * 1.2), right)
    top[:, 1] += 0.02 * np.exp(-((top[:, 0] / 0.06) ** 2))  # the dip in the upper lip
    paint(image, np.concatenate([top, above[::-1]]), traits.lip * 0.86, 0.014)
    paint(image, np.concatenate([below, bottom[::-1]]), traits.lip, 0.014)
    paint(image, ellipse(0, 0.97 + gap, 0.14, 0.02), np.minimum(traits.lip * 1.3, 255), 0.03, 0.5)
    paint(image, ribbon(above, 0.045), traits.dark * 0.5, 0.012, 0.9)
    if gap > 0.015:
        paint(image, np.concatenate([above, below[::-1]]), (232, 226, 218))
    paint(image, both(ellipse(*right, 0.03, 0.03)), traits.dark, 0.025, 0.6)
    paint(image, ellipse(0, 1.11 + gap, 0.2, 0.03), traits.dark, 0.05, 0.4)


def draw_beard(image, traits, hair):
    """Stubble or a beard, around the mouth and up to the ears."""
    outline = [(0.97, 0.1), (0.96, 0.6), (traits.jaw + 0.05, 1.12), (0.38, 1.5), (-0.02, 1.58)]
    outline += [(-0.02, 1.14), (0.30, 1.12), (0.44, 0.96), (0.36, 0.80), (-0.02, 0.74)]
    outline += [(-0.02, 0.68), (0.34, 0.68), (0.66, 0.80), (0.86, 0.55)]
    paint(image, both(np.array(outline)), hair, 0.05, traits.beard)


def draw_hair_behind(image, traits, hair):
    """The hair behind neck and shoulders."""
    volume, length, *_ = STYLES[traits.style]
    if traits.style == "bun":
        paint(image, ellipse(0, -1.62, 0.42, 0.34), hair)
    if length:
        sides = ((0.6, -1.3), (1.0 + volume, -0.6), (1.12 + volume, 0.4))
        outline = symmetric(*sides, (1.15 + volume, length), (0.5, length))
        paint(image, outline, hair * np.float32(0.7), 0.02)


def draw_hair(image, traits, hair):
    """The hair in front: the top down to the hairline, and locks beside the face."""
    volume, length, curl, *_ = STYLES[traits.style]
    back = traits.receding
    top = -1.46 - volume + min(max(back - 0.3, 0), 0.12)  # less volume on a bald head
    outside = [(0, top), (0.5, top + 0.04), (0.92 + volume * 0.5, -1.12)]
    outside += [(1.04 + volume * 0.6, -0.55), (1.03 + volume * 0.4, 0), (0.97, 0.2)]
    middle = -0.88 - 0.9 * back + traits.fringe
    hairline = [(0.95, -0.2), (0.88, -0.52), (0.80 + 0.1 * back, -0.74 - back * 0.5)]
    hairline += [(0.52, -0.86 - back * 1.3 + traits.fringe), (0.2, middle), (0, middle)]
    outline = symmetric(*outside, *np.maximum(hairline, (0, -1.4)))
    waves = np.sin(22 * np.arctan2(outline[:, 0], outline[:, 1] + 0.5))
    outline *= 1 + 0.8 * max(curl - 0.01, 0) * waves[:, None]
    paint(image, np.add(outline, (0, 0.05)), traits.dark, 0.06, 0.3)  # a shadow on the forehead
    paint(image, outline, hair, 0.016, 0.8 if volume < 0.05 else 1.0)
    if length:
        reach = 1.08 + volume
        lock = arc((0.62, -1.42), (reach + 0.05, -0.6), (reach, length), 30)
        lock = np.concatenate([lock, arc((0.84, length), (0.94, 0.2), (0.62, -0.9), 30)])
        lock[:, 0] += curl * np.sin(lock[:, 1] * 9)
        paint(image, both(lock), hair, 0.016)


def draw_mask(image, traits, number, edges, light):
    """A mask over the face, with loops around the ears; edges: y of the upper and the lower one."""
    (kind, colour), (top, bottom) = MASKS[number], edges
    colour, tall = np.float32(colour), bottom - top
    for start, end in ((top + 0.2 * tall, 0.0), (top + 0.62 * tall, 0.34)):
        loop = ribbon(arc((0.9, start), (1.02, (start + end) / 2), (1.08, end)), 0.045)
        paint(image, both(loop), colour * 0.85 + 20)
    outline = symmetric(*(np.array(MASK_SHAPES[kind]) * (1, tall) + (0, top)))
    paint(image, np.add(outline, (0, 0.05)), (40, 28, 26), 0.05, 0.45)  # a shadow on the skin
    height = cv2.GaussianBlur(relief(traits), (0, 0), 0.1 * UNIT / STEP)
    if kind == "surgical":  # pleats
        height += 0.01 * np.sin(((Y - top) / tall + 0.08 * X**2) * 26)
    else:  # a seam in the middle
        height -= 0.15 * np.abs(X)
    shade = shaded(height, light)
    if kind == "cloth":
        shade *= 1 + 0.14 * np.sign(np.sin(Y * 26) * np.sin(X * 26))  # checks
    paint(image, outline, enlarged(np.minimum(shade[..., None] * colour, 250)))


def draw_shot(traits, shot, rng):
    """A photo of a person, uint8 RGB (512, 384, 3); rng decides on pose, light and framing.

    traits: from draw_traits; shot: one of SHOTS.
    """
    # The direction to the light.
    light = np.float32([rng.uniform(-0.4, 0.4), rng.uniform(-0.55, -0.35), 0.85])
    pose = SimpleNamespace(
        open=rng.uniform(0.85, 1.1),
        gaze=rng.uniform(-0.03, 0.03),
        brow=rng.uniform(-0.015, 0.02),
        smile=rng.uniform(0, 1),
    )
    image, hair = draw_backdrop(traits, rng), hair_layer(traits, light)
    draw_hair_behind(image, traits, hair)
    draw_body(image, traits, light)
    draw_head(image, traits, skin_layer(traits, light))
    draw_ageing(image, traits)
    for side in (-1, 1):
        draw_eye(image, traits, side, pose)
    draw_brows_and_nose(image, traits, pose)
    draw_mouth(image, traits, pose)
    draw_beard(image, traits, hair)
    draw_hair(image, traits, hair)
    if traits.earring:
        paint(image, both(ellipse(1.06, 0.48, 0.05, 0.06)), (236, 206, 120))
    if shot == "incorrect_mask":
        draw_mask(image, traits, traits.masks[0], MISWORN[traits.misworn], light)
    elif shot != "normal":
        draw_mask(image, traits, traits.masks[int(shot[-1]) - 1], WORN, light)
    return photograph(image, rng)
