"""ETC.predict: any photos, with the answers that test.py would give, and the contact sheet."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from conftest import FACES, ROOT, assert_refused, run, run_ok
from ETC import predict
from ETC.sheet import COLORS, SIDE, draw_sheet


@pytest.fixture(scope="module")
def photo(sample_dir):
    """A photo with a face."""
    return next((sample_dir / "train/images").glob("*/normal.jpg"))


@pytest.fixture
def classify(runs_dir, tmp_path):
    """Run ETC.predict; returns its table and what it printed."""

    def classify(*arguments):
        output = tmp_path / "out/predictions.csv"
        printed = run_ok("-m", "ETC.predict", *arguments, "--runs", runs_dir, "--output", output,
                         "--num-workers", 0)  # fmt: skip
        assert Image.open(output.with_name("predictions_sheet.png")).width > SIDE
        return pd.read_csv(output), printed

    return classify


def test_photos_get_the_crops_and_answers_of_a_submission(classify, sample_dir, runs_dir, tmp_path):
    run_ok("test.py", "--data-dir", sample_dir, "--runs", runs_dir,
           "--output", tmp_path / "submission.csv", "--num-workers", 0)  # fmt: skip
    table, _ = classify(sample_dir / "eval/images")
    table.index = [os.path.basename(file) for file in table["file"]]
    crops = pd.read_csv(sample_dir / "eval/crops.csv", index_col="file")
    probs = pd.read_csv(tmp_path / "probabilities.csv", index_col="ImageID")
    submission = pd.read_csv(tmp_path / "submission.csv", index_col="ImageID")
    for expected in (crops[["method", "x0", "y0", "x1", "y1", "prob"]], probs, submission[["ans"]]):
        pd.testing.assert_frame_equal(
            table.loc[expected.index, expected.columns], expected, check_names=False
        )
    for target in ("mask", "gender", "age"):
        columns = [name for name in probs if name.startswith(f"{target}_")]
        best = table[columns].idxmax(axis=1).str.removeprefix(f"{target}_")
        assert best.tolist() == table[target].tolist()


def test_any_size_orientation_format_and_name(classify, photo, tmp_path):
    names = ["large 여름.WEBP", "palette.gif"]
    if os.name != "nt":  # which has no such names
        names = ["new\nline 여름 'a\" <b>.WEBP", os.fsdecode(b"not text \xff.gif")]
    face, folder = Image.open(photo), tmp_path / "my photos"
    (folder / "deeper/.hidden").mkdir(parents=True)
    face.resize((1536, 2048)).save(folder / names[0])
    face.convert("P").save(folder / names[1])
    exif = Image.Exif()
    exif[0x0112] = 6
    face.rotate(90, expand=True).save(folder / "deeper/turned.jpg", exif=exif)
    Image.new("RGBA", (40, 30), (9, 9, 9, 0)).save(folder / "tiny.png")
    face.save(folder / "deeper/.hidden/x.jpg")
    face.save(folder / "._x.jpg")
    (folder / "notes.txt").write_text("no photo")
    (folder / "model.h5").write_bytes(b"\x89HDF\r\n\x1a\nmodel")  # Pillow names it, can't read it
    # A photo named twice counts once.
    table, printed = classify(folder, folder / "tiny.png", "--crop-batch-size", 2)
    files = [os.path.basename(file) for file in table["file"]]
    assert files == ["turned.jpg", names[0], names[1].replace("\udcff", "?"), "tiny.png"]
    assert table["method"].tolist() == ["mtcnn"] * 3 + ["center"]
    boxes = table[["x0", "y0", "x1", "y1"]]
    assert boxes.loc[3].tolist() == [8, 3, 31, 26]  # 300 of 384 pixels
    assert np.abs(boxes.loc[0] - boxes.loc[2]).max() <= 15
    assert "4 photos, 3 faces (0 found by the second look), 1 without a face" in printed


def test_all_faces_adds_rows(classify, photo, tmp_path):
    face = Image.open(photo)
    group = Image.new("RGB", (1000, 600), "gray")
    group.paste(face.resize((240, 320)), (20, 200))
    group.paste(face, (400, 50))
    group.save(tmp_path / "group.png")
    [largest] = classify(tmp_path / "group.png")[0].to_dict("records")
    assert largest["x0"] > 400
    both, _ = classify(tmp_path / "group.png", "--all-faces")
    assert both["face"].tolist() == [1, 2]
    assert both["x1"][1] < 300
    assert both.loc[0].to_dict() == pytest.approx({**largest, "networks": both["networks"][0]})


def test_bad_photos_are_named_or_left_out(classify, photo, runs_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("data.images.READS_HEIC", False)
    folder = tmp_path / "photos"
    folder.mkdir()
    shutil.copy(photo, folder / "good.jpg")
    (folder / "broken.jpg").write_bytes(photo.read_bytes()[:99])
    (folder / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    command = ["-m", "ETC.predict", "--output", tmp_path / "x.csv", "--runs", runs_dir]
    done = run(*command, "--num-workers", 0, folder)
    assert done.returncode == 1
    assert all(word in done.stderr for word in ("broken.jpg: not a ", "IMG_1.HEIC", "pillow-heif"))
    assert done.stderr.endswith("\n2 of 3 photos can't be read\n")
    assert len(pd.read_csv(tmp_path / "x.csv")) == 1
    assert len(classify(folder, "--skip-bad")[0]) == 1
    refused = run(*command, "--skip-bad", "--num-workers", 0, folder / "broken.jpg")
    assert_refused(refused, "broken.jpg", "no readable photos")
    assert len(pd.read_csv(tmp_path / "x.csv")) == 1  # the earlier table stays
    assert (tmp_path / "x_sheet.png").exists()


@pytest.fixture
def crowd(sample_dir, tmp_path, monkeypatch):
    """A folder of 7 photos, of which one has two faces and one can't be read; two are in work at
    once.
    """
    folder = tmp_path / "crowd"
    folder.mkdir()
    for number, file in enumerate(sorted((sample_dir / "eval/images").iterdir())[:5]):
        shutil.copy(file, folder / f"{number}.jpg")
    pair = Image.new("RGB", (768, 512))
    for x, face in zip((0, 384), FACES):
        pair.paste(Image.open(face).resize((384, 512)), (x, 0))
    pair.save(folder / "2, pair.png")
    (folder / "3 broken.jpg").write_bytes(b"no photo")
    (folder / "4.jpg").rename(folder / "나.jpg")
    monkeypatch.setattr("ETC.predict.CHUNK", 2)
    return folder


def test_killed_command_goes_on(crowd, runs_dir, tmp_path):
    output = tmp_path / "out.csv"
    command = ["-m", "ETC.predict", crowd, "--runs", runs_dir, "--num-workers", 0, "--all-faces",
               "--output", output]  # fmt: skip
    assert run(*command).returncode == 1  # for the broken photo
    whole = output.read_text()
    lines = whole.splitlines(keepends=True)
    assert len(lines) == 8
    for kept in (0, 1, 3, 4, 6, 8):
        for torn in ("", lines[min(kept, 7)][:30]):
            output.write_text("".join(lines[:kept]) + torn)
            done = run(*command, "--resume")
            assert done.returncode == 1, done.stderr
            assert output.read_text() == whole
            assert "6 photos, 7 faces" in done.stdout
            assert done.stderr.endswith("1 of 7 photos can't be read\n")
    torn = whole.encode().index("나".encode()) + 1  # inside of a letter
    output.write_bytes(whole.encode()[:torn])
    run(*command, "--resume")
    assert output.read_text() == whole
    shutil.copy(crowd / "0.jpg", crowd / "1 new.jpg")
    assert_refused(run(*command, "--resume"), "1.jpg, but the next photo is", "1 new.jpg")
    (crowd / "1 new.jpg").unlink()
    (crowd / "0.jpg").rename(crowd / "gone.jpg")
    assert_refused(run(*command, "--resume"), "0.jpg, but the next photo is", "--resume")
    (crowd / "gone.jpg").rename(crowd / "0.jpg")
    for name in ("3.jpg", "나.jpg"):
        (crowd / name).rename(tmp_path / name)
    done = run(*command, "--resume")
    assert done.returncode == 2
    assert "3.jpg, but the next photo is none" in done.stderr
    for name in ("3.jpg", "나.jpg"):
        (tmp_path / name).rename(crowd / name)
    for options in (["--tta", "flip"], ["--age-views", 1]):
        assert_refused(run(*command, "--resume", *options), "made with other networks, --tta")
    all_faces = command.index("--all-faces")
    refused = run(*command[:all_faces], *command[all_faces + 1 :], "--resume")
    assert_refused(refused, "or --all-faces; repeat those")
    assert output.read_text() == whole
    for damaged in (lines[2][:30] + "\n", lines[2].replace(",1,", ",one,", 1)):
        output.write_text("".join([*lines[:2], damaged, *lines[3:]]))
        assert_refused(run(*command, "--resume"), "damaged after", "0.jpg", "start over")
    for foreign in ("a,b\n1,2\n", "file\nmine.jpg\n"):
        output.write_text(foreign)
        assert_refused(run(*command, "--resume"), "out.csv", "no table of this version")
        assert output.read_text() == foreign


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("command", ["ETC.predict", "data.crop"])
def test_a_stopped_command_leaves_no_files(
    sample_dir, runs_dir, tmp_path, short_path, command, number, status
):
    crops = short_path
    options = [sample_dir / "train/images", "--runs", runs_dir, "--output", tmp_path / "out.csv"]
    if command == "data.crop":
        options = ["--data-dir", sample_dir, "--crop-dir", crops / "crops"]
    process = subprocess.Popen(
        [sys.executable, "-m", command, *options, "--num-workers", "2"], cwd=ROOT,
        env={**os.environ, "TMPDIR": str(crops)}, start_new_session=True,
    )  # fmt: skip
    while not [*crops.rglob("*.jpg")]:
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, number)  # the workers too
    assert process.wait(60) == status
    left = {path for path in crops.rglob("*") if path.is_file() or path.parent == crops}
    if command == "data.crop":
        whole = {path for path in left if path.suffix == ".jpg" and not path.name.startswith(".")}
        left -= {crops / "crops", *whole, *(crops / "crops/train").glob("crops.*")}
    assert not left


def test_rows_are_written_as_they_come(crowd, runs_dir, tmp_path, monkeypatch):
    output, rows = tmp_path / "out.csv", []

    def count_rows(*args, **options):
        rows.append(len(pd.read_csv(output)) if output.exists() else 0)
        return classify(*args, **options)

    classify = predict.classify
    monkeypatch.setattr(predict, "classify", count_rows)
    run("-m", "ETC.predict", crowd, "--runs", runs_dir, "--num-workers", 0, "--output", output)
    assert rows == [0, 2, 4, 5]


def test_shards_concatenate_to_the_whole(crowd, runs_dir, tmp_path):
    command = ["-m", "ETC.predict", crowd, "--runs", runs_dir, "--num-workers", 0, "--output"]
    (crowd / "3 broken.jpg").unlink()
    run_ok(*command, tmp_path / "whole.csv")
    parts = [tmp_path / f"part{number}.csv" for number in range(1, 10)]
    for number, part in enumerate(parts, start=1):
        run_ok(*command, part, "--shard", f"{number}/9")
    whole = pd.read_csv(tmp_path / "whole.csv")
    joined = pd.concat(map(pd.read_csv, parts), ignore_index=True)
    assert joined["file"].tolist() == whole["file"].tolist()
    # Batches of another size may round another way.
    pd.testing.assert_frame_equal(joined, whole, check_dtype=False, rtol=0, atol=2e-6)
    for number in (1, 2):  # whose sheet doesn't count as a photo of the other share
        run_ok(*command, crowd / f"{number}.csv", "--shard", f"{number}/2")
    joined = pd.concat([pd.read_csv(crowd / f"{number}.csv") for number in (1, 2)])
    assert joined["file"].tolist() == whole["file"].tolist()
    for wrong in ("0/3", "4/3", "1", "a/b"):
        assert_refused(run(*command, tmp_path / "x.csv", "--shard", wrong), wrong, "K/N")


def test_a_share_of_bad_photos_gets_an_empty_table(crowd, runs_dir, tmp_path):
    output = tmp_path / "part.csv"
    done = run("-m", "ETC.predict", crowd, "--runs", runs_dir, "--num-workers", 0, "--output",
               output, "--shard", "5/7")  # fmt: skip
    assert done.returncode == 1
    assert "3 broken.jpg: not a readable image" in done.stderr
    assert pd.read_csv(output).empty
    again = run("-m", "ETC.predict", crowd, "--runs", runs_dir, "--num-workers", 0, "--output",
                output, "--shard", "5/7", "--resume")  # fmt: skip
    assert again.returncode == 1
    output.write_text("an earlier table\n")
    refused = run("-m", "ETC.predict", crowd, "--runs", runs_dir, "--num-workers", 0, "--output",
                  output, "--shard", "5/7")  # fmt: skip
    assert_refused(refused, "3 broken.jpg", "no readable photos")
    assert output.read_text() == "an earlier table\n"


def test_a_photo_that_vanishes_costs_the_sheet_alone(crowd, runs_dir, tmp_path, monkeypatch):
    def vanish(faces):
        Path(faces["photo"][0]).unlink()
        return draw_sheet(faces)

    monkeypatch.setattr(predict, "draw_sheet", vanish)
    output = tmp_path / "out.csv"
    done = run("-m", "ETC.predict", crowd, "--runs", runs_dir, "--num-workers", 0, "--output",
               output, "--skip-bad")  # fmt: skip
    assert done.returncode == 0
    assert "no sheet: " in done.stderr
    assert "0.jpg" in done.stderr
    assert len(pd.read_csv(output)) == 6
    assert sorted(os.listdir(tmp_path)) == ["crowd", "out.csv"]


def test_a_folder_that_cannot_be_listed_is_named(crowd, runs_dir, tmp_path, monkeypatch):
    (crowd / "locked").mkdir()

    def refuse(folder):
        if Path(folder).name == "locked":
            raise PermissionError(13, "Permission denied")
        return listdir(folder)

    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", refuse)
    done = run("-m", "ETC.predict", crowd, "--runs", runs_dir, "--num-workers", 0,
               "--output", tmp_path / "out.csv")  # fmt: skip
    assert done.returncode == 1
    assert "locked: not a readable image" in done.stderr
    assert "2 of 8 photos can't be read" in done.stderr


def test_linked_folders_are_followed_once(classify, photo, tmp_path):
    for name in ("photos/own", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
        shutil.copy(photo, tmp_path / name)
    (tmp_path / "photos/link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "photos/link/loop").symlink_to(tmp_path / "photos", target_is_directory=True)
    (tmp_path / "photos/notes.txt").touch()
    table, printed = classify(tmp_path / "photos")
    assert len(table) == 2
    assert "left out, not photos that Pillow reads: 1 .txt" in printed


def test_what_is_read_is_not_overwritten(photo, runs_dir, tmp_path):
    sheet = tmp_path / "x_sheet.png"
    Image.open(photo).save(sheet)
    before = sheet.read_bytes()
    command = ["-m", "ETC.predict", "--runs", runs_dir, "--num-workers", 0, "--output"]
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/link").symlink_to(tmp_path, target_is_directory=True)
    assert_refused(run(*command, tmp_path / "x.csv", tmp_path / "empty"), "would overwrite")
    (tmp_path / "empty/link").unlink()
    for output, path, words in (
        (tmp_path / "x.csv", tmp_path, ["would overwrite", "x_sheet.png", "no table"]),
        (sheet, sheet, ["--output", "ends in .csv"]),
        (".", tmp_path, ["--output", "ends in .csv"]),
        (tmp_path / "x.csv", tmp_path / "nowhere", ["nowhere", "no such file or folder"]),
        (tmp_path / "x.csv", tmp_path / "empty", ["empty", "no photos"]),
    ):
        assert_refused(run(*command, output, path), *words)
    assert sheet.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["empty", "x_sheet.png"]
    shutil.copy(photo, tmp_path / "one.jpg")
    (tmp_path / "x.csv").write_text("file,face,method,..\n")  # of an earlier call, as its sheet
    assert "1 photos, 1 faces" in run_ok(*command, tmp_path / "x.csv", tmp_path)
    assert sheet.read_bytes() != before


@pytest.mark.parametrize("enlarged", [1, 5])  # a JPEG of five times the size is decoded smaller
def test_sheet_shows_boxes_and_answers(photo, tmp_path, enlarged):
    with Image.open(photo) as small:
        photo = tmp_path / "enlarged.jpg"
        small.resize([enlarged * side for side in small.size]).save(photo)
    row = {"photo": photo, "file": str(photo), "face": 1, "method": "mtcnn", "x0": 96, "y0": 128,
           "x1": 288, "y1": 384, "prob": 1, "mask": "incorrect", "gender": "male", "age": "60plus",
           "mask_incorrect": 0.5, "gender_male": 0.9, "age_60plus": 0.4}  # fmt: skip
    row |= {side: enlarged * row[side] for side in ("x0", "y0", "x1", "y1")}
    picture = draw_sheet(pd.DataFrame([row]))
    pixels = np.asarray(picture)
    orange = np.array([int(COLORS["incorrect"][i : i + 2], 16) for i in (1, 3, 5)])
    ys, xs = np.nonzero((pixels[: SIDE + 12] == orange).all(axis=2))
    assert np.ptp(xs) == pytest.approx(192 * SIDE / 512, abs=2)
    assert np.ptp(ys) == pytest.approx(256 * SIDE / 512, abs=2)
    assert (pixels[SIDE + 12 :] == orange).all(axis=2).any()  # the answers below
    marks = [draw_sheet(pd.DataFrame([{**row, "method": method}])).tobytes()
             for method in ("mtcnn", "mtcnn, second look", "center")]  # fmt: skip
    assert len({*marks}) == 3
    crowd = pd.DataFrame([{**row, "face": number} for number in range(1, 30)])
    assert draw_sheet(crowd).height < 2 * SIDE


def test_sheet_shows_the_first_photos(crowd, runs_dir, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        predict, "draw_sheet", lambda faces: seen.append(faces) or draw_sheet(faces)
    )
    monkeypatch.setattr(predict, "MAX_PHOTOS", 3)
    output = tmp_path / "out.csv"
    done = run("-m", "ETC.predict", crowd, "--runs", runs_dir, "--num-workers", 0, "--output",
               output, "--all-faces")  # fmt: skip
    assert "out_sheet.png shows the first 3 photos" in done.stdout
    assert seen[0]["file"].tolist() == pd.read_csv(output)["file"][: len(seen[0])].tolist()
    assert seen[0]["photo"].nunique() == 3
