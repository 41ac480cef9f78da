"""Cut the face out of every photo, once: `python -m data.crop`.

train/images/... -> train/new_img/... and eval/images/... -> eval/new_images/..., a manifest beside
each.
"""

import contextlib
import io
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from config import config
from utils.cli import (
    ArgumentParser,
    InputError,
    add_crop_arguments,
    add_data_arguments,
    add_machine_arguments,
    answer_early,
    leave_ctrl_c_to_the_parent,
    run,
)


def get_args_parser():
    parser = ArgumentParser("python -m data.crop", description="Crop the face out of every photo.")
    add = parser.add_argument
    add_data_arguments(add)
    add("--split", choices=("train", "eval", "both"), default="both",
        help="which photos (default: %(default)s)")  # fmt: skip
    add_machine_arguments(add)
    add_crop_arguments(parser)
    return parser


if __name__ == "__main__":
    answer_early(get_args_parser())  # the imports below take seconds

import numpy as np
import pandas as pd
import torch
from filelock import FileLock, Timeout
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from data.detect import find_all_faces, find_largest_faces, widen
from data.images import load_image, upright_size
from data.keypoints import build_keypoint_rcnn, fetch_weights, find_heads
from data.labels import list_train_images, raise_problems, read_info
from data.manifest import (
    COLUMNS,
    crop_folder,
    fingerprint,
    read_crops,
    write_manifest,
    write_settings,
)
from utils.distributed import (
    gathered,
    is_first,
    join_processes,
    progress_off,
    rank,
    shared,
    wait_for_all,
    world_size,
)
from utils.files import atomic_write, make_folder, remove_leftovers

JPEG_QUALITY = 95
# A batch of photos passes MTCNN's whole image pyramid at once: bound its pixels, not its count,
# so that large photos take no more memory than small ones.
PHOTO_SIZE = 384, 512  # width and height of the competition's photos
PHOTO_PIXELS = PHOTO_SIZE[0] * PHOTO_SIZE[1]
# Seconds; the work that a killed run has to do again at most, beside all that other processes of
# torchrun have done.
SAVE_EVERY = 5


def crop_settings(args):
    """The settings that decide what a crop looks like, as plain types."""
    return {name: getattr(args, name) for name in config.CROP_SETTINGS}


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
    """The network that finds faces, settings["detector"] of config.DETECTORS."""
    if settings["detector"] == "keypoint_rcnn":
        return build_keypoint_rcnn(device)
    from facenet_pytorch import MTCNN  # its weights come with it

    return widen(MTCNN(device=device))


def fetch_detector(settings):
    """Download a detector's weights, if need be: once, before workers and processes ask for it."""
    if settings["detector"] == "keypoint_rcnn":
        if is_first():
            fetch_weights()
        wait_for_all()


def find_faces(detector, images, settings, every=False):
    """The largest face of each image, or every one, in images of one size.

    detector: from build_detector; images: uint8 RGB array (N, H, W, 3).
    Returns for each image a list, the largest first, of pairs of a box, four floats x0, y0, x1, y1
    in pixels, and a probability.
    """
    smallest = settings["min_face_size"]
    if settings["detector"] == "keypoint_rcnn":
        return [faces if every else faces[:1] for faces in find_heads(detector, images, smallest)]
    return (find_all_faces if every else find_largest_faces)(detector, images, smallest)


def boxes_of(faces, size, settings_of):
    """Where to crop a photo of size (width, height): a list of (method, box, prob), a face each of
    find_faces, widened; without a face, "center" with the central box and prob NaN.

    settings_of: the box of a face, or None for the centre -> crop settings.
    """
    boxes = []
    for face, prob in faces:
        settings = settings_of(face)
        box = face_box(face, size, settings)
        if box:
            boxes.append((settings["detector"], box, round(prob, 6)))
    center = center_box(size, settings_of(None)["center_size"])
    return boxes or [("center", center, np.nan)]


def find_boxes(detector, images, settings):
    """Where to crop images of one size, uint8 RGB array (N, H, W, 3).

    Returns a list of (method, box, prob): method is the detector's name with the largest face's
    box, widened, or "center" with the central box and prob NaN.
    """
    size = images.shape[2], images.shape[1]
    found = find_faces(detector, images, settings)
    return [boxes_of(faces, size, lambda face: settings)[0] for faces in found]


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
    """Group files of equal size into batches, the largest images first. sizes: {file: (width,
    height)}.

    What memory they need is then known at once, and suffices for all that come after.
    """
    buckets = {}
    for file, size in sizes.items():
        buckets.setdefault(size, []).append(file)
    largest_first = sorted(buckets.items(), key=lambda item: -item[0][0] * item[0][1])
    for (width, height), files in largest_first:
        step = max(1, min(batch_size, batch_size * PHOTO_PIXELS // (width * height)))
        for start in range(0, len(files), step):
            yield files[start : start + step]


@contextlib.contextmanager
def crop_lock(folder):
    """Wait until no other command crops into folder, and keep others waiting.

    The first process of a command does so for all of them.
    """
    if not is_first():
        yield
        return
    lock = FileLock(folder.parent / "crops.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{folder}: waiting for another command that crops to it", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def crop_images(source, folder, files, settings, device, args):
    """Crop source/<file> to folder/<file> for each of files that is new, changed or was lost.

    settings: from crop_settings; others than those of the crops in folder make all of them anew.
    Returns the manifest, one row a file in the order of files, how many crops were made, and the
    photos that can't be read: {file: why}. Raises InputError for a folder that can't be written.
    """
    prints = {file: fingerprint(source / file) for file in files}

    def what_is_there():
        return shared(read_crops(folder, settings, prints) if is_first() else None)

    done, missing = what_is_there()
    bad = {}
    if missing:
        make_folder(folder, "give another one with --crop-dir")
        with crop_lock(folder):
            # Once more: perhaps another command has cropped them while this one waited.
            done, missing = what_is_there()
            if is_first():
                remove_leftovers(folder, "**/.*")
                remove_leftovers(folder.parent, ".crops.*")
                # First the shorter manifest, then the settings: a crop of old ones never counts as
                # new.
                write_manifest(folder, files, done)
                write_settings(folder, settings)
            wait_for_all()
            try:
                saved = time.monotonic()
                for file, method, box, prob in crop_each(
                    source, folder, missing, settings, device, args, bad
                ):
                    done[file] = dict(zip(COLUMNS, (file, method, *box, prob, *prints[file])))
                    if is_first() and time.monotonic() - saved > SAVE_EVERY:
                        write_manifest(folder, files, done)
                        saved = time.monotonic()
                for its_done, its_bad in gathered((done, bad)):
                    done |= its_done
                    bad |= its_bad
            finally:  # an error, or Ctrl-C, loses no crop that this process has finished
                if is_first():
                    write_manifest(folder, files, done)
    table = pd.DataFrame([done[file] for file in files], columns=COLUMNS)
    return table, len(missing) - len(bad), bad


class PhotoBatches(Dataset):
    """Batches of photos that are cropped as they are taken: item i is, of the files in batches[i],
    ([(file, method, box, prob)], {file that can't be read: why}).

    sizes: {file: (width, height)}, equal within a batch.
    """

    def __init__(self, source, folder, batches, sizes, settings, device):
        self.source, self.folder, self.batches, self.sizes = source, folder, batches, sizes
        self.settings, self.device, self.detector = settings, device, None

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, number):
        if self.detector is None:  # here, for it to be the worker's own
            self.detector = build_detector(self.settings, self.device)
        images, bad = {}, {}
        for file in self.batches[number]:
            image = try_to(load_image, self.source / file, file, bad)
            if image is not None and image.shape[1::-1] != self.sizes[file]:
                bad[file] = "changed while it was read"
            elif image is not None:
                images[file] = image
        return self.cut_out(images) if images else [], bad

    def cut_out(self, images):
        """Crop images, {file: uint8 array (H, W, 3)} of one size, to the folder."""
        results = find_boxes(self.detector, np.stack(list(images.values())), self.settings)
        for (file, image), (_, box, _) in zip(images.items(), results):
            save_crop(image, box, self.folder / file)
        return [(file, *result) for file, result in zip(images, results)]


def try_to(read, path, file, bad):
    """read(path); where that is an InputError, None, and bad[file] says why."""
    try:
        return read(path)
    except InputError as error:
        bad[file] = str(error).removeprefix(f"{path}: ")
        return None


def crop_each(source, folder, files, settings, device, args, bad):
    """Crop source/<file> to folder/<file>; yields (file, method, box, prob) once each is on disk.

    Each process takes every world-th batch, so that the batches are those of one process. Photos
    that can't be read come last, as method "bad", and go into the dict bad: {file: why}.
    """
    sizes = {}
    if is_first():
        with ThreadPoolExecutor(max(1, args.num_workers)) as pool:  # for disks that are far away
            sizes = pool.map(lambda file: try_to(upright_size, source / file, file, bad), files)
            sizes = {file: size for file, size in zip(files, sizes) if size is not None}
    sizes, its_bad = shared((sizes, bad))
    bad |= its_bad
    fetch_detector(settings)
    batch_size = args.crop_batch_size or config.CROP_BATCH_SIZES[device.type]
    batches = list(equal_size_batches(sizes, batch_size))[rank() :: world_size()]
    workers = min(args.num_workers, len(batches) - 1) if batches else 0
    if device.type == "cuda":  # of which each takes a detector's memory there
        workers = min(workers, 4)
    loader = DataLoader(
        PhotoBatches(source, folder, batches, sizes, settings, device),
        batch_size=None,
        num_workers=workers,
        worker_init_fn=leave_ctrl_c_to_the_parent,
        generator=torch.Generator(),  # what a loader draws is not to change what a training draws
        # A forked process can't use the GPU.
        multiprocessing_context="spawn" if workers and device.type == "cuda" else None,
    )
    count = sum(map(len, batches))
    with tqdm(total=count, desc="crop", unit="images", disable=progress_off()) as progress:
        for rows, its_bad in loader:
            bad |= its_bad
            yield from rows
            progress.update(len(rows))
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


def main():
    args = get_args_parser().parse_args()
    # Photos of many sizes make many convolutions, of which oneDNN would keep 1024 ready.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    device = join_processes(args.device)
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
