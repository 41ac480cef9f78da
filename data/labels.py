"""From the competition's two CSV files to labels, official classes and folds."""

import os
import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from config.config import HEADS, NUM_FOLDS, OFFICIAL_AGE_BORDER
from utils.cli import InputError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png"}
SHOT = r"normal|incorrect_mask|mask[0-9]+"
SHOT_LABELS = {"normal": 0, "mask": 1, "incorrect_mask": 2}  # mask1 .. mask5 count as mask
GENDER_LABELS = {"female": 0, "male": 1}


NO_DATA = (
    "put the competition's data there, name its folder with --data-dir or MAG_DATA_DIR, or draw "
    "some: python -m ETC.sample --output input/data"
)


def read_table(path, columns, missing_hint):
    """Read a CSV as strings, so that ids keep their zeros and unknown columns stay as they are.

    Raises InputError when it is missing (the message ends with missing_hint), unreadable, empty
    or lacks one of columns.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # a row with too many fields
            table = pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; {missing_hint}") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: not UTF-8 ({error}); save it as such, in Excel as the type CSV UTF-8"
        ) from error
    except (OSError, ValueError, pd.errors.ParserWarning) as error:  # pandas' are ValueErrors
        raise InputError(f"{path}: not a readable CSV file ({error})") from error
    missing = [column for column in columns if column not in table.columns]
    if missing:
        there = ", ".join(table.columns)
        hint = ""
        if len(table.columns) == 1 and re.search(r"[;\t]", there):
            hint = "; separate them by commas"
        elif set(missing) & {column.strip() for column in table.columns}:
            hint = "; leave no spaces around a name"
        raise InputError(f"{path}: no column {', '.join(missing)} among {there}{hint}")
    if table.empty:
        raise InputError(f"{path}: no rows")
    return table


def raise_problems(path, problems):
    """Raise one InputError that names the file and its first 20 problems, if there are any."""
    if problems:
        more = f"; and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise InputError(f"{path}: {'; '.join(problems[:20])}{more}")


def is_inside(path, folder):
    """Whether path, with links followed, is or would be something below folder."""
    try:
        return path != folder and path.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError):  # too long, a loop of links, a NUL: no path at all
        return False


def duplicated(paths):
    """A mask of the paths that stand further above, in other words (a/./b, a//b) too."""
    return paths.map(os.path.normpath).duplicated()


def stays_inside(name, folder):
    """Whether folder / name is below folder, and other_folder / name below any other folder."""
    parts = Path(name).parts
    return not Path(name).is_absolute() and ".." not in parts and is_inside(folder / name, folder)


def problems_by_line(*checks):
    """["line 3: what", ...] from pairs of a boolean mask over a table's rows and what it means."""
    found = [(row, what) for mask, what in checks for row in np.flatnonzero(mask)]
    return [f"line {row + 2}: {what}" for row, what in sorted(found)]  # the header is line 1


def read_people(data_dir):
    """Read train/train.csv: one row a person, columns id, path, gender, age (int, years), group.

    group is the id without its suffix: 001498-1 and 001498-2 are one id given twice, perhaps one
    person, so they must never stand on both sides of a fold.
    Raises InputError naming the file and every line that is wrong.
    """
    csv = Path(data_dir) / "train" / "train.csv"
    images = Path(data_dir) / "train" / "images"
    table = read_table(csv, ["id", "gender", "age", "path"], NO_DATA)
    ages = pd.to_numeric(table["age"], errors="coerce")
    problems = problems_by_line(
        (~table["gender"].isin(list(GENDER_LABELS)), "gender is not female or male"),
        (~(ages.between(0, 120) & (ages % 1 == 0)), "age is not a whole number from 0 to 120"),
        (duplicated(table["path"]), "path stands there twice"),
        ([not stays_inside(path, images) for path in table["path"]], "path leaves images/"),
        (table["id"] == "", "id is empty"),
    )
    raise_problems(csv, problems)
    people = table[["id", "path", "gender"]].copy()
    people["age"] = ages.astype(int)
    people["group"] = table["id"].str.split("-").str[0]
    return people


def list_train_images(data_dir):
    """Return a DataFrame of all train photos: file (relative to train/images, with "/"), shot
    and the columns of read_people.

    Hidden files (._mask1.jpg, .DS_Store) and files that are no photos are skipped.
    Raises InputError for a person without photos and for a photo that is none of the shots.
    """
    people = read_people(data_dir)
    images = Path(data_dir) / "train" / "images"
    rows, problems = [], []
    for person in people.to_dict("records"):
        folder = images / person["path"]
        try:
            photos = sorted(folder.iterdir()) if os.path.isdir(folder) else []
        except OSError as error:
            problems.append(f"{person['path']}: can't be read ({error.strerror})")
            continue
        photos = [path for path in photos if is_photo(path)]
        if not photos:
            problems.append(f"{person['path']}: no photos of this person of train.csv")
        for path in photos:
            if not re.fullmatch(SHOT, path.stem):
                problems.append(
                    f"{person['path']}/{path.name}: not a shot (normal, incorrect_mask, mask1 ..)"
                )
            elif path.is_symlink() and not is_inside(path, images):
                problems.append(f"{person['path']}/{path.name}: a link that leaves images/")
            rows.append({"file": f"{person['path']}/{path.name}", "shot": path.stem, **person})
    raise_problems(images, problems)
    return pd.DataFrame(rows)


def fix_labels(images, path):
    """Correct labels of list_train_images by a CSV with id, field, old and new: the field shot
    corrects one photo of the id, gender and age correct all.

    Only applied where the old value is what stands there; each application is printed, and how many
    rows of the file there were. Returns the corrected table. Raises InputError for a row that means
    nothing.
    """
    fixes = read_table(path, ["id", "field", "old", "new"], "see data/label_fixes.csv")
    valid = {
        "gender": "|".join(GENDER_LABELS),
        "age": "[0-9]|[1-9][0-9]|1[01][0-9]|120",
        "shot": SHOT,
    }
    patterns = fixes["field"].map(valid).fillna("")

    def unknown(column):
        return [bool(p) and not re.fullmatch(p, text) for p, text in zip(patterns, fixes[column])]

    problems = problems_by_line(
        (patterns == "", f"field is none of {', '.join(valid)}"),
        (unknown("old"), "old is no such value"),
        (unknown("new"), "new is no such value"),
        (fixes["old"] == fixes["new"], "old and new are the same"),
        (fixes.duplicated(["id", "field", "old"]), "stands there twice"),
    )
    raise_problems(path, problems)
    fixed, applied = images.copy(), 0
    for fix in fixes.to_dict("records"):
        field = fix["field"]
        # The old values, so that two fixes may swap two shots.
        hit = (images["id"] == fix["id"]) & (images[field].astype(str) == fix["old"])
        if hit.any():
            applied += 1
            fixed.loc[hit, field] = int(fix["new"]) if field == "age" else fix["new"]
            print(f"{path}: {fix['id']}, {field} {fix['old']} -> {fix['new']}: {hit.sum()} photos")
    print(f"{path}: {applied} of {len(fixes)} rows applied")
    return fixed


def is_photo(path):
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def read_info(data_dir):
    """Read eval/info.csv as strings: one row an image, columns ImageID, ans and any others.

    Raises InputError when it is missing or empty, and naming every line whose ImageID stands
    there twice, leaves eval/images or has no file there.
    """
    csv = Path(data_dir) / "eval" / "info.csv"
    images = Path(data_dir) / "eval" / "images"
    info = read_table(csv, ["ImageID", "ans"], NO_DATA)
    inside = np.array([stays_inside(image, images) for image in info["ImageID"]])
    there = np.array([os.path.isfile(images / image) for image in info["ImageID"]])
    problems = problems_by_line(
        (duplicated(info["ImageID"]), "ImageID stands there twice"),
        (~inside, "ImageID leaves images/"),
        (inside & ~there, "no such image in images/"),
    )
    raise_problems(csv, problems)
    return info


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
    if len(answers) > 1 and (answers == 0).all():
        raise InputError(f"{path}: every ans is 0, as before a submission; give the true classes")
    return answers.to_numpy(dtype=np.int64)


def age_labels(ages, border=OFFICIAL_AGE_BORDER):
    """Ages in years, int (N,) -> int64 (N,): 0 under 30, 1 from 30 on, 2 from border on."""
    return np.digitize(ages, [30, border])


def head_labels(images, target, age_border=OFFICIAL_AGE_BORDER):
    """Labels of one head for the rows of list_train_images: int64 (N,), see HEADS in config."""
    if target == "mask":
        labels = images["shot"].str.replace(r"\d+$", "", regex=True).map(SHOT_LABELS)
    elif target == "gender":
        labels = images["gender"].map(GENDER_LABELS)
    else:
        return age_labels(images["age"], age_border)
    return labels.to_numpy(dtype=np.int64)


def merge_labels(mask, gender, age):
    """Labels of the three heads -> the official class, int64 in [0, 18).

    The heads count otherwise than the competition, whose class is mask*6 + gender*3 + age with
    mask worn 0, incorrect 1, not worn 2 and gender male 0, female 1. Takes numbers or arrays.
    """
    official_mask = np.array([2, 0, 1])[mask]
    return official_mask * 6 + (1 - np.asarray(gender)) * 3 + np.asarray(age)


def split_classes(classes):
    """The inverse of merge_labels: official classes in [0, 18) -> (mask, gender, age) labels."""
    official_mask, rest = np.divmod(classes, 6)
    official_gender, age = np.divmod(rest, 3)
    return np.array([1, 2, 0])[official_mask], 1 - official_gender, age


def class_names():
    """The names of the 18 official classes, in their order: "mask, male, under30" is the first."""
    heads = [head["classes"] for head in HEADS.values()]
    return [
        ", ".join(classes[label] for classes, label in zip(heads, labels))
        for labels in zip(*split_classes(np.arange(18)))
    ]


def assign_folds(people, seed):
    """Deal people into NUM_FOLDS folds, stratified by gender x official age group.

    people: DataFrame with gender, age and group; rows of one group share a fold.
    Returns the fold of each row, int64 (N,). Raises InputError for fewer groups than folds.
    """
    groups = people.drop_duplicates("group")
    if len(groups) < NUM_FOLDS:
        raise InputError(
            f"{len(groups)} people in train.csv (ids, up to their -) are too few for "
            f"{NUM_FOLDS} folds"
        )
    stratum = head_labels(groups, "gender") * 3 + age_labels(groups["age"])
    # Shuffled within each stratum, then dealt out like cards, straight on from one stratum to the
    # next: every stratum and the whole are spread evenly, however rare a stratum is.
    shuffled = np.random.default_rng(seed).permutation(len(groups))
    order = shuffled[np.argsort(stratum[shuffled], kind="stable")]
    fold_of = dict(zip(groups["group"].iloc[order], np.arange(len(groups)) % NUM_FOLDS))
    return people["group"].map(fold_of).to_numpy(dtype=np.int64)
