"""Tell a gain from luck: `python -m ETC.compare RUNS_A RUNS_B`

Compares sets of runs by what they predicted for the same valid people. A set is a run, a
folder of runs, or of several such folders, one a seed for example.
"""

from pathlib import Path

from config.config import HEADS
from utils.cli import ArgumentParser, InputError, answer_early, positive_int, run
from utils.cli import seed as seed_type

ALL = "18 classes"
MAX_SAMPLES = 100_000


def get_args_parser():
    parser = ArgumentParser(
        "python -m ETC.compare",
        description="Compare sets of runs on the same valid people, each set with the first one.",
    )
    # fmt: off
    add = parser.add_argument
    add("sets", nargs="+", metavar="RUNS",
        help="a run, a folder of runs, or of several such folders, of one seed each, for example "
        "(no default)")
    add("--samples", type=positive_int, default=2000,
        help=f"how often people are resampled for the intervals, up to {MAX_SAMPLES} "
        "(default: %(default)s)")
    add("--seed", type=seed_type, default=0, help="of the resampling (default: %(default)s)")
    # fmt: on
    return parser


if __name__ == "__main__":
    answer_early(get_args_parser())  # the imports below take seconds

import numpy as np
import pandas as pd

from data.labels import merge_labels
from ETC.report import read_arguments, read_log, read_predictions
from utils.metrics import bootstrap_macro_f1, classification_scores

KEYS = ["fold", "file", "person", "label"]


def list_runs(folder):
    """The runs that a folder is, or else that are in it, or else in the folders in it. Raises
    InputError where there are none.
    """
    found = [
        sorted(path.parent for path in Path(folder).glob(f"{below}valid_predictions.csv"))
        for below in ("", "*/", "*/*/")
    ]
    for depth, runs in enumerate(found, start=1):
        if runs:
            if left_out := sum(map(len, found[depth:])):
                print(f"{folder}: without {left_out} runs in folders further down")
            return runs
    raise InputError(f"{folder}: no runs of train.py (valid_predictions.csv) in it or its folders")


def check_apart(sets):
    """Raise InputError when a run is in two of sets, lists of runs. By links, sets may share a
    head.
    """
    seen = set()
    for runs in sets:
        here = {path.resolve(): path for path in runs if not path.is_symlink()}
        for path in here.keys() & seen:
            raise InputError(f"{here[path]}: in two sets; by a link to it, sets may share a run")
        seen |= here.keys()


def read_set(runs):
    """What runs predicted: {member: {target: table}}, a member for each folder of runs. A table has
    a row a photo, sorted by fold and file: fold, file, person, label and predicted, the latter two
    as labels of the head.

    Raises InputError for damaged predictions, and for two runs of a member that are of one fold.
    """
    members = {}
    for path in runs:
        arguments, epochs = read_arguments(path), len(read_log(path))
        target, fold = arguments["target"], arguments["fold"]
        if epochs < arguments["epochs"]:
            print(f"{path}: stopped after {epochs} of {arguments['epochs']} epochs")
        table = read_predictions(path)[["file", "person", "label", "predicted"]]
        for column in ("label", "predicted"):
            table[column] = table[column].map(list(HEADS[target]["classes"]).index)
        folds = members.setdefault(str(path.parent), {}).setdefault(target, {})
        if fold in folds:
            raise InputError(f"{path}: another run of {target}, fold {fold}, in {path.parent}")
        folds[fold] = table.assign(fold=fold)
    return {
        member: {
            target: pd.concat(folds.values()).sort_values(["fold", "file"], ignore_index=True)
            for target, folds in heads.items()
        }
        for member, heads in members.items()
    }


def merge_heads(member, heads):
    """The table of the 18 classes from those of a member's three heads, or None, and a line that
    says so, where they are not all there with the same photos.
    """
    tables = [heads.get(target) for target in HEADS]
    photos = ["fold", "file", "person"]
    if any(table is None for table in tables):
        print(f"{member}: without {ALL}, as it has not all three heads")
        return None
    if not all(table[photos].equals(tables[0][photos]) for table in tables):
        print(f"{member}: without {ALL}, as its heads have other folds or photos")
        return None
    classes = {
        name: merge_labels(*(table[name].to_numpy() for table in tables))
        for name in ("label", "predicted")
    }
    return tables[0][photos].assign(**classes)


def score(tables, num_classes, samples, seed):
    """The macro-F1 of each run, one a table and fold, the mean over tables of that of all folds
    together, and the latter resampled over people, float (samples,).
    """
    runs = [
        classification_scores(fold["label"], fold["predicted"], num_classes)["macro_f1"]
        for table in tables
        for _, fold in table.groupby("fold")
    ]
    pooled, resampled = [], []
    for table in tables:
        columns = [table[name].to_numpy() for name in ("label", "predicted", "person")]
        pooled.append(classification_scores(*columns[:2], num_classes)["macro_f1"])
        resampled.append(bootstrap_macro_f1(*columns, num_classes, samples, seed))
    return np.array(runs), np.mean(pooled), np.mean(resampled, axis=0)


def tables_by_classification(runs):
    """{head or ALL: [(member, table)]} of a set's runs, as read_set and merge_heads give them."""
    found = {}
    for member, heads in read_set(runs).items():
        for name, table in {ALL: merge_heads(member, heads), **heads}.items():
            if table is not None:
                found.setdefault(name, []).append((member, table))
    return found


def check_same(name, sets):
    """Raise InputError unless all tables of a classification have the same photos and labels."""
    (first, reference), *others = [pair for its in sets for pair in its]
    for member, table in others:
        if not table[KEYS].equals(reference[KEYS]):
            raise InputError(
                f"{member}: other valid photos or labels for {name} than {first}; compare runs of "
                "the same folds, --fold-seed, --label-fixes and data"
            )


def main():
    args = get_args_parser().parse_args()
    if args.samples > MAX_SAMPLES:
        raise InputError(f"--samples {args.samples}: more than {MAX_SAMPLES}")
    runs = [list_runs(folder) for folder in args.sets]
    check_apart(runs)
    sets = [tables_by_classification(its) for its in runs]
    names = [name for name in (ALL, *HEADS) if all(name in its for its in sets)]
    for name in HEADS:
        lacking = [folder for folder, its in zip(args.sets, sets) if name not in its]
        if 0 < len(lacking) < len(sets):
            print(f"{name}: left out, as {', '.join(lacking)} has no run of it")
    if not names:
        raise InputError(f"{', '.join(args.sets)}: no head of which each of them has runs")
    for name in names:
        check_same(name, [its[name] for its in sets])

    width = max(map(len, args.sets)) + 2
    print("macro-F1: mean and deviation of the runs; of all their folds together; the difference")
    print(f"of the latter to {args.sets[0]} with its 95 % interval over people")
    for name in names:
        people = sets[0][name][0][1]["person"].nunique()
        print(f"\n{name}, {people} valid people")
        num_classes = 18 if name == ALL else len(HEADS[name]["classes"])
        base = None
        for folder, its in zip(args.sets, sets):
            tables = [table for _, table in its[name]]
            runs, pooled, resampled = score(tables, num_classes, args.samples, args.seed)
            deviation = f"{runs.std(ddof=1):.4f}" if len(runs) > 1 else "-"
            line = f"{folder:<{width}}{len(runs):>3} runs{runs.mean():>9.4f} +- {deviation:<8}"
            line += f"{pooled:>8.4f}"
            if base is None:
                base = pooled, resampled
            else:
                low, high = np.quantile(resampled - base[1], (0.025, 0.975))
                line += f"{pooled - base[0]:>+10.4f}  [{low:+.4f}, {high:+.4f}]"
            print(line)


if __name__ == "__main__":
    run(main)
