"""Merge the three heads into a submission: three heads -> 18 classes -> submission.csv.

python test.py
"""

from config import config  # isort: skip - before PyTorch

from pathlib import Path

import numpy as np

from data.crop import add_crop_batch_size, check_unchanged, crop_folder, crop_split
from data.dataset import crop_loader
from data.labels import merge_labels, read_answers, read_info, split_classes
from models.inference import build_members, pick_backend, predict
from utils import cli
from utils.checkpoint import find_checkpoints
from utils.cli import InputError
from utils.device import is_first, join_processes, pick_precision, use_deterministic_kernels
from utils.files import check_output, write_csv
from utils.metrics import classification_scores


def main():
    args = get_args_parser().parse_args()
    device = join_processes(args.device)
    precision = pick_precision(args.precision, device)
    if args.deterministic:
        use_deterministic_kernels()
    backend = pick_backend(args.backend, device, precision)
    checkpoints = find_checkpoints(args.runs)
    info, files = read_info(args.data_dir)
    answers = read_answers(args.answers, info) if args.answers else None
    inputs = [Path(args.data_dir, "eval", "info.csv"), *filter(None, [args.answers])]
    [table_path] = check_output(args.output, [".csv"], inputs, ["probabilities.csv"])
    members, views = build_members(checkpoints, device, backend, args.tta, args.age_views)

    settings = checkpoints["mask"][0]["crop"]  # all heads have the same
    manifest = crop_split(args, "eval", files, None, settings, device)
    good = (manifest["method"] != "bad").to_numpy()  # all, unless --skip-bad
    if not good.any():
        raise InputError(f"{args.data_dir}: not one readable image in eval/images")

    folder = crop_folder(args.data_dir, args.crop_dir, "eval")
    paths = [folder / file for file in manifest["file"][good]]
    loader = crop_loader(paths, views, args.batch_size, args.num_workers, device)
    probs = predict(members, loader, device, precision)
    check_unchanged(folder, manifest)
    if not is_first():
        return
    predicted = merge_labels(*(probs[target].argmax(axis=1) for target in config.CLASSES))
    classes = np.full(len(info), np.bincount(predicted).argmax())  # for bad images: most frequent
    classes[good] = predicted
    write_csv(args.output, info.assign(ans=classes))
    write_csv(table_path, probability_table(info, good, probs))
    if not good.all():
        print(f"{(~good).sum()} images can't be read: given the most frequent class, "
              f"{classes[~good][0]}")  # fmt: skip
    counts = ", ".join(f"{len(head)} {target}" for target, head in checkpoints.items())
    print(f"{len(info)} images, networks: {counts}; run by {backend} on {device} -> {args.output}")
    if answers is not None:
        print_scores(answers, classes)


def probability_table(info, good, probs):
    """The table probabilities.csv; probs has rows for the images that are good, bool (N,)."""
    table = info[["ImageID"]].copy()
    for target, names in config.CLASSES.items():
        for name, column in zip(names, probs[target].round(6).T):
            table.loc[good, f"{target}_{name}"] = column
    return table


def print_scores(answers, classes):
    """Print macro-F1 and accuracy of official classes, int64 (N,), in all and for each head."""
    sizes = map(len, config.CLASSES.values())
    heads = zip(config.CLASSES, split_classes(answers), split_classes(classes), sizes)
    for name, *arrays in (("18 classes", answers, classes, 18), *heads):
        scores = classification_scores(*arrays)
        print(f"{name}: macro-F1 {scores['macro_f1']:.4f}, accuracy {scores['accuracy']:.4f}")


def get_args_parser():
    parser = cli.ArgumentParser(description="Merge the three heads into a submission.")
    # fmt: off
    add = parser.add_argument
    cli.add_data_arguments(add)
    add("--output", type=cli.file_name, default=config.SUBMISSION, metavar="FILE",
        help="the submission, with probabilities.csv beside it (default: %(default)s)")
    add("--answers", type=cli.file_name, metavar="FILE",
        help="CSV with ImageID and the true ans, to print the score (default: no score)")
    add_crop_batch_size(add)
    cli.add_prediction_arguments(add)
    cli.add_machine_arguments(add)
    cli.add_precision_arguments(add)
    # fmt: on
    return parser


if __name__ == "__main__":
    cli.run(main, "crops that are made are kept; no submission was written")
