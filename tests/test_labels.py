"""data/labels.py: what the two tables mean, and that each mistake in them is named."""

import unicodedata

import numpy as np
import pandas as pd
import pytest

from config.config import CLASSES
from conftest import ROOT, assert_refused, run
from data.labels import (
    age_labels,
    assign_folds,
    fix_labels,
    head_labels,
    list_train_images,
    merge_labels,
    read_answers,
    read_info,
    read_people,
    split_classes,
)
from utils.cli import InputError

# The official table, written out: class -> (mask, gender, age group).
OFFICIAL = [
    (mask, gender, age)
    for mask in ("mask", "incorrect", "normal")
    for gender in ("male", "female")
    for age in ("under30", "30to59", "60plus")
]
PEOPLE = """id,gender,race,age,path
000001,female,Asian,29,a
000002,male,Asian,30,b
000003,female,Asian,59,c
000004,male,Asian,60,d
"""
INFO = "ImageID,ans\na.jpg,0\nb.jpg,0\nc.jpg,0\n"
ANSWERS = "ImageID,ans\na.jpg,17\nb.jpg,0\nc.jpg,3\n"


@pytest.fixture
def folder(tmp_path):
    """A data set of empty photos."""
    for person in "abcd":
        (tmp_path / "train/images" / person).mkdir(parents=True)
        (tmp_path / "train/images" / person / "normal.jpg").touch()
    (tmp_path / "eval/images").mkdir(parents=True)
    for name in "abc":
        (tmp_path / f"eval/images/{name}.jpg").touch()
    (tmp_path / "train/train.csv").write_text(PEOPLE)
    (tmp_path / "eval/info.csv").write_text(INFO)
    (tmp_path / "eval/answers.csv").write_text(ANSWERS)
    return tmp_path


def assert_named(function, *arguments, words):
    """function raises an InputError whose message holds all the words."""
    with pytest.raises(InputError) as raised:
        function(*arguments)
    for word in words:
        assert word in str(raised.value)


def test_all_18_classes_are_the_competitions():
    for number, names in enumerate(OFFICIAL):
        labels = tuple(CLASSES[head].index(name) for head, name in zip(CLASSES, names))
        assert merge_labels(*labels) == number
        assert tuple(split_classes(number)) == labels
    every = np.arange(18)
    assert (merge_labels(*split_classes(every)) == every).all()


def test_head_labels():
    images = pd.DataFrame({
        "shot": ["normal", "mask1", "mask5", "incorrect_mask"],
        "gender": ["female", "male", "female", "male"],
        "age": [29, 59, 60, 30],
    })  # fmt: skip
    assert head_labels(images, "mask").tolist() == [0, 1, 1, 2]
    assert head_labels(images, "gender").tolist() == [0, 1, 0, 1]
    assert head_labels(images, "age").tolist() == [0, 1, 2, 1]
    assert head_labels(images, "age", 59).tolist() == [0, 2, 2, 1]


# --- folds


def crowd(size):
    rng = np.random.default_rng(0)
    return pd.DataFrame({
        "gender": rng.choice(["female", "male"], size, p=[0.6, 0.4]),
        "age": rng.integers(18, 70, size),
        "group": [f"{i:06d}" for i in range(size)],
    })  # fmt: skip


def test_folds_are_balanced_in_every_stratum():
    people = crowd(500)
    people["fold"] = assign_folds(people, seed=777)
    assert sorted(people["fold"].unique()) == [0, 1, 2, 3, 4]
    stratum = people["gender"] + age_labels(people["age"]).astype(str)
    for _, folds in (*people.groupby(stratum)["fold"], (None, people["fold"])):
        counts = np.bincount(folds, minlength=5)
        assert counts.max() - counts.min() <= 1


def test_folds_keep_groups_together_and_follow_the_seed():
    people = crowd(200)
    people["group"] = [f"{i // 2:06d}" for i in range(200)]
    folds = assign_folds(people, seed=777)
    assert (folds[::2] == folds[1::2]).all()
    assert (folds == assign_folds(people, seed=777)).all()
    assert (folds != assign_folds(people, seed=778)).any()
    assert_named(assign_folds, crowd(4), 777, words=["4 people", "5 folds"])


# --- train.csv


def test_people_are_read(folder):
    people = read_people(folder)
    assert people["id"].tolist() == ["000001", "000002", "000003", "000004"]
    assert people["age"].tolist() == [29, 30, 59, 60]
    assert people["race"].tolist() == ["Asian"] * 4
    # As people write it.
    text = PEOPLE.replace("female", "Female ").replace(",male", ", M").replace("id,", "ID ,")
    (folder / "train/train.csv").write_text(text + ",,,,\n ,,,,\n")
    assert read_people(folder).equals(people)
    (folder / "train/train.csv").write_text("sep=,\n\n" + PEOPLE.replace("\n", ",\n"))
    assert read_people(folder).equals(people)
    # As Excel writes it, with a column more, a blank line and a quoted comma.
    text = PEOPLE.replace("race", "note").replace("Asian", '"a, b"').replace("\n", "\r\n\r\n")
    (folder / "train/train.csv").write_text(text, encoding="utf-8-sig", newline="")
    assert read_people(folder).equals(people.drop(columns="race"))
    text = PEOPLE.replace("race", "Race").replace("Asian", '" ASIAN, mixed"', 1)
    (folder / "train/train.csv").write_text(text)
    assert read_people(folder)["race"].tolist() == ["ASIAN, mixed", *["Asian"] * 3]


TRAIN_TABLES = {
    "column twice": (PEOPLE.replace("race", "age"), ["column age is there twice"]),
    "race twice": (PEOPLE.replace("race,", "race,Race,").replace("Asian,", "Asian,,"),
                   ["column race is there twice"]),
    "semicolons": (PEOPLE.replace(",", ";"), ["separate columns by commas"]),
    "too many columns": (PEOPLE.replace("30,b", "30,b,x"), ["line 3: 6 values for 5 columns"]),
    "age 121": (PEOPLE.replace("29", "121"), ["line 2: age"]),
    "two problems": (PEOPLE.replace("29", "x").replace("4,male", "4,x"),
                     ["line 2: age", "line 5: gender"]),
    "line of the separator": ("sep=,\n" + PEOPLE.replace("59", "x"), ["line 5: age"]),
    "blank lines": (PEOPLE.replace("\n", "\n\n").replace("59", "x"), ["line 7: age"]),
    "line breaks": (PEOPLE.replace("Asian", '"a\nb"').replace("59", "x"), ["line 6: age"]),
    "path twice": (PEOPLE.replace("60,d", "60,./a"), ["line 5: path './a' is a duplicate"]),
    "path above": (PEOPLE.replace("29,a", "29,../images/a"),
                   ["line 2: path '../images/a' is outside images/"]),
    "empty id": (PEOPLE.replace("000001", ""), ["line 2: id '' is empty"]),
    "path above, hidden": (PEOPLE.replace("29,a", "29, ../images/a"), ["is outside images/"]),
    "no folder": (PEOPLE.replace("29,a", "29,nobody"), ["nobody: ", "no photos"]),
    "a photo": (PEOPLE.replace("29,a", "29,a/normal.jpg"), ["a/normal.jpg: is a file"]),
    "too long": (PEOPLE.replace("29,a", "29,train/images/a"), ["in train.csv starts below it"]),
    "value shown": (PEOPLE.replace("female", "femal "), ["line 2: gender 'femal ' is not female"]),
    "comma behind": (PEOPLE.replace("30,b", "30,b,"), ["5 columns, the last ''"]),
}  # fmt: skip


@pytest.mark.parametrize("case", TRAIN_TABLES)
def test_mistakes_in_train_csv(folder, case):
    text, words = TRAIN_TABLES[case]
    (folder / "train/train.csv").write_text(text, newline="")
    assert_named(list_train_images, folder, words=[str(folder / "train"), *words])


def test_a_table_that_is_missing_or_not_utf_8(folder):
    path = folder / "train/train.csv"
    path.write_bytes(PEOPLE.replace("Asian", "Größe").encode("latin-1"))
    assert_named(read_people, folder, words=["train.csv", "not UTF-8"])
    path.unlink()
    assert_named(read_people, folder, words=["train.csv: no such file", "--data-dir"])


def test_bad_tables_stop_the_commands_before_anything_is_written(folder):
    (folder / "train/train.csv").write_text(PEOPLE.replace("29", "x"))
    before = sorted(folder.rglob("*"))
    data = ["--data-dir", folder]
    assert_refused(run("-m", "data.crop", *data), "train.csv", "line 2: age")
    runs = ["--output-dir", folder / "runs"]
    assert_refused(run("train.py", "--target", "age", *data, *runs), "train.csv", "line 2: age")
    assert sorted(folder.rglob("*")) == before


def test_photos_are_listed_without_hidden_and_foreign_files(folder, capsys):
    text = PEOPLE.replace("000001", "000001-2").replace("000002", "000001-1")
    (folder / "train/train.csv").write_text(text)
    person = folder / "train/images/a"
    shots = ["incorrect_mask.jpeg", "mask1.jpg", "mask2.JPG", "normal.png"]
    (person / "normal.jpg").unlink()
    for name in (*shots, "._mask1.jpg", ".DS_Store", "Thumbs.db"):
        (person / name).touch()
    (person / ".ipynb_checkpoints").mkdir()
    images = list_train_images(folder)
    assert images["file"].tolist()[:5] == [*(f"a/{name}" for name in shots), "b/normal.jpg"]
    assert images["shot"].tolist()[:4] == ["incorrect_mask", "mask1", "mask2", "normal"]
    assert len(images) == 7
    assert images["group"].tolist() == ["000001"] * 5 + ["000003", "000004"]
    assert "left out, not photos that Pillow reads: 1 .db" in capsys.readouterr().out


def test_only_the_competitions_ids_make_one_person_of_two(folder):
    ids = ("site-0001", "site-0002", "2021-0001", "2021-0002")
    text = PEOPLE
    for number, name in enumerate(ids, start=1):
        text = text.replace(f"00000{number}", name)
    (folder / "train/train.csv").write_text(text)
    assert read_people(folder)["group"].tolist() == [*ids]


def test_names_in_another_unicode_form_are_the_same(folder):
    one, other = (unicodedata.normalize(form, "José 여름") for form in ("NFC", "NFD"))
    (folder / "train/images/a").rename(folder / "train/images" / other)
    (folder / "train/train.csv").write_text(PEOPLE.replace("29,a", f"29,{one}"), encoding="utf-8")
    assert list_train_images(folder)["file"][0] == f"{other}/normal.jpg"
    (folder / "eval/images/a.jpg").rename(folder / "eval/images" / f"{other}.jpg")
    for name, text in (("info.csv", INFO), ("answers.csv", ANSWERS)):
        (folder / "eval" / name).write_text(text.replace("a.jpg", f"{one}.jpg"), encoding="utf-8")
    info, files = read_info(folder)
    assert (info["ImageID"][0], files[0]) == (f"{one}.jpg", f"{other}.jpg")
    assert read_answers(folder / "eval/answers.csv", info).tolist() == [17, 0, 3]
    twice = PEOPLE.replace("29,a", f"29,{one}").replace("30,b", f"30,{other}")
    (folder / "train/train.csv").write_text(twice, encoding="utf-8")
    assert_named(read_people, folder, words=["line 3: path", "is a duplicate"])


def test_mistakes_in_the_folders_of_people(folder):
    (folder / "train/images/a/normal.jpg").unlink()
    (folder / "train/images/b/smile.jpg").touch()
    words = ["a: ", "no photos", "b/smile.jpg: not a shot"]
    assert_named(list_train_images, folder, words=words)


# --- info.csv and the answers


def test_info_keeps_other_columns_and_answers_follow_its_order(folder):
    (folder / "eval/info.csv").write_text("note,ImageID,ans\n01,c.jpg,0\n02,a.jpg,0\n")
    info, files = read_info(folder)
    assert files == ["c.jpg", "a.jpg"]
    (folder / "eval/info.csv").write_text("note,imageid, ANS,\n01,c.jpg,0,\n02,a.jpg,0,\n")
    assert read_info(folder)[0].equals(info)
    assert info.to_dict("list") == {
        "note": ["01", "02"], "ImageID": ["c.jpg", "a.jpg"], "ans": ["0", "0"],
    }  # fmt: skip
    assert read_answers(folder / "eval/answers.csv", info).tolist() == [3, 17]


EVAL_TABLES = {
    "info.csv": [
        (INFO.replace("ImageID", "image"), "no column ImageID"),
        (INFO + "./a.jpg,0\n", "line 5: ImageID './a.jpg' is a duplicate"),
        (INFO.replace("b.jpg", "gone.jpg"), "line 3: ImageID 'gone.jpg' is not in"),
        (INFO.replace("b.jpg", "../info.csv"), "line 3: ImageID '../info.csv' is outside"),
    ],
    "answers.csv": [
        (ANSWERS.replace("b.jpg", "d.jpg"), "b.jpg has no class from 0 to 17"),
        (ANSWERS.replace("17", "18"), "a.jpg has no class from 0 to 17"),
        (ANSWERS.replace("17", "young"), "has no class from 0 to 17"),
        (ANSWERS + "a.jpg,17\n", "line 5: ImageID 'a.jpg' is a duplicate"),
        (INFO, "every ans is 0"),
    ],
}


@pytest.mark.parametrize("name", EVAL_TABLES)
def test_mistakes_in_info_and_answers(folder, name):
    info, _ = read_info(folder)
    path = folder / "eval" / name
    for text, words in EVAL_TABLES[name]:
        path.write_text(text)
        function = {"info.csv": (read_info, folder), "answers.csv": (read_answers, path, info)}
        assert_named(*function[name], words=[name, words])


# --- label fixes


def test_label_fixes(sample_dir, tmp_path, capsys):
    images = list_train_images(sample_dir)
    one, two = images.drop_duplicates("id").head(2).to_dict("records")
    other = {"male": "female", "female": "male"}[one["gender"]]
    path = tmp_path / "fixes.csv"
    path.write_text(
        f"id,field,old,new\n {one['id']},gender,{one['gender'][0].upper()},{other}\n"
        f"{two['id']},age,119,77\n{two['id']},shot,normal,incorrect_mask\n"
        f"{two['id']},shot,incorrect_mask,normal\n{one['id']},age,{one['age']},77\n"
        "nobody,gender,male,female\n"
    )
    fixed = fix_labels(images, path)
    assert len(fixed.compare(images)) == 9  # seven photos of one, two shots of the other
    assert set(fixed["gender"][fixed["id"] == one["id"]]) == {other}
    assert set(fixed["age"][fixed["id"] == one["id"]]) == {77}
    shots = fixed[fixed["id"] == two["id"]].set_index("file")["shot"]
    assert shots[f"{two['path']}/normal.jpg"] == "incorrect_mask"
    assert shots[f"{two['path']}/incorrect_mask.jpg"] == "normal"
    printed = capsys.readouterr().out.splitlines()
    assert f"{one['id']}, gender {one['gender']} -> {other}: 7 photos" in printed[0]
    assert printed[4:] == [
        f"{path}: 4 of 6 rows applied",
        f"{path}: not applied, no such id or its label isn't the old value: line 3, 7",
    ]


def test_mistakes_in_label_fixes(tmp_path):
    path = tmp_path / "fixes.csv"
    path.write_text("id,field,old,new\n1,race,a,b\n1,age,3,4\n1,gender,male,man\n1,age,3,200\n")
    words = [
        "fixes.csv: line 2: field 'race'",
        "line 4: new 'man' is no gender",
        "line 5: new '200' is no age",
    ]
    assert_named(fix_labels, pd.DataFrame(), path, words=words)
    words = ["none.csv: no such file", "data/label_fixes.csv"]
    assert_named(fix_labels, pd.DataFrame(), tmp_path / "none.csv", words=words)


def test_the_competitions_label_fixes_are_well_formed(sample_dir):
    fixes = pd.read_csv(ROOT / "data/label_fixes.csv", dtype=str)
    assert fixes["field"].value_counts().to_dict() == {"gender": 9, "shot": 6}
    images = list_train_images(sample_dir)
    assert fix_labels(images, ROOT / "data/label_fixes.csv").equals(images)
