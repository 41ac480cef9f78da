"""Checkpoints: one dict of tensors and plain types, readable with weights_only=True."""

import io
import pickle
import struct
import sys

import torch

from utils.cli import InputError
from utils.files import atomic_write

FORMAT = 1
NEEDED = ("target", "classes", "model", "resize", "mean", "std", "augment", "crop", "network")
# What torch.load may raise for a file of arbitrary bytes.
DAMAGE = (
    pickle.UnpicklingError, struct.error, RuntimeError, OSError, EOFError, ValueError, TypeError,
    LookupError, AttributeError, AssertionError, OverflowError, MemoryError,
)  # fmt: skip


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
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except DAMAGE as error:
        raise InputError(f"{path}: not a readable checkpoint (damaged, or not one)") from error


def load_checkpoint(path):
    """Return the dict that save_checkpoint wrote for a network, with its path: NEEDED and more.

    Raises InputError when path holds no such dict.
    """
    checkpoint = read_tensors(path)
    if not isinstance(checkpoint, dict) or checkpoint.get("format") != FORMAT:
        raise InputError(f"{path}: not a checkpoint of train.py in format {FORMAT}; train it again")
    missing = [name for name in NEEDED if name not in checkpoint]
    if missing:
        raise InputError(f"{path}: a checkpoint without {', '.join(missing)}; train it again")
    return {**checkpoint, "path": str(path)}


def load_state(network, checkpoint):
    """Load a checkpoint's weights. Raises InputError when they are another network's."""
    try:
        network.load_state_dict(checkpoint["network"])
    except (RuntimeError, TypeError, AttributeError) as error:
        raise InputError(
            f"{checkpoint['path']}: not weights of {checkpoint['model']}; train it again"
        ) from error
