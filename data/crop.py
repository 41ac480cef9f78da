"""Cut the face out of every photo, once: `python -m data.crop`.

train/images/... -> train/new_img/... and eval/images/... -> eval/new_images/...

Beside each folder, crops.json holds the settings and crops.csv has one row per photo: file; method,
"mtcnn", "mtcnn, second look", center (no face was found) or bad (can't be read); the box x0, y0,
x1, y1 in pixels of the photo; the detector's prob; size and time of change of the photo when it was
cropped.
"""

import sys
from pathlib import Path

if __spec__ is None:  # started as a file, not by python -m
    sys.path[0] = str(Path(__file__).parents[1])
    import config  # before PyTorch

import argparse
import io
import json
import os
import random
import time
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.utils.data import DataLoader
from tqdm import tqdm

from config import config
from data.detect import (
    HALF_SIZE_FACE,
    PACKAGE_FACE,
    build_detector,
    find_all_faces,
    find_largest_faces,
    look_again,
)
from data.images import load_image, read_image
from data.labels import list_train_images, raise_problems, read_info
from utils import cli
from utils.cli import InputError
from utils.device import (
    from_first,
    gather,
    is_first,
    join_processes,
    progress_off,
    rank,
    world_size,
)
from utils.files import atomic_write, locked, make_folder, remove_leftovers, write_csv, write_json

PHOTO_SIZE = 384, 512  # width and height of the competition's photos
JPEG_QUALITY = 95
# A JPEG is decoded, and searched for faces, at half its size if that has so many pixels each way.
MIN_HALF_SIDE = 1000
# Crops of fewer pixels each way, which is EfficientNet-B4's input, are cut from the whole photo.
MIN_CROP_SIDE = 380
SAVE_EVERY = 5  # seconds between manifests: what a killed run has to do again
MEASURED = 64  # train photos that tell how wide a face typically is

SECOND_LOOK = "mtcnn, second look"
CROP_FOLDERS = {"train": "new_img", "eval": "new_images"}
BOX = ["x0", "y0", "x1", "y1"]
# Int64, with a capital, may be missing.
TYPES = {"file": str, "method": str, **dict.fromkeys(BOX, "Int64"), "prob": float,
         "source_size": "int64", "source_mtime_ns": "int64"}  # fmt: skip


def crop_box(face, size, settings):
    """Where to crop a photo: the box of its face, widened, or without a face its centre.

    face: x0, y0, x1, y1 as floats, or None; size: (width, height); settings: from crop_settings.
    Margins and centre are those of photos of 384 x 512. In other photos the centre grows with the
    photo, and the margins with the face.
    Returns four ints, clipped to the photo, or None for a face outside of it.
    """
    width, height = size
    if face is None:
        side = settings["center_size"]
        if size != PHOTO_SIZE:
            side = max(1, round(side * min(size) / min(PHOTO_SIZE)))
        x0, y0 = max(0, (width - side) // 2), max(0, (height - side) // 2)
        return x0, y0, min(width, x0 + side), min(height, y0 + side)
    zoom = 1
    if size != PHOTO_SIZE and settings["face_width"]:
        zoom = (face[2] - face[0]) / settings["face_width"]
    margin_x, margin_y = round(zoom * settings["margin_x"]), round(zoom * settings["margin_y"])
    x0, y0, x1, y1 = (int(value) for value in face)
    x0, x1 = max(0, x0 - margin_x), min(width, x1 + margin_x)
    y0, y1 = max(0, y0 - margin_y), min(height, y1 + margin_y)
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


class Photo(NamedTuple):
    """A photo that was read."""

    path: Path
    crop: Path  # where its crop goes
    image: np.ndarray | None  # uint8 RGB (H, W, 3), of a large JPEG half the photo's size
    size: tuple | None  # the photo's (width, height)
    damage: str | None  # why it can't be read or, if it could be, what else is damaged


def smallest_face(settings, size):
    """The smallest face, in pixels, that the first look is for in a photo of size, (width, height):
    that of settings; if the shorter side is below 384, less in proportion, down to the package's.
    """
    face = settings["min_face_size"]
    return min(face, max(PACKAGE_FACE, round(face * min(size) / min(PHOTO_SIZE))))


def crop_settings(args, files, device):
    """What decides how photos are cropped, plain types: config.CROP as given by args, and
    face_width, the median width of a face in the train photos as if their shorter sides were 384
    pixels (None without any face). It is measured when they are first cropped with these settings,
    and then read from crops.json. files: relative to train/images.
    """
    settings = {name: getattr(args, name) for name in config.CROP}
    stored, rows = read_record(crop_folder(args.data_dir, args.crop_dir, "train"))
    source = Path(args.data_dir) / "train" / "images"
    # The record may be of other photos, with the same --crop-dir: it is of these if one is in it.
    recorded = (file for file in files if file in rows)
    known = any(is_current(rows[file], fingerprint(source / file)) for file in recorded)
    if known and "face_width" in stored and settings.items() <= stored.items():
        return from_first(stored)
    return from_first({**settings, "face_width": measure_faces(source, files, settings, device)})


def measure_faces(source, files, settings, device):
    """The median width of the largest faces in a sample of photos, as crop_settings has it."""
    detector, widths = detector_of_process(device), []
    for file in random.Random(0).sample(files, min(len(files), MEASURED)):
        photo = read_photo((source / file, None), settings)
        if photo.image is not None:
            smallest = smallest_face(settings, photo.size)
            [faces] = find_largest_faces(detector, photo.image[None], smallest, photo.size)
            scale = min(PHOTO_SIZE) / min(photo.size)
            widths += [scale * (face[2] - face[0]) for face, _ in faces]
    return round(float(np.median(widths))) if widths else None


def crop_photos(pairs, settings, device, args, all_faces=False):
    """Crop this process's share of photos: yields a dict for each or, if all_faces, for each face.

    pairs: [(path of the photo, path of its crop)]; settings: from crop_settings; args: with
    num_workers and crop_batch_size. Faces after the largest go to the same path with _2, _3, ...
    The dicts: photo, face (1 is the largest), method, x0, y0, x1, y1, prob, crop (its path) and
    why, what is damaged though no pixel is, or None; for a photo with the method bad: photo, face,
    method, and why.
    """
    batch_size = args.crop_batch_size or config.CROP_BATCH_SIZE[device.type]
    batches = [pairs[start : start + batch_size] for start in range(0, len(pairs), batch_size)]
    batches = batches[rank() :: world_size()]
    share = [pair for batch in batches for pair in batch]
    read = partial(read_photo, settings=settings)
    crop = partial(
        crop_images, settings=settings, device=device, batch_size=batch_size, all_faces=all_faces
    )
    detector_of_process(device)  # once for all workers, if they are forked
    loader = partial(
        DataLoader,
        batch_size=None,  # so collate_fn is called on each item, in a worker
        num_workers=min(args.num_workers, len(batches)),
        worker_init_fn=cli.start_worker,
        generator=torch.Generator(),  # else it would change what training draws
    )
    if device.type == "cuda":  # workers read, this process detects
        results = crop(loader(share, collate_fn=read))
    else:
        results = loader(batches, collate_fn=partial(crop_batch, read=read, crop=crop))
    # leave=None: below another bar, it vanishes.
    bar = tqdm(total=len(share), desc="crop", leave=None, unit="photo", disable=progress_off())
    with bar:
        for rows in results:
            bar.update(sum(row["face"] == 1 for row in rows))  # each photo has one such row
            yield from rows


def read_photo(pair, settings):
    """The Photo of a pair (path, crop). With settings for small faces, a large JPEG comes whole."""
    side = MIN_HALF_SIDE if settings["min_face_size"] >= HALF_SIZE_FACE else None
    image, size, _, damage = read_image(pair[0], side, max_shrink=2)
    return Photo(*pair, image, size, damage)


def crop_batch(pairs, read, crop):
    """The rows of a list of pairs (path, crop): a worker's job.

    read, crop: read_photo and crop_images with their options.
    """
    return [row for rows in crop(map(read, pairs)) for row in rows]


detector_of_process = lru_cache(build_detector)


def crop_images(photos, settings, device, batch_size, all_faces):
    """Yields lists of crop_photos' rows for an iterable of Photos. Those of one size pass the
    detector together, with at most the pixels of batch_size usual ones.
    """
    group = []
    limit = batch_size * PHOTO_SIZE[0] * PHOTO_SIZE[1]  # pixels
    for photo in photos:
        if photo.image is None:
            yield [{"photo": photo.path, "face": 1, "method": "bad", "why": photo.damage}]
            continue
        height, width, _ = photo.image.shape
        full = (len(group) + 1) * height * width > limit
        if group and (full or sizes(photo) != sizes(group[0])):
            yield crop_group(group, settings, device, all_faces)
            group = []
        group.append(photo)
    if group:
        yield crop_group(group, settings, device, all_faces)


def sizes(photo):
    """What Photos must share to pass the detector together."""
    return photo.size, photo.image.shape


def crop_group(photos, settings, device, all_faces):
    """The rows of crop_photos for Photos of one size, whose crops are saved."""
    rows, stack, size = [], np.stack([photo.image for photo in photos]), photos[0].size
    find = find_all_faces if all_faces else find_largest_faces
    found = find(detector_of_process(device), stack, smallest_face(settings, size), size)
    methods = ["mtcnn"] * len(photos)
    missed = [number for number, faces in enumerate(found) if not faces]
    if missed and settings["second_look"]:
        again = look_again(detector_of_process(device), stack[missed], size)
        for number, faces in zip(missed, again):
            found[number], methods[number] = faces, SECOND_LOOK
    for photo, faces, method in zip(photos, found, methods):
        crops = [(method, crop_box(face, size, settings), round(prob, 6)) for face, prob in faces]
        crops = [crop for crop in crops if crop[1] is not None]
        crops = crops or [("center", crop_box(None, size, settings), np.nan)]
        shortest = min(min(x1 - x0, y1 - y0) for _, (x0, y0, x1, y1), _ in crops)
        halved = photo.image.shape[1] < size[0]
        # A halved image has half of these pixels.
        image = load_image(photo.path) if halved and shortest < 2 * MIN_CROP_SIDE else photo.image
        for number, (how, box, prob) in enumerate(crops, start=1):
            stem = photo.crop.stem if number == 1 else f"{photo.crop.stem}_{number}"
            path = photo.crop.with_stem(stem)
            save_crop(image, box, path, size)
            row = {"photo": photo.path, "face": number, "method": how, "prob": prob, "crop": path}
            rows.append({**row, **dict(zip(BOX, box)), "why": photo.damage})
    return rows


def save_crop(image, box, path, size):
    """Write what is inside box to path: a PNG file if it is named so, else a JPEG file. box: in
    pixels of the photo, of this (width, height); image: the photo, or a smaller copy.
    """
    x0, x1 = (round(x * image.shape[1] / size[0]) for x in box[::2])
    y0, y1 = (round(y * image.shape[0] / size[1]) for y in box[1::2])
    buffer = io.BytesIO()
    kind = "PNG" if path.suffix.lower() == ".png" else "JPEG"
    Image.fromarray(image[y0:y1, x0:x1]).save(buffer, kind, quality=JPEG_QUALITY)
    if not path.parent.is_dir():
        make_folder(path.parent, "choose another --crop-dir")
    with atomic_write(path, sync=False) as file:  # finished_crops sees one that a power cut emptied
        file.write(buffer.getbuffer())


def crop_folder(data_dir, crop_dir, split):
    """The folder of the crops of "train" or "eval"; crop_dir None means beside the photos."""
    return Path(crop_dir or data_dir) / split / CROP_FOLDERS[split]


def read_record(folder):
    """The settings and the manifest, {file: row}, of the crops in folder; both empty without."""
    path = folder.parent / "crops.csv"
    try:
        settings = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        table = pd.read_csv(path, dtype=TYPES, keep_default_na=False, na_values=[""])[[*TYPES]]
    except (FileNotFoundError, NotADirectoryError):
        return {}, {}
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise InputError(f"{path} or crops.json: damaged ({error}); delete both") from error
    return settings, {row["file"]: row for row in table.to_dict("records")}


def write_manifest(folder, files, done):
    """Write the rows in done, {file: row}, in the order of files."""
    table = pd.DataFrame([done[file] for file in files if file in done], columns=[*TYPES])
    write_csv(folder.parent / "crops.csv", table.astype(TYPES))


def fingerprint(path):
    """(bytes, time of change in ns) of a file, to see that it has changed; zeros if it is gone."""
    status = path.stat() if path.exists() else None
    return (status.st_size, status.st_mtime_ns) if status else (0, 0)


def is_current(row, stamp):
    """Whether a manifest's row is of the photo whose fingerprint is stamp."""
    return (row["source_size"], row["source_mtime_ns"]) == stamp


def finished_crops(source, folder, settings, fingerprints):
    """The manifest, {file: row}, of the files that need no new crop.

    source: the folder of the photos; fingerprints: {file: fingerprint}.
    """
    if not is_first():
        return from_first(None)
    done, (stored, rows) = {}, read_record(folder)
    for file, stamp in fingerprints.items() if stored == settings else ():
        row = rows.get(file)
        if row is None or not is_current(row, stamp):
            continue
        if row["method"] == "bad":
            # Read again: it may have been the disk's fault, and crops.csv doesn't say why.
            image, *_, row["why"] = read_image(source / file)
            finished = image is None
        else:
            finished = fingerprint(folder / file)[0] > 0
        if finished:
            done[file] = row
    return from_first(done)


def crop_lock(folder):
    """Wait until no other command crops into folder, and keep others waiting."""
    waiting = f"{folder}: waiting for another command that crops to it"
    return locked(folder.parent / "crops.lock", waiting, wait=True)


def check_unchanged(folder, manifest):
    """Raise InputError unless the crops in folder are still those of manifest, from crop_split."""
    columns, manifest = [*BOX, "source_mtime_ns"], manifest[manifest["method"] != "bad"]
    rows = {file: row for file, row in read_record(folder)[1].items() if row["method"] != "bad"}
    now = [[rows.get(file, {}).get(name) for name in columns] for file in manifest["file"]]
    if now != manifest[columns].astype(object).to_numpy().tolist():
        raise InputError(f"{folder}: another command replaced these crops; start again with a "
                         "--crop-dir of your own")  # fmt: skip


def crop_split(args, split, files, shots, settings, device):
    """Crop the photos of "train" or "eval" that are new, changed or lost their crop, or all of them
    if settings, from crop_settings, are others than those of the crops.

    files: relative to the split's images folder; shots: to count photos without a face by, or None.
    Returns the manifest, a DataFrame with the columns in TYPES, one row per file in their order.
    Raises InputError that names the photos that can't be read, once all others are cropped, unless
    args.skip_bad.
    """
    start = time.perf_counter()
    source = Path(args.data_dir) / split / "images"
    folder = crop_folder(args.data_dir, args.crop_dir, split)
    fingerprints = {file: fingerprint(source / file) for file in files}
    done = finished_crops(source, folder, settings, fingerprints)
    missing = [file for file in files if file not in done]
    if missing:
        make_folder(folder, "choose another --crop-dir")
        with crop_lock(folder):
            # Another command may have cropped.
            done = finished_crops(source, folder, settings, fingerprints)
            missing = [file for file in files if file not in done]
            crop_missing(args, source, folder, fingerprints, done, settings, device)
    # With the types of crops.csv: resize_crops names its file after a hash of these rows.
    manifest = pd.DataFrame([done[file] for file in files], columns=[*TYPES]).astype(TYPES)
    bad = [file for file in files if done[file]["method"] == "bad"]
    if missing:
        cropped = sum(done[file]["method"] != "bad" for file in missing)
        speed = cropped / (time.perf_counter() - start)
        print(f"{split}: {cropped} photos cropped to {folder} ({speed:.1f} images/s)")
        print(f"{split}: {summary(manifest['method'])}")
        groups = () if shots is None else manifest["method"].groupby(np.array(shots))
        for shot, methods in groups:
            print(f"  {shot:<16}{summary(methods)}")
    for row in done.values():
        if row["method"] != "bad" and row.get("why"):
            print(f"{split}/images/{row['file']}: {row['why']}")
    problems = [f"{split}/images/{file}: {done[file]['why']}" for file in sorted(bad)]
    if args.skip_bad:
        print("".join(f"left out: {problem}\n" for problem in problems), end="")
    else:
        what = f"{args.data_dir}: {len(bad)} photos can't be read; repair them or use --skip-bad"
        raise_problems(what, problems)
    return manifest


def summary(methods):
    """How photos were cropped, a line; methods: a manifest's column method."""
    count, again = (methods != "bad").sum(), (methods == SECOND_LOOK).sum()
    missed = (methods == "center").sum()
    return (f"{count:>6} photos{again:>6} found by the second look{missed:>6} without a face, "
            "cropped centrally")  # fmt: skip


def crop_missing(args, source, folder, fingerprints, done, settings, device):
    """Crop the files of fingerprints that are not in done, and add their rows to it."""
    if is_first():
        remove_leftovers(folder, "**/.*")
        remove_leftovers(folder.parent, ".crops.*")
        if read_record(folder)[0] not in ({}, settings):
            print(f"{folder}: made with other settings, cropping anew")
        # The rows first: crops of other settings must never stand beside these settings.
        write_manifest(folder, fingerprints, done)
        write_json(folder.parent / "crops.json", settings)
    gather(None)  # the other processes wait
    files = {source / file: file for file in fingerprints if file not in done}
    saved = time.monotonic()
    try:
        photos = [(photo, folder / file) for photo, file in files.items()]
        for row in crop_photos(photos, settings, device, args):
            file = files[row["photo"]]
            size, mtime_ns = fingerprints[file]
            done[file] = {**row, "file": file, "source_size": size, "source_mtime_ns": mtime_ns}
            if row["method"] == "bad":
                (folder / file).unlink(missing_ok=True)  # of the photo as it was before
            if is_first() and time.monotonic() - saved > SAVE_EVERY:
                write_manifest(folder, fingerprints, done)
                saved = time.monotonic()
        for share in gather(done):
            done |= share
    finally:  # an error or Ctrl-C keeps the crops that are made
        if is_first():
            remove_leftovers(folder, "**/.*")  # of workers that were stopped
            write_manifest(folder, fingerprints, done)


# fmt: off
def add_crop_arguments(parser):
    """Add the arguments that decide how photos are cropped."""
    add = parser.add_argument_group("face crops, in pixels of a photo of 384 x 512").add_argument
    add("--min-face-size", type=cli.positive_int, default=config.CROP["min_face_size"],
        help="smallest face that the first look is for, in pixels of the photo itself; scaled "
             "down, to 20 at least, in photos whose shorter side is below 384; below 40, large "
             "JPEGs are read at full size, which is slower (default: %(default)s; the original's "
             "20)")
    add("--margin-x", type=cli.natural_int, default=config.CROP["margin_x"],
        help="added left and right of the face's box (default: %(default)s)")
    add("--margin-y", type=cli.natural_int, default=config.CROP["margin_y"],
        help="added above and below the face's box (default: %(default)s)")
    add("--center-size", type=cli.positive_int, default=config.CROP["center_size"],
        help="side of the central crop of a photo without a face (default: %(default)s)")
    add("--second-look", action=argparse.BooleanOptionalAction,
        default=config.CROP["second_look"],
        help="if no face is found, look again with lower thresholds, then with a frame around "
             "the photo; the original didn't (default: yes)")
    add_crop_batch_size(add)


def add_crop_batch_size(add):
    """Add --crop-batch-size, with add, an add_argument method."""
    add("--crop-batch-size", type=cli.positive_int,
        help="photos of 384 x 512 the detector takes at once (default: {cpu} on a CPU, {cuda} on a "
        "GPU)".format(**config.CROP_BATCH_SIZE))


def get_args_parser():
    parser = cli.ArgumentParser("python -m data.crop", description="Crop the face of every photo.")
    cli.add_data_arguments(parser.add_argument)
    parser.add_argument("--split", choices=("train", "eval", "both"), default="both",
        help="which photos; eval needs the train photos too, whose faces set the margins (default: "
        "both, or train if there is no folder eval)")
    cli.add_machine_arguments(parser.add_argument)
    add_crop_arguments(parser)
    return parser
# fmt: on


def main():
    args = get_args_parser().parse_args()
    # Photos of many sizes make many convolutions, of which oneDNN would keep 1024 in memory.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    device = join_processes(args.device)
    images = list_train_images(args.data_dir)  # for eval too: its margins follow the train faces
    splits = {"train": (images["file"], images["shot"])}
    if args.split == "eval" or (args.split == "both" and Path(args.data_dir, "eval").exists()):
        splits["eval"] = read_info(args.data_dir)[1], None
    settings = crop_settings(args, images["file"].tolist(), device)
    for split in splits if args.split == "both" else [args.split]:
        manifest = crop_split(args, split, *splits[split], settings, device)
        print(f"{split}: {(manifest['method'] != 'bad').sum()} photos are cropped")


if __name__ == "__main__":
    cli.run(main, "the same command goes on")
