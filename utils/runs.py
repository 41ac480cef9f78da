"""A run's folder: what is in it, when it may be written, and how --resume goes on."""

import shutil
from pathlib import Path

import pandas as pd

from utils.checkpoint import load_checkpoint, load_state, save_checkpoint
from utils.cli import InputError
from utils.device import PRECISIONS
from utils.files import hold, make_folder, write_csv, write_json

RUN_FILES = ("best.pth", "last.pth", "config.json", "log.csv", "val_predictions.csv",
             "curves.png", "confusion.png", "report.html", "tensorboard")  # fmt: skip
# --resume may change these arguments: they don't change the result, or what they decide is compared
# by itself: photos and labels by restore, a recipe's values one by one, epochs by fixed_arguments.
FREE_ON_RESUME = {"data_dir", "crop_dir", "output_dir", "no_cache", "crop_batch_size", "device",
                  "num_workers", "epochs", "overwrite", "resume", "skip_bad", "tensorboard",
                  "recipe", "label_fixes"}  # fmt: skip
NEGATABLE = {"second_look", "freeze_bn"}  # --no-... turns these off


def prepare_folder(args):
    """Make, hold and return the run's folder. Raises InputError when a run is in it already."""
    folder = Path(args.output_dir) / f"{args.target}_fold{args.fold}"
    if args.resume and not folder.exists():
        raise InputError(f"{folder}: no run to resume")
    make_folder(folder, "choose another --output-dir")
    hold(folder, "wait for it, or choose another --output-dir")
    if not (args.overwrite or args.resume) and any((folder / name).exists() for name in RUN_FILES):
        raise InputError(f"{folder}: holds a run; use --resume, --overwrite or --output-dir")
    return folder


def replace_run(folder, new):
    """Remove the run in folder and put there what is in the folder new, or else change nothing."""
    old, moved = folder / ".replaced", []
    shutil.rmtree(old, ignore_errors=True)  # of a run that was killed
    old.mkdir()
    paths = [*(folder / name for name in RUN_FILES), *folder.glob("best.*.onnx")]
    moves = [(path, old / path.name) for path in paths if path.exists()]
    moves += [(path, folder / path.name) for path in new.iterdir()]
    try:
        for source, target in moves:
            source.replace(target)
            moved.append((source, target))
    except BaseException:  # Ctrl-C too
        for source, target in reversed(moved):
            target.replace(source)
        raise
    shutil.rmtree(old, ignore_errors=True)
    new.rmdir()


def fixed_arguments(args, precision):
    """The arguments that --resume must find unchanged: {name: plain value}.

    precision: the dtype in use, as what auto means differs between devices.
    """
    fixed = {name: value for name, value in vars(args).items() if name not in FREE_ON_RESUME}
    if args.schedule != "constant":  # the learning rate depends on the number of all steps
        fixed["epochs"] = args.epochs
    return {**fixed, "precision": str(precision)}


def load_last(folder, arguments, epochs):
    """The checkpoint that --resume goes on from; arguments: from fixed_arguments. Raises InputError
    without one, and for other arguments or fewer epochs than it has.
    """
    for name in ("last.pth", "best.pth", "val_predictions.csv"):
        if not (folder / name).exists():
            raise InputError(f"{folder}: no {name} to resume from; start over with --overwrite")
    last = load_checkpoint(folder / "last.pth")
    if not {"arguments", "data", "log", "optimizer", "scaler"} <= last.keys():
        raise InputError(f"{last['path']}: not a last.pth; start over with --overwrite")
    if epochs < len(last["log"]):
        raise InputError(f"--epochs {epochs}: {folder} has {len(last['log'])} epochs already")
    # Without a schedule that depends on them, old has no epochs: they may change.
    old, arguments = last["arguments"], {**arguments, "epochs": epochs}
    # An older version, or one before the user added an argument, has nothing to compare with.
    changed = [name for name in arguments if name in old and old[name] != arguments[name]]
    if changed:
        own = ", ".join(as_option(name, old[name]) for name in changed)
        raise InputError(f"{folder}: --resume needs the run's own arguments: {own}")
    load_checkpoint(folder / "best.pth")  # raises if it is damaged, rather than in test.py
    return last


def as_option(name, value):
    """An argument of fixed_arguments as on the command line: "--lr 0.001" or "no --compile"."""
    option = name.replace("_", "-")
    if value is True:
        return f"--{option}"
    if value is False or value is None:
        return f"--no-{option}" if name in NEGATABLE else f"no --{option}"
    precisions = {str(dtype): precision for precision, dtype in PRECISIONS.items()}
    return f"--{option} {precisions.get(value, value)}"


def restore(last, network, optimizer, scaler, digest):
    """Put network, optimizer and scaler where they were; returns the log.

    digest: of the photos and labels. Raises InputError when that or a state doesn't fit.
    """
    if last["data"] != digest:
        raise InputError(f"{last['path']}: trained on other photos or labels; repeat the run's "
                         "--data-dir, --label-fixes and --skip-bad, or --overwrite")  # fmt: skip
    load_state(network, last)
    try:
        optimizer.load_state_dict(last["optimizer"])
        scaler.load_state_dict(last["scaler"])
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise InputError(f"{last['path']}: another optimizer's state; use --overwrite") from error
    return last["log"]


def best_f1(log):
    """The best val macro-F1 of the epochs in log; below every F1 when there are none."""
    return max((row["macro_f1"] for row in log), default=-1.0)


def log_row(epoch, train_loss, scores, classes):
    """A row of log.csv. No times in it: the same run gives the same file. The age head's train_loss
    and val_loss can't be compared: train labels are ages, or have another border.
    """
    class_f1 = {f"f1_{name}": f1 for name, f1 in zip(classes, scores["class_f1"])}
    return {"epoch": epoch, "train_loss": train_loss, "val_loss": scores["loss"],
            "accuracy": scores["accuracy"], "macro_f1": scores["macro_f1"], **class_f1}  # fmt: skip


def save_epoch(folder, args, log, checkpoint, predictions, state):
    """Write an epoch's files: config.json, log.csv and last.pth, and, if its macro-F1 is the best
    so far, best.pth and val_predictions.csv.

    log: a log_row per epoch; checkpoint: for best.pth; predictions: the table of the val photos;
    state: what --resume needs besides the checkpoint.
    """
    run, is_new = folder, len(log) == 1
    if is_new:  # written aside, then swapped in whole: until then, --overwrite leaves the old run
        folder = run / ".first_epoch"
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
        make_folder(folder, "choose another --output-dir")
    write_json(folder / "config.json", vars(args))
    write_csv(folder / "log.csv", pd.DataFrame(log))
    checkpoint = {**checkpoint, "epoch": len(log), "val_f1": log[-1]["macro_f1"]}
    if log[-1]["macro_f1"] > best_f1(log[:-1]):
        write_csv(folder / "val_predictions.csv", predictions)
        save_checkpoint(folder / "best.pth", checkpoint)
    save_checkpoint(folder / "last.pth", {**checkpoint, "log": log, **state})
    if args.tensorboard:
        log_scalars(folder, log)
    if is_new:
        replace_run(run, folder)


def print_epoch(row, speed, seconds, header):
    """Print a row of the log, below the names of the columns if header.

    speed: train images per second; seconds: of the whole epoch.
    """
    row = {**row, "images/s": round(speed), "seconds": round(seconds)}
    cells = [f"{value:.4f}" if isinstance(value, float) else str(value) for value in row.values()]
    widths = [max(8, len(name) + 2) for name in row]
    for line in ([*row], cells) if header else (cells,):
        print("".join(f"{text:>{width}}" for text, width in zip(line, widths)), flush=True)


def log_scalars(folder, log):
    """Write the last row of the log for TensorBoard."""
    from torch.utils.tensorboard import SummaryWriter  # optional

    # purge_step overrides what a run that was stopped wrote for this epoch.
    with SummaryWriter(folder / "tensorboard", purge_step=len(log)) as writer:
        for name, value in log[-1].items():
            writer.add_scalar(name, value, len(log))
