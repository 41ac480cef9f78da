import itertools
import json
import os
import re
import shutil

import pandas as pd
import pytest
from PIL import Image

from conftest import assert_refused, run, run_ok
from data.labels import list_train_images


@pytest.fixture
def data_dir(sample_dir, tmp_path):
    """A copy of the sample, with its crops, to spoil."""
    return shutil.copytree(sample_dir, tmp_path / "data")


def check(folder, *arguments):
    return run("-m", "ETC.check", "--data-dir", folder, *arguments)


def page(folder, *arguments):
    return run_ok("-m", "ETC.check", "--data-dir", folder, *arguments)


def people_of(folder):
    return pd.read_csv(folder / "train/train.csv", dtype=str)


def relabel(folder, row, **values):
    table = people_of(folder)
    for column, value in values.items():
        table.loc[row, column] = value
    table.to_csv(folder / "train/train.csv", index=False)


def train_photo(folder, row, shot):
    return folder / "train/images" / people_of(folder)["path"][row] / f"{shot}.jpg"


def below(text, head):
    """What follows head in its line, and the lines below it that are indented further."""
    indent = len(head) - len(head.lstrip()) + 2
    first, *rest = text[text.index(f"\n{head}") + 1 :].splitlines()
    rest = itertools.takewhile(lambda line: line.startswith(" " * indent), rest)
    return [first.removeprefix(head).strip(), *(line.strip() for line in rest)]


def test_clean_data(sample_dir):
    before = paths_in(sample_dir)
    text = page(sample_dir)
    assert "train: 12 people, 84 photos" in text
    assert "eval: 42 images in info.csv" in text
    assert below(text, "  people ") == ["12 with 7 photos each"]
    assert below(text, "  photos by mask ") == ["60 worn, 12 incorrect, 12 not worn"]
    assert below(text, "  photos by size ") == ["84 of 384 x 512, JPEG RGB"]
    crops = pd.read_csv(sample_dir / "train/crops.csv")["method"].value_counts()
    names = {
        "mtcnn": "by mtcnn",
        "mtcnn, second look": "by mtcnn's second look",
        "center": "without a face (cropped centrally)",
    }
    assert below(text, "  crops ") == [f"{count} {names[name]}" for name, count in crops.items()]
    for what in ("unreadable photos", "suspicious labels", "identical photos"):
        assert below(text, f"{what}: ") == ["none"]
    assert text.endswith("ready for train.py and test.py\n")
    assert paths_in(sample_dir) == before


def paths_in(folder):
    """All paths below, but for the resized crops that a test beside this one may be writing."""
    return sorted(path for path in folder.rglob("*") if "resized_" not in path.name)


def test_class_table_counts_the_official_classes(data_dir):
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
    text = page(data_dir)
    cells = [re.findall(r"\d+", line[26:]) for line in below(text, "  photos (class) ")[1:]]
    assert {int(k): int(n) for row in cells for n, k in zip(row[::2], row[1::2])} == counts
    assert below(text, "  people ") == ["11 with 7 photos each", "1 with 5 photos each"]


def test_labels_that_contradict_each_other(data_dir):
    """Shown, but no reason to stop."""
    people = people_of(data_dir)
    other = {"female": "male", "male": "female"}[people["gender"][0]]
    relabel(data_dir, 0, gender=other)
    relabel(data_dir, 1, age="77")
    # Two rows with one id; they contradict the names of their folders as well.
    relabel(data_dir, 3, id="000500-1", gender="male", age="20")
    relabel(data_dir, 4, id="000500-2", gender="female", age="21")
    lines = below(page(data_dir), "suspicious labels: ")
    path = people["path"]
    assert f"{path[0]}: gender is {other} in train.csv" in lines
    assert f"{path[1]}: age is 77 in train.csv" in lines
    assert f"{path[3]}: id is 000500-1 in train.csv" in lines
    genders = f"{path[3]}: male, {path[4]}: female"
    assert f"id 000500: several values of gender, {genders}" in lines
    assert f"id 000500: several values of age, {path[3]}: 20, {path[4]}: 21" in lines


def test_identical_photos(data_dir):
    evals = sorted((data_dir / "eval/images").iterdir())
    first, second = (train_photo(data_dir, row, "mask1") for row in (0, 1))
    shutil.copy(first, second)
    normal = train_photo(data_dir, 2, "normal")
    shutil.copy(normal, evals[0])
    shutil.copy(evals[1], evals[2])
    pairs = [(normal, evals[0]), (first, second), evals[1:3]]
    lines = [" = ".join(path.relative_to(data_dir).as_posix() for path in pair) for pair in pairs]
    assert below(page(data_dir), "identical photos: ") == ["3", *lines]


def test_unreadable_photos(data_dir):
    whole = train_photo(data_dir, 0, "normal").read_bytes()
    train_photo(data_dir, 0, "normal").write_bytes(whole[: len(whole) // 2])
    evals = sorted((data_dir / "eval/images").iterdir())
    for photo in evals[:24]:
        photo.write_bytes(b"no photo")
    done = check(data_dir)
    assert_refused(done, "25 unreadable photos", "--skip-bad", "normal.jpg")
    count, *lines = below(done.stdout, "unreadable photos: ")
    assert (count, len(lines), lines[-1]) == ("25", 21, "and 5 more")
    assert "normal.jpg: not a readable image" in lines[0]
    assert "ready for" not in done.stdout
    run_ok("-m", "data.crop", "--data-dir", data_dir, "--split", "eval", "--skip-bad")
    text = page(data_dir, "--skip-bad")
    assert "ready for" in text
    assert "24 unreadable" in below(text.split("eval: ")[1], "  crops ")
    for photo in evals:
        photo.write_bytes(b"")
    assert_refused(check(data_dir, "--skip-bad", "--split", "eval"), "not one readable photo")


def test_sizes_formats_and_files_in_no_table(data_dir):
    Image.new("L", (20, 30)).save(train_photo(data_dir, 0, "normal").with_suffix(".png"))
    train_photo(data_dir, 0, "normal").unlink()
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (20, 30)).save(train_photo(data_dir, 0, "mask1"), exif=turned)
    images = data_dir / "train/images"
    for name in (".ipynb_checkpoints/mask1.jpg", "nobody/._mask1.jpg", "nobody/mask9.heic"):
        (images / name).parent.mkdir(exist_ok=True)
        (images / name).touch()
    shutil.copy(train_photo(data_dir, 0, "mask2"), data_dir / "eval/images/extra.jpg")
    text = page(data_dir)
    sizes = ["82 of 384 x 512, JPEG RGB", "1 of 20 x 30, PNG L", "1 of 30 x 20, JPEG RGB"]
    assert sorted(below(text, "  photos by size ")) == sorted(sizes)
    files = ["eval/images/extra.jpg", "train/images/nobody/mask9.heic"]
    assert below(text, "files not in train/train.csv and eval/info.csv: ") == ["2", *files]


def test_crops(data_dir, tmp_path):
    os.utime(train_photo(data_dir, 0, "normal"), ns=(1, 1))
    next((data_dir / "train/new_img").glob("*1_*/mask1.jpg")).unlink()
    assert "2 not cropped, or changed since" in below(page(data_dir), "  crops ")
    text = page(data_dir, "--crop-dir", tmp_path)
    assert below(text, "  crops ") == ["84 not cropped, or changed since"]
    settings = data_dir / "train/crops.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "margin_x": 7}))
    lines = below(page(data_dir), "  crops ")
    assert lines[-1] == f"made with other settings than the defaults: {settings}"
    (data_dir / "train/crops.csv").write_text("nonsense")
    assert_refused(check(data_dir), "crops.csv", "delete both")


def test_one_part_alone_or_with_problems(data_dir):
    path = train_photo(data_dir, 0, "normal").parent
    path.rename(path.with_name("other"))
    assert_refused(done := check(data_dir), path.name)
    assert "eval: 42 images" in done.stdout  # the part without problems is shown nevertheless
    next((data_dir / "eval/images").iterdir()).unlink()
    assert_refused(check(data_dir), path.name, "info.csv", "is not in images")
    path.with_name("other").rename(path)
    (data_dir / "eval").rename(data_dir / "other")
    text = page(data_dir)
    assert "eval: no folder" in text
    assert text.endswith("ready for train.py\n")
    assert_refused(check(data_dir, "--split", "eval"), "no such file")


def test_photos_without_a_table(data_dir, tmp_path):
    assert_refused(check(data_dir.parent), "train.csv", "photos in", "--data-dir")
    (data_dir / "train/train.csv").unlink()
    assert_refused(check(data_dir, "--split", "train"), "but photos in", "one row per person")
    (data_dir / "eval/info.csv").unlink()
    assert_refused(check(data_dir, "--split", "eval"), "info.csv", "ImageID,ans", "ETC.predict")
    shutil.rmtree(data_dir / "eval")  # the train photos are none of it
    assert_refused(check(data_dir, "--split", "eval"), "info.csv: no such file; put")
    assert_refused(check(tmp_path / "nowhere"), "train.csv: no such file; put", "ETC.sample")
