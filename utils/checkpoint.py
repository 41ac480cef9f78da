"""Checkpoints: one dict of tensors and plain types, read without running any code in it."""

import hashlib
import io
import pickle
import shlex
import struct
import zipfile
import zlib
from itertools import chain
from pathlib import Path

import torch

from config.config import CLASSES
from utils.cli import InputError
from utils.files import atomic_write

FORMAT = 3
# What torch.load raises for a file of arbitrary bytes.
DAMAGE = (
    pickle.UnpicklingError, struct.error, RuntimeError, EOFError, ValueError, TypeError,
    LookupError, AttributeError, AssertionError, OverflowError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def save_checkpoint(path, checkpoint):
    """Write a dict of tensors and plain types. Raises InputError when path can't be written."""
    buffer = io.BytesIO()  # torch.save straight to a full disk hides the reason
    torch.save({"format": FORMAT, **checkpoint}, buffer)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def read_bytes(path):
    try:
        return Path(path).read_bytes()
    except OSError as error:
        way_out = "name the file of a checkpoint"
        raise InputError(f"{path}: can't be read ({error.strerror}); {way_out}") from error


def read_tensors(path, content=None):
    """What torch.save wrote to path, or to the bytes content of that file, on the CPU.

    Raises InputError when a checksum is wrong or it holds more than tensors and plain types.
    """
    content = io.BytesIO(content or read_bytes(path))
    try:
        # torch.load checks no checksums; its format before version 1.6, not a zip, has none.
        if zipfile.is_zipfile(content) and zipfile.ZipFile(content).testzip():
            raise ValueError("a checksum is wrong")
        content.seek(0)
        return torch.load(content, map_location="cpu", weights_only=True)
    except DAMAGE as error:
        raise InputError(f"{path}: damaged, or not a checkpoint; copy or train it again") from error


def load_checkpoint(path):
    """The dict that train.py saved, see describe_head there, with its path and, as digest, the
    SHA-256 of the file.

    Raises InputError when path holds no such dict.
    """
    content = read_bytes(path)
    checkpoint = read_tensors(path, content)
    if not isinstance(checkpoint, dict) or checkpoint.get("format") != FORMAT:
        raise InputError(f"{path}: not a checkpoint of train.py in format {FORMAT}; train it again")
    return {**checkpoint, "path": str(path), "digest": hashlib.sha256(content).hexdigest()}


def load_state(network, checkpoint):
    """Load a checkpoint's weights. Raises InputError when they are another network's."""
    try:
        network.load_state_dict(checkpoint["network"])
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        path, model = checkpoint["path"], checkpoint["model"]
        raise InputError(f"{path}: not weights of {model}; train it again") from error


def find_runs(folder, target="*"):
    """The best.pth of runs of a target in folder, or of the run that folder itself is."""
    paths = [Path(folder, "best.pth"), *sorted(Path(folder).glob("*/best.pth"))]
    return [path for path in paths if path.match(f"{target}_fold[0-9]/best.pth") and path.exists()]


def find_checkpoints(folders):
    """Load best.pth of every fold of the three heads in folders, which may also be single runs:
    {target: [checkpoint]}. Copies and links of a network count once.

    Raises InputError for a folder without runs, a head without a network, a checkpoint of another
    head, and heads trained on different crops.
    """
    for folder in map(Path, folders):
        if not find_runs(folder):
            found = folder.rglob("*_fold[0-9]/best.pth")
            below = shlex.join(sorted({str(run.parent.parent) for run in found}))
            hint = f"; try --runs {below}" if below else "; name a run's folder, or one of runs"
            raise InputError(f"--runs {folder}: no <target>_fold<k>/best.pth in it{hint}")
    checkpoints = {target: {} for target in CLASSES}
    first = None
    for target, networks in checkpoints.items():
        for path in chain(*(find_runs(folder, target) for folder in folders)):
            checkpoint = load_checkpoint(path)
            first = first or checkpoint
            if checkpoint["target"] != target:
                raise InputError(f"{path}: of the {checkpoint['target']} head; rename its folder")
            if checkpoint["crop"] != first["crop"]:
                raise InputError(f"{path}: of other crops than {first['path']}; leave it out")
            networks.setdefault(checkpoint["digest"], checkpoint)
        if not networks:
            command = ["python", "train.py", "--target", target, "--output-dir", folders[0]]
            raise InputError(f"--runs: no {target} head; train it with: {shlex.join(command)}")
    return {target: [*networks.values()] for target, networks in checkpoints.items()}
