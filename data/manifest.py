"""The record of what was cropped, beside each folder of crops.

crops.csv has a row a photo: file, method (a detector's name, center, or bad: no readable photo),
the box x0, y0, x1, y1 in pixels of the photo, the detector's prob, and what the photo was when it
was cropped.
crops.json holds the settings that the crops were made with.
"""

import json
from pathlib import Path

import pandas as pd

from config.config import DETECTORS
from utils.cli import InputError
from utils.files import write_csv, write_json

CROP_FOLDERS = {"train": "new_img", "eval": "new_images"}
BOX = ["x0", "y0", "x1", "y1"]
# The last two, the photo's size in bytes and time of change, tell one that has changed since.
COLUMNS = ["file", "method", *BOX, "prob", "source_size", "source_mtime_ns"]
TYPES = {
    "file": str,
    "method": str,
    **dict.fromkeys(BOX, "Int64"),  # pandas' integers that may be missing
    "prob": float,
    "source_size": "int64",
    "source_mtime_ns": "int64",
}


def crop_folder(data_dir, crop_dir, split):
    """Where the crops of "train" or "eval" are; crop_dir None means beside the photos."""
    return Path(crop_dir or data_dir) / split / CROP_FOLDERS[split]


def read_manifest(folder, settings):
    """The rows of the manifest beside a crop folder, {file: row}; none if its settings differ."""
    csv, stored = folder.parent / "crops.csv", folder.parent / "crops.json"
    if not (csv.exists() and stored.exists()):
        return {}
    try:
        if json.loads(stored.read_text(encoding="utf-8")) != settings:
            return {}
        table = pd.read_csv(csv, dtype=TYPES)[COLUMNS]
        good = table["method"].isin([*DETECTORS, "center"]) & table[BOX].ge(0).all(axis=1)
        if not (good | (table["method"] == "bad")).all() or table[BOX].gt(10**6).any(axis=None):
            raise ValueError("a method or a box that can't be")
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise InputError(
            f"{csv} or crops.json beside it: damaged ({error}); delete both to crop anew"
        ) from error
    return {row["file"]: row for row in table.to_dict("records")}


def write_manifest(folder, files, done):
    """Write the rows that are done, in the order of files, beside a crop folder."""
    table = pd.DataFrame([done[file] for file in files if file in done], columns=COLUMNS)
    write_csv(folder.parent / "crops.csv", table.astype(TYPES))


def fingerprint(path):
    """(size, time of change) of a file, as the manifest keeps them; zeros if it isn't there."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def write_settings(folder, settings):
    """Write the settings of the crops in a crop folder beside it."""
    path = folder.parent / "crops.json"
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) != settings:
        print(f"{folder}: made with other settings, cropping anew")
    write_json(path, settings)


def read_crops(folder, settings, prints):
    """What is cropped and what isn't: ({file: row of the manifest}, [file]), of the files in
    prints, {file: fingerprint}. A crop of a photo that has changed since doesn't count.
    """
    rows = read_manifest(folder, settings)
    done = {
        file: rows[file]
        for file, (size, mtime_ns) in prints.items()
        if file in rows
        and rows[file]["method"] != "bad"  # the disk's fault perhaps, and over
        and (rows[file]["source_size"], rows[file]["source_mtime_ns"]) == (size, mtime_ns)
        and (folder / file).exists()
    }
    return done, [file for file in prints if file not in done]
