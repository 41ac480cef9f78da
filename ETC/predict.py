"""Classify any photos: `python -m ETC.predict holiday/ party.jpg`

predictions.csv has a row a face: file; face, 1 for the largest of its photo; method, box and prob
as in crops.csv; the answers of the three heads; ans, the official class; and the probability of
each class of each head. predictions_sheet.png beside it shows the photos with boxes and answers.
"""

import sys
from pathlib import Path

if __spec__ is None:  # started as a file, not by python -m
    sys.path[0] = str(Path(__file__).parents[1])
    import config  # before PyTorch

import os
import tempfile

import numpy as np
import pandas as pd

from config import config
from data.crop import BOX, SECOND_LOOK, add_crop_batch_size, crop_photos
from data.dataset import CropFiles, FaceDataset, build_loader
from data.images import pick_photos, print_left_out
from data.labels import merge_labels, raise_problems
from ETC.names import printable
from ETC.sheet import MAX_PHOTOS, draw_sheet
from models.inference import build_members, pick_backend, predict
from utils import cli
from utils.checkpoint import find_checkpoints
from utils.cli import InputError
from utils.device import choose_kernels, pick_device, pick_precision
from utils.files import atomic_write, check_output, write_csv


def list_photos(paths, ignored=None):
    """The photos at paths, each once: files as named, and in or below folders, linked ones too, in
    order of their names, every file with a photo's suffix except hidden ones and the path ignored;
    and the files without one.

    Raises InputError for a path that doesn't exist, and when there are no photos.
    """
    ignored = ignored and os.path.realpath(ignored)
    photos, left_out = {}, []
    for name in paths:
        path = Path(name)
        if not name or not (path.is_file() or path.is_dir()):
            raise InputError(f"{name or 'an empty path'}: no such file or folder")
        found, others = pick_photos(list_files(path)) if path.is_dir() else ([path], [])
        for photo in found:
            if photo == path or os.path.realpath(photo) != ignored:
                photos[os.path.realpath(photo)] = photo
        left_out += others
    if not photos:
        print_left_out(left_out)
        raise InputError(f"{', '.join(map(str, paths))}: no photos in it")
    return list(photos.values()), left_out


def list_files(folder):
    """The files in and below a folder, without those in hidden folders, in order of their names.
    Links to folders are followed, to each folder once.
    """
    files, seen = [], set()
    # A folder that can't be read is in the list itself, and so left out with a word.
    walk = os.walk(
        folder, followlinks=True, onerror=lambda error: files.append(Path(error.filename))
    )
    for place, folders, names in walk:
        new = os.path.realpath(place) not in seen
        seen.add(os.path.realpath(place))
        folders[:] = [name for name in folders if new and not name.startswith(".")]
        files += [Path(place, name) for name in names if new]
    return sorted(files)


def crop_faces(args, photos, folder, settings, device, every=False):
    """Crop the largest face of each photo or, if every, all its faces, to files in folder.

    args: from a parser with add_photo_arguments; photos: from list_photos; settings: the crop of a
    checkpoint. Returns a DataFrame, a row a face in the order of photos, with file, a name to show,
    and the keys of crop_photos as columns.
    Names the photos that can't be read on stderr, and raises InputError when none can.
    """
    # Photos of many sizes make many convolutions, of which oneDNN would keep 1024 in memory.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    order = {photo: number for number, photo in enumerate(photos)}
    pairs = []
    for photo, number in order.items():
        suffix = ".png" if photo.suffix.lower() == ".png" else ".jpg"  # the formats of data.crop
        pairs.append((photo, folder / f"{number}{suffix}"))
    rows = crop_photos(pairs, settings, device, args, every)
    rows = sorted(rows, key=lambda row: (order[row["photo"]], row["face"]))
    for row in rows:
        row["file"] = printable(str(row["photo"]))
    faces = [row for row in rows if row["method"] != "bad"]
    damaged = [f"{row['file']}: {row['why']}" for row in rows if row["why"] and row["face"] == 1]
    if not faces:
        raise_problems("no readable photos", damaged)
    print("".join(f"{line}\n" for line in damaged), end="", file=sys.stderr)
    return pd.DataFrame(faces)


def end_with_bad(args, photos, faces):
    """Exit with status 1, unless args.skip_bad, if some of photos aren't in faces."""
    bad = len(photos) - faces["photo"].nunique()
    if bad and not args.skip_bad:
        print(f"{bad} of {len(photos)} photos can't be read", file=sys.stderr)
        sys.exit(1)


def prediction_table(faces, probs):
    """The table predictions.csv.

    faces: from crop_faces; probs: {target: float (faces, classes)}.
    """
    table = faces[["file", "face", "method", *BOX, "prob"]].copy()
    labels = {target: probs[target].argmax(axis=1) for target in config.CLASSES}
    for target, names in config.CLASSES.items():
        table[target] = np.array(names)[labels[target]]
    table["ans"] = merge_labels(*labels.values())
    for target, names in config.CLASSES.items():
        table[[f"{target}_{name}" for name in names]] = probs[target].round(6)
    return table


def main():
    args = get_args_parser().parse_args()
    device = pick_device(args.device)
    precision = pick_precision(args.precision, device)
    backend = pick_backend(args.backend, device, precision)
    checkpoints = find_checkpoints(args.runs)
    output = Path(args.output)
    sheet = output.parent / f"{output.stem}_sheet.png"
    # Beside a table, this is an earlier sheet. Otherwise it is a photo, and must not be replaced.
    photos, left_out = list_photos(args.photos, ignored=sheet if output.exists() else None)
    inputs = [checkpoint["path"] for head in checkpoints.values() for checkpoint in head]
    check_output(output, [".csv"], [*photos, *inputs], [sheet.name])
    members, views = build_members(checkpoints, device, backend, args.tta, args.age_views)

    with tempfile.TemporaryDirectory() as folder:
        settings = checkpoints["mask"][0]["crop"]  # those of all heads
        faces = crop_faces(args, photos, Path(folder), settings, device, args.all_faces)
        choose_kernels(args.deterministic)
        crops = CropFiles(faces["crop"].tolist())
        dataset = FaceDataset(crops, np.zeros(len(crops), np.int64), views, config.SEED)
        loader = build_loader(dataset, args.batch_size, args.num_workers, device)
        probs = predict(members, loader, device, precision)
    table = prediction_table(faces, probs)
    write_csv(output, table)
    with atomic_write(sheet) as file:
        draw_sheet(table.assign(photo=faces["photo"])).save(file, "PNG")
    count, missed = faces["photo"].nunique(), (faces["method"] == "center").sum()
    again = (faces["method"] == SECOND_LOOK).sum()
    print(f"{count} photos, {len(faces) - missed} faces ({again} found by the second look), "
          f"{missed} photos without a face (cropped centrally) -> {output}, {sheet}")  # fmt: skip
    if count > MAX_PHOTOS:
        print(f"{sheet} shows the first {MAX_PHOTOS} photos")
    print_left_out(left_out)
    end_with_bad(args, photos, faces)


# fmt: off
def add_photo_arguments(add):
    """Add what list_photos and crop_faces need, with add, an add_argument method."""
    add("photos", nargs="+", metavar="PATH",
        help="photos, and folders that are searched for photos")
    add("--skip-bad", action="store_true",
        help="exit with status 0 though photos can't be read (default: 1, after the others)")
    add_crop_batch_size(add)
    cli.add_machine_arguments(add)


def get_args_parser():
    parser = cli.ArgumentParser("python -m ETC.predict", description="Classify any photos.")
    add = parser.add_argument
    add_photo_arguments(add)
    add("--output", default="predictions.csv", metavar="FILE",
        help="the answers, with a contact sheet beside them (default: %(default)s)")
    add("--all-faces", action="store_true",
        help="classify every face of a photo (default: the largest)")
    cli.add_prediction_arguments(add)
    cli.add_precision_arguments(add)
    return parser
# fmt: on


if __name__ == "__main__":
    cli.run(main)
