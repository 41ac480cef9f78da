"""A contact sheet: photos in a grid, with the boxes of their faces and the answers below."""

import contextlib
import io

from PIL import Image, ImageDraw, ImageFont

from config.config import HEADS
from data.images import load_image
from utils.files import atomic_write

COLUMNS = 5
SIDE, LINE, GAP, FONT_SIZE = 310, 18, 12, 13  # in pixels
# Of Windows, macOS and Linux, where Pillow finds them by name.
FONTS = ("malgun.ttf", "AppleSDGothicNeo.ttc", "NotoSansCJK-Regular.ttc", "NanumGothic.ttf")
# By the mask's answer, colours of Okabe and Ito; the words below say the same.
COLORS = {"mask": "#0072B2", "incorrect": "#D55E00", "normal": "#009E73"}
MAX_PHOTOS = 100
MAX_FACES = 6  # below a photo


def draw_sheet(faces):
    """Draw the photos of predictions.csv's table, which has a row a face, with path, the photo's.

    Photos after the first MAX_PHOTOS are left out. Returns a PIL image.
    """
    photos = list(faces.groupby("path", sort=False))[:MAX_PHOTOS]
    rows = [photos[start : start + COLUMNS] for start in range(0, len(photos), COLUMNS)]
    lines = [1 + min(MAX_FACES, max(len(its) for _, its in row)) for row in rows]
    heights = [SIDE + GAP + LINE * count for count in lines]
    width = min(COLUMNS, len(photos)) * (SIDE + GAP) + GAP
    sheet = Image.new("RGB", (width, sum(heights) + GAP), "white")
    draw, font, top = ImageDraw.Draw(sheet), load_font(), GAP
    for row, height in zip(rows, heights):
        for column, (_, its) in enumerate(row):
            draw_photo(sheet, draw, font, GAP + column * (SIDE + GAP), top, its)
        top += height
    return sheet


def load_font():
    """A font with Hangul of this system, for file names, or else Pillow's own, without."""
    for name in FONTS:
        with contextlib.suppress(OSError):
            return ImageFont.truetype(name, FONT_SIZE)
    return ImageFont.load_default(FONT_SIZE)


def draw_photo(sheet, draw, font, left, top, faces):
    """Draw one photo with its boxes, numbered if there are several, and a line of text a face."""
    file, path = faces[["file", "path"]].iloc[0]
    image = Image.fromarray(load_image(path))
    zoom = min(SIDE / image.width, SIDE / image.height)
    size = max(1, round(image.width * zoom)), max(1, round(image.height * zoom))
    x, y = left + (SIDE - size[0]) // 2, top + (SIDE - size[1]) // 2
    sheet.paste(image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2), (x, y))
    draw.text((left, top + SIDE), shorten(draw, " ".join(file.split()), font), "black", font)
    for line, face in enumerate(faces.itertuples(), start=1):
        box = [x + face.x0 * zoom, y + face.y0 * zoom, x + face.x1 * zoom, y + face.y1 * zoom]
        draw.rectangle(box, outline="white", width=4)
        draw.rectangle(box, outline=COLORS[face.mask], width=2)
        text = answer(face)
        if len(faces) > 1:
            text = f"{face.face}  {text}"
            draw.text((box[0] + 4, box[1] + 2), str(face.face), "white", font,
                      stroke_width=2, stroke_fill=COLORS[face.mask])  # fmt: skip
        if line == MAX_FACES and len(faces) > MAX_FACES:
            text = f"and {len(faces) - MAX_FACES + 1} more"
        if line <= MAX_FACES:
            color = COLORS[face.mask]
            draw.text((left, top + SIDE + line * LINE), shorten(draw, text, font), color, font)


def answer(face):
    """A face's three answers, each with its probability."""
    names = {target: getattr(face, target) for target in HEADS}
    probs = (f"{name} {getattr(face, f'{target}_{name}'):.0%}" for target, name in names.items())
    return ("no face: " if face.method == "center" else "") + ", ".join(probs)


def shorten(draw, text, font):
    """The end of a text, which fits below a photo."""
    if draw.textlength(text, font) <= SIDE:
        return text
    while text and draw.textlength("..." + text, font) > SIDE:
        text = text[1:]
    return "..." + text


def save_sheet(path, faces):
    """Write draw_sheet(faces) as PNG, whole or not at all. Raises InputError when it can't be."""
    buffer = io.BytesIO()
    draw_sheet(faces).save(buffer, "PNG")
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())
