"""The folder of a run: what is in it, when it may be written, how --resume finds it."""

import shutil
from pathlib import Path

import pandas as pd

from config.config import HEADS
from data.crop import crop_settings
from models.network import normalization
from utils.checkpoint import load_checkpoint, load_state, save_checkpoint
from utils.cli import InputError
from utils.device import precision_name
from utils.files import make_folder, remove_leftovers, write_csv
from utils.predictions import valid_predictions

RUN_FILES = ("best.pth", "last.pth", "log.csv", "valid_predictions.csv", "curves.png",
             "confusion.png", "report.html")  # fmt: skip
TENSORBOARD = "tensorboard"
# All other arguments decide what a run ends with, so that --resume must find them unchanged.
FREE_ON_RESUME = {"data_dir", "crop_dir", "output_dir", "cache", "crop_batch_size", "device",
                  "num_workers", "epochs", "overwrite", "resume", "skip_bad", "no_report",
                  "tensorboard", "recipe", "label_fixes"}  # fmt: skip

PLAIN = (str, int, float, type(None))
# What last.pth holds more than best.pth.
ADDED = {"arguments": dict, "data": str, "log": list, "optimizer": dict, "scaler": dict}


def prepare_folder(args):
    """Make the run's folder and return it. Raises InputError when it holds a run already."""
    folder = Path(args.output_dir) / f"{args.target}_fold{args.fold}"
    if not (args.overwrite or args.resume) and any((folder / name).exists() for name in RUN_FILES):
        raise InputError(
            f"{folder}: holds a run; use --resume, --overwrite or another --output-dir"
        )
    make_folder(folder, "give another --output-dir")
    remove_leftovers(folder)
    return folder


def clear_folder(folder):
    """Remove the run that --overwrite gives up. Raises InputError when it can't be removed."""
    for path in (*(folder / name for name in RUN_FILES), *folder.glob("best.*.onnx")):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise InputError(
                f"{path}: can't be removed ({error.strerror}); give another --output-dir"
            ) from error
    if (folder / TENSORBOARD).exists():
        shutil.rmtree(folder / TENSORBOARD)


def arguments_that_matter(args, precision):
    """What decides what a run ends with: {argument: plain value}; precision: the dtype in use."""
    arguments = {name: value for name, value in vars(args).items() if name not in FREE_ON_RESUME}
    if args.schedule != "constant":  # all steps' learning rates depend on how many there are
        arguments["epochs"] = args.epochs
    # Not args.precision: what auto means differs from device to device.
    return {**arguments, "precision": precision_name(precision)}


def as_argument(name, value):
    """How a value is given on the command line."""
    option = "--" + name.replace("_", "-")
    if value is None or value is False:
        return f"no {option}"
    return option if value is True else f"{option} {value}"


def load_last(folder, arguments, epochs):
    """The checkpoint that --resume goes on from.

    Raises InputError when there is none, when arguments differ from its own, and when it has
    more than epochs epochs already.
    """
    for name in ("last.pth", "best.pth", "valid_predictions.csv"):
        if not (folder / name).exists():
            raise InputError(f"{folder}: no {name} to go on from; start over with --overwrite")
    try:
        last = load_checkpoint(folder / "last.pth")
    except InputError as error:
        raise InputError(f"{error}; or start over with --overwrite") from error
    odd = [name for name, kind in ADDED.items() if not isinstance(last.get(name), kind)]
    if (
        odd
        or not all(isinstance(row, dict) for row in last["log"])
        or not all(isinstance(row.get("macro_f1"), float) for row in last["log"])
        or not all(isinstance(value, PLAIN) for value in last["arguments"].values())
    ):
        raise InputError(f"{folder / 'last.pth'}: not a last.pth; start over with --overwrite")
    if epochs < len(last["log"]):
        raise InputError(f"--epochs {epochs}: {folder} has {len(last['log'])} epochs already")
    its = last["arguments"]
    changed = [
        as_argument(name, its.get(name))
        for name in sorted(its.keys() | arguments.keys())
        if its.get(name) != arguments.get(name)
    ]
    if changed:
        raise InputError(f"{folder}: --resume needs the run's own arguments: {', '.join(changed)}")
    return last


def restore(last, network, optimizer, scaler):
    """Put network, optimizer and scaler where last left them; returns its log.

    Raises InputError when last holds something else than their states.
    """
    load_state(network, last)
    try:
        # The arguments are the same, so the groups must be, and the states fit the parameters.
        both = last["optimizer"]["param_groups"], optimizer.state_dict()["param_groups"]
        its, own = ([{**group, "lr": None} for group in groups] for groups in both)  # by schedule
        fits = its == own
        optimizer.load_state_dict(last["optimizer"])
        for parameter, state in optimizer.state.items():
            shapes = {name: value.shape for name, value in state.items()}
            of_adam = dict.fromkeys(("exp_avg", "exp_avg_sq"), parameter.shape)
            fits &= shapes == {"step": (), **of_adam}
        if not fits:
            raise ValueError("another optimizer's state")
        scaler.load_state_dict(last["scaler"])
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise InputError(
            f"{last['path']}: no usable state of the optimizer; start over with --overwrite"
        ) from error
    return last["log"]


def log_row(epoch, train_loss, scores, classes):
    """A row of log.csv. No times in it: the same run gives the same file."""
    return {
        "epoch": epoch,
        "train_loss": train_loss,
        "valid_loss": scores["loss"],
        "accuracy": scores["accuracy"],
        "macro_f1": scores["macro_f1"],
        **{f"f1_{name}": f1 for name, f1 in zip(classes, scores["class_f1"])},
    }


def print_header(classes):
    names = "".join(f"{'F1 ' + name:>14}" for name in classes)
    print(f"epoch  train loss  valid loss  accuracy  macro-F1{names}  images/s  seconds")


def print_epoch(row, classes, speed, seconds):
    class_f1 = "".join(f"{row['f1_' + name]:>14.4f}" for name in classes)
    print(
        f"{row['epoch']:>5}{row['train_loss']:>12.4f}{row['valid_loss']:>12.4f}"
        f"{row['accuracy']:>10.4f}{row['macro_f1']:>10.4f}{class_f1}{speed:>10.1f}{seconds:>9.1f}",
        flush=True,
    )


def best_f1(log):
    """The best valid macro-F1 of the epochs in log; below every F1 when there are none."""
    return max((row["macro_f1"] for row in log), default=-1.0)


def describe(args):
    """All that test.py needs beside the weights, as plain types."""
    mean, std = normalization(args.model)
    return {
        "target": args.target,
        "classes": list(HEADS[args.target]["classes"]),
        "fold": args.fold,
        "model": args.model,
        "resize": args.resize,
        "mean": list(mean),
        "std": list(std),
        "augment": args.augment,
        "tta": args.tta,
        "age_border": args.age_border if args.loss == "age_distribution" else 0,  # 0: no AgeHead
        "crop": crop_settings(args),
    }


def save_epoch(folder, checkpoint, log, valid, logits, resumable):
    """Write an epoch's log.csv and last.pth, and best.pth and valid_predictions.csv if its macro-F1
    is the best so far.

    checkpoint: what best.pth holds but for epoch and score; valid, logits: the valid photos of
    load_fold and what the network says of them; resumable: what last.pth holds more, {name: plain
    types and tensors}.
    """
    write_csv(folder / "log.csv", pd.DataFrame(log))
    f1 = log[-1]["macro_f1"]
    checkpoint = {**checkpoint, "epoch": log[-1]["epoch"], "valid_f1": f1}
    if f1 > best_f1(log[:-1]):
        predictions = valid_predictions(valid, logits, checkpoint["target"])
        write_csv(folder / "valid_predictions.csv", predictions)
        save_checkpoint(folder / "best.pth", checkpoint)
    save_checkpoint(folder / "last.pth", {**checkpoint, "log": log, **resumable})


def log_scalars(folder, log):
    """Write the last row of a run's log for TensorBoard, or all rows if none is there yet."""
    from torch.utils.tensorboard import SummaryWriter

    events = folder / TENSORBOARD
    rows = log[-1:] if events.exists() else log
    # What a run that was stopped has written of these epochs is void.
    with SummaryWriter(events, purge_step=rows[0]["epoch"]) as writer:
        for row in rows:
            for name, value in row.items():
                if name != "epoch":
                    writer.add_scalar(name, value, row["epoch"])
