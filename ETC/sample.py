"""Draw a data set in the competition's layout, to try the repository without real photos.

python -m ETC.sample --output input/data --people 120 --seed 777
"""

import sys
from pathlib import Path

if __spec__ is None:  # started as a file, not by python -m
    sys.path[0] = str(Path(__file__).parents[1])
    import config  # noqa: F401 - before PyTorch

import hashlib
import shutil

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm

from data.labels import GENDER_LABELS, SHOT_LABELS, age_labels, merge_labels
from ETC.portrait import SHOTS, draw_shot, draw_traits
from utils import cli
from utils.cli import InputError
from utils.files import atomic_write, hidden, locked, make_folder, write_csv

GENDERS = ("male", "female")
AGES = ((18, 29), (30, 59), (60, 80))
COMBINATIONS = len(GENDERS) * len(AGES)
TRAIN, EVAL = 0, 1  # parts of the random seeds


def draw_person(seed, split, index):
    """A person's traits and {shot: photo}, which depend on the arguments alone."""
    # Each block of six people has all combinations of gender and age group, in a random order.
    block, place = divmod(index, COMBINATIONS)
    order = np.random.default_rng([seed, split, block, 1]).permutation(COMBINATIONS)
    gender, group = divmod(int(order[place]), len(AGES))
    rng = np.random.default_rng([seed, split, index])
    traits = draw_traits(rng, GENDERS[gender], int(rng.integers(*AGES[group], endpoint=True)))
    return traits, {shot: draw_shot(traits, shot, rng) for shot in SHOTS}


def official_class(traits, shot):
    mask = SHOT_LABELS[shot.rstrip("12345")]
    gender = GENDER_LABELS["male" if traits.male else "female"]
    return int(merge_labels(mask, gender, age_labels(traits.age)))


def write_photo(path, photo):
    jpeg = cv2.imencode(".jpg", photo[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1]
    with atomic_write(path) as file:
        file.write(jpeg.tobytes())


def write_train(folder, people, seed, progress):
    rows = []
    for index in range(people):
        traits, photos = draw_person(seed, TRAIN, index)
        row = (f"{index + 1:06d}", "male" if traits.male else "female", "Drawn", traits.age)
        path = "_".join(map(str, row))
        rows.append((*row, path))
        (folder / "images" / path).mkdir(parents=True)
        for shot, photo in photos.items():
            write_photo(folder / "images" / path / f"{shot}.jpg", photo)
        progress.update()
    table = pd.DataFrame(rows, columns=["id", "gender", "race", "age", "path"])
    write_csv(folder / "train.csv", table)


def write_eval(folder, people, seed, progress):
    (folder / "images").mkdir(parents=True)
    rows = []
    for index in range(people):
        traits, photos = draw_person(seed, EVAL, index)
        for shot, photo in photos.items():
            name = hashlib.sha1(f"{seed}/{index}/{shot}".encode()).hexdigest() + ".jpg"
            write_photo(folder / "images" / name, photo)
            rows.append((name, official_class(traits, shot)))
        progress.update()
    # Sorted by name, a hash, so that the order doesn't tell which photos show the same person.
    answers = pd.DataFrame(sorted(rows), columns=["ImageID", "ans"])
    write_csv(folder / "answers.csv", answers)
    write_csv(folder / "info.csv", answers.assign(ans=0))


def make_sample(output, people, eval_people, seed):
    """Write train/ and eval/ to the empty or new folder output: seven photos each of people to
    train on and of eval_people to submit for.

    Person i of a split depends on the seed and i alone. Raises InputError when the folder isn't
    empty or a split would lack a combination of gender and age group.
    """
    output = Path(output)
    if min(people, eval_people) < COMBINATIONS:
        raise InputError(
            f"--people {people}, --eval-people {eval_people}: give at least {COMBINATIONS} each, "
            "a person of each gender in each age group"
        )
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise InputError(f"{output}: not an empty folder; empty it or choose another --output")
    make_folder(output, "choose another --output")
    # Drawn elsewhere, then renamed: nobody should train on half a data set.
    output = output.absolute()
    make_folder(output.parent, "choose another --output")
    part = output.with_name(f".{output.name}.part")
    held = f"{output}: another command draws to it; choose another --output"
    with locked(hidden(part, ".lock"), held):
        shutil.rmtree(part, ignore_errors=True)
        try:
            with tqdm(total=people + eval_people, unit="person", disable=None) as progress:
                write_train(part / "train", people, seed, progress)
                write_eval(part / "eval", eval_people, seed, progress)
            output.rmdir()
            part.rename(output)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def get_args_parser():
    parser = cli.ArgumentParser(
        "python -m ETC.sample", description="Draw a data set in the competition's layout."
    )
    # fmt: off
    add = parser.add_argument
    add("--output", required=True, help="a new or empty folder")
    add("--people", type=cli.positive_int, default=120,
        help="people to train on (default: %(default)s)")
    add("--eval-people", type=cli.positive_int,
        help="other people to submit for (default: a quarter of --people, at least 6)")
    add("--seed", type=cli.seed_int, default=777, help="who is drawn (default: %(default)s)")
    # fmt: on
    return parser


def main():
    args = get_args_parser().parse_args()
    eval_people = args.eval_people or max(args.people // 4, COMBINATIONS)
    make_sample(args.output, args.people, eval_people, args.seed)
    images = (args.people + eval_people) * len(SHOTS)
    print(f"drew {args.people} + {eval_people} people, {images} photos, in {args.output}")


if __name__ == "__main__":
    cli.run(main)
