"""Tell a gain from luck: compare sets of runs by their predictions for the same val people.

python -m ETC.compare RUNS_A RUNS_B
python -m ETC.compare RUNS_A RUNS_B --by gender age race
python -m ETC.compare RUNS_A RUNS_B --ensemble
"""

import sys
from pathlib import Path

if __spec__ is None:  # started as a file, not by python -m
    sys.path[0] = str(Path(__file__).parents[1])
    import config  # noqa: F401 - before PyTorch


import numpy as np
import pandas as pd

from config.config import CLASSES
from data.labels import merge_labels
from ETC.report import grouped, read_run
from ETC.statistics import (
    INTERVAL,
    accuracy,
    bootstrap_confusions,
    confusion_matrix,
    interval,
    macro_f1,
)
from utils import cli
from utils.cli import InputError

ALL = "18 classes"
NUM_CLASSES = {ALL: 18, **{target: len(classes) for target, classes in CLASSES.items()}}
PHOTO = ["fold", "file", "person"]
SAMPLES = 2000  # how often people are resampled for an interval


def list_runs(folder):
    """The run that folder is, or else the runs in it, or else those in the folders in it. Raises
    InputError when there are none.
    """
    for below in ("", "*/", "*/*/"):
        if paths := sorted(Path(folder).glob(f"{below}val_predictions.csv")):
            return [path.parent for path in paths]
    raise InputError(f"{folder}: no runs of train.py (val_predictions.csv) in it or its folders")


def average_members(name, folder, members):
    """The table of an ensemble of a head's members, {member: table}: their probabilities averaged
    photo by photo, as in test.py, which averages folds too. Copies and links count once.
    """
    check_same(name, [members])
    table = next(iter(members.values()))
    probs = [table.filter(regex="^p_").to_numpy() for table in members.values()]
    probs = list({values.tobytes(): values for values in probs}.values())
    print(f"{name}: mean of {len(probs)} networks in each fold of {folder}")
    return table.assign(predicted=np.mean(probs, axis=0).argmax(axis=1))


def read_set(folder, fields=(), ensemble=False):
    """What the runs of a set predicted: {classification: {member: table}}, where a member is a
    folder of runs, such as those of one seed, and a classification a head or ALL. With ensemble,
    folder is the only member, and each head's table that of average_members.

    The tables have a row per photo, sorted by fold and file: fold, file, person, label and
    predicted as ints, for a head p_<class>, and each of fields. Raises InputError for two runs of a
    member with the same head and fold, and for a run without one of fields.
    """
    found = {name: {} for name in NUM_CLASSES}
    for path in list_runs(folder):
        arguments, log, table = read_run(path)
        target, member = arguments["target"], str(path.parent)
        if len(log) < arguments["epochs"]:
            print(f"{path}: stopped after {len(log)} of {arguments['epochs']} epochs")
        if lacking := [field for field in fields if field not in table]:
            raise InputError(
                f"{path / 'val_predictions.csv'}: no column {', '.join(lacking)}; leave it out of "
                "--by, or train again with a train.csv that has it"
            )
        probs = [f"p_{name}" for name in CLASSES[target]]
        columns = [*PHOTO, *fields, "label", "predicted", *probs]
        table = table.assign(fold=arguments["fold"])[columns]
        earlier = found[target].get(member, table[:0])
        if arguments["fold"] in earlier["fold"].to_numpy():
            raise InputError(
                f"{path}: {member} has another run of {target}, fold {table['fold'][0]}"
            )
        table = pd.concat([earlier, table])
        found[target][member] = table.sort_values(["fold", "file"], ignore_index=True)
    if ensemble:
        found = {
            name: {folder: average_members(name, folder, members)} if members else {}
            for name, members in found.items()
        }
    for member in dict.fromkeys(member for members in found.values() for member in members):
        heads = [found[target].get(member) for target in CLASSES]
        if any(table is None for table in heads):
            print(f"{member}: {ALL} not scored: a head is missing")
        elif not all(table[PHOTO].equals(heads[0][PHOTO]) for table in heads):
            print(f"{member}: {ALL} not scored: its heads have different folds or photos")
        else:
            merged = {
                name: merge_labels(*(table[name].to_numpy() for table in heads))
                for name in ("label", "predicted")
            }
            found[ALL][member] = heads[0][[*PHOTO, *fields]].assign(**merged)
    return found


def check_same(name, sets):
    """Raise InputError unless all tables of a classification have the same photos and labels."""
    (first, reference), *others = [item for members in sets for item in members.items()]
    for member, table in others:
        if not table[[*PHOTO, "label"]].equals(reference[[*PHOTO, "label"]]):
            raise InputError(
                f"{member}: other val photos or labels for {name} than {first}; compare runs of "
                "the same folds, --fold-seed, --label-fixes and data"
            )


def pooled_score(tables, num_classes, measure):
    """A set's score, from the tables of its members: of all folds pooled, the mean over members;
    and that resampled over people, float (SAMPLES,).

    measure: macro_f1, or another one of confusion matrices with the same arguments.
    """
    pooled, resampled = [], []
    for table in tables:
        answers = table["label"].to_numpy(), table["predicted"].to_numpy()
        whole = confusion_matrix(*answers, num_classes)
        drawn = bootstrap_confusions(*answers, table["person"], num_classes, SAMPLES)
        pooled.append(measure(whole, False))
        resampled.append(measure(drawn, whole.sum(axis=1) > 0))
    return np.mean(pooled), np.mean(resampled, axis=0)


def print_comparison(name, folders, sets, unit):
    """Print a line for each set: sets are the {member: table} of one classification; unit: of what
    a member's folds are, "runs" or "folds".
    """
    people, num_classes = next(iter(sets[0].values()))["person"].nunique(), NUM_CLASSES[name]
    print(f"\n{name}, {people} val people")
    width, first = max(map(len, folders)) + 2, None
    header = f"{'':<{width + 9}}{'macro-F1':>10} +- {'std':<8}{'pooled':>8}"
    print(header + (f"{'difference':>12}  [95 % interval]" if len(folders) > 1 else ""))
    for folder, members in zip(folders, sets):
        runs = [
            macro_f1(confusion_matrix(fold["label"], fold["predicted"], num_classes))
            for table in members.values()
            for _, fold in table.groupby("fold")
        ]
        pooled, resampled = pooled_score(members.values(), num_classes, macro_f1)
        deviation = f"{np.std(runs, ddof=1):.4f}" if len(runs) > 1 else "-"
        line = f"{folder:<{width}}{len(runs):>3} {unit:<5}{np.mean(runs):>10.4f} +- {deviation:<8}"
        line += f"{pooled:>8.4f}"
        if first is None:
            first = pooled, resampled
        else:
            low, high = np.quantile(resampled - first[1], INTERVAL)
            line += f"{pooled - first[0]:>+12.4f}  [{low:+.4f}, {high:+.4f}]"
        print(line)


def print_groups(field, sets, num_classes):
    """Print a line for each group of people: the accuracy of each set, as in score_groups.

    field: gender, age or race; sets: as in print_comparison. A run may have fixed somebody's age or
    gender: those of the first table count for all.
    """
    tables = [list(members.values()) for members in sets]
    groups = grouped(tables[0][0][field])
    width = max(len("by gender"), *map(len, groups.categories)) + 2
    others = (f"    set {number}  difference{'':20}" for number in range(2, len(sets) + 1))
    print(f"  {f'by {field}':<{width}}people    set 1{''.join(others)}".rstrip())
    for group in groups.categories:
        people = tables[0][0]["person"][groups == group].nunique()
        line, first = f"  {group:<{width}}{people:>6}", None
        for members in tables:
            chosen = [table[groups == group] for table in members]
            mean, means = pooled_score(chosen, num_classes, lambda found, _: accuracy(found))
            line += f"{mean:>9.4f}"
            if first is None:
                first = mean, means
            else:
                spread = interval(means - first[1], people)
                spread = "[{:+.4f}, {:+.4f}]".format(*spread) if spread else ""
                line += f"{mean - first[0]:>+12.4f}  {spread:<18}"
        print(line.rstrip())


def get_args_parser():
    parser = cli.ArgumentParser(
        "python -m ETC.compare",
        description="Compare sets of runs by macro-F1 on the same val people, each set with the "
        "first.",
    )
    sets = "a run, a folder of runs, or a folder of such folders, such as one for each seed"
    parser.add_argument("sets", type=cli.file_name, nargs="+", metavar="RUNS", help=sets)
    parser.add_argument(
        "--by",
        nargs="+",
        default=[],
        choices=["gender", "age", "race"],
        help="also the accuracy for the people of each gender, decade or race (default: for none)",
    )
    parser.add_argument(
        "--ensemble",
        action="store_true",
        help="average the probabilities of a set's networks of each fold, and score the mean "
        "(default: score each network, and average the scores)",
    )
    return parser


def main():
    args = get_args_parser().parse_args()
    args.by = [*dict.fromkeys(args.by)]
    sets = [read_set(folder, args.by, args.ensemble) for folder in args.sets]
    names = [name for name in NUM_CLASSES if all(found[name] for found in sets)]
    for name in CLASSES:
        lacking = [folder for folder, found in zip(args.sets, sets) if not found[name]]
        if 0 < len(lacking) < len(sets):
            print(f"{name}: left out, because {', '.join(lacking)} has no run of it")
    if not names:
        raise InputError(f"{', '.join(args.sets)}: no head of which each of them has a run")
    for name in names:
        check_same(name, [found[name] for found in sets])
    unit = "folds" if args.ensemble else "runs"
    print(f"macro-F1: mean and standard deviation over the {unit}; pooled: over all folds at once")
    if len(sets) > 1:
        print(f"difference: in pooled macro-F1 from {args.sets[0]}, with its interval over people")
    if args.by:
        print("by group: the accuracy, and its difference from that of set 1, the first one named")
    for name in names:
        print_comparison(name, args.sets, [found[name] for found in sets], unit)
        for field in args.by:
            print_groups(field, [found[name] for found in sets], NUM_CLASSES[name])


if __name__ == "__main__":
    cli.run(main)
