"""The drawn sample: layout, repeatability, and whether MTCNN takes the drawings for faces."""

import re
from collections import Counter
from itertools import product

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from conftest import SHOTS, assert_refused, contents, run, run_ok
from data.detect import build_detector, find_largest_faces
from ETC import portrait, sample
from utils.cli import InputError

PEOPLE = 6


def read(path):
    return pd.read_csv(path, dtype=str).to_dict("records")


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
        assert {photo.name for photo in photos} == {f"{shot}.jpg" for shot in SHOTS}
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
    # A person of each gender and age group: five masks worn, one incorrectly, none in one photo.
    assert classes == {number: 5 if number < 6 else 1 for number in range(18)}
    for gender, age, shot, expected in (("male", 29, "mask3", 0), ("female", 60, "normal", 17)):
        assert sample.official_class(gender, age, shot) == expected


def test_a_seed_gives_the_same_bytes_however_many_people(drawn, tmp_path):
    command = ["-m", "ETC.sample", "--people", PEOPLE + 1, "--seed", 1]
    run_ok(*command, "--output", tmp_path / "more")
    more, expected = contents(tmp_path / "more"), contents(drawn)
    assert more.pop("train/train.csv").startswith(expected.pop("train/train.csv"))
    assert expected.items() <= more.items()
    assert len(set(more.values())) == len(more)  # no photo is drawn twice
    first, second = (sample.draw_person(seed, sample.TRAIN, 0)[1]["normal"] for seed in (1, 2))
    assert not np.array_equal(first, second)


def test_bad_arguments_are_refused(tmp_path):
    (tmp_path / "mine.txt").touch()
    assert_refused(run("-m", "ETC.sample", "--output", tmp_path), tmp_path, "not an empty folder")
    for arguments in (["--people", 5], ["--eval-people", 1]):
        done = run("-m", "ETC.sample", "--output", tmp_path / "new", *arguments)
        assert_refused(done, *arguments)
    assert not (tmp_path / "new").exists()


def test_mtcnn_finds_the_faces():
    drawn = {"normal": [], "mask1": [], "mask2": []}
    for number, (gender, age) in enumerate(product(sample.GENDERS, range(20, 79, 5))):
        rng = np.random.default_rng([5, number])
        traits = portrait.draw_traits(rng, gender, age)
        for shot, photos in drawn.items():
            photos.append(portrait.draw_shot(traits, shot, rng))
    detector = build_detector(torch.device("cpu"))
    found = [find_largest_faces(detector, np.stack(photos), 50) for photos in drawn.values()]
    normal, *masked = (np.mean([bool(faces) for faces in shot]) for shot in found)
    assert normal >= 0.9
    assert np.mean(masked) >= 0.4


def test_an_empty_output_is_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match="not an empty folder"), sample.new_folder(""):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
