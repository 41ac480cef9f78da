"""Cut the face out of every photo, once: `python -m data.crop`.

train/images/... -> train/new_img/... and eval/images/... -> eval/new_images/..., a manifest beside
each.
"""

import io
import os
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import FileLock
from PIL import Image
from tqdm import tqdm

from config import config
from data.images import load_image, upright_size
from data.labels import list_train_images, raise_problems, read_info
from data.manifest import COLUMNS, fingerprint, read_crops, write_manifest, write_settings
from utils.cli import (
    ArgumentParser,
    InputError,
    add_data_arguments,
    add_machine_arguments,
    natural_int,
    positive_int,
    run,
)
from utils.device import pick_device
from utils.files import atomic_write, make_folder, remove_leftovers

CROP_FOLDERS = {"train": "new_img", "eval": "new_images"}
JPEG_QUALITY = 95
# A batch of photos passes MTCNN's whole image pyramid at once: bound its pixels, not its count,
# so that large photos take no more memory than small ones.
PHOTO_PIXELS = 384 * 512
SAVE_EVERY = 5  # seconds; the work that a killed run has to do again at most


def add_crop_arguments(parser):
    """Add the arguments that say how photos are cropped."""
    add = parser.add_argument_group("face crops (sizes in pixels of the photo)").add_argument
    # fmt: off
    add("--min-face-size", type=positive_int, default=config.MIN_FACE_SIZE,
        help="smallest face looked for (default: %(default)s)")
    add("--margin-x", type=natural_int, default=config.MARGIN_X,
        help="added left and right of the found box (default: %(default)s)")
    add("--margin-y", type=natural_int, default=config.MARGIN_Y,
        help="added above and below the found box (default: %(default)s)")
    add("--center-size", type=positive_int, default=config.CENTER_SIZE,
        help="side of the central crop where no face is found (default: %(default)s)")
    add("--crop-batch-size", type=positive_int, default=config.CROP_BATCH_SIZE,
        help="photos of 384 x 512 that the detector takes at once (default: %(default)s)")
    # fmt: on


def crop_settings(args):
    """The settings that decide what a crop looks like, as plain types."""
    return {"detector": "mtcnn", **{name: getattr(args, name) for name in config.CROP_SETTINGS}}


def crop_folder(data_dir, crop_dir, split):
    """Where the crops of "train" or "eval" are; crop_dir None means beside the photos."""
    return Path(crop_dir or data_dir) / split / CROP_FOLDERS[split]


def face_box(box, size, settings):
    """Widen a detected box and clip it to the image.

    box: four floats x0, y0, x1, y1; size: (width, height). Returns four ints, or None when
    nothing of the box is inside the image.
    """
    width, height = size
    x0, y0, x1, y1 = (int(value) for value in box)
    x0, x1 = max(0, x0 - settings["margin_x"]), min(width, x1 + settings["margin_x"])
    y0, y1 = max(0, y0 - settings["margin_y"]), min(height, y1 + settings["margin_y"])
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def center_box(size, side):
    """The central side x side pixels of an image of size (width, height), clipped to it."""
    width, height = size
    x0, y0 = max(0, (width - side) // 2), max(0, (height - side) // 2)
    return x0, y0, min(width, x0 + side), min(height, y0 + side)


def build_detector(settings, device):
    """facenet_pytorch's MTCNN as the original used it; its weights come with the package."""
    from facenet_pytorch import MTCNN

    return MTCNN(keep_all=True, min_face_size=settings["min_face_size"], device=device)


def find_boxes(detector, images, settings):
    """Where to crop images of one size, uint8 RGB (N, H, W, 3).

    Returns a list of (method, box, prob): method "mtcnn" with the first found box, widened, or
    "center" with the central box and prob NaN.
    """
    height, width = images.shape[1:3]
    # What MTCNN asks of its first pyramid level; an image that has none is an error there.
    if min(height, width) * (12 / settings["min_face_size"]) >= 12:
        found, probs = detector.detect(images)
    else:
        found, probs = [None] * len(images), [None] * len(images)
    results = []
    for boxes, prob in zip(found, probs):
        box = None if boxes is None else face_box(boxes[0], (width, height), settings)
        if box is None:
            results.append(("center", center_box((width, height), settings["center_size"]), np.nan))
        else:
            results.append(("mtcnn", box, round(float(prob[0]), 6)))
    return results


def save_crop(image, box, path):
    """Write image[box] to path in the format of its suffix, whole or not at all."""
    x0, y0, x1, y1 = box
    buffer = io.BytesIO()
    kind = "PNG" if path.suffix.lower() == ".png" else "JPEG"
    Image.fromarray(image[y0:y1, x0:x1]).save(buffer, kind, quality=JPEG_QUALITY)
    if not path.parent.is_dir():
        make_folder(path.parent, "give another one with --crop-dir")
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def equal_size_batches(sizes, batch_size):
    """Group indices of equal (width, height) into batches, the largest images first.

    What memory they need is then known at once, and suffices for all that come after.
    """
    buckets = {}
    for index, size in enumerate(sizes):
        buckets.setdefault(size, []).append(index)
    largest_first = sorted(buckets.items(), key=lambda item: -item[0][0] * item[0][1])
    for (width, height), indices in largest_first:
        step = max(1, min(batch_size, batch_size * PHOTO_PIXELS // (width * height)))
        for start in range(0, len(indices), step):
            yield indices[start : start + step]


def prefetch(pool, function, batches):
    """Yield (batch, [function(item) for item in batch]), working one batch ahead in the pool."""
    ahead = None
    for batch in batches:
        started = batch, pool.map(function, batch)
        if ahead:
            yield ahead[0], list(ahead[1])
        ahead = started
    if ahead:
        yield ahead[0], list(ahead[1])


def crop_images(source, folder, files, settings, device, args):
    """Crop source/<file> to folder/<file> for each of files that is new, changed or was lost.

    settings: from crop_settings; others than those of the crops in folder make all of them anew.
    Returns the manifest, one row a file in the order of files, how many crops were made, and the
    photos that can't be read: {file: why}. Raises InputError for a folder that can't be written.
    """
    prints = {file: fingerprint(source / file) for file in files}
    done, missing = read_crops(folder, settings, prints)
    bad = {}
    if missing:
        make_folder(folder, "give another one with --crop-dir")
        with FileLock(folder.parent / "crops.lock"):
            # Once more: perhaps another command has cropped them while this one waited.
            done, missing = read_crops(folder, settings, prints)
            remove_leftovers(folder, "**/.*")
            remove_leftovers(folder.parent, ".crops.*")
            # First the shorter manifest, then the settings: a crop of old ones never counts as new.
            write_manifest(folder, files, done)
            write_settings(folder, settings)
            try:
                saved = time.monotonic()
                for file, method, box, prob in crop_each(
                    source, folder, missing, settings, device, args, bad
                ):
                    done[file] = dict(zip(COLUMNS, (file, method, *box, prob, *prints[file])))
                    if time.monotonic() - saved > SAVE_EVERY:
                        write_manifest(folder, files, done)
                        saved = time.monotonic()
            finally:  # an error, or Ctrl-C, loses no crop that is finished
                write_manifest(folder, files, done)
    table = pd.DataFrame([done[file] for file in files], columns=COLUMNS)
    return table, len(missing) - len(bad), bad


def crop_each(source, folder, files, settings, device, args, bad):
    """Crop source/<file> to folder/<file>; yields (file, method, box, prob) once each is on disk.

    Photos that can't be read come last, as method "bad", and go into the dict bad: {file: why}.
    """

    def read(function, file):
        try:
            return function(source / file)
        except InputError as error:
            bad[file] = str(error).removeprefix(f"{source / file}: ")
            return None

    detector = build_detector(settings, device)
    with (
        ThreadPoolExecutor(max(1, args.num_workers)) as pool,
        tqdm(total=len(files), desc="crop", unit="images", disable=None) as progress,
    ):
        sizes = list(pool.map(partial(read, upright_size), files))
        promised = {file: size for file, size in zip(files, sizes) if file not in bad}
        readable = list(promised)
        batches = equal_size_batches(promised.values(), args.crop_batch_size)
        batches = ([readable[index] for index in batch] for batch in batches)
        for batch, images in prefetch(pool, partial(read, load_image), batches):
            for file, image in zip(batch, images):
                if image is not None and image.shape[1::-1] != promised[file]:
                    bad[file] = "changed while it was read"
            images = [image for file, image in zip(batch, images) if file not in bad]
            batch = [file for file in batch if file not in bad]
            results = find_boxes(detector, np.stack(images), settings) if images else []
            boxes, paths = (box for _, box, _ in results), [folder / file for file in batch]
            list(pool.map(save_crop, images, boxes, paths))
            yield from ((file, *result) for file, result in zip(batch, results))
            progress.update(len(batch))
    for file in bad:
        (folder / file).unlink(missing_ok=True)  # of a time when the photo was good
        yield file, "bad", (None,) * 4, np.nan


def crop_sets(args, sets, settings, device, report=False):
    """Crop what is missing of each set; print a summary of those where anything was.

    sets: (split, files, shots): split is "train" or "eval", files are relative to its images
    folder, shots are a name each, to count misses by; report: print the summary in any case.
    Returns a manifest for each set, in the order of its files. Raises InputError that names the
    photos that can't be read, all others of all sets being done, unless args.skip_bad.
    """
    manifests, problems = [], []
    for split, files, shots in sets:
        start = time.perf_counter()
        source = Path(args.data_dir) / split / "images"
        folder = crop_folder(args.data_dir, args.crop_dir, split)
        manifest, made, bad = crop_images(source, folder, files, settings, device, args)
        if made:
            speed = made / (time.perf_counter() - start)
            print(f"{split}: {made} photos cropped to {folder} ({speed:.1f} images/s)")
        if made or report or bad:
            print_summary(split, manifest, shots)
        manifests.append(manifest)
        problems += [f"{split}/images/{file}: {why}" for file, why in bad.items()]
    if not args.skip_bad:
        where = f"{args.data_dir}: {len(problems)} bad photos (--skip-bad does without them)"
        raise_problems(where, sorted(problems))
    return manifests


def print_summary(split, manifest, shots):
    """Print how many of the images have no face, in all and by shot, and how many are bad."""
    missed, bad = manifest["method"] == "center", manifest["method"] == "bad"
    print(f"{split}: {len(manifest)} images, {missed.sum()} without a face (cropped centrally)")
    for shot, group in missed.groupby(np.array(shots)):
        print(f"  {shot:<16}{len(group):>6} images{group.sum():>6} without a face")
    if bad.any():
        print(f"  bad photos, in no crop: {bad.sum()}, first {manifest['file'][bad].iloc[0]}")


def get_args_parser():
    parser = ArgumentParser("python -m data.crop", description="Crop the face out of every photo.")
    add = parser.add_argument
    add_data_arguments(add)
    add("--split", choices=("train", "eval", "both"), default="both",
        help="which photos (default: %(default)s)")  # fmt: skip
    add_machine_arguments(add)
    add_crop_arguments(parser)
    return parser


def main():
    args = get_args_parser().parse_args()
    # Photos of many sizes make many convolutions, of which oneDNN would keep 1024 ready.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    device = pick_device(args.device)
    settings = crop_settings(args)
    # Both lists before any work: what is wrong with them shows at once.
    sets = []
    if args.split != "eval":
        images = list_train_images(args.data_dir)
        sets.append(("train", images["file"].tolist(), images["shot"].tolist()))
    if args.split != "train":
        info = read_info(args.data_dir)
        sets.append(("eval", info["ImageID"].tolist(), ["any shot"] * len(info)))
    crop_sets(args, sets, settings, device, report=True)


if __name__ == "__main__":
    run(main)
