"""Make a data set in the competition's layout: of drawn people, or of public photos of faces with
drawn masks.

python -m ETC.sample --output input/data --people 120 --seed 777
python -m ETC.sample --output input/data --faces UTKFace --balance competition
"""

import sys
from pathlib import Path

if __spec__ is None:  # started as a file, not by python -m
    sys.path[0] = str(Path(__file__).parents[1])
    import config  # before PyTorch

import contextlib
import hashlib
import os
import shutil
from functools import partial

import cv2
import numpy as np
import pandas as pd

from config import config
from data.images import load_image
from data.labels import GENDER_LABELS, SHOT_LABELS, age_labels, merge_labels
from ETC.faces import choose_people, describe, find_people, in_processes, person_seed
from ETC.portrait import SHOTS, draw_shot, draw_traits
from ETC.scene import draw_shots
from utils import cli
from utils.cli import InputError
from utils.files import atomic_write, locked, make_folder, write_csv

GENDERS = ("male", "female")
AGES = ((18, 29), (30, 59), (60, 80))
COMBINATIONS = len(GENDERS) * len(AGES)
TRAIN, EVAL = 0, 1  # parts of the random seeds
PEOPLE = 120  # drawn by default
QUALITY = 92  # of drawn people's JPEG files
NOTE = (
    "Where the labels have no id, each photo counts as a person, so somebody with several photos "
    "may be in both train and eval.\n"
    "The faces are under the licence of the data set they come from: UTKFace is for non-commercial "
    "research only, FairFace is CC BY 4.0. The masks are drawn, and so is what surrounds a face "
    "that filled its photo."
)


def draw_person(seed, split, index):
    """A person's traits and {shot: photo}, which depend on the arguments alone."""
    # Each block of six people has all combinations of gender and age group, in a random order.
    block, place = divmod(index, COMBINATIONS)
    order = np.random.default_rng([seed, split, block, 1]).permutation(COMBINATIONS)
    gender, group = divmod(int(order[place]), len(AGES))
    rng = np.random.default_rng([seed, split, index])
    traits = draw_traits(rng, GENDERS[gender], int(rng.integers(*AGES[group], endpoint=True)))
    return traits, {shot: draw_shot(traits, shot, rng) for shot in SHOTS}


def draw_files(index, seed, split):
    """Gender, race, age and {shot: JPEG file} of a drawn person."""
    traits, photos = draw_person(seed, split, index)
    files = {shot: encode(photo, QUALITY) for shot, photo in photos.items()}
    return "male" if traits.male else "female", "Drawn", traits.age, files


def mask_person(person, folder, seed):
    """As draw_files, for one person of find_people; depends on the arguments alone."""
    rng = np.random.default_rng(person_seed(seed, person["id"]))
    chosen = rng.permutation(len(person["photos"]))[: len(SHOTS)]
    photos = [person["photos"][number] for number in chosen]
    photos = [(load_image(folder / file), points) for file, points in photos]
    shots = draw_shots(photos, person["gender"] == "male", rng)
    files = {shot: encode(photo, quality) for shot, (photo, quality) in shots.items()}
    return person["gender"], person["race"], person["age"], files


def official_class(gender, age, shot):
    mask = SHOT_LABELS[shot.rstrip("12345")]
    return int(merge_labels(mask, GENDER_LABELS[gender], age_labels(age)))


def encode(photo, quality):
    jpeg = cv2.imencode(".jpg", photo[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return jpeg.tobytes()


def write_photo(path, jpeg):
    with atomic_write(path, sync=False) as file:  # half drawn, the data set is hidden
        file.write(jpeg)


def write_train(folder, people):
    rows = []
    for number, (*labels, photos) in enumerate(people, start=1):
        row = (f"{number:06d}", *labels)
        path = "_".join(map(str, row))
        rows.append((*row, path))
        (folder / "images" / path).mkdir(parents=True)
        for shot, jpeg in photos.items():
            write_photo(folder / "images" / path / f"{shot}.jpg", jpeg)
    table = pd.DataFrame(rows, columns=["id", "gender", "race", "age", "path"])
    write_csv(folder / "train.csv", table)


def write_eval(folder, people, seed):
    (folder / "images").mkdir(parents=True)
    rows = []
    for index, (gender, _, age, photos) in enumerate(people):
        for shot, jpeg in photos.items():
            name = hashlib.sha1(f"{seed}/{index}/{shot}".encode()).hexdigest() + ".jpg"
            write_photo(folder / "images" / name, jpeg)
            rows.append((name, official_class(gender, age, shot)))
    # Sorted by name, a hash, so that the order doesn't tell which photos show the same person.
    answers = pd.DataFrame(sorted(rows), columns=["ImageID", "ans"])
    write_csv(folder / "answers.csv", answers)
    write_csv(folder / "info.csv", answers.assign(ans=0))


@contextlib.contextmanager
def new_folder(output):
    """A hidden folder in output, absent yet, whose content moves to output in the end, train last:
    nobody should train on half a data set. Raises InputError unless output is new or empty.
    """
    output = Path(output)
    existed = os.path.lexists(output)
    part = output / ".part"
    if existed:
        # Remains of a killed command don't count.
        others = [path for path in output.glob("*") if not path.name.startswith(part.name)]
        if not output.is_dir() or others:
            raise InputError(f"{output}: not an empty folder; empty it or choose another --output")
    make_folder(output, "choose another --output")
    held = f"{output}: another command draws to it; choose another --output"
    try:
        with locked(part.with_name(".part.lock"), held):
            shutil.rmtree(part, ignore_errors=True)
            try:
                yield part
                for path in sorted(part.iterdir(), key=lambda path: path.name == "train"):
                    path.rename(output / path.name)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    finally:
        if not existed:
            with contextlib.suppress(OSError):  # it isn't empty
                output.rmdir()


def make_sample(output, people, eval_people, seed):
    """Write train/ and eval/ to the empty or new folder output: seven photos each of drawn people
    to train on and of eval_people to submit for.

    Person i of a split depends on the seed and i alone. Raises InputError when the folder isn't
    empty or a split would lack a combination of gender and age group.
    """
    if min(people, eval_people) < COMBINATIONS:
        raise InputError(
            f"--people {people}, --eval-people {eval_people}: give at least {COMBINATIONS} each, "
            "a person of each gender in each age group"
        )
    with new_folder(output) as part:
        draw = partial(draw_files, seed=seed, split=TRAIN)
        write_train(part / "train", in_processes(draw, range(people), "train"))
        draw = partial(draw_files, seed=seed, split=EVAL)
        write_eval(part / "eval", in_processes(draw, range(eval_people), "eval"), seed)


def make_masked_sample(args):
    """As make_sample, of the photos in args.faces, with SOURCE.txt, which says where they are from
    and which were left out. Returns the numbers of people to train on and to submit for. Raises
    InputError, also for too few people.
    """
    folder = Path(args.faces)
    with new_folder(args.output) as part:
        everybody, left_out = find_people(folder, args.labels, args.seed)
        photos = sum(len(person["photos"]) for person in everybody)
        people = choose_people(everybody, args.balance, args.seed)
        eval_people = args.eval_people or max(1, (args.people or len(people)) // 10)
        train, eval_ = people[eval_people:][: args.people], people[:eval_people]
        wanted = max(args.people or 0, config.NUM_FOLDS)  # with fewer, nothing can be trained
        if len(train) < wanted:
            balanced = " after --balance" if args.balance else ""
            raise InputError(
                f"--faces {folder}: {len(people)} people to choose from{balanced}, but {wanted} "
                f"are needed to train on and {eval_people} to submit for; left out: "
                f"{describe(left_out) or 'nothing'}"
            )
        mask = partial(mask_person, folder=folder, seed=args.seed)
        write_train(part / "train", in_processes(mask, train, "train"))
        write_eval(part / "eval", in_processes(mask, eval_, "eval"), args.seed)
        source = [
            f"{len(train)} people to train on and {len(eval_)} to submit for, made by ETC.sample:",
            *(f"--{name.replace('_', '-')} {value}" for name, value in vars(args).items()
              if name != "output" and value is not None),
            "",
            f"Usable: {photos} photos of {len(everybody)} people. Left out: "
            f"{describe(left_out, most=None) or 'nothing'}.",
            NOTE,
        ]  # fmt: skip
        with atomic_write(part / "SOURCE.txt", "w") as file:
            file.write("\n".join(source) + "\n")
    if left_out:
        print(f"left out: {describe(left_out)}")
    return len(train), len(eval_)


def get_args_parser():
    parser = cli.ArgumentParser(
        "python -m ETC.sample", description="Make a data set in the competition's layout."
    )
    # fmt: off
    add = parser.add_argument
    add("--output", type=cli.file_name, required=True, help="a new or empty folder")
    add("--people", type=cli.positive_int,
        help=f"people in train/ (default: {PEOPLE}, or all of --faces who aren't in eval/)")
    add("--eval-people", type=cli.positive_int,
        help="other people, in eval/ (default: a quarter of --people, at least 6; with --faces a "
             "tenth of the people)")
    add("--seed", type=cli.seed_int, default=config.SEED,
        help="random seed (default: %(default)s)")
    add("--faces", type=cli.file_name, metavar="DIR",
        help="public photos of faces, on which masks are drawn (default: people are drawn)")
    add("--labels", type=cli.file_name, metavar="FILE",
        help="a CSV with file, gender, age and perhaps id and race, of the photos in --faces "
             "(default: their names, as in UTKFace: <age>_<gender>_<race>_<time>.jpg)")
    add("--balance", choices=("competition",),
        help="take as many people as the competition's shares of gender and age allow (default: "
             "all)")
    # fmt: on
    return parser


def main():
    args = get_args_parser().parse_args()
    if args.faces is not None:
        people, eval_people = make_masked_sample(args)
    elif args.labels is not None or args.balance:
        raise InputError("--labels, --balance: only with --faces")
    else:
        people = args.people or PEOPLE
        eval_people = args.eval_people or max(people // 4, COMBINATIONS)
        make_sample(args.output, people, eval_people, args.seed)
    images = (people + eval_people) * len(SHOTS)
    print(f"{people} + {eval_people} people, {images} photos -> {args.output}")


if __name__ == "__main__":
    cli.run(main)
