"""Merge the three heads into a submission: three heads -> 18 classes -> submission.csv.

python test.py
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from config import config
from data.augment import build_transform, normalize
from data.crop import crop_folder, crop_split
from data.dataset import FaceDataset, build_loader
from data.labels import merge_labels, read_info, read_table, split_classes
from models.network import build_network
from utils.checkpoint import load_checkpoint
from utils.cli import ArgumentParser, InputError, natural_int, positive_int, run
from utils.device import PRECISIONS, autocast, pick_device, pick_precision
from utils.files import write_csv
from utils.metrics import classification_scores

COLUMNS = [f"{target}_{name}" for target, head in config.HEADS.items() for name in head["classes"]]


def get_args_parser():
    parser = ArgumentParser(description="Merge the three heads into a submission.")
    # fmt: off
    add = parser.add_argument
    add("--data-dir", default=config.DATA_DIR,
        help="folder with eval/ (default: input/data, or what MAG_DATA_DIR says)")
    add("--crop-dir", default=config.CROP_DIR, help="where crops go (default: the data directory)")
    add("--runs", default=config.OUTPUT_DIR,
        help="folder with the runs of train.py (default: %(default)s)")
    add("--output", default=config.OUTPUT, help="(default: %(default)s)")
    add("--answers", metavar="FILE", help="CSV with ImageID and the true ans, to print the score")
    add("--age-views", type=natural_int, default=config.AGE_VIEWS,
        help="augmented views of each image that the age head sees beside the plain one; "
        "the original took 7 (default: %(default)s)")
    add("--batch-size", type=positive_int, default=config.PREDICT_BATCH_SIZE,
        help="(default: %(default)s)")
    add("--crop-batch-size", type=positive_int, default=config.CROP_BATCH_SIZE,
        help="photos of 384 x 512 that the detector takes at once (default: %(default)s)")
    add("--device", default=config.DEVICE, help="auto, cpu, cuda or cuda:1 (default: %(default)s)")
    add("--precision", choices=("auto", *PRECISIONS), default=config.PRECISION,
        help="auto: the GPU's fast one, else fp32 (default: %(default)s)")
    add("--num-workers", type=natural_int, default=config.NUM_WORKERS,
        help="processes that load images (default: up to 4, here %(default)s)")
    # fmt: on
    return parser


def find_checkpoints(runs):
    """Load every fold's best.pth of the three heads under runs: {target: [checkpoint]}.

    Raises InputError for a head without a run, for a checkpoint of another head, and for heads
    trained on different crops.
    """
    found = {}
    for target in config.HEADS:
        paths = sorted(Path(runs).glob(f"{target}_fold*/best.pth"))
        if not paths:
            raise InputError(
                f"{runs}: no {target}_fold<k>/best.pth; train it with: "
                f"python train.py --target {target} --output-dir {runs}"
            )
        found[target] = [load_checkpoint(path) for path in paths]
        for path, checkpoint in zip(paths, found[target]):
            if checkpoint["target"] != target:
                raise InputError(f"{path}: a checkpoint of the head {checkpoint['target']}")
            if checkpoint["crop"] != found["mask"][0]["crop"]:
                raise InputError(f"{path}: trained on other crops than the mask head; train again")
    return found


def load_network(checkpoint, device):
    """Rebuild the network of a checkpoint, ready to predict."""
    network = build_network(checkpoint["model"], len(checkpoint["classes"]), checkpoint["resize"])
    network.load_state_dict(checkpoint["network"])
    return network.to(device).eval()


@torch.inference_mode()
def predict(checkpoints, files, view, args, device, precision):
    """Softmax of each head for each image, averaged over the head's folds.

    checkpoints: {target: [checkpoint]}; files: paths of N crops; view: 0 for plain images, else
    the number of a view augmented as in the training of the head.
    Returns {target: float64 (N, classes)}, each row summing to 1. An image is read once for all
    networks, and resized once for all that share a size.
    """
    members = [
        {
            **checkpoint,
            "network": load_network(checkpoint, device),
            "pixel_stats": [
                torch.tensor(checkpoint[name], device=device) for name in ("mean", "std")
            ],
            "input": (checkpoint["resize"], checkpoint["augment"] if view else "none"),
        }
        for folds in checkpoints.values()
        for checkpoint in folds
    ]
    inputs = sorted({member["input"] for member in members})
    transforms = [build_transform(resize, augment) for resize, augment in inputs]
    dataset = FaceDataset(files, np.arange(len(files)), transforms, seed=config.SEED)
    loader = build_loader(dataset, args.batch_size, args.num_workers, device)
    loader.sampler.view = view
    total = {
        target: np.zeros((len(files), len(folds[0]["classes"])))
        for target, folds in checkpoints.items()
    }
    progress = tqdm(total=len(files), desc=f"view {view}", unit="images", disable=None)
    for *images, rows in loader:
        batches = dict(zip(inputs, (batch.to(device, non_blocking=True) for batch in images)))
        for member in members:
            pixels = normalize(batches[member["input"]], *member["pixel_stats"])
            with autocast(device, precision):
                logits = member["network"](pixels)
            total[member["target"]][rows] += logits.float().softmax(1).cpu().numpy()
        progress.update(len(rows))
    progress.close()
    return {target: total[target] / len(folds) for target, folds in checkpoints.items()}


def score(classes, info, answers):
    """Print the 18-class macro-F1 and accuracy and each head's macro-F1 against a CSV of answers.

    Raises InputError when the answers do not cover every image, or are no classes.
    """
    table = read_table(answers, ["ImageID", "ans"], "give the true classes").drop_duplicates(
        "ImageID"
    )
    truth = info["ImageID"].map(table.set_index("ImageID")["ans"])
    truth = pd.to_numeric(truth, errors="coerce")
    if not truth.isin(range(18)).all():
        missing = info["ImageID"][~truth.isin(range(18))]
        raise InputError(f"{answers}: no class from 0 to 17 for {len(missing)} images, "
                         f"{missing.iloc[0]} first")  # fmt: skip
    truth = truth.to_numpy(dtype=np.int64)
    scores = classification_scores(truth, classes, 18)
    print(f"18 classes: macro-F1 {scores['macro_f1']:.4f}, accuracy {scores['accuracy']:.4f}")
    for target, true, predicted in zip(config.HEADS, split_classes(truth), split_classes(classes)):
        scores = classification_scores(true, predicted, len(config.HEADS[target]["classes"]))
        print(f"{target}: macro-F1 {scores['macro_f1']:.4f}, accuracy {scores['accuracy']:.4f}")


def main():
    args = get_args_parser().parse_args()
    device = pick_device(args.device)
    precision = pick_precision(args.precision, device)
    checkpoints = find_checkpoints(args.runs)
    info = read_info(args.data_dir)

    settings = checkpoints["mask"][0]["crop"]
    crop_split(args, "eval", info["ImageID"].tolist(), settings, device)
    folder = crop_folder(args.data_dir, args.crop_dir, "eval")
    files = [folder / image for image in info["ImageID"]]

    probabilities = predict(checkpoints, files, 0, args, device, precision)
    age_only = {"age": checkpoints["age"]}
    for view in range(1, args.age_views + 1):
        probabilities["age"] += predict(age_only, files, view, args, device, precision)["age"]
    probabilities["age"] /= 1 + args.age_views

    classes = merge_labels(*(probabilities[target].argmax(1) for target in config.HEADS))
    table = np.concatenate([probabilities[target] for target in config.HEADS], axis=1)
    output = Path(args.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_csv(output, info.assign(ans=classes))
    table = pd.DataFrame(table.round(6), columns=COLUMNS)
    table.insert(0, "ImageID", info["ImageID"])
    write_csv(output.with_name("probabilities.csv"), table)
    counts = ", ".join(f"{len(folds)} {target}" for target, folds in checkpoints.items())
    print(f"{len(info)} images, networks: {counts} -> {output}")
    if args.answers:
        score(classes, info, args.answers)


if __name__ == "__main__":
    run(main)
