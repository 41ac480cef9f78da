"""Finding photos, and reading them with Pillow."""

import errno
import importlib.util
import io
import os
import random
import struct
import warnings
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from utils.cli import InputError

EXIF_ORIENTATION = 0x0112
# What Pillow raises for a file of arbitrary bytes.
DAMAGE = (
    OSError, ValueError, SyntaxError, LookupError, TypeError, AttributeError, OverflowError,
    EOFError, NotImplementedError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
# Pillow recovers from what it warns about, such as odd tags.
warnings.filterwarnings("ignore", module=r"PIL\.")
Image.MAX_IMAGE_PIXELS = 200_000_000  # as phones take; Pillow refuses more than twice as many
HEIC = {".heic", ".heif"}
READS_HEIC = importlib.util.find_spec("pillow_heif") is not None
if READS_HEIC:
    importlib.import_module("pillow_heif").register_heif_opener()
# What Pillow can identify but not read, or only with the help of other programs.
NO_PHOTOS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
# How to turn a photo upright, by its orientation; from 5 on, width and height change places.
TURN = Image.Transpose
UPRIGHT = {
    2: TURN.FLIP_LEFT_RIGHT, 3: TURN.ROTATE_180, 4: TURN.FLIP_TOP_BOTTOM, 5: TURN.TRANSPOSE,
    6: TURN.ROTATE_270, 7: TURN.TRANSVERSE, 8: TURN.ROTATE_90,
}  # fmt: skip
# Two endings for a JPEG file that is cut off: no more pixels, or random ones after any restart
# marker. If it decodes to the same pixels with both, it had all of them.
FILL = random.Random(0).randbytes(64).replace(b"\xff", b"")
END = b"\xff\xd9"
ENDINGS = END, b"".join(FILL + bytes([255, 208 + i]) for i in range(8)) + FILL + END


def list_files(path, seen):
    """Yield path or, if it is a folder, the files in and below it in order of their names, without
    hidden folders. Links to folders are followed, to each folder once; seen: a set of those known.
    """
    if not os.path.isdir(path):
        yield path
    elif (real := os.path.realpath(path)) not in seen:
        seen.add(real)
        try:
            names = sorted(os.listdir(path))
        except OSError:
            yield path
            return
        for inner in map(path.joinpath, names):
            if not (inner.name.startswith(".") and os.path.isdir(inner)):
                yield from list_files(inner, seen)


def pick_photos(paths):
    """Those of paths that are photos by their suffix, and the others, without hidden ones."""
    kinds = Image.registered_extensions()  # which also fills Image.OPEN
    readable = {"MPO", *Image.OPEN} - NO_PHOTOS  # MPO, of two-eyed cameras, is opened as JPEG
    photos, others = [], []
    for path in paths:
        suffix = path.suffix.lower()
        # A pipe is no photo; a link to nothing is one that can't be read.
        is_file = os.path.isfile(path) or not os.path.exists(path)
        if not path.name.startswith("."):
            is_photo = is_file and (kinds.get(suffix) in readable or suffix in HEIC)
            (photos if is_photo else others).append(path)
    return photos, others


def print_left_out(paths):
    """Print how many paths, which are no photos, are left out, by their suffix."""
    kinds = ["folder" if path.is_dir() else path.suffix.lower() or "no suffix" for path in paths]
    if kinds:
        counts = ", ".join(f"{count} {kind}" for kind, count in Counter(kinds).most_common())
        print(f"left out, not photos that Pillow reads: {counts}")


def orientation(image):
    """The EXIF orientation, 1 to 8; 1 for TIFF, which Pillow turns by itself."""
    try:
        value = 1 if image.format == "TIFF" else image.getexif().get(EXIF_ORIENTATION)
    except DAMAGE:  # the pixels may be fine
        return 1
    return value if value in UPRIGHT else 1


def decode(file, side=None, max_shrink=8):
    """The pixels of an image file, its size, and its format and mode, as from read_image."""
    with Image.open(file) as image:
        size = image.size
        if side is not None:
            image.draft(None, [max(side, length // max_shrink) for length in size])
        shrunk = image.size != size
        if not image.width * image.height:
            raise ValueError("it has no pixels")
        if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
            raise ValueError("pixels of unknown range")
        kind = f"{image.format} {image.mode}"
        value = orientation(image)
        turn, size = UPRIGHT.get(value), size[::-1] if value >= 5 else size
        # Not ImageOps.exif_transpose, which rewrites the other tags and fails on odd ones.
        if turn is not None:
            image = image.transpose(turn)
        if image.mode.startswith("I"):  # 16 bits, which convert would cut off at 255
            image = Image.fromarray((np.asarray(image) // 256).clip(0, 255).astype(np.uint8))
        pixels = np.array(image if image.mode == "RGB" else image.convert("RGB"))
        return pixels, size if shrunk else pixels.shape[1::-1], kind  # old Pillows turn TIFFs


def png_without_metadata(png):
    """A PNG file, bytes, without the chunks that neither pixels nor orientation need."""
    kept, start = [png[:8]], 8
    while start < len(png):
        end = start + 12 + int.from_bytes(png[start : start + 4])
        chunk = png[start:end]
        if chunk[4:8] == b"eXIf":
            kept += chunk[:-4], struct.pack(">I", zlib.crc32(chunk[4:-4]))
        elif chunk[4:5].isupper():  # critical, so its checksum counts
            kept.append(chunk)
        start = end
    return b"".join(kept)


def jpeg_without_metadata(jpeg):
    """A JPEG file, bytes, without the segments that neither pixels nor orientation need."""
    kept, start = [jpeg[:2]], 2
    while start < len(jpeg) and jpeg[start : start + 2] != b"\xff\xda":  # the pixels
        end = start + 2 + int.from_bytes(jpeg[start + 2 : start + 4])
        segment = jpeg[start:end]
        adobe = segment[4:9] == b"Adobe" and len(segment) >= 16  # says how colours are kept
        if adobe or segment[4:8] == b"Exif" or not 0xE0 <= jpeg[start + 1] <= 0xEF:
            kept.append(segment)
        start = end
    return b"".join(kept) + jpeg[start:]


def decode_damaged(path, error):
    """What decode, which raised error, returns without the metadata of a PNG or JPEG, or for a JPEG
    that only lacks its end marker; and what is damaged, None for metadata. Else raises one of
    DAMAGE.
    """
    content = Path(path).read_bytes()
    if content.startswith(b"\x89PNG"):
        return *decode(io.BytesIO(png_without_metadata(content))), None
    if not content.startswith(b"\xff\xd8"):
        raise error
    content = jpeg_without_metadata(content).removesuffix(END[:1])
    scan = content.rfind(b"\xff\xda")
    start = scan + 5 + 2 * content[scan + 4]  # of the last scan's frequencies and bits
    if content.find(END, start) > 0:  # the metadata was to blame
        return *decode(io.BytesIO(content)), None
    if content[start + 1] != 63 or content[start + 2] & 15:  # a progressive JPEG has the last ones
        raise ValueError("its details are missing")
    # If all pixels are there, they don't depend on what follows.
    (pixels, size, kind), (others, *_) = (decode(io.BytesIO(content + end)) for end in ENDINGS)
    if not np.array_equal(pixels, others):
        raise ValueError("its lower rows are missing")
    return pixels, size, kind, "the file lacks its end, but all pixels are there"


def read_image(path, side=None, max_shrink=8):
    """The photo at path, upright, uint8 RGB (H, W, 3); its (width, height); its format and mode,
    such as "JPEG RGB"; and what is damaged, or None. Of a bad photo, the first three are None.

    With side, a JPEG comes at a half, a quarter or an eighth of its size, the least that has side
    pixels each way, but at no less than 1 / max_shrink.
    """
    try:
        with open(path, "rb") as file:  # given a path, Pillow garbles some TIFFs, mapped to memory
            return *decode(file, side, max_shrink), None
    except DAMAGE as error:
        if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise  # the machine's fault, not the photo's
        try:
            return decode_damaged(path, error)
        except DAMAGE as why:
            # The file's own error, not the repaired copy's.
            why = error if isinstance(why, (UnidentifiedImageError, LookupError)) else why
            hint = "; make it smaller" if isinstance(why, Image.DecompressionBombError) else ""
            if Path(path).suffix.lower() in HEIC and not READS_HEIC:
                hint = "; convert it to JPEG, or python -m pip install pillow-heif"
            return None, None, None, f"not a readable image ({why}){hint}"


def load_image(path):
    """The photo at path, upright, as a uint8 RGB array (H, W, 3). Raises InputError.

    Any format, colour mode and depth that Pillow reads; of an animation, the first frame.
    """
    return load_smaller(path, None)[0]


def load_smaller(path, side):
    """load_image(path), and the photo's (width, height). A JPEG comes at a half, a quarter or an
    eighth of its size, the least that has side pixels each way: several times as fast.
    """
    image, size, _, damage = read_image(path, side)
    if image is None:
        raise InputError(f"{path}: {damage}")
    return image, size
