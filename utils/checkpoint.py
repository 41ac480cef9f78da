"""Checkpoints: one dict of tensors and plain types, readable with weights_only=True."""

import pickle

import torch

from utils.cli import InputError
from utils.files import atomic_write

FORMAT = 1


def save_checkpoint(path, checkpoint):
    """Write a dict of tensors and plain types to path, whole or not at all."""
    with atomic_write(path) as file:
        torch.save({"format": FORMAT, **checkpoint}, file)


def read_tensors(path):
    """Return what torch.save wrote to path, on the CPU; no code in the file is ever run.

    Raises InputError when path is missing or holds anything but tensors and plain types.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        raise InputError(f"{path}: not a readable checkpoint (damaged, or not one)") from error


def load_checkpoint(path):
    """Return the dict that save_checkpoint wrote. Raises InputError when it isn't one."""
    checkpoint = read_tensors(path)
    if not isinstance(checkpoint, dict) or checkpoint.get("format") != FORMAT:
        raise InputError(f"{path}: not a checkpoint of train.py in format {FORMAT}; train it again")
    return checkpoint
