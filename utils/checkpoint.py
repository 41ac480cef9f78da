"""Checkpoints: one dict of tensors and plain types, readable with weights_only=True."""

import hashlib
import io
import math
import pickle
import shlex
import struct
import sys
import zipfile
import zlib
from pathlib import Path

import torch

from config.config import AUGMENTATIONS, CROP_SETTINGS, DETECTORS, HEADS, NETWORKS, TTAS
from utils.cli import InputError
from utils.files import atomic_write

FORMAT = 1
# What every checkpoint holds beside the weights, each with a test of its value.
NEEDED = {
    "target": lambda value: value in HEADS,
    "classes": lambda value: [*value] in [[*head["classes"]] for head in HEADS.values()],
    "model": lambda value: value in NETWORKS,
    "resize": lambda value: isinstance(value, int) and value >= 64,
    "mean": lambda value: is_rgb(value),
    "std": lambda value: is_rgb(value) and min(value) > 0,
    "augment": lambda value: value in AUGMENTATIONS,
    "tta": lambda value: value in TTAS,
    "age_border": lambda value: isinstance(value, int) and (value == 0 or 30 < value <= 100),
    "crop": lambda value: is_crop(value),
    "network": lambda value: isinstance(value, dict) and all(map(torch.is_tensor, value.values())),
}
# What torch.load may raise for a file of arbitrary bytes.
DAMAGE = (
    pickle.UnpicklingError, struct.error, RuntimeError, EOFError, ValueError, TypeError,
    LookupError, AttributeError, AssertionError, OverflowError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def is_rgb(value):
    """Whether value is three finite floats."""
    return len(value) == 3 and all(isinstance(x, float) and math.isfinite(x) for x in value)


def is_crop(value):
    """Whether value has all settings of a crop."""
    numbers = [value[name] for name in CROP_SETTINGS if name != "detector"]
    return value["detector"] in DETECTORS and all(isinstance(number, int) for number in numbers)


def fits(test, value):
    """Whether a value of unknown type passes a test written for the right one."""
    try:
        return bool(test(value))
    except (TypeError, AttributeError, LookupError, RuntimeError):
        return False


def canonical(value):
    """The same value with every equal string one object, as pickle tells equal from identical."""
    if isinstance(value, dict):
        return {canonical(key): canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(canonical(item) for item in value)
    return sys.intern(value) if isinstance(value, str) else value


def save_checkpoint(path, checkpoint):
    """Write a dict of tensors and plain types to path, whole or not at all.

    Equal checkpoints give equal bytes. Raises InputError when path can't be written.
    """
    buffer = io.BytesIO()  # torch.save straight to a full disk hides the reason
    torch.save(canonical({"format": FORMAT, **checkpoint}), buffer)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def read_tensors(path):
    """Return what torch.save wrote to path, on the CPU; no code in the file is ever run.

    Raises InputError when path is missing or holds anything but tensors and plain types.
    """
    return tensors_in(read_file(path), path)


def read_file(path):
    """The bytes at path. Read apart from their meaning: a fault of the disk is no damage."""
    if Path(path).is_dir():  # Windows would call it a lack of permission
        raise InputError(f"{Path(path)}: a folder; name a file in it, best.pth of a run")
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error


def tensors_in(content, path):
    """What torch.save wrote, out of its bytes; see read_tensors."""
    content = io.BytesIO(content)
    try:
        # torch checks no checksums; in its old format, which is no zip archive, there are none.
        if zipfile.is_zipfile(content) and zipfile.ZipFile(content).testzip():
            raise ValueError("a checksum is wrong")
        content.seek(0)
        return torch.load(content, map_location="cpu", weights_only=True)
    except DAMAGE as error:
        raise InputError(f"{path}: not a readable checkpoint; copy or train it again") from error


def load_checkpoint(path):
    """Return the dict that save_checkpoint wrote for a network: NEEDED and more, and its path and
    digest, the SHA-256 of the file.

    Raises InputError when path holds no such dict.
    """
    content = read_file(path)
    checkpoint = tensors_in(content, path)
    if not fits(lambda value: value["format"] == FORMAT, checkpoint):
        raise InputError(f"{path}: not a checkpoint of train.py in format {FORMAT}; train it again")
    odd = [name for name, test in NEEDED.items() if not fits(test, checkpoint.get(name))]
    if odd:
        raise InputError(f"{path}: a checkpoint without usable {', '.join(odd)}; train it again")
    return {**checkpoint, "path": str(path), "digest": hashlib.sha256(content).hexdigest()}


def load_state(network, checkpoint):
    """Load a checkpoint's weights. Raises InputError when they are another network's."""
    try:
        network.load_state_dict(checkpoint["network"])
    except (RuntimeError, TypeError, AttributeError) as error:
        raise InputError(
            f"{checkpoint['path']}: not weights of {checkpoint['model']}; train it again"
        ) from error


def find_checkpoints(folders):
    """Load every fold's best.pth of the three heads in folders: {target: [checkpoint]}. A network
    that is in them more than once, by a copy or a link, counts once.

    Raises InputError for a folder without a run, for a head without one in any, for a checkpoint of
    another head, and for heads trained on different crops.
    """
    runs = {folder: list_checkpoints(folder) for folder in folders}
    empty = [folder for folder, its in runs.items() if not its]
    missing = [head for head in HEADS if not any(head in its for its in runs.values())]
    if empty or missing:
        raise untrained(folders, empty, missing)
    found = {head: {} for head in HEADS}
    crop = None
    for target in HEADS:
        paths = [path for its in runs.values() for path in its.get(target, [])]
        for path, checkpoint in zip(paths, map(load_checkpoint, paths)):
            if checkpoint["target"] != target:
                raise InputError(
                    f"{path}: a checkpoint of the head {checkpoint['target']}; put it in its place"
                )
            crop = crop or checkpoint
            if checkpoint["crop"] != crop["crop"]:
                raise InputError(
                    f"{path}: trained on other crops than {crop['path']}; train it again, or leave "
                    "its folder out"
                )
            found[target].setdefault(checkpoint["digest"], checkpoint)
    return {target: [*its.values()] for target, its in found.items()}


def list_checkpoints(folder):
    """The checkpoints of the runs in folder, {target: [path by fold]}, without heads of no run."""
    its = {target: sorted(Path(folder).glob(f"{target}_fold[0-9]/best.pth")) for target in HEADS}
    return {target: paths for target, paths in its.items() if paths}


def untrained(folders, empty, missing):
    """The InputError for folders, of which those in empty have no run and none has one of the heads
    in missing: it says what was probably meant.
    """
    for folder in map(Path, empty):
        if folder.is_file():
            return InputError(f"--runs {folder}: a file; name folders with runs of train.py")
        if (folder / "best.pth").exists():
            return InputError(f"--runs {folder}: this is one run; name the folder that holds it")
    below = [
        str(path)
        for folder in folders
        for path in sorted(Path(folder).glob("*"))
        if any(head in missing or folder in empty for head in list_checkpoints(path))
    ]
    if below:
        better = shlex.join([folder for folder in folders if folder not in empty] + below)
        return InputError(
            f"--runs {shlex.join(folders)}: runs are further down; try --runs {better}, or some of "
            "these"
        )
    if empty and len(folders) > 1:
        return InputError(f"{empty[0]}: no run in it; leave it out, or correct its name")
    command = shlex.join(["python", "train.py", "--target", missing[0], "--output-dir", folders[0]])
    return InputError(
        f"{', '.join(folders)}: no {missing[0]}_fold<k>/best.pth; train it with: {command}"
    )
