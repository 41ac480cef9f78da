"""Public photos of faces, for ETC.sample: which photos are usable, and whom they show.

Labels come from file names as in UTKFace, <age>_<gender>_<race>_<time>.jpg, or from a CSV.
"""

import os
import re
import zlib
from collections import defaultdict
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from config import config
from data.crop import detector_of_process
from data.detect import area_resize, find_largest_faces, square, sum_table
from data.images import list_files, pick_photos, read_image
from data.labels import (
    GENDER_LABELS,
    age_labels,
    full_gender,
    leaves_folder,
    person_ids,
    read_table,
)
from ETC.masks import face_frame
from utils import cli
from utils.cli import InputError

UTKFACE = re.compile(r"(\d{1,3})_([01])_([0-4])_\d+\.")
RACES = ("White", "Black", "Asian", "Indian", "Others")
AGES = (18, 100)  # years; photos of others are left out
# The competition's shares, in percent.
AGE_SHARES = {0: 47, 1: 42, 2: 10}
GENDER_SHARES = {"female": 61, "male": 39}

DETECTION_SIDE = 320  # px: faces are looked for in photos no larger than this
LARGEST_SIDE = 4 * DETECTION_SIDE  # and judged in photos no larger than this
MIN_PROBABILITY = 0.95  # probability of a face
MIN_EYES_TO_MOUTH = 30  # px, at least
MAX_NOSE_OFFSET = 0.32  # of the nose from the middle, in face units
ALIGNED = 96  # px: the side of an aligned face
MIN_SHARPNESS = 45  # variance of its Laplacian, at least
# Copies of a photo: the side of thumbnails of the photo and of the aligned face, in pixels, and how
# much they correlate at least: more than any of two people, for whom 0.955 and 0.91 were measured.
COPIES = {"photo": (16, 0.975), "face": (24, 0.93)}


def age_range(text):
    """The first and the last age that a label stands for: 25, 20-29, "more than 70", 70+. None for
    anything else.
    """
    low = high = None
    if match := re.fullmatch(r"(\d{1,3})(?:\.0+)?", text):
        low = high = int(match[1])
    elif match := re.fullmatch(r"(\d{1,3}) ?[-–] ?(\d{1,3})", text):  # noqa: RUF001 - an en dash
        low, high = int(match[1]), int(match[2])
    elif match := re.fullmatch(r"(?:more than |over )?(\d{1,3}) ?\+?", text.lower()):
        low, high = int(match[1]), int(match[1]) + 10
    return (low, high) if low is not None and low <= high else None


def read_names(folder):
    """Labels from names as in UTKFace: a table of strings, and the names that don't match."""
    rows, wrong = [], []
    for path in pick_photos(list_files(folder, set()))[0]:
        file = path.relative_to(folder).as_posix()
        if match := UTKFACE.match(path.name):
            age, gender, race = match.groups()
            rows.append((file, file, ("male", "female")[int(gender)], age, RACES[int(race)]))
        else:
            wrong.append(file)
    return pd.DataFrame(rows, columns=["id", "file", "gender", "age", "race"]), wrong


def read_labels(path):
    """Labels from a CSV with file (or face), gender and age, and perhaps id and race: as read_names
    does, but what is wrong is named by its line.
    """
    hint = "give --labels a CSV with file, gender and age"
    table = read_table(path, ["gender", "age"], hint, optional=["file", "face", "id", "race"])
    table = table.rename(columns={} if "file" in table else {"face": "file"})
    if "file" not in table:
        raise InputError(f"{path}: no column file in {', '.join(table)}; {hint}")
    columns = [name for name in ("id", "file", "gender", "age", "race") if name in table]
    # Unused columns may have a name twice.
    table = table[columns].apply(lambda column: column.str.strip())
    table["gender"] = full_gender(table["gender"])
    if "id" not in table:
        table["id"] = table["file"]
    if "race" not in table:
        table["race"] = "Unknown"
    table["id"] = person_ids(table["id"])
    # Part of a folder's name in the data set that is made.
    races = table["race"].str.replace(r"\W+", "-", regex=True).str.strip("-").str[:40]
    table["race"] = races.replace("", "Unknown")
    checks = pd.DataFrame({
        "gender": table["gender"].isin(list(GENDER_LABELS)), "id": table["id"] != "",
        "file": ~table["file"].map(leaves_folder), "age": table["age"].map(age_range).notna(),
    })  # fmt: skip
    good = checks.all(axis=1)
    wrong = [f"line {line}: {column}" for line, column in checks.idxmin(axis=1)[~good].items()]
    return table[good][["id", "file", "gender", "age", "race"]].reset_index(drop=True), wrong


def person_seed(seed, name):
    """A random seed for a person, from the seed and the id alone: nobody else changes it."""
    return [seed, zlib.crc32(os.fsencode(name))]


def drawn_age(row, seed):
    """An age in years, evenly from the range of a row of read_names."""
    # 1: another stream than that of mask_person.
    rng = np.random.default_rng([*person_seed(seed, row.id), 1])
    return int(rng.integers(*age_range(row.age), endpoint=True))


def find_landmarks(photos):
    """The largest face's probability and its eyes, nose and corners of the mouth in each photo of a
    uint8 array (N, H, W, 3): floats (N,), 0 without a face, and (N, 5, 2), in pixels.
    """
    detector = detector_of_process(torch.device("cpu"))
    found = find_largest_faces(detector, photos, 40)
    probs, points = np.zeros(len(photos)), np.zeros((len(photos), 5, 2))
    seen = [number for number, faces in enumerate(found) if faces]
    if seen:
        probs[seen] = [found[number][0][1] for number in seen]
        boxes = square(torch.tensor([found[number][0][0] for number in seen])).round().long()
        pad = max(0, int(-boxes.min()), int(boxes.max()) - min(photos.shape[1:3]))
        padded = np.pad(photos[seen], ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        table = sum_table(padded, torch.device("cpu"))
        with torch.inference_mode():
            faces = area_resize(table, torch.arange(len(seen)), boxes + pad, 48, 48)
            _, marks, _ = detector.onet(faces)  # x of the five points, then y, in the box
        side = (boxes[:, 2] - boxes[:, 0])[:, None, None]
        points[seen] = (marks.view(-1, 2, 5).mT * side + boxes[:, None, :2]).numpy()
    return probs, points


def aligned_face(photo, points):
    """The face turned upright, uint8 RGB (ALIGNED, ALIGNED, 3)."""
    eyes, right, down = face_frame(points)
    unit = ALIGNED * 0.36
    zoom = min(1, unit / np.linalg.norm(down))
    if zoom < 1:
        photo = cv2.resize(photo, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_AREA)
    source = zoom * np.array([eyes, eyes + right, eyes + down])
    target = ALIGNED * np.array([0.5, 0.36]) + [[0, 0], [unit, 0], [0, unit]]
    matrix = cv2.getAffineTransform(np.float32(source), np.float32(target))
    return cv2.warpAffine(photo, matrix, (ALIGNED, ALIGNED), borderMode=cv2.BORDER_REPLICATE)


def measure(files, folder):
    """(reason, points, thumbnails) of each of a folder's photos: why it is left out, or None, the
    landmarks in its pixels, float (5, 2), and a thumbnail for each of COPIES.
    """
    photos, small, by_shape = {}, {}, defaultdict(list)
    for number, file in enumerate(files):
        photo = read_image(folder / file)[0]
        if photo is not None:
            width = photo.shape[1]
            photo = shrunk(photo, LARGEST_SIDE)  # several at full size would fill the memory
            photos[number], small[number] = (photo, width), shrunk(photo, DETECTION_SIDE)
            by_shape[small[number].shape].append(number)
    results = [("unreadable", None, None)] * len(files)
    for numbers in by_shape.values():
        probs, points = find_landmarks(np.stack([small[number] for number in numbers]))
        for number, prob, marks in zip(numbers, probs, points):
            photo, width = photos[number]
            marks = marks * photo.shape[1] / small[number].shape[1]
            reason, thumbs = check_face(photo, prob, marks)
            results[number] = reason, np.round(marks * width / photo.shape[1], 1), thumbs
    return results


def shrunk(photo, side):
    """A photo, uint8 (H, W, 3), no larger than side in either direction."""
    zoom = side / max(photo.shape[:2])
    if zoom >= 1:
        return photo
    size = [max(1, round(length * zoom)) for length in photo.shape[1::-1]]
    return cv2.resize(photo, size, interpolation=cv2.INTER_AREA)


def check_face(photo, prob, points):
    """The reason and the thumbnails of measure for a photo, uint8 RGB, with a face of this
    probability and these landmarks.
    """
    if prob < MIN_PROBABILITY:
        return "no face", None
    eyes, right, down = face_frame(points)
    unit = np.linalg.norm(down)
    if unit < MIN_EYES_TO_MOUTH:
        return "face too small", None
    across = (points - eyes) @ right / unit**2  # in face units
    if abs(across[2]) > MAX_NOSE_OFFSET or across[1] - across[0] < 0.55:
        return "turned away", None
    grey = cv2.cvtColor(aligned_face(photo, points), cv2.COLOR_RGB2GRAY)
    if cv2.Laplacian(grey, cv2.CV_32F).var() < MIN_SHARPNESS:
        return "blurred", None
    views = {"photo": cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY), "face": grey[8:-8, 8:-8]}
    return None, [thumbnail(views[name], side) for name, (side, _) in COPIES.items()]


def thumbnail(image, side):
    """A grey image, uint8 (H, W), as float32 (side * side,) of mean 0 and length 1: the dot product
    of two is their correlation.
    """
    small = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA).astype(np.float32).ravel()
    small -= small.mean()
    return small / max(np.linalg.norm(small), 1)


def in_processes(function, jobs, what):
    """An iterator of function(job), in the order of jobs, by config.NUM_WORKERS processes."""
    # Never in this process, whose several threads might change results.
    loader = DataLoader(
        jobs,
        batch_size=None,
        collate_fn=function,  # without batches, it is called on each job, in the worker
        num_workers=min(config.NUM_WORKERS, len(jobs)),
        worker_init_fn=cli.start_worker,
        generator=torch.Generator(),
    )
    return tqdm(loader, what, len(jobs), disable=None)


def find_copies(thumbnails, likeness):
    """Whether one of thumbnails, float32 (N, D), correlates with an earlier one at least as much as
    likeness: bool (N,).
    """
    copies = np.zeros(len(thumbnails), bool)
    for start in range(0, len(thumbnails), 256):
        block = thumbnails[start : start + 256]
        correlation = np.tril(block @ thumbnails[: start + len(block)].T, start - 1)
        copies[start : start + len(block)] = (correlation >= likeness).any(axis=1)
    return copies


def find_people(folder, labels, seed):
    """The people of a folder's photos: [{id, gender, race, age, photos: [(file, points)]}], and
    {reason: [photos left out for it]}. labels: a CSV file, or None for names as in UTKFace. Raises
    InputError when nobody is left, or for a CSV that can't be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"--faces {folder}: no such folder")
    table, wrong = read_names(folder) if labels is None else read_labels(labels)
    left_out = defaultdict(list, {"wrong name" if labels is None else "wrong row": wrong})

    def leave_out(rows, reason):
        nonlocal table
        rows = rows.astype(bool)  # of an empty table too
        left_out[reason] += table["file"][rows].tolist()
        table = table[~rows].reset_index(drop=True)

    leave_out(table["file"].duplicated(), "listed twice")
    # Whole ranges have to be inside, so that 10-19 isn't drawn as 18.
    ranges = [age_range(age) for age in table["age"]]
    outside = [low < AGES[0] or high > AGES[1] for low, high in ranges]
    leave_out(pd.Series(outside), f"age outside {AGES[0]} to {AGES[1]}")
    table["age"] = [drawn_age(row, seed) for row in table.itertuples()]
    leave_out(~table["file"].map(lambda file: os.path.isfile(folder / file)), "no such file")
    files = table["file"].tolist()
    chunks = [files[start : start + 16] for start in range(0, len(files), 16)]
    measured = in_processes(partial(measure, folder=folder), chunks, "read") if chunks else []
    rows = [row for chunk in measured for row in chunk]
    table["reason"], table["points"], table["thumbs"] = zip(*rows) if rows else ((), (), ())
    for reason in ("unreadable", "no face", "face too small", "turned away", "blurred"):
        leave_out(table["reason"] == reason, reason)
    if len(table):
        copies = [
            find_copies(np.stack(thumbs), likeness)
            for thumbs, (_, likeness) in zip(zip(*table["thumbs"]), COPIES.values())
        ]
        leave_out(np.any(copies, axis=0), "copy of another photo")
        first = table.groupby("id")[["gender", "age"]].transform("first")
        other = (table["gender"] != first["gender"]) | ((table["age"] - first["age"]).abs() > 5)
        leave_out(other, "label that contradicts the person's first photo")
    people = {}
    for row in table.itertuples():
        person = {"id": row.id, "gender": row.gender, "race": row.race, "age": row.age}
        person = people.setdefault(row.id, {**person, "photos": []})
        person["photos"].append((row.file, row.points))
    left_out = {reason: names for reason, names in left_out.items() if names}
    if not people:
        hint = ""
        if "wrong name" in left_out:
            hint = "; name them as UTKFace, <age>_<gender>_<race>_.., or use --labels"
        raise InputError(
            f"--faces {folder}: no usable photos; {describe(left_out) or 'it is empty'}{hint}"
        )
    return list(people.values()), left_out


def describe(left_out, most=3):
    """ "3 no face (a.jpg, b.jpg, c.jpg); 1 blurred (d.jpg)" of what find_people left out; most: how
    many names at most, None for all.
    """
    parts = []
    for reason, names in left_out.items():
        more = ", .." if len(names[:most]) < len(names) else ""
        parts.append(f"{len(names)} {reason} ({', '.join(names[:most])}{more})")
    return "; ".join(parts)


def choose_people(people, balance, seed):
    """find_people's people in a random order; with balance, as many as the competition's shares of
    gender and age group allow, so that the first N have these shares too, for any N. Raises
    InputError when there is nobody of a gender in an age group.
    """
    order = np.random.default_rng(seed).permutation(len(people))
    people = [people[index] for index in order]
    if not balance:
        return people
    groups = defaultdict(list)
    for person in people:
        groups[person["gender"], int(age_labels(person["age"]))].append(person)
    places, limit = [], len(people)
    for gender, gender_share in GENDER_SHARES.items():
        for group, age_share in AGE_SHARES.items():
            share = gender_share * age_share / 100 / sum(AGE_SHARES.values())
            members = groups[gender, group]
            if not members:
                raise InputError(f"--balance: no {gender} people of the age group "
                                 f"{config.CLASSES['age'][group]}; leave it out")  # fmt: skip
            limit = min(limit, len(members) / share)
            places += [((number + 0.5) / share, person) for number, person in enumerate(members)]
    places.sort(key=lambda place: place[0])
    return [person for place, person in places if place < limit]
