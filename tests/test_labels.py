import numpy as np
import pandas as pd
import pytest

from data.labels import (
    age_labels,
    assign_folds,
    head_labels,
    list_train_images,
    merge_labels,
    split_classes,
)
from utils.cli import InputError

# The official table, written out: class -> (mask wear, gender, age group).
OFFICIAL = [
    (mask, gender, age)
    for mask in ("worn", "incorrect", "not worn")
    for gender in ("male", "female")
    for age in ("<30", "30-59", ">=60")
]
MASK_HEAD = ("not worn", "worn", "incorrect")
GENDER_HEAD = ("female", "male")
AGE_HEAD = ("<30", "30-59", ">=60")


def test_merge_and_split_on_all_18_classes():
    for number, (mask, gender, age) in enumerate(OFFICIAL):
        labels = MASK_HEAD.index(mask), GENDER_HEAD.index(gender), AGE_HEAD.index(age)
        assert merge_labels(*labels) == number
        assert tuple(split_classes(number)) == labels
    every = np.arange(18)
    assert (merge_labels(*split_classes(every)) == every).all()


@pytest.mark.parametrize(
    ("mask", "gender", "age", "number"), [(1, 1, 0, 0), (2, 0, 2, 11), (0, 0, 2, 17)]
)
def test_merge_examples(mask, gender, age, number):
    assert merge_labels(mask, gender, age) == number


def test_age_borders():
    ages = np.array([18, 29, 30, 58, 59, 60, 80])
    assert age_labels(ages).tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert age_labels(ages, border=59).tolist() == [0, 0, 1, 1, 2, 2, 2]


def test_head_labels():
    images = pd.DataFrame(
        {
            "shot": ["normal", "mask1", "mask5", "incorrect_mask"],
            "gender": ["female", "male", "female", "male"],
            "age": [29, 59, 60, 30],
        }
    )
    assert head_labels(images, "mask").tolist() == [0, 1, 1, 2]
    assert head_labels(images, "gender").tolist() == [0, 1, 0, 1]
    assert head_labels(images, "age").tolist() == [0, 1, 2, 1]
    assert head_labels(images, "age", 59).tolist() == [0, 2, 2, 1]


def crowd(size=500, seed=0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "gender": rng.choice(["female", "male"], size, p=[0.6, 0.4]),
            "age": rng.integers(18, 70, size),
            "group": [f"{i:06d}" for i in range(size)],
        }
    )


def test_folds_are_balanced_in_every_stratum():
    people = crowd()
    people["fold"] = assign_folds(people, seed=777)
    assert sorted(people["fold"].unique()) == [0, 1, 2, 3, 4]
    stratum = people["gender"] + age_labels(people["age"]).astype(str)
    for _, counts in people.groupby(stratum)["fold"]:
        shares = counts.value_counts().reindex(range(5), fill_value=0)
        assert shares.max() - shares.min() <= 1
    assert people["fold"].value_counts().max() - people["fold"].value_counts().min() <= 1


def test_folds_keep_groups_together_and_follow_the_seed():
    people = crowd(200)
    people["group"] = [f"{i // 2:06d}" for i in range(200)]
    folds = assign_folds(people, seed=777)
    assert (folds[::2] == folds[1::2]).all()
    assert (folds == assign_folds(people, seed=777)).all()
    assert (folds != assign_folds(people, seed=778)).any()


def test_too_few_people_for_folds():
    with pytest.raises(InputError, match="4 people"):
        assign_folds(crowd(4), seed=777)


def write_people(folder, rows, shots=("normal.jpg",)):
    """A train folder of empty files: rows of (id, gender, age, path)."""
    images = folder / "train" / "images"
    for *_, path in rows:
        (images / path).mkdir(parents=True, exist_ok=True)
        for shot in shots:
            (images / path / shot).touch()
    lines = [f"{i},{gender},Asian,{age},{path}" for i, gender, age, path in rows]
    csv = "\n".join(["id,gender,race,age,path", *lines]) + "\n"
    (folder / "train" / "train.csv").write_text(csv, encoding="utf-8")


def test_photos_are_listed_without_hidden_and_foreign_files(tmp_path):
    shots = ("mask1.jpg", "mask2.JPG", "normal.png", "incorrect_mask.jpeg", "._mask1.jpg",
             ".DS_Store", "Thumbs.db")  # fmt: skip
    write_people(tmp_path, [("000001-2", "male", 30, "a"), ("000001-1", "male", 30, "b")], shots)
    (tmp_path / "train/images/a/.ipynb_checkpoints").mkdir()
    images = list_train_images(tmp_path)
    assert images["file"].tolist()[:4] == [
        "a/incorrect_mask.jpeg", "a/mask1.jpg", "a/mask2.JPG", "a/normal.png",
    ]  # fmt: skip
    assert len(images) == 8
    assert set(images["group"]) == {"000001"}
