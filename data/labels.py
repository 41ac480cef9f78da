"""From the competition's two CSV files to labels, official classes and folds."""

import csv
import os
import re
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd

from config.config import NUM_FOLDS, OFFICIAL_AGE_BORDER
from data.images import pick_photos, print_left_out
from utils.cli import InputError

SHOT = r"normal|incorrect_mask|mask[0-9]+"
SHOT_LABELS = {"normal": 0, "mask": 1, "incorrect_mask": 2}  # mask1 .. mask5 count as mask
GENDER_LABELS = {"female": 0, "male": 1}
NO_DATA = (
    "put the competition's data there, name its folder with --data-dir or MAG_DATA_DIR, or "
    "make sample data: python -m ETC.sample --output input/data"
)


def read_table(path, columns, missing_hint, optional=()):
    """Read a CSV file as strings; the index is the line number, and columns may be in any case.

    Raises InputError when it is missing (the message ends in missing_hint), unreadable, empty or
    lacks one of columns, or has one of columns or optional twice.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            rows, line = {}, 1
            for row in reader:
                if any(map(str.strip, row)) and row[0] != "sep=":  # else Excel's, or a blank line
                    rows[line] = row
                line = reader.line_num + 1  # a quoted line break makes a row of several lines
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; {missing_hint}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 ({error}); in Excel, save as CSV UTF-8") from error
    except (OSError, csv.Error) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: not a readable CSV file ({why}); {missing_hint}") from error
    names = {name.lower(): name for name in (*columns, *optional)}
    header = rows.pop(next(iter(rows), None), [])
    header = [names.get(name.strip().lower(), name.strip()) for name in header]
    wrong = [
        f"line {line}: {len(row)} values for {len(header)} columns, the last {row[-1]!r}"
        for line, row in rows.items()
        if len(row) != len(header)
    ]
    raise_problems(path, wrong)
    for name in (*columns, *optional):
        if header.count(name) > 1:
            raise InputError(f"{path}: column {name} is there twice; rename or delete one")
    if missing := [name for name in columns if name not in header]:
        hint = "separate columns by commas"
        raise InputError(f"{path}: no column {', '.join(missing)} in {', '.join(header)}; {hint}")
    if not rows:
        raise InputError(f"{path}: no rows")
    table = pd.DataFrame([*rows.values()], index=[*rows], columns=header, dtype=str)
    return table.drop(columns="", errors="ignore")  # behind commas that end all lines


def raise_problems(start, problems):
    """If there are any problems, raise an InputError that names the first 20 of them, after start,
    such as the file they are in.
    """
    if problems:
        more = f"; and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise InputError(f"{start}: {'; '.join(problems[:20])}{more}")


def problems_by_line(table, *checks):
    """["line 3: age 'x' is no number", ...] for a read_table, from (bool mask, column, problem)."""
    found = [
        (line, f"line {line}: {column} {value!r} {problem}")
        for mask, column, problem in checks
        for line, value in table[column][np.asarray(mask)].items()
    ]
    return [problem for _, problem in sorted(found)]


def leaves_folder(name):
    """Whether a path is not below the folder it is relative to. Links in the folder are fine."""
    path = Path(name.strip())
    return not path.parts or bool(path.anchor) or ".." in path.parts or "\0" in name


def normalized(name):
    """A path in one form: macOS's archives split letters such as é, and Hangul, into several."""
    return unicodedata.normalize("NFC", os.path.normpath(name.strip()))


def find_names(folder, names):
    """How the files or folders of these names, relative to folder, are written there: a list."""
    found, listed = [], {}
    for name in names:
        place = Path()
        for part in Path(name.strip()).parts:
            if not os.path.lexists(folder / place / part):
                if place not in listed:
                    inner = os.listdir(folder / place) if os.path.isdir(folder / place) else []
                    listed[place] = {normalized(own): own for own in inner}
                part = listed[place].get(normalized(part), part)
            place /= part
        found.append(place.as_posix())
    return found


def full_gender(genders):
    """Female, F and so on as female, male likewise; anything else in lower case."""
    return genders.str.strip().str.lower().replace({"f": "female", "m": "male"})


def person_ids(ids):
    """Ids that are the same for all photos of a person, which belong in one fold: ids as they are,
    but 001498-1 and 001498-2, in the competition's own form, without the suffix.
    """
    return ids.str.replace(r"^(\d{6})-\d$", r"\1", regex=True)


def read_people(data_dir):
    """Read train/train.csv: one row per person, columns id, path, gender, age (int, years), group,
    from person_ids, and race, as it is written, if train.csv has it.

    Raises InputError naming every line that is wrong.
    """
    path = Path(data_dir) / "train" / "train.csv"
    table = read_table(path, ["id", "gender", "age", "path"], NO_DATA, optional=["race"])
    ages = pd.to_numeric(table["age"], errors="coerce")
    genders = full_gender(table["gender"])
    ids, outside = table["id"].str.strip(), table["path"].map(leaves_folder)
    problems = problems_by_line(
        table,
        (~genders.isin(list(GENDER_LABELS)), "gender", "is not female or male"),
        (~(ages.between(0, 120) & (ages % 1 == 0)), "age", "is not a whole number from 0 to 120"),
        (table["path"].map(normalized).duplicated(), "path", "is a duplicate"),
        (outside, "path", "is outside images/"),
        (ids == "", "id", "is empty"),
    )
    raise_problems(path, problems)
    return pd.DataFrame({
        "id": ids,
        "path": find_names(path.parent / "images", table["path"]),
        "gender": genders,
        "age": ages.astype(np.int64),
        "group": person_ids(ids),
        **({"race": table["race"].str.strip()} if "race" in table else {}),
    }).reset_index(drop=True)  # fmt: skip


def list_train_images(data_dir):
    """All train photos, a DataFrame: file (relative to train/images, with "/"), shot and the
    columns of read_people. Other files than photos are left out and, unless hidden, counted.

    Raises InputError for a person without photos and for a photo that is not a shot.
    """
    people = read_people(data_dir)
    images = Path(data_dir) / "train" / "images"
    rows, problems, left_out = [], [], []
    for person in people.to_dict("records"):
        folder = images / person["path"]
        files = sorted(folder.iterdir()) if os.path.isdir(folder) else []
        photos, others = pick_photos(files)
        left_out += others
        if not photos:
            hint = "listed in train.csv, but has no photos here"
            if os.path.isfile(folder):
                hint = "is a file; path in train.csv is the folder of a person's photos"
            elif re.search(r"(^|[/\\])images[/\\]", person["path"]):
                hint = "is not in images/; path in train.csv starts below it"
            problems.append(f"{person['path']}: {hint}")
        for photo in photos:
            name = f"{person['path']}/{photo.name}"
            if not re.fullmatch(SHOT, photo.stem):
                problems.append(f"{name}: not a shot (normal, incorrect_mask, mask1 ..)")
            rows.append({"file": name, "shot": photo.stem, **person})
    raise_problems(images, problems)
    print_left_out(left_out)
    return pd.DataFrame(rows)


def fix_labels(images, path):
    """Correct labels of list_train_images by a CSV with id, field, old and new: the field shot
    corrects one photo of the id, gender and age correct all.

    A row applies only where the old value is found; what is applied is printed, and which lines
    aren't. Returns the corrected table. Raises InputError for an unknown field or new value.
    """
    columns = ["id", "field", "old", "new"]
    fixes = read_table(path, columns, "see data/label_fixes.csv")[columns]
    fixes = fixes.apply(lambda column: column.str.strip())  # as in read_people
    values = {"gender": "female|male", "age": "[0-9]|[1-9][0-9]|1[01][0-9]|120", "shot": SHOT}
    for name in ("old", "new"):
        fixes[name] = fixes[name].mask(fixes["field"] == "gender", full_gender(fixes[name]))
    checks = [(~fixes["field"].isin(list(values)), "field", "is not gender, age or shot")]
    for field, value in values.items():
        bad = (fixes["field"] == field) & ~fixes["new"].str.fullmatch(value)
        checks.append((bad, "new", f"is no {field}"))
    raise_problems(path, problems_by_line(fixes, *checks))
    fixed, missed = images.copy(), []
    for line, fix in zip(fixes.index, fixes.to_dict("records")):
        field = fix["field"]
        # Compared with the table as it was, so that two fixes can swap two shots.
        hit = (images["id"] == fix["id"]) & (images[field].astype(str) == fix["old"])
        if hit.any():
            fixed.loc[hit, field] = int(fix["new"]) if field == "age" else fix["new"]
            print(f"{path}: {fix['id']}, {field} {fix['old']} -> {fix['new']}: {hit.sum()} photos")
        else:
            missed.append(str(line))
    print(f"{path}: {len(fixes) - len(missed)} of {len(fixes)} rows applied")
    if missed:
        lines = ", ".join(missed)
        print(f"{path}: not applied, no such id or its label isn't the old value: line {lines}")
    return fixed


def read_info(data_dir):
    """Read eval/info.csv as strings, one row per image, and how each is called in eval/images.

    Raises InputError when it is missing or empty, and naming every line whose ImageID is a
    duplicate, leaves eval/images or has no file there.
    """
    path = Path(data_dir) / "eval" / "info.csv"
    images = Path(data_dir) / "eval" / "images"
    info = read_table(path, ["ImageID"], NO_DATA, optional=["ans"])
    outside = info["ImageID"].map(leaves_folder)
    files = find_names(images, info["ImageID"].where(~outside, "."))
    exists = np.array([os.path.isfile(images / file) for file in files])
    problems = problems_by_line(
        info,
        (info["ImageID"].map(normalized).duplicated(), "ImageID", "is a duplicate"),
        (outside, "ImageID", "is outside images/"),
        (~outside & ~exists, "ImageID", "is not in images/"),
    )
    raise_problems(path, problems)
    return info.reset_index(drop=True), files


def read_answers(path, info):
    """The true classes of info's images, int64 (N,), from a CSV with ImageID and ans.

    Raises InputError when an image has no answer from 0 to 17.
    """
    table = read_table(path, ["ImageID", "ans"], "it should hold the true classes")
    names = table["ImageID"].map(normalized)
    duplicate = names.duplicated(), "ImageID", "is a duplicate"
    raise_problems(path, problems_by_line(table, duplicate))
    classes = pd.to_numeric(table.set_index(names)["ans"], errors="coerce")
    answers = info["ImageID"].map(normalized).map(classes)
    wrong = info["ImageID"][~answers.isin(range(18))]
    raise_problems(path, [f"{name} has no class from 0 to 17" for name in wrong])
    if len(answers) > 1 and (answers == 0).all():
        raise InputError(f"{path}: every ans is 0, as in info.csv; give the true classes")
    return answers.to_numpy(dtype=np.int64)


def age_labels(ages, border=OFFICIAL_AGE_BORDER):
    """Ages in years, int (N,) -> int64 (N,): 0 under 30, 1 from 30, 2 from border."""
    return np.digitize(ages, [30, border])


def head_labels(images, target, age_border=OFFICIAL_AGE_BORDER):
    """The labels of a head for rows of list_train_images, int64 (N,); see CLASSES in config."""
    if target == "mask":
        return images["shot"].str.rstrip("0123456789").map(SHOT_LABELS).to_numpy(dtype=np.int64)
    if target == "gender":
        return images["gender"].map(GENDER_LABELS).to_numpy(dtype=np.int64)
    if target == "age":
        return age_labels(images["age"], age_border)
    raise ValueError(f"no such head: {target}")


def merge_labels(mask, gender, age):
    """Labels of the three heads, numbers or arrays -> the official class, int64 in [0, 18).

    The competition orders masks and genders differently from CLASSES: mask*6 + gender*3 + age with
    mask worn 0, incorrect 1, not worn 2 and gender male 0, female 1.
    """
    official_mask = np.array([2, 0, 1])[mask]
    return official_mask * 6 + (1 - np.asarray(gender)) * 3 + np.asarray(age)


def split_classes(classes):
    """The inverse of merge_labels: official classes in [0, 18) -> (mask, gender, age) labels."""
    official_mask, rest = np.divmod(classes, 6)
    official_gender, age = np.divmod(rest, 3)
    return np.array([1, 2, 0])[official_mask], 1 - official_gender, age


def assign_folds(table, seed):
    """Deal people into NUM_FOLDS folds, stratified by gender x official age group.

    table: DataFrame of people or of photos, with gender, age and group; the rows of a group share
    a fold.
    Returns the fold of each row, int64 (N,). Raises InputError for fewer groups than folds.
    """
    groups = table.drop_duplicates("group")
    if len(groups) < NUM_FOLDS:
        raise InputError(f"train.csv: {len(groups)} people; {NUM_FOLDS} folds need {NUM_FOLDS}")
    stratum = head_labels(groups, "gender") * 3 + age_labels(groups["age"])
    # Shuffled within each stratum, then dealt like cards, one stratum after the other: each is
    # spread evenly over the folds, however rare it is.
    shuffled = np.random.default_rng(seed).permutation(len(groups))
    order = shuffled[np.argsort(stratum[shuffled], kind="stable")]
    fold_of = dict(zip(groups["group"].iloc[order], np.arange(len(groups)) % NUM_FOLDS))
    return table["group"].map(fold_of).to_numpy(dtype=np.int64)
