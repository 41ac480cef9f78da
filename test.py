"""Merge the three heads into a submission: three heads -> 18 classes -> submission.csv.

python test.py
"""

import glob
import itertools
import shlex
from pathlib import Path

from config import config
from utils.cli import (
    ArgumentParser,
    InputError,
    add_crop_batch_size,
    add_data_arguments,
    add_machine_arguments,
    add_precision_arguments,
    answer_early,
    natural_int,
    positive_int,
    run,
)


def get_args_parser():
    parser = ArgumentParser(description="Merge the three heads into a submission.")
    # fmt: off
    add = parser.add_argument
    add_data_arguments(add)
    add("--runs", default=config.OUTPUT_DIR,
        help="folder with the runs of train.py (default: %(default)s)")
    add("--output", default=config.OUTPUT,
        help="the submission; probabilities.csv goes beside it (default: %(default)s)")
    add("--answers", metavar="FILE",
        help="CSV with ImageID and the true ans, to print the score (default: no score)")
    add("--age-views", type=natural_int, default=config.AGE_VIEWS,
        help="augmented views of each image that the age head sees beside the plain one; "
        "the original took 7 (default: %(default)s)")
    add("--batch-size", type=positive_int, default=config.BATCH_SIZE,
        help="images a step (default: %(default)s)")
    add_crop_batch_size(add)
    add("--backend", choices=config.BACKENDS, default=config.BACKEND,
        help="what runs the networks: torch, onnx (ONNX Runtime), or auto, onnx on a CPU where it "
        "is installed (default: %(default)s)")
    add_machine_arguments(add)
    add_precision_arguments(add)
    # fmt: on
    return parser


if __name__ == "__main__":
    answer_early(get_args_parser())  # the imports below take seconds

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from data.augment import build_transform
from data.crop import crop_folder, crop_sets
from data.dataset import FaceDataset, build_loader
from data.labels import merge_labels, read_info, read_table, split_classes
from models.network import FromPixels, build_network, fold_batch_norm
from models.onnx_runtime import cached_model, load_model, missing_packages
from utils.checkpoint import load_checkpoint, load_state
from utils.device import autocast, choose_kernels, pick_precision
from utils.distributed import in_order, is_first, join_processes, progress_off, wait_for_all
from utils.files import make_folder, remove_leftovers, write_csv
from utils.metrics import classification_scores

COLUMNS = [f"{target}_{name}" for target, head in config.HEADS.items() for name in head["classes"]]


def find_checkpoints(runs):
    """Load every fold's best.pth of the three heads under runs: {target: [checkpoint]}.

    Raises InputError for a head without a run, for a checkpoint of another head, and for heads
    trained on different crops.
    """
    found = {}
    for target in config.HEADS:
        paths = sorted(Path(runs).glob(f"{target}_fold[0-9]/best.pth"))
        if not paths:
            if (Path(runs) / "best.pth").exists():
                raise InputError(f"--runs {runs}: this is one run; name the folder that holds it")
            command = ["python", "train.py", "--target", target, "--output-dir", str(runs)]
            raise InputError(
                f"{runs}: no {target}_fold<k>/best.pth; train it with: {shlex.join(command)}"
            )
        found[target] = [load_checkpoint(path) for path in paths]
        for checkpoint in found[target]:
            path = checkpoint["path"]
            if checkpoint["target"] != target:
                raise InputError(f"{path}: a checkpoint of the head {checkpoint['target']}")
            if checkpoint["crop"] != found["mask"][0]["crop"]:
                raise InputError(f"{path}: trained on other crops than the mask head; train again")
    return found


def pick_backend(name, device, precision):
    """What runs the networks, "torch" or "onnx"; "auto" is onnx where it is installed and faster.

    Raises InputError where onnx can't be had.
    """
    suits = device.type == "cpu" and precision == torch.float32
    if name == "auto":
        return "onnx" if suits and not missing_packages() else "torch"
    if name == "onnx" and not suits:
        raise InputError("--backend onnx: runs with --device cpu and --precision fp32 only")
    if name == "onnx" and missing_packages():
        raise InputError(
            f"--backend onnx: {' and '.join(missing_packages())} not installed; "
            "python -m pip install -r requirements-onnx.txt"
        )
    return name


def load_network(checkpoint):
    """Rebuild the network of a checkpoint on the CPU, ready to predict."""
    network = build_network(checkpoint["model"], len(checkpoint["classes"]), checkpoint["resize"])
    load_state(network, checkpoint)
    return network.eval()


def build_predictor(checkpoint, device, backend):
    """A checkpoint's network as a function of images, uint8 (N, resize, resize, 3), to logits."""

    def from_pixels():
        network = fold_batch_norm(load_network(checkpoint))
        return FromPixels(network, checkpoint["mean"], checkpoint["std"])

    if backend == "torch":
        return from_pixels().to(device)
    if is_first():
        model = cached_model(checkpoint, from_pixels)
    wait_for_all()  # until one process has made the model
    if not is_first():
        model = cached_model(checkpoint, from_pixels)
    return load_model(model, checkpoint)


def views_of(checkpoint, age_views):
    """What a checkpoint's network looks at: [(resize, augmentation, number of the view)]."""
    plain = (checkpoint["resize"], "none", 0)
    if checkpoint["target"] != "age":
        return [plain]
    augmented = (checkpoint["resize"], checkpoint["augment"])
    return [plain, *((*augmented, number) for number in range(1, age_views + 1))]


def load_views(checkpoints, files, args, device):
    """The loader of all views that the checkpoints' networks look at, and the views it gives.

    An image is read once for all networks, and resized once for all that share a size.
    """
    wanted = (views_of(one, args.age_views) for folds in checkpoints.values() for one in folds)
    views = sorted(set(itertools.chain(*wanted)))
    transforms = [build_transform(resize, augment) for resize, augment, _ in views]
    dataset = FaceDataset(files, np.zeros(len(files), np.int64), transforms, seed=config.SEED)
    return build_loader(dataset, args.batch_size, args.num_workers, device), views


@torch.inference_mode()
def predict(members, loader, views, device, precision):
    """Softmax of each head for each image, averaged over the head's folds and views.

    members: {target: [(function from build_predictor, its views)]}; loader, views: from load_views.
    Returns {target: float64 (N, classes)}, each row summing to 1.
    """
    batches = {target: [] for target in members}
    for *images, _ in tqdm(loader, "predict", unit="batch", disable=progress_off()):
        images = dict(zip(views, (view.to(device, non_blocking=True) for view in images)))
        for target, folds in members.items():
            with autocast(device, precision):
                logits = [network(images[view]) for network, its in folds for view in its]
            # Left on the device: to fetch it now would make the CPU wait for the GPU.
            batches[target].append(torch.stack(logits).double().softmax(dim=2).mean(dim=0))
    return {
        target: torch.cat(in_order([batch.cpu() for batch in rows])).numpy()
        for target, rows in batches.items()
    }


def read_answers(path, info):
    """The true classes of info's images, int64 (N,), from a CSV with ImageID and ans.

    Raises InputError when an image has no answer, or not one class from 0 to 17.
    """
    table = read_table(path, ["ImageID", "ans"], "it should hold the true classes")
    if table["ImageID"].duplicated().any():
        twice = table["ImageID"][table["ImageID"].duplicated()].iloc[0]
        raise InputError(f"{path}: ImageID {twice} stands there twice")
    classes = pd.to_numeric(table.set_index("ImageID")["ans"], errors="coerce")
    answers = info["ImageID"].map(classes)
    wrong = info["ImageID"][~answers.isin(range(18))]
    if len(wrong):
        raise InputError(
            f"{path}: no class from 0 to 17 for {len(wrong)} images, first {wrong.iloc[0]}"
        )
    return answers.to_numpy(dtype=np.int64)


def print_scores(answers, classes):
    """Print macro-F1 and accuracy over the 18 classes and for each head; both int64 (N,)."""
    scores = classification_scores(answers, classes, 18)
    print(f"18 classes: macro-F1 {scores['macro_f1']:.4f}, accuracy {scores['accuracy']:.4f}")
    for target, true, predicted in zip(
        config.HEADS, split_classes(answers), split_classes(classes)
    ):
        scores = classification_scores(true, predicted, len(config.HEADS[target]["classes"]))
        print(f"{target}: macro-F1 {scores['macro_f1']:.4f}, accuracy {scores['accuracy']:.4f}")


def main():
    args = get_args_parser().parse_args()
    device = join_processes(args.device)
    precision = pick_precision(args.precision, device)
    backend = pick_backend(args.backend, device, precision)
    # All that can be wrong, before any work.
    checkpoints = find_checkpoints(args.runs)
    if args.age_views and any(fold["augment"] == "none" for fold in checkpoints["age"]):
        raise InputError(
            "--age-views: an age head was trained without augmentation, so has no views"
        )
    info = read_info(args.data_dir)
    answers = read_answers(args.answers, info) if args.answers else None
    output = Path(args.output)
    probabilities = output.with_name("probabilities.csv")
    if output == probabilities or any(
        p.exists() and not p.is_file() for p in (output, probabilities)
    ):
        raise InputError(f"--output {output}: name a file, and not probabilities.csv")
    make_folder(output.parent, "give another --output")
    inputs = [Path(args.data_dir) / "eval" / "info.csv", *([args.answers] if args.answers else [])]
    inputs += [fold["path"] for folds in checkpoints.values() for fold in folds]
    for path in (output, probabilities):
        if path.exists() and any(path.samefile(read) for read in inputs):
            raise InputError(f"--output {output}: would overwrite {path}, which is read here")
        remove_leftovers(output.parent, f".{glob.escape(path.name)}")

    members = {
        target: [
            (build_predictor(one, device, backend), views_of(one, args.age_views)) for one in folds
        ]
        for target, folds in checkpoints.items()
    }
    files = info["ImageID"].tolist()
    settings = checkpoints["mask"][0]["crop"]
    photos = ("eval", files, ["any shot"] * len(files))
    [manifest] = crop_sets(args, [photos], settings, device)
    bad = (manifest["method"] == "bad").to_numpy()  # none, but with --skip-bad
    if bad.all():
        raise InputError(f"{args.data_dir}: not one readable image in eval/images")
    folder = crop_folder(args.data_dir, args.crop_dir, "eval")
    crops = [folder / file for file in info["ImageID"][~bad]]
    choose_kernels(args.deterministic)
    loader, views = load_views(checkpoints, crops, args, device)
    heads = predict(members, loader, views, device, precision)

    if not is_first():
        return
    predicted = merge_labels(*(heads[target].argmax(axis=1) for target in config.HEADS))
    classes = np.full(len(info), np.bincount(predicted).argmax())
    classes[~bad] = predicted
    write_csv(output, info.assign(ans=classes))
    table = np.full((len(info), len(COLUMNS)), np.nan)
    table[~bad] = np.concatenate([heads[target] for target in config.HEADS], axis=1).round(6)
    table = pd.DataFrame(table, columns=COLUMNS, index=info["ImageID"]).reset_index()
    write_csv(probabilities, table)
    if bad.any():
        print(f"bad images, given the most frequent class, {classes[bad][0]}: {bad.sum()}")
    counts = ", ".join(f"{len(folds)} {target}" for target, folds in checkpoints.items())
    print(f"{len(info)} images, networks: {counts}; run by {backend} on {device.type} -> {output}")
    if answers is not None:
        print_scores(answers, classes)


if __name__ == "__main__":
    run(main)
