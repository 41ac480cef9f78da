# PYTHON_ARGCOMPLETE_OK
"""Merge the three heads into a submission: three heads -> 18 classes -> submission.csv.

python test.py
python test.py --images holiday/
"""

import itertools
import shlex
import tempfile
from pathlib import Path

from config import config
from utils.cli import (
    ArgumentParser,
    InputError,
    add_crop_batch_size,
    add_data_arguments,
    add_machine_arguments,
    add_precision_arguments,
    add_runs,
    answer_early,
    natural_int,
    positive_int,
    printable,
    run,
)


def get_args_parser():
    parser = ArgumentParser(description="Merge the three heads into a submission.")
    # fmt: off
    add = parser.add_argument
    add_data_arguments(add)
    add_runs(add)
    add("--output",
        help="the submission, with probabilities.csv beside it, or, with --images, the answers, "
        f"with a contact sheet (default: {config.OUTPUT}, or {config.PREDICTIONS})")
    add("--answers", metavar="FILE",
        help="CSV with ImageID and the true ans, to print the score (default: no score)")
    add("--age-views", type=natural_int, default=config.AGE_VIEWS,
        help="augmented views of each image that the age head sees beside the plain one; "
        "the original took 7 (default: %(default)s)")
    add("--tta", choices=config.TTAS,
        help="views of each image: none, or flip, the mean of a face and its mirror image "
        "(default: as in each head's training)")
    add("--batch-size", type=positive_int, default=config.BATCH_SIZE,
        help="images a step (default: %(default)s)")
    add_crop_batch_size(add)
    add("--backend", choices=config.BACKENDS, default=config.BACKEND,
        help="what runs the networks: torch, onnx (ONNX Runtime), or auto, onnx on a CPU where it "
        "is installed (default: %(default)s)")
    add_machine_arguments(add)
    add_precision_arguments(add)
    add = parser.add_argument_group("photos that are in no info.csv").add_argument
    add("--images", nargs="+", metavar="PATH",
        help="classify these files, and the photos in and below these folders (default: eval/)")
    add("--all-faces", action="store_true",
        help="a row for each face of a photo (default: for the largest)")
    # fmt: on
    return parser


if __name__ == "__main__":
    answer_early(get_args_parser())  # the imports below take seconds

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from data.augment import build_transform
from data.crop import crop_sets
from data.dataset import FaceDataset, build_loader
from data.labels import merge_labels, read_answers, read_info, split_classes
from data.manifest import crop_folder
from data.photos import crop_photos, list_photos, reason, refuse_bad_photos
from ETC.sheet import MAX_PHOTOS, save_sheet
from models.network import FromPixels, average, fold_batch_norm, load_network
from models.onnx_runtime import cached_model, load_model, pick_backend
from utils.checkpoint import find_checkpoints
from utils.device import autocast, choose_kernels, pick_precision
from utils.distributed import (
    in_order,
    is_first,
    join_processes,
    progress_off,
    wait_for_all,
    world_size,
)
from utils.files import check_output, write_csv
from utils.metrics import classification_scores

COLUMNS = [f"{target}_{name}" for target, head in config.HEADS.items() for name in head["classes"]]


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


def paths_of(checkpoints):
    """The files that checkpoints, {target: [checkpoint]}, were read from."""
    return [one["path"] for folds in checkpoints.values() for one in folds]


def with_mirror_image(predictor):
    """A predictor that takes the mean of each image and its mirror image."""
    return lambda images: average([predictor(images).float(), predictor(images.flip(2)).float()])


def build_members(checkpoints, args, device, backend):
    """The networks that predict needs: {target: [(function from build_predictor, its views)]}."""

    def member(checkpoint):
        predictor = build_predictor(checkpoint, device, backend)
        if (args.tta or checkpoint["tta"]) == "flip":
            predictor = with_mirror_image(predictor)
        return predictor, views_of(checkpoint, args.age_views)

    return {target: [member(one) for one in folds] for target, folds in checkpoints.items()}


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
    choose_kernels(args.deterministic)  # not before cropping, whose many shapes would all be tried
    wanted = (views_of(one, args.age_views) for folds in checkpoints.values() for one in folds)
    views = sorted(set(itertools.chain(*wanted)))
    transforms = [build_transform(resize, augment) for resize, augment, _ in views]
    dataset = FaceDataset(files, np.zeros(len(files), np.int64), transforms, seed=config.SEED)
    return build_loader(dataset, args.batch_size, args.num_workers, device), views


@torch.inference_mode()
def predict(members, loader, views, device, precision):
    """Softmax of each head for each image, averaged over the head's networks and views.

    members: from build_members; loader, views: from load_views.
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


def print_scores(answers, classes):
    """Print macro-F1 and accuracy over the 18 classes and for each head; both int64 (N,)."""
    scores = classification_scores(answers, classes, 18)
    print(f"18 classes: macro-F1 {scores['macro_f1']:.4f}, accuracy {scores['accuracy']:.4f}")
    for target, true, predicted in zip(
        config.HEADS, split_classes(answers), split_classes(classes)
    ):
        scores = classification_scores(true, predicted, len(config.HEADS[target]["classes"]))
        print(f"{target}: macro-F1 {scores['macro_f1']:.4f}, accuracy {scores['accuracy']:.4f}")


def parse_args():
    """Parse the command line, check what argparse can't."""
    parser = get_args_parser()
    args = parser.parse_args()
    if args.all_faces and not args.images:
        raise InputError("--all-faces: does nothing without --images")
    for name in ("answers", "data_dir", "crop_dir"):
        if args.images and getattr(args, name) != parser.get_default(name):
            raise InputError(f"--{name.replace('_', '-')}: does nothing with --images")
    if args.output is None:
        args.output = config.PREDICTIONS if args.images else config.OUTPUT
    return args


def submit(args, checkpoints, device, precision, backend):
    """Classify the eval images: the submission, probabilities.csv and, with answers, the score."""
    # All that can be wrong, before any work.
    info = read_info(args.data_dir)
    answers = read_answers(args.answers, info) if args.answers else None
    output = Path(args.output)
    inputs = [Path(args.data_dir) / "eval" / "info.csv", *([args.answers] if args.answers else [])]
    names = ["probabilities.csv", *(["report.html"] if args.answers else [])]
    inputs += paths_of(checkpoints)
    table_path, *report_path = check_output(output, ".csv", names, inputs)

    members = build_members(checkpoints, args, device, backend)
    files = info["ImageID"].tolist()
    photos = ("eval", files, ["any shot"] * len(files))
    [manifest] = crop_sets(args, [photos], checkpoints["mask"][0]["crop"], device)
    bad = (manifest["method"] == "bad").to_numpy()  # none, but with --skip-bad
    if bad.all():
        raise InputError(f"{args.data_dir}: not one readable image in eval/images")
    folder = crop_folder(args.data_dir, args.crop_dir, "eval")
    crops = [folder / file for file in info["ImageID"][~bad]]
    loader, views = load_views(checkpoints, crops, args, device)
    heads = predict(members, loader, views, device, precision)

    if not is_first():
        return
    predicted = merge_labels(*(heads[target].argmax(axis=1) for target in config.HEADS))
    classes = np.full(len(info), np.bincount(predicted).argmax())
    classes[~bad] = predicted
    write_csv(output, info.assign(ans=classes))
    probs = {target: np.full((len(info), its.shape[1]), np.nan) for target, its in heads.items()}
    for target, its in heads.items():
        probs[target][~bad] = its
    table = pd.DataFrame(np.concatenate([*probs.values()], axis=1), columns=COLUMNS).round(6)
    write_csv(table_path, pd.concat([info["ImageID"], table], axis=1))
    if bad.any():
        print(f"bad images, given the most frequent class, {classes[bad][0]}: {bad.sum()}")
    counts = ", ".join(f"{len(folds)} {target}" for target, folds in checkpoints.items())
    print(f"{len(info)} images, networks: {counts}; run by {backend} on {device.type} -> {output}")
    if answers is not None:
        print_scores(answers, classes)
        from ETC.report import write_submission_report  # imports matplotlib, half a second

        settings = vars(args) | {"runs": shlex.join(args.runs)}
        write_submission_report(*report_path, settings, manifest, folder, probs, answers, classes)
        print(f"report: {report_path[0]}")


def classify_photos(args, checkpoints, device, precision, backend):
    """Classify the faces of any photos: predictions.csv and a contact sheet beside it."""
    if world_size() > 1:
        raise InputError("--images: works in a single process only; start it with python")
    output = Path(args.output)
    name = f"{output.stem}_sheet.png"
    photos = list_photos(args.images, but=[output.with_name(name)] if output.name else [])
    [sheet] = check_output(output, ".csv", [name], [*photos, *paths_of(checkpoints)])
    if sheet.exists() and not output.exists():
        raise InputError(f"--output {output}: {sheet} is there already; move it or go elsewhere")

    members = build_members(checkpoints, args, device, backend)
    settings = checkpoints["mask"][0]["crop"]
    with tempfile.TemporaryDirectory() as folder:
        faces, bad = crop_photos(photos, Path(folder), settings, args.all_faces, device, args)
        if bad and not args.skip_bad:
            refuse_bad_photos(bad, "--skip-bad does without them")
        if faces.empty:
            raise InputError(f"{', '.join(args.images)}: not one readable photo")
        loader, views = load_views(checkpoints, faces["crop"].tolist(), args, device)
        heads = predict(members, loader, views, device, precision)

    table = faces.drop(columns="crop")
    table["file"] = [printable(str(file)) for file in table["file"]]
    answers = {target: probs.argmax(axis=1) for target, probs in heads.items()}
    for target, head in config.HEADS.items():
        table[target] = np.array(head["classes"])[answers[target]]
    table["ans"] = merge_labels(*(answers[target] for target in config.HEADS))
    table[COLUMNS] = np.concatenate([heads[target] for target in config.HEADS], axis=1).round(6)
    write_csv(output, table)
    save_sheet(sheet, table.assign(path=faces["file"]))
    for photo, why in bad.items():
        print(f"left out: {reason(photo, why)}")
    if table["file"].nunique() > MAX_PHOTOS:
        print(f"{sheet}: the first {MAX_PHOTOS} photos")
    missed = (table["method"] == "center").sum()
    print(f"{len(photos) - len(bad)} photos, {len(table) - missed} faces, {missed} photos without "
          f"one (cropped centrally) -> {output}, {sheet}")  # fmt: skip


def main():
    args = parse_args()
    device = join_processes(args.device)
    precision = pick_precision(args.precision, device)
    backend = pick_backend(args.backend, device, precision)
    checkpoints = find_checkpoints(args.runs)
    for checkpoint in checkpoints["age"]:
        if args.age_views and checkpoint["augment"] == "none":
            raise InputError(
                f"--age-views: {checkpoint['path']} was trained without augmentation, so has no "
                "views; leave out --age-views or that run"
            )
    (classify_photos if args.images else submit)(args, checkpoints, device, precision, backend)


if __name__ == "__main__":
    run(main)
