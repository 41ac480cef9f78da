"""Reading photos with Pillow."""

import contextlib

import numpy as np
from PIL import Image, ImageOps

from utils.cli import InputError

EXIF_ORIENTATION = 0x0112
LYING = (5, 6, 7, 8)  # the orientations that swap width and height


@contextlib.contextmanager
def open_image(path):
    """Image.open whose every complaint is an InputError that names the file."""
    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such image") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: not a readable image ({error})") from error


def load_image(path):
    """Return the photo at path, upright, as a uint8 RGB array (H, W, 3). Raises InputError.

    Any format, colour mode and depth that Pillow reads; of an animation, its first frame.
    """
    with open_image(path) as image:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # 16 bits, which convert would cut off at 255
            image = Image.fromarray((np.asarray(image) // 256).clip(0, 255).astype(np.uint8))
        elif "transparency" in image.info:
            image = image.convert("RGBA")
        return np.array(image.convert("RGB"))


def upright_size(path):
    """Return (width, height) as load_image gives them, for a JPEG without decoding it."""
    with open_image(path) as image:
        width, height = image.size
        if not width * height:
            raise ValueError("it has no pixels")
        lying = image.getexif().get(EXIF_ORIENTATION) in LYING
        return (height, width) if lying else (width, height)
