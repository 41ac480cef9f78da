"""test.py --images: photos that are in no table."""

import os
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from config import config
from conftest import assert_refused, run, run_ok, spawn
from data.images import load_image
from data.labels import merge_labels
from data.photos import boxes_in, list_photos
from ETC.sheet import COLORS, MAX_PHOTOS, draw_sheet

SETTINGS = {
    "detector": "mtcnn",
    "min_face_size": 50,
    "margin_x": 20,
    "margin_y": 30,
    "center_size": 300,
}


@pytest.fixture
def classify(runs_dir, tmp_path):
    """Run test.py --images; returns its table and what it printed."""

    def classify(*arguments):
        output = tmp_path / "out/predictions.csv"
        command = ["test.py", "--runs", runs_dir, "--output", output, "--num-workers", 0]
        printed = run_ok(*command, "--images", *arguments)
        assert Image.open(output.with_name("predictions_sheet.png")).width > 300
        return pd.read_csv(output), printed

    return classify


def test_a_fresh_process_finds_photos(sample_dir):
    """Pillow registers its formats when they are asked for; here, a test before has asked."""
    folder = sample_dir / "eval/images"
    code = f"from data.photos import list_photos; print(len(list_photos([{str(folder)!r}])))"
    assert run_ok("-c", code, run=spawn).strip() == str(len(os.listdir(folder)))


def test_photos_of_the_competition_get_the_answers_of_the_submission(
    classify, sample_dir, runs_dir, tmp_path
):
    run_ok("test.py", "--data-dir", sample_dir, "--runs", runs_dir,
           "--output", tmp_path / "submission.csv", "--num-workers", 0)  # fmt: skip
    table, _ = classify(sample_dir / "eval/images")
    probabilities = pd.read_csv(tmp_path / "probabilities.csv").set_index("ImageID")
    crops = pd.read_csv(sample_dir / "eval/crops.csv").set_index("file")
    submitted = pd.read_csv(tmp_path / "submission.csv").set_index("ImageID")["ans"]
    names = [os.path.basename(file) for file in table["file"]]
    assert sorted(names) == sorted(probabilities.index)
    assert table["ans"].tolist() == submitted[names].tolist()
    assert table["method"].tolist() == crops.loc[names, "method"].tolist()
    np.testing.assert_allclose(
        table[probabilities.columns],
        probabilities.loc[names],
        atol=0.02,  # boxes by batch
    )
    answers = [
        np.array([head["classes"].index(name) for name in table[target]])
        for target, head in config.HEADS.items()
    ]
    assert merge_labels(*answers).tolist() == table["ans"].tolist()


def test_any_size_orientation_and_format(classify, sample_dir, tmp_path):
    face = Image.open(next((sample_dir / "train/images").glob("*/normal.jpg")))
    folder = tmp_path / "my photos 여름"
    (folder / "deeper/.hidden").mkdir(parents=True)
    face.resize((1536, 2048)).save(folder / "large.WEBP")
    face.convert("P").save(folder / "palette.gif")
    exif = Image.Exif()
    exif[0x0112] = 6
    face.rotate(90, expand=True).save(folder / "deeper/turned.jpg", exif=exif)
    Image.new("RGBA", (40, 30), (9, 9, 9, 0)).save(folder / "tiny.png")
    face.save(folder / "deeper/.hidden/x.jpg")
    face.save(folder / "._x.jpg")
    (folder / "notes.txt").write_text("no photo")
    (folder / "model.h5").write_bytes(b"\x89HDF\r\n\x1a\nmodel")  # known to Pillow, unread
    table, printed = classify(folder, folder / "tiny.png", "--crop-batch-size", 2)
    table.index = [os.path.basename(file) for file in table["file"]]
    assert table.index.tolist() == ["turned.jpg", "large.WEBP", "palette.gif", "tiny.png"]
    assert table["method"].tolist() == ["mtcnn"] * 3 + ["center"]
    boxes = table[["x0", "y0", "x1", "y1"]]
    assert boxes.loc["tiny.png"].tolist() == [8, 3, 31, 26]  # 300 of 384 pixels
    assert np.abs(boxes.loc["turned.jpg"] - boxes.loc["palette.gif"]).max() <= 15
    assert "4 photos, 3 faces, 1 photos without one" in printed


def test_a_row_for_each_face(classify, sample_dir, tmp_path):
    face = Image.open(next((sample_dir / "train/images").glob("*/normal.jpg")))
    group = Image.new("RGB", (1000, 600), "gray")
    group.paste(face.resize((240, 320)), (20, 200))
    group.paste(face, (400, 50))
    group.save(tmp_path / "group.png")
    [largest] = classify(tmp_path / "group.png")[0].to_dict("records")
    assert largest["x0"] > 400
    both, _ = classify(tmp_path / "group.png", "--all-faces")
    assert both["face"].tolist() == [1, 2]
    assert both["x0"][0] > 400
    assert both["x1"][1] < 300
    assert both.loc[0].to_dict() == pytest.approx(largest)  # --all-faces only adds rows


def test_margins_are_those_of_the_training_photos():
    face = ((100.0, 120.0, 250.0, 300.0), 0.9)
    assert boxes_in([face], (384, 512), SETTINGS) == [("mtcnn", (80, 90, 270, 330), 0.9)]
    # Of another size, they grow with the face: 150 pixels have those of the settings.
    assert boxes_in([face], (768, 1024), SETTINGS) == [("mtcnn", (80, 90, 270, 330), 0.9)]
    twice = ((200.0, 240.0, 500.0, 600.0), 0.9)
    assert boxes_in([twice], (768, 1024), SETTINGS) == [("mtcnn", (160, 180, 540, 660), 0.9)]
    [(method, box, prob)] = boxes_in([], (768, 1024), SETTINGS)
    assert (method, box) == ("center", (84, 212, 684, 812))
    assert np.isnan(prob)


def test_bad_photos_are_named_or_left_out(classify, sample_dir, runs_dir, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    photo = next((sample_dir / "train/images").glob("*/normal.jpg"))
    shutil.copy(photo, folder / "good.jpg")
    (folder / "broken.jpg").write_bytes(photo.read_bytes()[:99])
    (folder / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    output = tmp_path / "predictions.csv"
    command = ["test.py", "--runs", runs_dir, "--output", output, "--num-workers", 0]
    done = run(*command, "--images", folder)
    assert_refused(done, "2 bad photos", "broken.jpg", "IMG_1.HEIC", "JPEG", "pillow-heif")
    assert not output.exists()
    table, printed = classify(folder, "--skip-bad")
    assert len(table) == 1
    assert printed.count("left out: ") == 2
    assert "IMG_1.HEIC: HEIC: convert it" in printed
    done = run(*command, "--images", folder / "broken.jpg", "--skip-bad")
    assert_refused(done, "not one readable photo")


def test_what_makes_no_sense_is_refused(sample_dir, runs_dir, tmp_path):
    command = ["test.py", "--runs", runs_dir, "--output", tmp_path / "x.csv"]
    photo = tmp_path / "x_sheet.png"
    Image.new("RGB", (60, 60)).save(photo)
    before = photo.read_bytes()
    assert_refused(run(*command, "--images", photo), "would overwrite", "x_sheet.png")
    assert photo.read_bytes() == before
    (tmp_path / "empty").mkdir()
    for arguments, words in (
        (["--images", tmp_path / "nowhere"], ["nowhere", "no such"]),
        (["--images", ""], ["--images", "no such"]),
        (["--images", photo, "--output", runs_dir / "mask_fold0/x.csv"], ["mask_fold0", "a run"]),
        (["--images", tmp_path / "empty"], ["empty", "no photos"]),
        (["--all-faces"], ["--all-faces", "--images"]),
        (["--images", tmp_path, "--answers", photo], ["--answers", "--images"]),
        (["--images", tmp_path, "--data-dir", tmp_path], ["--data-dir", "--images"]),
        (["--images", photo, "--output", tmp_path / "."], ["--output", "name a file"]),
        (["--images", photo, "--output", "/"], ["--output", "name a file"]),
        (["--images", photo, "--output", "new/"], ["--output new", "ends in .csv"]),
        (["--images", photo, "--output", photo], ["--output", "ends in .csv"]),
        (["--images", photo, "--output", 80 * "가" + ".csv"], ["--output", "too long"]),
        (["--images", sample_dir / "eval/images"], ["x_sheet.png is there already"]),
        (["--images", tmp_path, "--crop-dir", tmp_path], ["--crop-dir", "--images"]),
    ):
        assert_refused(run(*command, *arguments), *words)


def test_folders_from_the_environment_do_not_matter(classify, sample_dir, monkeypatch):
    monkeypatch.setattr(config, "CROP_DIR", "somewhere")
    photo = next((sample_dir / "train/images").glob("*/normal.jpg"))
    assert len(classify(photo)[0]) == 1


def test_the_sheet_of_the_last_time_is_no_photo(sample_dir, runs_dir, tmp_path):
    shutil.copy(next((sample_dir / "train/images").glob("*/normal.jpg")), tmp_path / "one.jpg")
    for _ in range(2):
        printed = run_ok("test.py", "--runs", runs_dir, "--num-workers", 0, "--images", tmp_path,
                         "--output", tmp_path / "answers.csv")  # fmt: skip
        assert "1 photos, 1 faces" in printed
    assert (tmp_path / "answers_sheet.png").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows knows no such names")
def test_odd_file_names(classify, sample_dir, tmp_path):
    photo = next((sample_dir / "train/images").glob("*/normal.jpg"))
    for name in (b"new\nline.jpg", b"not text \xff.jpg", "여름 'a\" <b>.jpg".encode()):
        shutil.copy(photo, os.path.join(os.fsencode(tmp_path), name))
    table, _ = classify(tmp_path)
    names = sorted(os.path.basename(file) for file in table["file"])
    assert names == sorted(["new\nline.jpg", "not text ?.jpg", "여름 'a\" <b>.jpg"])


def test_a_photo_named_twice_counts_once(sample_dir):
    folder = sample_dir / "eval/images"
    photos = list_photos([folder, next(folder.glob("*.jpg"))])
    assert photos == sorted(folder.glob("*.jpg"))


def test_the_sheet_shows_boxes_and_says_what_it_leaves_out(sample_dir, tmp_path):
    photo = next((sample_dir / "train/images").glob("*/normal.jpg"))
    assert load_image(photo).shape == (512, 384, 3)
    row = {"path": photo, "face": 1, "method": "mtcnn", "x0": 96, "y0": 128, "x1": 288, "y1": 384,
           "prob": 1, "mask": "incorrect", "gender": "male", "age": "60plus", "mask_incorrect": 0.5,
           "gender_male": 0.9, "age_60plus": 0.4}  # fmt: skip
    sheet = np.asarray(draw_sheet(pd.DataFrame([{**row, "file": str(photo)}])))
    orange = np.array([int(COLORS["incorrect"][i : i + 2], 16) for i in (1, 3, 5)])
    ys, xs = np.nonzero((sheet[:322] == orange).all(axis=2))
    zoom = 310 / 512
    assert xs.max() - xs.min() == pytest.approx(192 * zoom, abs=2)
    assert ys.max() - ys.min() == pytest.approx(256 * zoom, abs=2)
    assert (sheet[322:] == orange).all(axis=2).any()  # its words
    paths = [tmp_path / f"{i}.jpg" for i in range(MAX_PHOTOS + 5)]
    many = pd.DataFrame([{**row, "file": str(path), "path": path} for path in paths])
    for path in paths:
        os.link(photo, path)
    sheets = draw_sheet(many), draw_sheet(many[:MAX_PHOTOS])
    assert sheets[0].size == sheets[1].size
