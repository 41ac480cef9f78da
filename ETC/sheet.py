"""A contact sheet: photos in a grid, with the boxes of their faces and the answers below."""

import contextlib
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

from config.config import CLASSES
from data.crop import SECOND_LOOK
from data.images import load_smaller
from utils.plots import BLUE, GREEN, ORANGE

COLUMNS = 5
SIDE, LINE, GAP, FONT_SIZE = 310, 20, 12, 13  # in pixels
# With Hangul, for file names; of Windows, macOS and Linux, where Pillow finds them by name.
FONTS = ("malgun.ttf", "AppleSDGothicNeo.ttc", "NotoSansCJK-Regular.ttc", "NanumGothic.ttf")
COLORS = {"mask": BLUE, "incorrect": ORANGE, "normal": GREEN}  # by the mask head's answer
MAX_LINES = 6  # of answers below a photo


def draw_sheet(faces):
    """Draw the photos of predictions.csv's table, which has a row per face, with their paths in the
    column photo. Returns a PIL image.
    """
    photos = [rows.to_dict("records") for _, rows in faces.groupby("photo", sort=False)]
    tiles = [draw_photo(rows) for rows in photos]
    return arrange([tiles[start : start + COLUMNS] for start in range(0, len(tiles), COLUMNS)])


def draw_photo(faces):
    """Draw a photo with a box and a line of text for each of its rows in draw_sheet's table."""
    photo, size = load_smaller(faces[0]["photo"], 2 * SIDE)
    zoom = SIDE / max(size)
    shown = [max(1, round(zoom * length)) for length in size]
    corner = [(SIDE - length) // 2 for length in shown]
    tile = Image.new("RGB", (SIDE, SIDE), "white")
    photo = Image.fromarray(photo).resize(shown, Image.Resampling.BILINEAR, reducing_gap=2)
    tile.paste(photo, corner)
    draw, lines = ImageDraw.Draw(tile), []
    for face in faces:
        x0, x1 = (corner[0] + zoom * face[name] for name in ("x0", "x1"))
        y0, y1 = (corner[1] + zoom * face[name] for name in ("y0", "y1"))
        color, number = COLORS[face["mask"]], f"{face['face']} " if len(faces) > 1 else ""
        mark = {"center": "no face", SECOND_LOOK: "second look"}.get(face["method"], "")
        draw.rectangle((x0, y0, x1, y1), outline="white", width=4)
        draw.rectangle((x0, y0, x1, y1), outline=color, width=2)
        text = number + mark
        draw.text((x0 + 4, y0 + 2), text, "white", load_font(), stroke_width=2, stroke_fill=color)
        answers = [(face[target], face[f"{target}_{face[target]}"]) for target in CLASSES]
        text = ", ".join(f"{name} {prob:.0%}" for name, prob in answers)
        lines.append((number + text, color))
    if len(lines) > MAX_LINES:
        lines[MAX_LINES - 1 :] = [(f"and {len(lines) - MAX_LINES + 1} more", "black")]
    return with_lines(tile, [(faces[0]["file"], "black"), *lines])


@lru_cache
def load_font():
    """The first of FONTS on this system, else Pillow's own font."""
    for name in FONTS:
        with contextlib.suppress(OSError):
            return ImageFont.truetype(name, FONT_SIZE)
    return ImageFont.load_default(FONT_SIZE)


def with_lines(picture, lines):
    """A picture with lines below it, [(text, colour)]; of a long text, its end."""
    tile = Image.new("RGB", (picture.width, picture.height + LINE * len(lines)), "white")
    tile.paste(picture)
    draw, font = ImageDraw.Draw(tile), load_font()
    for number, (text, color) in enumerate(lines):
        text = end = " ".join(text.split())
        while draw.textlength(text, font) > tile.width:
            end = end[1:]
            text = f"...{end}"
        draw.text((0, picture.height + LINE * number), text, color, font)
    return tile


def arrange(rows):
    """Rows of pictures as one picture, GAP pixels apart."""
    width = max(sum(picture.width + GAP for picture in row) for row in rows)
    height = sum(max(picture.height for picture in row) + GAP for row in rows)
    sheet, top = Image.new("RGB", (width + GAP, height + GAP), "white"), GAP
    for row in rows:
        left = GAP
        for picture in row:
            sheet.paste(picture, (left, top))
            left += picture.width + GAP
        top += max(picture.height for picture in row) + GAP
    return sheet
