"""Say on one page what is in a data directory and what is wrong with it: `python -m ETC.check`.

It writes nothing.
"""

import sys
from pathlib import Path

if __spec__ is None:  # started as a file, not by python -m
    sys.path[0] = str(Path(__file__).parents[1])
    import config  # before PyTorch

import hashlib
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
from tqdm import tqdm

from config import config
from data.crop import SECOND_LOOK, crop_folder, fingerprint, finished_crops, read_record
from data.images import pick_photos, read_image
from data.labels import (
    GENDER_LABELS,
    age_labels,
    assign_folds,
    head_labels,
    list_train_images,
    merge_labels,
    read_info,
)
from ETC.names import printable
from utils import cli
from utils.cli import InputError

SHOWN = 20  # lines of each kind, to keep it one page
# The competition's folder names, such as 000523_female_Asian_51, repeat the labels.
FOLDER_NAME = r"^(?P<id>[^_]+)_(?P<gender>female|male)_.*_0*(?P<age>\d+)$"
AGE_GROUPS = "under 30", "30 to 59", "60 and over"
MASKS = "not worn", "worn", "incorrect"  # by label of the mask head
METHODS = {
    "mtcnn": "by mtcnn",
    SECOND_LOOK: "by mtcnn's second look",
    "center": "without a face (cropped centrally)",
    "bad": "unreadable",
}
SCRIPTS = {"train": "train.py", "eval": "test.py"}
TABLES = {"train": "train/train.csv", "eval": "eval/info.csv"}
HOW_TO_WRITE = {
    "train": "columns id,gender,age,path, one row per person; path is the person's folder in "
    "train/images, with photos named normal, incorrect_mask, mask1 ..",
    "eval": "columns ImageID,ans, one row per image of eval/images, ans 0; any photos can be "
    "classified with python -m ETC.predict",
}


def read_part(data_dir, split):
    """What train.py or test.py reads before it starts: a table with a row per photo and the column
    file, relative to the images folder; for train, see list_train_images.

    Raises InputError as they do and, if there are photos without a table, with how to write it.
    """
    table, folder = data_dir / TABLES[split], data_dir / split
    if not table.exists():
        # With train/ or eval/, it is the right data directory.
        whole = not any((data_dir / name).exists() for name in TABLES)
        files = (data_dir if whole else folder).rglob("*")
        photo = next((path for path in files if pick_photos([path])[0]), None)
        if photo:
            raise InputError(
                f"{table}: no such file, but photos in {photo.parent}; name the folder that "
                "holds train/ and eval/ with --data-dir, or write the table: "
                f"{HOW_TO_WRITE[split]}"
            )
    if split == "eval":
        return pd.DataFrame({"file": read_info(data_dir)[1]})
    images = list_train_images(data_dir)
    assign_folds(images, config.FOLD_SEED)  # refuses too few people
    return images


def inspect(path):
    """What a photo is, such as "384 x 512, JPEG RGB"; the SHA-256 of the file; and None. If it
    can't be read: None, None and why.
    """
    image, _, kind, damage = read_image(path)
    if image is None:
        return None, None, damage
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    kind += f", {damage}" if damage else ""
    return f"{image.shape[1]} x {image.shape[0]}, {kind}", digest, None


def inspect_all(data_dir, parts):
    """A DataFrame with a row per photo of parts, {split: table of read_part}: split; file; name,
    relative to data_dir; and kind, digest and why of inspect.
    """
    photos = pd.concat(part[["file"]].assign(split=split) for split, part in parts.items())
    photos["name"] = photos["split"] + "/images/" + photos["file"]
    paths = [data_dir / name for name in photos["name"]]
    with ThreadPoolExecutor(config.NUM_WORKERS) as pool:  # Pillow decodes without Python's lock
        results = pool.map(inspect, paths)
        found = list(tqdm(results, "check", len(paths), unit="photos", disable=None))
    photos["kind"], photos["digest"], photos["why"] = zip(*found)
    return photos


def suspicious_labels(images):
    """A line for each label that contradicts the folder's name or another row of the same person,
    of person_ids. images: from list_train_images.
    """
    found, people = [], images.drop_duplicates("path")
    named = people["path"].map(os.path.normpath).map(os.path.basename).str.extract(FOLDER_NAME)
    for column in named:
        listed = people[column].astype(str)
        for row in np.flatnonzero(named[column].notna() & (named[column] != listed)):
            found.append(f"{people['path'].iloc[row]}: {column} is {listed.iloc[row]} in train.csv")
    for group, rows in people.groupby("group"):
        for column in ("gender", "age"):
            if rows[column].nunique() > 1:
                values = [f"{row.path}: {getattr(row, column)}" for row in rows.itertuples()]
                found.append(f"id {group}: several values of {column}, {', '.join(values)}")
    return found


def identical_photos(photos):
    """A line for each set of files with the same bytes, those in both train and eval first.

    photos: from inspect_all.
    """
    same = photos[photos["digest"].notna() & photos["digest"].duplicated(keep=False)]
    groups = [rows for _, rows in same.groupby("digest", sort=False)]
    groups.sort(key=lambda rows: -rows["split"].nunique())
    return [" = ".join(rows["name"]) for rows in groups]


def print_facts(name, lines):
    for number, line in enumerate(lines):
        print(f"  {'' if number else name:<18}{line}")


def print_found(what, lines):
    """Print the number of lines and the first of them."""
    print(f"{what}: {len(lines) or 'none'}")
    for line in lines[:SHOWN]:
        print(f"  {printable(line)}")
    if len(lines) > SHOWN:
        print(f"  and {len(lines) - SHOWN} more")


def counted(values):
    """["567 worn", "81 not worn"]: values with their counts, the most frequent first."""
    return [f"{count} {value}" for value, count in Counter(values).most_common()]


def print_people(images):
    """Print the people, shots, ages and official classes in rows of list_train_images."""
    people = images.drop_duplicates("path")
    print(f"train: {len(people)} people, {len(images)} photos")
    sizes = images.groupby("path").size()
    print_facts("people", counted(f"with {n} photos each" for n in sizes))
    print_facts("photos by shot", [", ".join(counted(images["shot"]))])
    masks = [MASKS[label] for label in head_labels(images, "mask")]
    print_facts("photos by mask", [", ".join(counted(masks))])
    ages = people["age"]
    print_facts("ages", [f"{ages.min()} to {ages.max()}, median {ages.median():.0f}"])
    labels = [head_labels(images, target) for target in config.CLASSES]
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


def print_photos(photos, source, folder):
    """Print the sizes of photos, rows of inspect_all, and how many are cropped. source: their
    folder; folder: of their crops.

    Raises InputError when the record of the crops is damaged.
    """
    sizes = counted(f"of {kind}" for kind in photos["kind"].dropna())
    more = [f"and {len(sizes) - SHOWN} other sizes"] if len(sizes) > SHOWN else []
    print_facts("photos by size", sizes[:SHOWN] + more)
    settings, _ = read_record(folder)
    fingerprints = {file: fingerprint(source / file) for file in photos["file"]}
    done = finished_crops(source, folder, settings, fingerprints)
    methods = [done[file]["method"] if file in done else None for file in fingerprints]
    lines = counted(METHODS.get(method, "not cropped, or changed since") for method in methods)
    if settings and settings != {**settings, **config.CROP}:
        lines.append(f"made with other settings than the defaults: {folder.parent / 'crops.json'}")
    print_facts("crops", lines)


def print_doubts(data_dir, parts, photos):
    """Print what may be wrong with the photos and labels of all parts."""
    bad = photos[photos["why"].notna()]
    print_found("unreadable photos", (bad["name"] + ": " + bad["why"]).tolist())
    listed = {*photos["name"]}
    paths = (path for split in parts for path in (data_dir / split / "images").rglob("*"))
    names = sorted(path.relative_to(data_dir).as_posix() for path in paths if path.is_file())
    unlisted = [name for name in names if name not in listed and "/." not in name]
    print_found(f"files not in {' and '.join(TABLES[split] for split in parts)}", unlisted)
    if "train" in parts:
        print_found("suspicious labels", suspicious_labels(parts["train"]))
    print_found("identical photos", identical_photos(photos))


def get_args_parser():
    parser = cli.ArgumentParser(
        "python -m ETC.check",
        description="Say on one page what is in a data directory and what is wrong with it. Exit "
        "status 0 if train.py and test.py can start with it, else 2 and a line that says why. One "
        "of train/ and eval/ may be missing, unless --split names it.",
    )
    cli.add_data_arguments(parser.add_argument)
    parser.add_argument("--split", choices=("train", "eval", "both"), default="both",
                        help="which photos (default: %(default)s)")  # fmt: skip
    return parser


def main():
    args = get_args_parser().parse_args()
    data_dir = Path(args.data_dir)
    asked = [*TABLES] if args.split == "both" else [args.split]
    present = [split for split in asked if os.path.isdir(data_dir / split)] or asked[:1]
    parts, problems = {}, []
    for split in present:
        try:
            parts[split] = read_part(data_dir, split)
        except InputError as error:
            problems.append(str(error))
    if not parts:
        raise InputError("; ".join(problems))
    photos = inspect_all(data_dir, parts)
    for split, part in parts.items():
        own = photos[photos["split"] == split]
        if split == "train":
            print_people(part)
        else:
            print(f"eval: {len(part)} images in info.csv")
        source, folder = data_dir / split / "images", crop_folder(data_dir, args.crop_dir, split)
        print_photos(own, source, folder)
        if args.skip_bad and own["why"].notna().all():
            problems.append(f"{data_dir / split}: not one readable photo")
    for split in asked:
        if split not in present:
            print(f"{split}: no folder {data_dir / split}")
    print_doubts(data_dir, parts, photos)
    bad = photos[photos["why"].notna()]
    if len(bad) and not args.skip_bad:
        first, why = bad[["name", "why"]].iloc[0]
        hint = f"{len(bad)} unreadable photos in all; --skip-bad leaves them out"
        problems.append(f"{data_dir / first}: {why} ({hint})")
    if problems:
        raise InputError("; ".join(problems))
    print(f"ready for {' and '.join(SCRIPTS[split] for split in parts)}")


if __name__ == "__main__":
    cli.run(main)
