"""Say on one page what is in a data directory, and what is wrong with it: `python -m ETC.check`.

It writes nothing.
"""

import contextlib
import hashlib
import json
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from config import config
from utils.cli import (
    ArgumentParser,
    InputError,
    add_data_arguments,
    answer_early,
    natural_int,
    printable,
    run,
)


def get_args_parser():
    parser = ArgumentParser(
        "python -m ETC.check",
        description="Say on one page what is in a data directory: people, classes, photos, crops, "
        "and labels that can't be true. Exit status 0 if train.py and test.py can start with it, "
        "else 2 and a line that says why; odd labels are only told. Of train/ and eval/, one may "
        "be missing, unless --split names it.",
    )
    # fmt: off
    add = parser.add_argument
    add_data_arguments(add)
    add("--split", choices=("train", "eval", "both"), default="both",
        help="which photos (default: %(default)s)")
    add("--quick", action="store_true",
        help="read only the photos' headers: neither damage further inside nor identical photos "
        "are found (default: decode and compare all)")
    add("--num-workers", type=natural_int, default=config.NUM_WORKERS,
        help="photos read at the same time (default: one a core, up to 4: %(default)s)")
    # fmt: on
    return parser


if __name__ == "__main__":
    answer_early(get_args_parser())  # pandas alone takes half a second

import numpy as np
from tqdm import tqdm

from data.images import load_image, open_image, upright_size
from data.labels import (
    GENDER_LABELS,
    age_labels,
    assign_folds,
    head_labels,
    is_photo,
    list_train_images,
    merge_labels,
    read_info,
)
from data.manifest import CROP_FOLDERS, crop_folder, fingerprint, read_manifest

SHOWN = 20  # of what is found, for the page to stay one
# The folders' names in the competition's data, 000523_female_Asian_51, repeat the labels.
FOLDER_NAME = r"^(?P<id>[^_]+)_(?P<gender>female|male)_.*_0*(?P<age>\d+)$"
AGE_GROUPS = "under 30", "30 to 59", "60 and over"
MASKS = "not worn", "worn", "incorrect"  # by label of the mask head
SCRIPTS = {"train": "train.py", "eval": "test.py"}
TABLES = {"train": "train/train.csv", "eval": "eval/info.csv"}
WITHOUT = {
    "train": "test.py can use runs that were trained elsewhere",
    "eval": "train.py can start; test.py has nothing to submit for, but takes photos: --images",
}
OTHER_LAYOUT = {
    "train": "labels are read from train/train.csv, not from folders: write it with the columns "
    "id,gender,age,path, one row a person; path is the person's folder in train/images, with "
    "photos named normal, incorrect_mask, mask1, mask2 ..",
    "eval": "write eval/info.csv with the columns ImageID,ans, one row an image of eval/images, "
    "ans 0; or give them to test.py --images",
}


def read_part(data_dir, split):
    """What train.py or test.py reads before it starts: a table with the column file, relative to
    the images folder, one row a photo; for train, see list_train_images.

    Raises InputError as they do, and where the layout is another one, with what to do.
    """
    if not os.path.exists(data_dir / TABLES[split]):
        explain_layout(data_dir, split)
    if split == "eval":
        return read_info(data_dir).rename(columns={"ImageID": "file"})
    images = list_train_images(data_dir)
    assign_folds(images, config.FOLD_SEED)  # refuses too few people
    return images


def explain_layout(data_dir, split):
    """Raise InputError if the table of a split is in a folder nearby, or photos without it are."""
    if not os.path.isdir(data_dir):
        return
    here = data_dir.absolute()
    for folder in (here.parent, *sorted(here.iterdir())):
        if os.path.isfile(folder / TABLES[split]):
            raise InputError(f"{data_dir}: not the data directory; try --data-dir {folder}")
    others = {*CROP_FOLDERS.values(), *(name for name in TABLES if name != split)}
    photos = [
        path
        for path in islice(data_dir.rglob("*"), 100_000)  # never of a whole disk
        if is_photo(path) and others.isdisjoint(path.relative_to(data_dir).parts)
    ]
    if photos:
        folder, count = Counter(path.parent for path in photos).most_common(1)[0]
        raise InputError(
            f"{data_dir / TABLES[split]}: no such file, but photos, {count} of them in {folder}; "
            f"{OTHER_LAYOUT[split]}"
        )


def inspect(path, quick):
    """What a photo is: ("JPEG RGB", (width, height), SHA-256 of the file).

    quick: read the header only; the hash is None. Raises InputError when it can't be read.
    """
    with open_image(path) as image:
        kind = f"{image.format} {image.mode}"
    if quick:
        return kind, upright_size(path), None
    height, width, _ = load_image(path).shape
    return kind, (width, height), hashlib.sha256(path.read_bytes()).hexdigest()


def inspect_all(paths, quick, workers):
    """inspect of each path: ({path: its result}, {path that can't be read: why})."""

    def try_to(path):
        try:
            return inspect(path, quick)
        except InputError as error:
            return str(error).removeprefix(f"{path}: ")

    with ThreadPoolExecutor(max(1, workers)) as pool:  # Pillow decodes without Python's lock
        results = pool.map(try_to, paths)
        found = dict(zip(paths, tqdm(results, "check", len(paths), unit="photos", disable=None)))
    bad = {path: why for path, why in found.items() if isinstance(why, str)}
    return {path: result for path, result in found.items() if path not in bad}, bad


def suspicious_labels(people):
    """A line for each label that something else in the table contradicts: a folder's name, or the
    same id, up to its -, given again. people: rows of list_train_images, one a person.
    """
    found = []
    told = people["path"].map(os.path.normpath).map(os.path.basename).str.extract(FOLDER_NAME)
    for column in told:
        here = people[column].astype(str)
        for row in np.flatnonzero(told[column].notna() & (told[column] != here)):
            path = people["path"].iloc[row]
            found.append(f"{path}: {column} is {here.iloc[row]} in train.csv")
    for group, rows in people.groupby("group"):
        for column in ("gender", "age"):
            if rows[column].nunique() > 1:
                values = [f"{row.path}: {getattr(row, column)}" for row in rows.itertuples()]
                found.append(f"id {group}: several values of {column}, {', '.join(values)}")
    return found


def identical_photos(photos, owners, data_dir):
    """A line for each set of files with the same bytes, those in both train and eval first.

    photos: {path: result of inspect}; owners: {path: the person's folder}, of train photos.
    """
    same = {}
    for path, (_, _, digest) in photos.items():
        same.setdefault(digest, []).append(path)
    found = []
    for paths in same.values():
        if len(paths) > 1:
            people = {owners.get(path) for path in paths}  # None for eval's
            if None not in people:
                rank, what = (1, "two people") if len(people) > 1 else (3, "one person")
            else:
                rank, what = (0, "train and eval") if len(people) > 1 else (2, "eval")
            names = " = ".join(path.relative_to(data_dir).as_posix() for path in paths)
            found.append((rank, f"{what}: {names}"))
    return [line for _, line in sorted(found)]


def unlisted_files(folder, paths):
    """The files below folder, hidden ones aside, that aren't among paths: a photo that no table
    names, one of a format that isn't read.
    """
    known = set(paths)
    return sorted(
        path
        for path in folder.rglob("*")
        if path not in known
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def print_facts(name, lines):
    for number, line in enumerate(lines):
        print(f"  {'' if number else name:<18}{line}")


def print_found(what, lines):
    """Print how many lines there are, and the first of them."""
    print(f"{what}: {len(lines) or 'none'}")
    for line in lines[:SHOWN]:
        print(f"  {printable(line)}")
    if len(lines) > SHOWN:
        print(f"  and {len(lines) - SHOWN} more")


def counted(values):
    """["567 worn", "81 not worn"]: values with their counts, the most frequent first."""
    return [f"{count} {value}" for value, count in Counter(values).most_common()]


def print_people(images):
    """Print what rows of list_train_images hold: people, shots, ages and the official classes."""
    people = images.drop_duplicates("path")
    print(f"train: {len(people)} people, {len(images)} photos")
    per_person = images.groupby("path").size()
    lines = []
    for count, number in per_person.value_counts().items():
        first = f", first {per_person.index[per_person == count][0]}" if lines else ""
        lines.append(f"{number} people with {count}{first}")
    print_facts("photos a person", lines)
    print_facts("photos by shot", [", ".join(counted(images["shot"]))])
    masks = [MASKS[label] for label in head_labels(images, "mask")]
    print_facts("photos by mask", [", ".join(counted(masks))])
    ages = people["age"]
    print_facts("ages", [f"{ages.min()} to {ages.max()}, median {ages.median():.0f}"])
    labels = [head_labels(images, target) for target in config.HEADS]
    counts = np.bincount(merge_labels(*labels), minlength=18)
    columns = (1, 2, 0)  # the competition's order: worn, incorrect, not worn
    header = "".join(f"{MASKS[label]:>11}{'':5}" for label in columns).rstrip()
    lines = [f"{'':<20}{'people':>6}{header}"]
    for gender in ("male", "female"):
        for group, name in enumerate(AGE_GROUPS):
            number = ((people["gender"] == gender) & (age_labels(ages) == group)).sum()
            classes = [merge_labels(label, GENDER_LABELS[gender], group) for label in columns]
            cells = "".join(f"{counts[k]:>11} {f'({k})':<4}" for k in classes).rstrip()
            lines.append(f"{gender:<8}{name:<12}{number:>6}{cells}")
    print_facts("photos (class)", lines)


def print_crops(folder, sources):
    """Print how many photos are cropped. folder: where their crops would be; sources: {file: its
    photo}. Raises InputError when the manifest is damaged.
    """
    settings = None
    with contextlib.suppress(OSError, ValueError):  # read_manifest says what is wrong with it
        settings = json.loads((folder.parent / "crops.json").read_text(encoding="utf-8"))
    rows = read_manifest(folder, settings)
    if not rows:
        print_facts("crops", ["none yet"])
        return
    methods = []
    for file, path in sources.items():
        row = rows.get(file)
        same = row and (row["source_size"], row["source_mtime_ns"]) == fingerprint(path)
        here = same and (row["method"] == "bad" or os.path.exists(folder / file))
        methods.append(row["method"] if here else "stale")
    names = {
        "center": "without a face (cropped centrally)",
        "bad": "unreadable",
        "stale": "not cropped, or changed since",
    }
    lines = counted(names.get(method, f"by {method}") for method in methods)
    settings = settings if isinstance(settings, dict) else {}  # of a file edited by hand
    others = [
        f"--{name.replace('_', '-')} {settings.get(name)}"
        for name in config.CROP_SETTINGS
        if settings.get(name) != getattr(config, name.upper())
    ]
    if others:
        lines.append(f"made with {' '.join(others)}, which train.py has to be given, too")
    print_facts("crops", lines)


def print_part(split, part, photos, sources, crops):
    """Print what is in train/ or eval/. part: from read_part; photos: {path: inspect's result};
    sources: {file: path}; crops: the folder where their crops would be.
    """
    if split == "train":
        print_people(part)
    else:
        print(f"eval: {len(part)} images in info.csv")
    own = [photos[path] for path in sources.values() if path in photos]
    sizes = counted(f"of {width} x {height}, {kind}" for kind, (width, height), _ in own)
    more = [f"and {len(sizes) - SHOWN} other sizes"] if len(sizes) > SHOWN else []
    print_facts("photos by size", sizes[:SHOWN] + more)
    print_crops(crops, sources)


def print_doubts(data_dir, parts, sources, photos, bad, quick):
    """Print what may be wrong, of all parts: photos, labels, files that no table names."""

    def within(path):
        return path.relative_to(data_dir).as_posix()

    listed = [path for of_part in sources.values() for path in of_part.values()]
    unlisted = [
        path for split in parts for path in unlisted_files(data_dir / split / "images", listed)
    ]
    print_found("unreadable photos", [f"{within(path)}: {why}" for path, why in bad.items()])
    tables = " and ".join(TABLES[split] for split in parts)
    print_found(f"files not in {tables}", [within(path) for path in unlisted])
    owners = {}
    if "train" in parts:
        train = parts["train"]
        print_found("suspicious labels", suspicious_labels(train.drop_duplicates("path")))
        owners = dict(zip(map(sources["train"].get, train["file"]), train["path"]))
    if quick:
        print("identical photos: not looked for (--quick)")
    else:
        print_found("identical photos", identical_photos(photos, owners, data_dir))


def main():
    args = get_args_parser().parse_args()
    data_dir = Path(args.data_dir)
    there = asked = ["train", "eval"] if args.split == "both" else [args.split]
    if args.split == "both":
        there = [split for split in asked if os.path.isdir(data_dir / split)] or ["train"]
    parts, problems = {}, []
    for split in there:
        try:
            parts[split] = read_part(data_dir, split)
        except InputError as error:
            problems.append(str(error))
    sources = {
        split: {file: data_dir / split / "images" / file for file in part["file"]}
        for split, part in parts.items()
    }
    paths = [path for of_part in sources.values() for path in of_part.values()]
    photos, bad = inspect_all(paths, args.quick, args.num_workers)
    for split, part in parts.items():
        crops = crop_folder(data_dir, args.crop_dir, split)
        try:
            print_part(split, part, photos, sources[split], crops)
        except InputError as error:
            problems.append(str(error))
    if parts:
        for split in asked:
            if split not in there:
                print(f"{split}: no folder {data_dir / split} ({WITHOUT[split]})")
        print_doubts(data_dir, parts, sources, photos, bad, args.quick)
    for split, of_part in sources.items():
        if args.skip_bad and not photos.keys() & {*of_part.values()}:
            problems.append(f"{data_dir / split}: not one readable photo")
    if bad and not args.skip_bad:
        first = next(iter(bad))
        hint = f"{len(bad)} unreadable photos in all; --skip-bad does without them"
        problems.append(f"{first}: {bad[first]} ({hint})")
    if problems:
        raise InputError("; ".join(problems))
    print(f"ready for {' and '.join(SCRIPTS[split] for split in parts)}")


if __name__ == "__main__":
    run(main)
