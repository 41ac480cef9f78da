"""The drawn sample: its layout, its repeatability, and that MTCNN takes the drawings for faces."""

import csv
import re
from collections import Counter
from itertools import pairwise, product

import cv2
import numpy as np
import pytest
from facenet_pytorch import MTCNN

from conftest import assert_refused, run
from ETC import portrait, sample

PEOPLE = 6
SHOTS = {"mask1", "mask2", "mask3", "mask4", "mask5", "incorrect_mask", "normal"}


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample") / "data"
    sample.make_sample(folder, PEOPLE, PEOPLE, 1)
    return folder


def test_train_layout(drawn):
    rows = read(drawn / "train/train.csv")
    assert list(rows[0]) == ["id", "gender", "race", "age", "path"]
    assert [row["id"] for row in rows] == [f"{number:06d}" for number in range(1, PEOPLE + 1)]
    for row in rows:
        assert row["path"] == "_".join(row[key] for key in ("id", "gender", "race", "age"))
        photos = list((drawn / "train/images" / row["path"]).iterdir())
        assert {photo.stem for photo in photos} == SHOTS
        assert {photo.suffix for photo in photos} == {".jpg"}
        assert {cv2.imread(str(photo)).shape for photo in photos} == {(512, 384, 3)}
    assert {path.name for path in (drawn / "train/images").iterdir()} == {r["path"] for r in rows}
    groups = {(row["gender"], np.digitize(int(row["age"]), (30, 60))) for row in rows}
    assert groups == set(product(("female", "male"), range(3)))


def test_eval_layout_and_answers(drawn):
    info, answers = read(drawn / "eval/info.csv"), read(drawn / "eval/answers.csv")
    names = [row["ImageID"] for row in info]
    assert {row["ans"] for row in info} == {"0"}
    assert names == [row["ImageID"] for row in answers]
    assert all(re.fullmatch(r"[0-9a-f]{40}\.jpg", name) for name in names)
    assert sorted(names) == sorted(path.name for path in (drawn / "eval/images").iterdir())
    classes = Counter(int(row["ans"]) for row in answers)
    # One person of each gender and age group: five masks worn, one incorrect, none on one.
    assert classes == {number: 5 if number < 6 else 1 for number in range(18)}
    people = [int(row["ans"]) % 6 for row in answers]
    assert sum(one == other for one, other in pairwise(people)) < len(people) / 2


def test_answers_are_the_official_classes():
    man, woman = (
        portrait.draw_traits(np.random.default_rng(0), gender, age)
        for gender, age in (("male", 29), ("female", 60))
    )
    assert sample.official_class(man, "mask3") == 0
    assert sample.official_class(woman, "incorrect_mask") == 11
    assert sample.official_class(man, "normal") == 12
    assert sample.official_class(woman, "normal") == 17


def test_eval_people_are_others(drawn):
    train, evaluated = contents(drawn / "train/images"), contents(drawn / "eval/images")
    assert not set(train.values()) & set(evaluated.values())
    assert len(set(train.values()) | set(evaluated.values())) == 2 * PEOPLE * len(SHOTS)


def test_same_seed_same_bytes(drawn, tmp_path):
    done = run("-m", "ETC.sample", "--output", tmp_path, "--people", 6, "--seed", 1)
    assert done.returncode == 0, done.stderr
    assert "84 photos" in done.stdout
    assert contents(tmp_path) == contents(drawn)


def test_more_people_leave_the_first_ones_alone(drawn, tmp_path):
    sample.make_sample(tmp_path / "more", PEOPLE + 1, PEOPLE, 1)
    assert read(tmp_path / "more/train/train.csv")[:PEOPLE] == read(drawn / "train/train.csv")
    first, more = (contents(folder / "train/images") for folder in (drawn, tmp_path / "more"))
    assert first.items() < more.items()


def test_other_seed_or_set_other_person():
    (one, first), (_, second), (_, third) = (
        sample.draw_person(seed, set_number, 0) for seed, set_number in ((1, 0), (2, 0), (1, 1))
    )
    assert 18 <= one.age <= 80
    assert not np.array_equal(first["normal"], second["normal"])
    assert not np.array_equal(first["normal"], third["normal"])


def test_full_folder_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    assert_refused(run("-m", "ETC.sample", "--output", tmp_path, "--people", 6), tmp_path)
    assert contents(tmp_path) == {"mine.txt": b"mine"}


@pytest.mark.parametrize(
    ("arguments", "word"),
    [(["--people", "5"], "--people"), (["--eval-people", "1"], "--eval-people")],
)
def test_too_few_people_are_refused(tmp_path, arguments, word):
    output = tmp_path / "new"
    assert_refused(run("-m", "ETC.sample", "--output", output, *arguments), word)
    assert not output.exists()


def test_mtcnn_finds_the_faces():
    found = {"normal": [], "mask1": [], "mask2": []}
    detector = MTCNN(keep_all=True)
    for number, (gender, age) in enumerate(product(sample.GENDERS, range(20, 79, 5))):
        rng = np.random.default_rng([5, number])
        traits = portrait.draw_traits(rng, gender, age)
        for shot, hits in found.items():
            photo = portrait.draw_shot(traits, shot, rng)
            assert (photo.shape, photo.dtype) == ((512, 384, 3), np.uint8)
            boxes, _ = detector.detect(photo)
            hits.append(boxes is not None)
    assert len(found["normal"]) == 24
    assert np.mean(found["normal"]) >= 0.9
    assert np.mean(found["mask1"] + found["mask2"]) >= 0.4
