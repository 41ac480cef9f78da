"""Reading photos with Pillow."""

import contextlib
import errno
import struct
import warnings
import zlib

import numpy as np
from PIL import Image

from utils.cli import InputError

EXIF_ORIENTATION = 0x0112
# What Pillow raises for a file of arbitrary bytes.
DAMAGE = (
    OSError, ValueError, SyntaxError, LookupError, TypeError, AttributeError, OverflowError,
    EOFError, NotImplementedError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
# Pillow recovers from what it warns about, such as odd tags.
warnings.filterwarnings("ignore", module=r"PIL\.")
# How to turn a photo upright, by its orientation; from 5 on, width and height change places.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@contextlib.contextmanager
def open_image(path):
    """Image.open that raises an InputError naming the file, whatever is wrong with it."""
    try:
        with Image.open(path) as image:
            if not image.width * image.height:
                raise ValueError("it has no pixels")
            yield image
    except DAMAGE as error:
        if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise  # the machine's fault, not the photo's
        hint = "; make it smaller" if isinstance(error, Image.DecompressionBombError) else ""
        raise InputError(f"{path}: not a readable image ({error}){hint}") from error


def orientation(image):
    """The EXIF orientation, 1 to 8; 1 for TIFF, which Pillow turns by itself."""
    value = 1 if image.format == "TIFF" else image.getexif().get(EXIF_ORIENTATION)
    return value if value in UPRIGHT else 1


def load_image(path):
    """The photo at path, upright, as a uint8 RGB array (H, W, 3). Raises InputError.

    Any format, colour mode and depth that Pillow reads; of an animation, the first frame.
    """
    with open_image(path) as image:
        turn = UPRIGHT.get(orientation(image))
        # Not ImageOps.exif_transpose, which rewrites the other tags and fails on odd ones.
        if turn is not None:
            image = image.transpose(turn)
        if image.mode.startswith("I"):  # 16 bits, which convert would cut off at 255
            image = Image.fromarray((np.asarray(image) // 256).clip(0, 255).astype(np.uint8))
        elif "transparency" in image.info:
            image = image.convert("RGBA")
        return np.array(image.convert("RGB"))


def try_to_load(path):
    """load_image(path), or None; and why it can't be read, or None."""
    try:
        return load_image(path), None
    except InputError as error:
        return None, str(error).removeprefix(f"{path}: ")
