"""The folder of a run: what is in it, when it may be written, how --resume finds it."""

from pathlib import Path

from utils.checkpoint import load_checkpoint
from utils.cli import InputError
from utils.device import precision_name
from utils.files import make_folder

RUN_FILES = ("best.pth", "last.pth", "log.csv")
# All other arguments decide what a run ends with, so that --resume must find them unchanged.
FREE_ON_RESUME = {"data_dir", "crop_dir", "output_dir", "crop_batch_size", "device", "num_workers",
                  "epochs", "overwrite", "resume"}  # fmt: skip


def prepare_folder(args):
    """Make the run's folder and return it. Raises InputError when it holds a run already."""
    folder = Path(args.output_dir) / f"{args.target}_fold{args.fold}"
    if not (args.overwrite or args.resume) and any((folder / name).exists() for name in RUN_FILES):
        raise InputError(
            f"{folder}: holds a run; use --resume, --overwrite or another --output-dir"
        )
    make_folder(folder, "give another --output-dir")
    return folder


def arguments_that_matter(args, precision):
    """What decides what a run ends with: {argument: plain value}; precision: the dtype in use."""
    arguments = {name: value for name, value in vars(args).items() if name not in FREE_ON_RESUME}
    # Not args.precision: what auto means differs from device to device.
    return {**arguments, "precision": precision_name(precision)}


def load_last(folder, arguments):
    """The checkpoint that --resume goes on from.

    Raises InputError when there is none and when arguments differ from its own.
    """
    if not (folder / "last.pth").exists():
        raise InputError(f"{folder}: no last.pth to go on from; start over with --overwrite")
    last = load_checkpoint(folder / "last.pth")
    if not last.keys() >= {"arguments", "log", "best_f1", "optimizer", "scaler"}:
        raise InputError(f"{folder / 'last.pth'}: not a last.pth; start over with --overwrite")
    its = last["arguments"]
    changed = [
        f"--{name.replace('_', '-')} {its[name]}"
        if its.get(name) not in (None, False)
        else f"no --{name.replace('_', '-')}"
        for name in sorted(its.keys() | arguments.keys())
        if its.get(name) != arguments.get(name)
    ]
    if changed:
        raise InputError(f"{folder}: --resume needs the run's own arguments: {', '.join(changed)}")
    return last
