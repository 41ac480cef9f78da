"""One row per kind of bad input: one clear line, exit status 2, nothing written."""

import io
import os
import shutil
import struct
import zlib

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from conftest import SMALL, assert_refused, run, run_ok
from utils.checkpoint import load_checkpoint, save_checkpoint


@pytest.fixture(scope="module")
def original(sample_dir, runs_dir, tmp_path_factory):
    """A folder with data, cropped, and runs, to spoil copies of."""
    folder = tmp_path_factory.mktemp("original")
    shutil.copytree(sample_dir, folder / "data", copy_function=shutil.copy2)
    for name in ("mask_fold0", "gender_fold1", "age_fold0"):
        (folder / "runs" / name).mkdir(parents=True)
        shutil.copy2(runs_dir / name / "best.pth", folder / "runs" / name)
    return folder


@pytest.fixture
def box(original, tmp_path):
    """A copy to spoil; the unspoilt half of a test's work."""
    for name in ("data", "runs"):
        shutil.copytree(original / name, tmp_path / name, copy_function=shutil.copy2)
    return tmp_path


def files(folder):
    return {
        path: path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if path.name not in ("crops.csv", "crops.json", "crops.lock") and path.suffix != ".onnx"
    }


def crop(box, *arguments):
    return run("-m", "data.crop", "--data-dir", box / "data", *arguments)


def fit(box, *arguments):
    return run("train.py", "--target", "age", "--data-dir", box / "data", *SMALL,
               "--output-dir", box / "runs", "--num-workers", 0, *arguments)  # fmt: skip


def predict(box, *arguments):
    return run("test.py", "--data-dir", box / "data", "--runs", box / "runs", "--num-workers", 0,
               "--output", box / "submission.csv", *arguments)  # fmt: skip


# Tables: (which, how its text is changed, words of the message).


def cell(row, column, value):
    """Change one cell; the file's line is row + 2."""

    def change(text):
        table = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
        table.loc[row, column] = value
        return table.to_csv(index=False)

    return change


def twice(text):
    return text + text.splitlines()[-1] + "\n"


def without(column):
    return lambda text: text.replace(column, "other", 1)


TRAIN_TABLES = {
    "missing": (None, "no such file", "--data-dir"),
    "empty": (lambda text: "", "not a readable CSV"),
    "header alone": (lambda text: text.splitlines()[0] + "\n", "no rows"),
    "no id": (without("id"), "no column id"),
    "no gender": (without("gender"), "no column gender"),
    "no age": (without("age"), "no column age"),
    "no path": (without("path"), "no column path"),
    "ragged": (lambda text: text + "1,2,3,4,5,6,7,8\n", "not a readable CSV"),
    "NUL": (lambda text: text.replace("female", "fem\0ale", 1), "gender"),
    "unknown gender": (cell(3, "gender", "man"), "line 5: gender"),
    "empty gender": (cell(3, "gender", ""), "line 5: gender"),
    "age in words": (cell(0, "age", "old"), "line 2: age"),
    "no age given": (cell(0, "age", ""), "line 2: age"),
    "negative age": (cell(1, "age", "-1"), "line 3: age"),
    "age 121": (cell(1, "age", "121"), "line 3: age"),
    "half a year": (cell(1, "age", "30.5"), "line 3: age"),
    "infinite age": (cell(1, "age", "inf"), "line 3: age"),
    "two problems": (lambda text: cell(1, "age", "x")(cell(4, "gender", "x")(text)), "line 3: age",
                     "line 6: gender"),
    "person twice": (twice, "line 14: path stands there twice"),
    "absolute path": (cell(2, "path", "/etc"), "line 4: path leaves images/"),
    "path above": (cell(2, "path", "../../eval"), "line 4: path leaves images/"),
    "path in other words": (cell(2, "path", "x/../../images/../y"), "line 4: path leaves"),
    "way round": (cell(2, "path", "../images/somebody"), "line 4: path leaves"),
    "empty id": (cell(2, "id", ""), "line 4: id is empty"),
    "empty path": (cell(2, "path", ""), "line 4: path leaves"),
    "endless path": (cell(2, "path", "a" * 5000), "no photos of this person"),
    "person without folder": (cell(2, "path", "nobody"), "nobody: no photos"),
}  # fmt: skip


def spoil(path, change):
    if change is None:
        path.unlink()
    else:
        text = change(path.read_text(encoding="utf-8"))
        path.write_text(text, encoding="utf-8", newline="")


@pytest.mark.parametrize("command", [crop, fit])
@pytest.mark.parametrize("case", TRAIN_TABLES)
def test_train_csv(box, case, command):
    change, *words = TRAIN_TABLES[case]
    spoil(box / "data/train/train.csv", change)
    before = files(box)
    assert_refused(command(box), *words)
    assert files(box) == before


INFO_TABLES = {
    "missing": (None, "no such file", "--data-dir"),
    "empty": (lambda text: "", "not a readable CSV"),
    "header alone": (lambda text: "ImageID,ans\n", "no rows"),
    "no ImageID": (without("ImageID"), "no column ImageID"),
    "no ans": (without("ans"), "no column ans"),
    "image twice": (twice, "line 44: ImageID stands there twice"),
    "image missing": (cell(5, "ImageID", "gone.jpg"), "line 7: no such image"),
    "empty id": (cell(5, "ImageID", ""), "line 7: ImageID leaves"),
    "id above": (cell(5, "ImageID", "../info.csv"), "line 7: ImageID leaves"),
    "absolute id": (cell(5, "ImageID", "/etc/passwd"), "line 7: ImageID leaves"),
    "way round": (lambda text: text.replace("\n", "\n../images/", 1), "line 2: ImageID leaves"),
    "id with NUL": (lambda text: text.replace(".jpg", ".j\0pg", 1), "line 2"),
    "id of a folder": (cell(5, "ImageID", "folder"), "line 7: no such image"),
}


@pytest.mark.parametrize("command", [crop, predict])
@pytest.mark.parametrize("case", INFO_TABLES)
def test_info_csv(box, case, command):
    change, *words = INFO_TABLES[case]
    (box / "data/eval/images/folder").mkdir()
    spoil(box / "data/eval/info.csv", change)
    before = files(box)
    assert_refused(command(box), "info.csv", *words)
    assert files(box) == before


ANSWERS = {
    "missing": (None, "no such file"),
    "no ans": (without("ans"), "no column ans"),
    "an answer missing": (lambda text: "".join(text.splitlines(True)[:-1]), "for 1 images"),
    "no class": (cell(3, "ans", "18"), "no class from 0 to 17"),
    "a word": (cell(3, "ans", "young"), "no class from 0 to 17"),
    "image twice": (twice, "twice"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_answers(box, case):
    change, *words = ANSWERS[case]
    spoil(box / "data/eval/answers.csv", change)
    before = files(box)
    assert_refused(predict(box, "--answers", box / "data/eval/answers.csv"), "answers.csv", *words)
    assert files(box) == before


def test_other_columns_names_and_inner_links_are_taken(box):
    for name in ("train/train.csv", "eval/info.csv"):
        path = box / "data" / name
        table = pd.read_csv(path, dtype=str).assign(note="a, b")
        table.to_csv(path, index=False, encoding="utf-8-sig")  # as Excel writes
    person = next((box / "data/train/images").iterdir())
    (person / "mask1.jpg").rename(person / "mask1.JPG")
    for hidden in ("._mask1.jpg", ".DS_Store", ".mask2.png"):
        (person / hidden).write_bytes(b"hidden")
    (person / ".ipynb_checkpoints").mkdir()
    if os.name != "nt":
        (person / "mask3.jpg").unlink()
        (person / "mask3.jpg").symlink_to("normal.jpg")
    assert crop(box).returncode == 0
    assert (box / "data/train/new_img" / person.name / "mask1.JPG").exists()
    assert predict(box).returncode == 0
    assert list(pd.read_csv(box / "submission.csv").columns) == ["ImageID", "ans", "note"]


# Folders of train photos.


def link_out(person):
    (person.parents[3] / "outside.jpg").write_bytes((person / "mask1.jpg").read_bytes())
    (person / "mask1.jpg").unlink()
    (person / "mask1.jpg").symlink_to(person.parents[3] / "outside.jpg")


def folder_linked_out(person):
    shutil.move(person, person.parents[3] / "outside")
    person.symlink_to(person.parents[3] / "outside")


PEOPLE = {
    "a person without images": (lambda person: [p.unlink() for p in person.iterdir()], "no photos"),
    "an unknown shot": (lambda person: (person / "smile.jpg").touch(), "smile.jpg: not a shot"),
    "a link that leaves": (link_out, "mask1.jpg: a link that leaves"),
    "a folder that is a link": (folder_linked_out, "path leaves images/"),
}


@pytest.mark.skipif(os.name == "nt", reason="links need privileges on Windows")
@pytest.mark.parametrize("case", PEOPLE)
def test_people(box, case):
    change, *words = PEOPLE[case]
    change(sorted((box / "data/train/images").iterdir())[4])
    before = files(box)
    assert_refused(crop(box), *words)
    assert_refused(fit(box), *words)
    assert files(box) == before


# Photos.


def png_of(width, height):
    """The bytes of a PNG that claims a size, with no pixels in it."""

    def chunk(kind, content):
        sum_ = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + sum_

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


BAD_PHOTOS = {
    "truncated": lambda photo: photo[: len(photo) // 2],
    "a header alone": lambda photo: photo[:300],
    "empty": lambda photo: b"",
    "a page": lambda photo: b"<html>404</html>",
    "random": lambda photo: np.random.default_rng(0).bytes(5000),
    "zero size": lambda photo: b"P6 0 0 255\n",
    "no width": lambda photo: png_of(0, 7),
    "a decompression bomb": lambda photo: png_of(30_000, 30_000),
    "no pixels": lambda photo: png_of(300, 300),
    "an unknown encoding": lambda photo: b"BLP2" + struct.pack("<i4b2i", 1, 9, 0, 0, 0, 64, 64)
    + bytes(2000),
}  # fmt: skip


@pytest.mark.parametrize("split", ["train", "eval"])
@pytest.mark.parametrize("case", BAD_PHOTOS)
def test_photos(box, case, split):
    path = sorted((box / "data" / split / "images").rglob("*.jpg"))[5]
    path.write_bytes(BAD_PHOTOS[case](path.read_bytes()))
    before = files(box / "runs")
    name = path.relative_to(box / "data").as_posix()
    assert_refused(crop(box), "1 bad photos", name, "--skip-bad")
    done = fit(box, "--output-dir", box / "new") if split == "train" else predict(box)
    assert_refused(done, "1 bad photos", name, "--skip-bad")
    assert files(box / "runs") == before
    assert not (box / "submission.csv").exists()
    assert not list(box.glob("new/*/*"))


def test_bad_photos_of_both_sets_are_named_at_once(box):
    bad = sorted((box / "data/train/images").rglob("*.jpg"))[7:9]
    bad += sorted((box / "data/eval/images").rglob("*.jpg"))[10:40]
    for path in bad:
        path.write_bytes(b"")
    names = sorted(path.relative_to(box / "data").as_posix() for path in bad)
    done = crop(box)
    assert_refused(done, "32 bad photos", *names[:20], "and 12 more")
    assert not any(name in done.stderr for name in names[20:])


def one_pixel(kind, mode):
    buffer = io.BytesIO()
    Image.new(mode, (1, 1)).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_photo_of_one_pixel_is_taken(box, kind):
    path = next((box / "data/train/images").rglob("*.jpg"))
    path.write_bytes(one_pixel(kind, "RGB"))
    assert crop(box).returncode == 0
    assert fit(box, "--epochs", 1, "--output-dir", box / "new").returncode == 0


def test_a_damaged_crop_is_named_with_the_way_out(box):
    person = next((box / "data/train/new_img").iterdir())
    (person / "mask1.jpg").write_bytes(b"half")
    for workers in (0, 2):
        done = fit(box, "--output-dir", box / "new", "--num-workers", workers)
        assert_refused(done, f"{person.name}/mask1.jpg", "delete this crop")
    (person / "mask1.jpg").unlink()
    assert fit(box, "--output-dir", box / "new", "--epochs", 1).returncode == 0


def test_a_damaged_manifest_is_named_with_the_way_out(box):
    for name in ("crops.csv", "crops.json"):
        path = box / "data/train" / name
        whole = path.read_bytes()
        path.write_bytes(b"{half")
        assert_refused(crop(box), name, "delete")
        path.write_bytes(whole)


def test_an_unreadable_folder_is_named(box, monkeypatch):
    person = sorted((box / "data/train/images").iterdir())[4]
    listing = type(person).iterdir

    def iterdir(path):
        if path == person:
            raise PermissionError(13, "Permission denied", str(path))
        return listing(path)

    monkeypatch.setattr(type(person), "iterdir", iterdir)
    assert_refused(crop(box), f"{person.name}: can't be read (Permission denied)")


# Checkpoints.


class Bomb:
    def __reduce__(self):
        return print, ("code in a checkpoint ran",)


def edit(**changes):
    """Change values of a checkpoint in place."""

    def change(path):
        checkpoint = load_checkpoint(path)
        del checkpoint["path"]
        save_checkpoint(path, {**checkpoint, **changes})

    return change


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def other_crops(path):
    edit(crop={**load_checkpoint(path)["crop"], "margin_x": 5})(path)


CHECKPOINTS = {
    "not a checkpoint": (lambda path: path.write_bytes(b"not one"), "not a readable checkpoint"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-1000]), "not a readable"),
    "empty": (lambda path: path.write_bytes(b""), "not a readable checkpoint"),
    "with one bit changed": (flip, "not a readable checkpoint"),
    "another head's": (lambda path: shutil.copy(path.parents[1] / "mask_fold0/best.pth", path),
                       "the head mask"),
    "another network's": (edit(model="efficientnet-b0"), "not weights of efficientnet-b0"),
    "an unknown network's": (edit(model="resnet50"), "age_fold0", "without usable model"),
    "of code": (lambda path: torch.save({"format": 1, "network": Bomb()}, path), "not a readable"),
    "a bare state dict": (lambda path: torch.save({"w": torch.ones(1)}, path), "not a checkpoint"),
    "of other crops": (other_crops, "other crops"),
    "missing": (lambda path: path.unlink(), "python train.py --target age"),
}  # fmt: skip


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_checkpoints(box, case, capfd):
    change, *words = CHECKPOINTS[case]
    change(box / "runs/age_fold0/best.pth")
    before = files(box)
    done = predict(box)
    assert_refused(done, "age", *words)
    assert "code in a checkpoint ran" not in done.stdout + capfd.readouterr().out
    assert files(box) == before


LAST = {
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-1000]), "last.pth"),
    "missing": (lambda path: path.unlink(), "no last.pth"),
    "a best.pth": (lambda path: shutil.copy(path.with_name("best.pth"), path), "not a last.pth"),
    "without its best.pth": (lambda path: path.with_name("best.pth").unlink(), "no best.pth"),
}


def test_resume(box, tmp_path):
    output = box / "new"
    assert fit(box, "--epochs", 2, "--output-dir", output).returncode == 0
    again = ["--epochs", 3, "--output-dir", output, "--resume"]
    for change, *words in LAST.values():
        shutil.copytree(output, box / "spare", dirs_exist_ok=True)
        change(output / "age_fold0/last.pth")
        before = files(output)
        assert_refused(fit(box, *again), *words, "--overwrite")
        assert files(output) == before
        shutil.copytree(box / "spare", output, dirs_exist_ok=True)

    before = files(output)
    assert_refused(fit(box, *again, "--epochs", 1), "--epochs 1", "2 epochs already")
    assert_refused(fit(box, *again, "--lr", 1), "--lr 0.0001")
    assert_refused(fit(box, *again, "--margin-x", 5, "--no-pretrained"), "--margin-x 20, no --no-p")
    photo = next((box / "data/train/images").rglob("mask1.jpg"))
    whole = photo.read_bytes()
    Image.new("RGB", (300, 300)).save(photo)
    assert_refused(fit(box, *again), "other photos or labels", "--overwrite")
    photo.write_bytes(whole)
    spoil(box / "data/train/train.csv", cell(2, "age", "80"))
    assert_refused(fit(box, *again), "other photos or labels", "--overwrite")
    assert files(output) == before


# Arguments.

TRAIN_ARGUMENTS = [
    ("--target nose", "nose"),
    ("--fold 5", "--fold"),
    ("--fold x", "--fold", "x is not a whole number"),
    ("--lr -1", "--lr"),
    ("--lr fast", "fast is not a finite number above 0"),
    ("--lr nan", "--lr"),
    ("--lr inf", "--lr"),
    ("--batch-size 0", "--batch-size"),
    ("--batch-size 99999999999999999999", "--batch-size"),
    ("--resize 1000000", "--resize"),
    ("--batch-size 1.5", "1.5 is not a whole number"),
    ("--epochs 0", "--epochs"),
    ("--num-workers -1", "--num-workers"),
    ("--loss hinge", "hinge"),
    ("--model resnet50", "resnet50"),
    ("--augment heavy", "heavy"),
    ("--resize 32", "--resize"),
    ("--age-border 30", "--age-border"),
    ("--device cuda:99", "cuda:99"),
    ("--device warp", "warp"),
    ("--precision fp8", "fp8"),
    ("--precision fp16 --device cpu", "--precision fp16"),
    ("--seed 99999999999999999999", "--seed"),
    ("--target mask --age-border 58", "--age-border"),
    ("--target mask --focal-gamma 1", "--loss focal"),
    ("--focal-gamma -1", "--focal-gamma"),
    ("--label-smoothing 0.2", "--loss label_smoothing"),
    ("--loss label_smoothing --label-smoothing 1", "--label-smoothing"),
    ("--weights x.pth --no-pretrained", "--no-pretrained"),
    ("--weights nowhere.pth", "nowhere.pth"),
    ("--weights README.md", "README.md"),
    ("--weights {box}/runs/age_fold0/best.pth", "a checkpoint of train.py"),
    ("--overwrite --resume", "--overwrite and --resume"),
    ("--resume", "no last.pth", "--overwrite"),
    ("--data-dir nowhere", "nowhere", "--data-dir"),
    ("--output-dir README.md", "README.md", "--output-dir"),
    ("--output-dir README.md/runs", "README.md", "--output-dir"),
    ("--output-dir {box}/runs", "holds a run", "--overwrite"),
    ("--crop-dir README.md", "README.md", "--crop-dir"),
    ("--min-face-size 0", "--min-face-size"),
    ("--margin-x -1", "--margin-x"),
    ("--unknown 1", "--unknown"),
    ("--tar age", "--tar"),
]


@pytest.mark.parametrize(("arguments", "words"), [(a, w) for a, *w in TRAIN_ARGUMENTS])
def test_arguments_of_train(original, tmp_path, arguments, words):
    before = files(original)
    arguments = arguments.format(box=original).split()
    given = run("train.py", "--target", "age", "--data-dir", original / "data", *SMALL,
                "--output-dir", tmp_path / "runs", *arguments)  # fmt: skip
    assert_refused(given, *words)
    assert files(original) == before
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_train_needs_a_target():
    assert_refused(run("train.py"), "--target")


TEST_ARGUMENTS = [
    ("--runs nowhere", "nowhere", "python train.py --target mask --output-dir nowhere"),
    ("--runs {box}/runs nowhere", "nowhere: no run in it", "leave it out"),
    ("--runs {box}/runs {box}/runs/age_fold0/best.pth", "--runs", "a file"),
    ("--runs {box}/runs/age_fold0", "--runs", "the folder that holds it"),
    ("--batch-size 0", "--batch-size"),
    ("--age-views -1", "--age-views"),
    ("--device cuda:99", "cuda:99"),
    ("--output {box}", "--output", "name a file"),
    ("--output {box}/probabilities.csv", "--output"),
    ("--output README.md/submission.csv", "README.md", "--output"),
    ("--output {box}/runs/mask_fold0/best.pth", "--output", "best.pth"),
    ("--output /dev/null", "name a file"),
    ("--output {box}/data/eval/info.csv", "--output", "info.csv"),
    ("--answers {box}/data/eval/answers.csv --output {box}/data/eval/answers.csv", "--output"),
    ("--answers nowhere.csv", "nowhere.csv"),
    ("--data-dir nowhere", "nowhere", "--data-dir"),
]


@pytest.mark.parametrize(("arguments", "words"), [(a, w) for a, *w in TEST_ARGUMENTS])
def test_arguments_of_test(original, tmp_path, arguments, words):
    before = files(original)
    arguments = arguments.format(box=original).split()
    given = run("test.py", "--data-dir", original / "data", "--runs", original / "runs",
                "--output", tmp_path / "s.csv", *arguments)  # fmt: skip
    assert_refused(given, *words)
    assert files(original) == before
    assert not list(tmp_path.iterdir())


def test_fewer_people_than_folds_are_refused(box):
    path = box / "data/train/train.csv"
    spoil(path, lambda text: "".join(text.splitlines(True)[:5]))
    before = files(box)
    assert_refused(fit(box, "--output-dir", box / "new"), "train.csv", "4 people", "5 folds")
    assert files(box) == before
    assert run_ok("-m", "data.crop", "--data-dir", box / "data")  # which has no folds
