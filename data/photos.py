"""Photos from anywhere, in no table: list them, find their faces, cut these out."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.utils.data import DataLoader
from tqdm import tqdm

from config import config
from data.crop import (
    PHOTO_SIZE,
    PhotoBatches,
    boxes_of,
    equal_size_batches,
    fetch_detector,
    find_faces,
    save_crop,
    try_to,
)
from data.images import upright_size
from data.labels import raise_problems
from data.manifest import BOX
from utils.cli import InputError, leave_ctrl_c_to_the_parent, printable

HEIC_PACKAGE = importlib.util.find_spec("pillow_heif")
if HEIC_PACKAGE:  # here, for spawned workers, too
    importlib.import_module("pillow_heif").register_heif_opener()
HEIC = {".heic", ".heif"}
# What Pillow only identifies, or takes another program for.
NO_PHOTOS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
FACE_WIDTH = 150  # pixels; about what faces have in photos of PHOTO_SIZE
COLUMNS = ["file", "face", "method", *BOX, "prob"]


def photo_suffixes():
    """The suffixes of what Pillow can open, and HEIC's, which it can't without pillow-heif."""
    suffixes = Image.registered_extensions().items()  # which registers the formats first
    kinds = Image.OPEN.keys() - NO_PHOTOS
    return HEIC | {suffix for suffix, kind in suffixes if kind in kinds}


def list_photos(paths, but=()):
    """All photos at paths, in order, each once: files as they are, and what has a photo's suffix in
    or below a folder, hidden files and folders and the paths in but aside.

    Raises InputError for a path that isn't there, and when there are no photos.
    """
    suffixes, photos = photo_suffixes(), {}
    for name in paths:
        path = Path(name)
        if not name or not (path.is_file() or path.is_dir()):
            raise InputError(f"--images {name!s}: no such file or folder")
        inside = [path]
        if path.is_dir():
            inside = [
                photo
                for photo in sorted(path.rglob("*"))
                if photo.suffix.lower() in suffixes
                and not any(part.startswith(".") for part in photo.relative_to(path).parts)
                and photo.is_file()
                and not any(other.exists() and photo.samefile(other) for other in but)
            ]
        photos |= {os.path.realpath(photo): photo for photo in inside}
    if not photos:
        raise InputError(f"--images {', '.join(map(str, paths))}: no photos there but hidden ones")
    return list(photos.values())


def scaled(settings, size, face=None):
    """Crop settings for a photo of another size than the competition's.

    size: (width, height); face: the box of a face, four floats, whose size decides on the margins.
    """
    if size == PHOTO_SIZE:
        return settings
    zoom = (face[2] - face[0]) / FACE_WIDTH if face else 1
    center = settings["center_size"] / min(PHOTO_SIZE) * min(size)
    margins = {name: round(settings[name] * zoom) for name in ("margin_x", "margin_y")}
    return {**settings, **margins, "center_size": max(1, round(center))}


class PhotoFaces(PhotoBatches):
    """PhotoBatches that cut out the largest face of a photo, or every one: item i is
    ([(photo, face, method, box, prob, path of the crop)], {photo that can't be read: why}).
    """

    def __init__(self, folder, batches, sizes, settings, device, every):
        super().__init__(Path(), folder, batches, sizes, settings, device)
        self.every, self.numbers = every, {photo: number for number, photo in enumerate(sizes)}

    def cut_out(self, images):
        stack, rows = np.stack(list(images.values())), []
        for (photo, image), faces in zip(
            images.items(), find_faces(self.detector, stack, self.settings, self.every)
        ):
            # PNG of a PNG, otherwise JPEG: as data.crop's.
            suffix = ".png" if photo.suffix.lower() == ".png" else ".jpg"
            for face, (method, box, prob) in enumerate(
                boxes_in(faces, image.shape[1::-1], self.settings), start=1
            ):
                crop = self.folder / f"{self.numbers[photo]}_{face}{suffix}"
                save_crop(image, box, crop)
                rows.append((photo, face, method, box, prob, crop))
        return rows


def boxes_in(faces, size, settings):
    """boxes_of, data.crop's, with the settings scaled to the photo."""
    return boxes_of(faces, size, lambda face: scaled(settings, size, face))


def crop_photos(photos, folder, settings, every, device, args):
    """Cut the largest face out of each photo, or every one, into folder.

    photos: from list_photos; settings: from crop_settings; args: with num_workers, crop_batch_size.
    Returns a DataFrame with COLUMNS and crop, the path of the cut-out face, a row a face in the
    order of photos, and the photos that can't be read, {photo: why}.
    """
    bad = {}
    sizes = {photo: try_to(upright_size, photo, photo, bad) for photo in photos}
    sizes = {photo: size for photo, size in sizes.items() if size is not None}
    fetch_detector(settings)
    batch_size = args.crop_batch_size or config.CROP_BATCH_SIZES[device.type]
    batches = list(equal_size_batches(sizes, batch_size))
    loader = DataLoader(
        PhotoFaces(folder, batches, sizes, settings, device, every),
        batch_size=None,
        # A forked process can't use the GPU, and a spawned one starts for longer than it helps.
        num_workers=0 if device.type == "cuda" else min(args.num_workers, len(batches) // 2),
        worker_init_fn=leave_ctrl_c_to_the_parent,
        generator=torch.Generator(),
    )
    rows = []
    with tqdm(total=len(sizes), desc="faces", unit="photos", disable=None) as progress:
        for batch, (its_rows, its_bad) in zip(batches, loader):
            rows += its_rows
            bad |= its_bad
            progress.update(len(batch))
    place = {photo: number for number, photo in enumerate(photos)}
    rows.sort(key=lambda row: (place[row[0]], row[1]))
    table = pd.DataFrame(
        [(file, face, method, *box, prob, crop) for file, face, method, box, prob, crop in rows],
        columns=[*COLUMNS, "crop"],
    )
    return table, bad


def reason(photo, why):
    """Why a photo can't be read, as a line with its name, and for HEIC what to do."""
    if photo.suffix.lower() in HEIC and not HEIC_PACKAGE:
        why = "HEIC: convert it to JPEG, or python -m pip install pillow-heif"
    return f"{printable(str(photo))}: {why}"


def refuse_bad_photos(bad, way_out):
    """Raise an InputError that names the photos that can't be read, {photo: why}, if any."""
    problems = [reason(photo, why) for photo, why in bad.items()]
    raise_problems(f"{len(bad)} bad photos ({way_out})", problems)
