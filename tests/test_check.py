import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from conftest import assert_refused, run, run_ok, spawn
from data.labels import list_train_images

AGES = "under 30", "30 to 59", "60 and over"


@pytest.fixture
def data_dir(sample_dir, tmp_path):
    """A copy of the sample, with its crops, to spoil."""
    return shutil.copytree(sample_dir, tmp_path / "data")


def check(folder, *arguments, run=run):
    return run("-m", "ETC.check", "--data-dir", folder, *arguments)


def page(folder, *arguments):
    return run_ok("-m", "ETC.check", "--data-dir", folder, *arguments)


def people_of(folder):
    return pd.read_csv(folder / "train" / "train.csv", dtype=str)


def relabel(folder, row, **values):
    table = people_of(folder)
    for column, value in values.items():
        table.loc[row, column] = value
    table.to_csv(folder / "train" / "train.csv", index=False)


def train_photo(folder, row, shot):
    return folder / "train" / "images" / people_of(folder)["path"][row] / f"{shot}.jpg"


def facts(text, name):
    """The lines of a fact: the first's value and those below it without a name."""
    lines = iter(text.splitlines())
    found = [next(line for line in lines if line.startswith(f"  {name:<18}"))]
    for line in lines:
        if not line.startswith(" " * 20):
            break
        found.append(line)
    return [line[20:] for line in found]


def found(text, what):
    """(count, lines) of a section such as "suspicious labels"."""
    lines = iter(text.splitlines())
    head = next(line for line in lines if line.startswith(f"{what}: "))
    listed = []
    for line in lines:
        if not line.startswith("  "):
            break
        listed.append(line.strip())
    return head.removeprefix(f"{what}: "), listed


def test_clean_data(sample_dir):
    before = sorted(sample_dir.rglob("*"))
    text = page(sample_dir)
    assert "train: 12 people, 84 photos" in text
    assert "eval: 42 images in info.csv" in text
    assert facts(text, "photos a person") == ["12 people with 7"]
    assert facts(text, "photos by mask") == ["60 worn, 12 incorrect, 12 not worn"]
    assert facts(text, "photos by size") == ["84 of 384 x 512, JPEG RGB"]
    crops = pd.read_csv(sample_dir / "train" / "crops.csv")["method"].value_counts()
    names = {"mtcnn": "by mtcnn", "center": "without a face (cropped centrally)"}
    assert facts(text, "crops") == [f"{count} {names[name]}" for name, count in crops.items()]
    for what in ("unreadable photos", "suspicious labels", "identical photos"):
        assert found(text, what) == ("none", [])
    assert text.endswith("ready for train.py and test.py\n")
    assert sorted(sample_dir.rglob("*")) == before


def test_class_table_counts_what_the_official_classes_say(data_dir):
    train_photo(data_dir, 3, "mask2").unlink()
    train_photo(data_dir, 3, "normal").unlink()
    relabel(data_dir, 5, age="60")
    relabel(data_dir, 6, age="59")
    # An independent count: by the words of the labels, not by the project's numbers.
    counts = dict.fromkeys(range(18), 0)
    for row in list_train_images(data_dir).itertuples():
        mask = ["mask", "incorrect_mask", "normal"].index(row.shot.rstrip("12345"))
        age = (row.age >= 30) + (row.age >= 60)
        counts[mask * 6 + (row.gender == "female") * 3 + age] += 1
    text = page(data_dir, "--quick")
    table = facts(text, "photos (class)")[1:]
    cells = [line[26:].replace("(", "").replace(")", "").split() for line in table]
    shown = {int(k): int(n) for row in cells for n, k in zip(row[::2], row[1::2])}
    assert shown == counts
    names = [f"{gender:<8}{age}" for gender in ("male", "female") for age in AGES]
    assert [line[:20].strip() for line in table] == names
    assert [[int(k) for k in row[1::2]] for row in cells] == [[k, k + 6, k + 12] for k in range(6)]
    assert sum(int(line[20:26]) for line in table) == 12
    person = people_of(data_dir)["path"][3]
    lines = ["11 people with 7", f"1 people with 5, first {person}"]
    assert facts(text, "photos a person") == lines


def test_other_mask_ratios(data_dir):
    for row in range(12):
        for shot in ("mask3", "mask4", "mask5"):
            train_photo(data_dir, row, shot).unlink()
    shutil.copy(train_photo(data_dir, 0, "mask1"), train_photo(data_dir, 0, "mask12"))
    text = page(data_dir, "--split", "train")
    assert facts(text, "photos by mask") == ["25 worn, 12 incorrect, 12 not worn"]
    assert facts(text, "photos a person")[0] == "11 people with 4"
    person = people_of(data_dir)["path"][0]
    assert found(text, "identical photos") == (
        "1",
        [f"one person: train/images/{person}/mask1.jpg = train/images/{person}/mask12.jpg"],
    )


def test_labels_that_contradict_each_other(data_dir):
    """Told, but no reason to stop."""
    people = people_of(data_dir)
    other = {"female": "male", "male": "female"}
    relabel(data_dir, 0, gender=other[people["gender"][0]])
    relabel(data_dir, 1, age="77")
    relabel(data_dir, 2, id="999999")
    # One id given twice: ids, genders and ages of people 3 and 4 then contradict folder names too.
    relabel(data_dir, 3, id="000500-1", gender="male", age="20")
    relabel(data_dir, 4, id="000500-2", gender="female", age="21")
    count, lines = found(page(data_dir, "--quick"), "suspicious labels")
    path = people["path"]
    assert f"{path[0]}: gender is {other[people['gender'][0]]} in train.csv" in lines
    assert f"{path[1]}: age is 77 in train.csv" in lines
    assert f"{path[2]}: id is 999999 in train.csv" in lines
    genders = f"{path[3]}: male, {path[4]}: female"
    assert f"id 000500: several values of gender, {genders}" in lines
    assert f"id 000500: several values of age, {path[3]}: 20, {path[4]}: 21" in lines
    assert int(count) == len(lines)
    assert not [line for line in lines if line.startswith(path[5])]


def test_folder_names_without_labels_are_not_suspicious(data_dir):
    images = data_dir / "train" / "images"
    for row, path in enumerate(people_of(data_dir)["path"]):
        (images / path).rename(images / f"person {row}")
        relabel(data_dir, row, path=f"person {row}", age=str(row * 10))
    assert found(page(data_dir, "--quick"), "suspicious labels") == ("none", [])


def test_identical_photos(data_dir):
    evals = sorted((data_dir / "eval" / "images").iterdir())
    first, second = (train_photo(data_dir, row, "mask1") for row in (0, 1))
    shutil.copy(first, second)
    shutil.copy(train_photo(data_dir, 2, "normal"), evals[0])
    shutil.copy(evals[1], evals[2])
    names = {path: path.relative_to(data_dir).as_posix() for path in (first, second, *evals[:3])}
    leak = train_photo(data_dir, 2, "normal").relative_to(data_dir).as_posix()
    lines = [
        f"train and eval: {leak} = {names[evals[0]]}",
        f"two people: {names[first]} = {names[second]}",
        f"eval: {names[evals[1]]} = {names[evals[2]]}",
    ]
    assert found(page(data_dir), "identical photos") == ("3", lines)
    assert found(page(data_dir, "--split", "eval"), "identical photos") == ("1", lines[2:])
    assert "identical photos: not looked for" in page(data_dir, "--quick")


def test_unreadable_photos(data_dir):
    whole = train_photo(data_dir, 0, "normal").read_bytes()
    train_photo(data_dir, 0, "normal").write_bytes(whole[: len(whole) // 2])
    for photo in sorted((data_dir / "eval" / "images").iterdir())[:24]:
        photo.write_bytes(b"no photo")
    done = check(data_dir)
    assert_refused(done, "25 unreadable photos", "--skip-bad", "normal.jpg")
    count, lines = found(done.stdout, "unreadable photos")
    assert count == "25"
    assert len(lines) == 21
    assert lines[-1] == "and 5 more"
    assert "normal.jpg: not a readable image" in lines[0]
    assert "ready for" not in done.stdout
    assert "ready for" in page(data_dir, "--skip-bad")
    # The header of half a JPEG is whole.
    assert_refused(check(data_dir, "--quick"), "24 unreadable photos")
    assert "ready for train.py\n" in page(data_dir, "--quick", "--split", "train")


def test_sizes_and_formats(data_dir):
    gray = Image.fromarray(np.zeros((30, 20), np.uint8))
    gray.save(train_photo(data_dir, 0, "normal").with_suffix(".png"))
    train_photo(data_dir, 0, "normal").unlink()
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(np.zeros((30, 20, 3), np.uint8)).save(
        train_photo(data_dir, 0, "mask1"), exif=turned
    )
    sizes = ["82 of 384 x 512, JPEG RGB", "1 of 20 x 30, PNG L", "1 of 30 x 20, JPEG RGB"]
    for quick in ([], ["--quick"]):
        text = page(data_dir, "--split", "train", *quick)
        lines = facts(text, "photos by size")
        assert lines[0] == sizes[0]
        assert sorted(lines) == sorted(sizes)


def test_photos_in_no_table(data_dir):
    images = data_dir / "train" / "images"
    shutil.copytree(images / people_of(data_dir)["path"][0], images / "nobody")
    (images / ".ipynb_checkpoints").mkdir()
    for hidden in (".ipynb_checkpoints/mask1.jpg", "nobody/._mask1.jpg", "nobody/notes.txt"):
        (images / hidden).write_bytes(b"")
    shutil.copy(train_photo(data_dir, 0, "normal"), data_dir / "eval" / "images" / "extra.jpg")
    (images / "nobody" / "mask9.heic").write_bytes(b"")
    what = "files not in train/train.csv and eval/info.csv"
    count, lines = found(page(data_dir, "--quick"), what)
    assert count == "10"
    assert "train/images/nobody/mask9.heic" in lines
    assert "eval/images/extra.jpg" in lines
    assert "train/images/nobody/mask1.jpg" in lines


def test_crops(data_dir, tmp_path):
    photo = train_photo(data_dir, 0, "normal")
    os.utime(photo, ns=(1, 1))
    assert "1 not cropped, or changed since" in facts(page(data_dir, "--quick"), "crops")
    crop = next((data_dir / "train" / "new_img").glob("*1/mask1.jpg"))
    crop.unlink()
    assert "2 not cropped, or changed since" in facts(page(data_dir, "--quick"), "crops")
    assert facts(page(data_dir, "--crop-dir", tmp_path, "--quick"), "crops") == ["none yet"]
    settings = data_dir / "train" / "crops.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "margin_x": 7}))
    lines = facts(page(data_dir, "--quick"), "crops")
    assert lines[-1] == "made with --margin-x 7, which train.py has to be given, too"
    settings.write_text("[]")
    assert "made with" in page(data_dir, "--quick")
    (data_dir / "train" / "crops.csv").write_text("nonsense")
    assert_refused(check(data_dir, "--quick"), "crops.csv", "delete both")


def test_problems_of_both_tables_at_once(data_dir, sample_dir):
    shutil.rmtree(train_photo(data_dir, 0, "normal").parent)
    shutil.rmtree(train_photo(data_dir, 1, "normal").parent)
    next((data_dir / "eval" / "images").iterdir()).unlink()
    gone = people_of(data_dir)["path"][:2]
    assert_refused(check(data_dir), *gone, "info.csv", "no such image")
    assert_refused(check(data_dir, "--split", "train"), *gone)
    shutil.copytree(sample_dir / "eval", data_dir / "eval", dirs_exist_ok=True)
    done = check(data_dir, "--quick")
    assert_refused(done, *gone)
    assert "eval: 42 images" in done.stdout  # what is good is told nevertheless


def test_one_part_alone(data_dir):
    shutil.rmtree(data_dir / "eval")
    text = page(data_dir, "--quick")
    assert "eval: no folder" in text
    assert text.endswith("ready for train.py\n")
    assert_refused(check(data_dir, "--split", "eval"), "info.csv", "no such file")
    shutil.copytree(data_dir / "train", data_dir / "other")
    shutil.rmtree(data_dir / "train")
    assert_refused(check(data_dir, "--split", "train"), "train.csv")


def test_eval_alone(data_dir):
    shutil.rmtree(data_dir / "train")
    text = page(data_dir, "--quick")
    assert "train: no folder" in text
    assert text.endswith("ready for test.py\n")


def test_photos_of_the_other_part_are_no_layout_to_explain(data_dir):
    (data_dir / "train" / "train.csv").unlink()
    done = check(data_dir, "--split", "train")
    assert_refused(done, "train.csv: no such file, but photos", data_dir / "train/images")
    shutil.rmtree(data_dir / "train" / "images")  # crops and eval's photos are left
    assert_refused(check(data_dir, "--split", "train"), "train.csv: no such file; put")


def test_not_one_readable_photo(data_dir):
    for photo in (data_dir / "eval" / "images").iterdir():
        photo.write_bytes(b"")
    assert_refused(check(data_dir, "--skip-bad"), "eval: not one readable photo")


def test_other_separators_and_spaces(data_dir):
    path = data_dir / "train" / "train.csv"
    text = path.read_text()
    for separator in (";", "\t"):
        path.write_text(text.replace(",", separator))
        assert_refused(check(data_dir, "--quick"), "train.csv", "separate them by commas")
    path.write_text(text.replace("gender,", " gender,", 1))
    assert_refused(check(data_dir, "--quick"), "no column gender", "no spaces around a name")


def test_a_table_saved_by_excel_in_korea(data_dir):
    people = people_of(data_dir)
    people.assign(name="한국").to_csv(data_dir / "train/train.csv", index=False, encoding="cp949")
    assert_refused(check(data_dir), "train.csv", "not UTF-8", "CSV UTF-8")


def test_too_few_people(data_dir):
    people_of(data_dir)[:4].to_csv(data_dir / "train" / "train.csv", index=False)
    assert_refused(check(data_dir, "--split", "train"), "too few")


@pytest.mark.parametrize("folder", ["mask", "train/male", "train/images/male"])
def test_folder_per_class(tmp_path, folder):
    (tmp_path / folder).mkdir(parents=True)
    for number in range(3):
        (tmp_path / folder / f"{number}.jpg").write_bytes(b"")
    assert_refused(
        check(tmp_path), "train.csv", f"3 of them in {tmp_path / folder}", "one row a person"
    )


def test_eval_photos_without_a_table(data_dir):
    (data_dir / "eval" / "info.csv").unlink()
    shutil.rmtree(data_dir / "train")
    assert_refused(check(data_dir), "eval/info.csv", "ImageID,ans", "test.py --images")


def test_folder_beside_the_data(data_dir):
    for folder in (data_dir / "train", data_dir.parent):
        assert_refused(check(folder), f"try --data-dir {data_dir}")


def test_no_data(tmp_path):
    assert_refused(check(tmp_path / "nowhere"), "train.csv", "no such file", "ETC.sample")
    assert_refused(check(tmp_path), "train.csv", "ETC.sample")
    file = tmp_path / "file"
    file.write_text("")
    assert_refused(check(file), "train.csv")


def test_as_a_command(sample_dir):
    done = check(sample_dir, "--quick", "--num-workers", 0, run=spawn)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
