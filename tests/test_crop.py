"""data/crop.py: where photos are cropped, and that it goes on wherever it was stopped."""

import importlib
import json
import os
import re
import shutil
import signal
import threading
import time
from argparse import Namespace

import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock
from PIL import Image

import data.crop
from config import config
from conftest import FACES, SMALL, assert_refused, run, run_ok, spawn
from data.crop import BOX, crop_box, crop_photos, crop_settings, smallest_face
from data.detect import build_detector, find_largest_faces, look_again
from data.images import load_image

CPU = torch.device("cpu")
SETTINGS = {"min_face_size": 50, "margin_x": 20, "margin_y": 30, "center_size": 300,
            "face_width": 120}  # fmt: skip
COMPETITION = (384, 512)


@pytest.fixture(scope="module")
def detector():
    return build_detector(CPU)


@pytest.fixture
def photos_dir(sample_dir, tmp_path):
    """A copy of two people's photos without crops."""
    folder = tmp_path / "data"
    people = pd.read_csv(sample_dir / "train/train.csv", dtype=str).head(2)
    for path in people["path"]:
        shutil.copytree(sample_dir / "train/images" / path, folder / "train/images" / path)
    people.to_csv(folder / "train/train.csv", index=False)
    return folder


def crop_train(folder, *arguments, run=run_ok):
    return run("-m", "data.crop", "--data-dir", folder, "--split", "train", *arguments)


# --- where


def test_margins_are_fixed_in_competition_photos_and_grow_with_the_face_in_others():
    for face, size, box in (
        ([100.9, 120.2, 200.7, 260.9], COMPETITION, (80, 90, 220, 290)),
        ([5.0, 10.0, 380.0, 500.0], COMPETITION, (0, 0, 384, 512)),
        ([-90.0, 10.0, -50.0, 60.0], COMPETITION, None),
        (None, COMPETITION, (42, 106, 342, 406)),
        ([200, 240, 440, 520], (768, 1024), (160, 180, 480, 580)),
        ([100, 100, 160, 170], (768, 1024), (90, 85, 170, 185)),
        (None, (768, 1024), (84, 212, 684, 812)),
        (None, (1, 1), (0, 0, 1, 1)),
    ):
        assert crop_box(face, size, SETTINGS) == box
    no_faces = {**SETTINGS, "face_width": None}
    assert crop_box([100, 100, 160, 170], (768, 1024), no_faces) == (80, 70, 180, 200)


def test_crops_are_the_photos_inside_their_boxes(sample_dir):
    detector = build_detector(CPU)
    for split, crops, count in (("train", "new_img", 84), ("eval", "new_images", 42)):
        folder = sample_dir / split
        manifest = pd.read_csv(folder / "crops.csv")
        assert len(manifest) == count
        assert set(manifest["method"]) <= {"mtcnn", "mtcnn, second look", "center"}
        assert (manifest["method"] == "mtcnn").mean() > 0.75
        assert (manifest["prob"].isna() == (manifest["method"] == "center")).all()
        for row in manifest.head(8).itertuples():
            photo = load_image(folder / "images" / row.file)
            crop = load_image(folder / crops / row.file)
            cut = photo[row.y0 : row.y1, row.x0 : row.x1]
            assert crop.shape == cut.shape
            assert np.abs(crop.astype(int) - cut).mean() < 3  # JPEG's loss
            [faces] = find_largest_faces(detector, photo[None], 50)
            assert (row.method == "mtcnn") == bool(faces)
            [faces] = [faces] if faces else look_again(detector, photo[None])
            expected = crop_box(faces[0][0] if faces else None, COMPETITION, SETTINGS)
            box = row.x0, row.y0, row.x1, row.y1
            assert np.abs(np.subtract(box, expected)).max() <= 1
    # Both are cropped by the train photos' face width.
    texts = {(sample_dir / split / "crops.json").read_text() for split in ("train", "eval")}
    assert len(texts) == 1
    assert 120 < json.loads(texts.pop())["face_width"] < 180


def test_without_the_second_look_missed_faces_are_cropped_centrally(sample_dir, tmp_path):
    methods = pd.read_csv(sample_dir / "train/crops.csv")["method"].value_counts()
    hidden, absent = methods["mtcnn, second look"], methods.get("center", 0)
    for option, again, missed in (
        ("--second-look", hidden, absent), ("--no-second-look", 0, hidden + absent),
    ):  # fmt: skip
        printed = crop_train(sample_dir, "--crop-dir", tmp_path / option, option)
        assert re.search(rf"train: +84 photos +{again} found by the second look +{missed} without",
                         printed), printed  # fmt: skip
        rows = pd.read_csv(tmp_path / option / "train/crops.csv")
        centre = rows[rows["method"] == "center"]
        assert len(centre) == missed
        assert (centre[BOX] == [42, 106, 342, 406]).all(axis=None)


def test_photos_of_other_sizes_and_kinds(photos_dir, tmp_path):
    person = sorted((photos_dir / "train/images").iterdir())[0]
    (person / "mask1.jpg").unlink()
    with Image.open(person / "normal.jpg") as photo:
        photo.resize((768, 1024)).save(person / "mask1.png")
        photo.convert("L").resize((300, 400)).save(person / "mask2.jpg")
    Image.new("RGB", (1, 1)).save(person / "mask3.jpg")
    crops = tmp_path / "elsewhere"
    crop_train(photos_dir, "--crop-dir", crops, "--crop-batch-size", 3)
    assert not (photos_dir / "train/new_img").exists()
    with Image.open(crops / "train/new_img" / person.name / "mask1.png") as crop:
        assert crop.format == "PNG"
    manifest = pd.read_csv(crops / "train/crops.csv").set_index("file")
    assert len(manifest) == 14
    box = manifest.loc[f"{person.name}/normal.jpg", BOX]
    for name, scale in (("mask1.png", 2), ("mask2.jpg", 300 / 384)):
        assert (manifest.loc[f"{person.name}/{name}", BOX] / scale - box).abs().max() < 12, name
    assert manifest.loc[f"{person.name}/mask3.jpg", BOX].tolist() == [0, 0, 1, 1]


def test_crops_of_large_photos_are_as_sharp_as_networks_can_see(detector, tmp_path):
    face = Image.open(FACES[0])
    small = Image.new("RGB", (2300, 3001), "gray")
    small.paste(face, (1500, 2000))
    face.resize((2300, 3001)).save(tmp_path / "large.jpg")
    for name in ("small.jpg", "small.png"):
        small.save(tmp_path / name)
    settings, args = {**SETTINGS, "second_look": False}, Namespace(num_workers=0, crop_batch_size=9)
    names = ["large.jpg", "small.jpg", "small.png"]
    photos = [(tmp_path / name, tmp_path / "crops" / name) for name in names]
    rows = list(crop_photos(photos, settings, CPU, args))
    assert {row["method"] for row in rows} == {"mtcnn"}
    [[(seen, _)]] = find_largest_faces(detector, np.asarray(face)[None], 20)
    for row, zoom, corner in zip(rows, (2300 / 384, 1, 1), (0, (1500, 2000) * 2, (1500, 2000) * 2)):
        expected = crop_box(np.multiply(seen, zoom) + corner, (2300, 3001), settings)
        box = [row[name] for name in BOX]
        assert np.abs(np.subtract(box, expected)).max() < 15 * zoom
        crop = load_image(row["crop"])
        shrunk = 2 if zoom > 1 else 1
        assert crop.shape[:2] == (round(box[3] / shrunk) - round(box[1] / shrunk),
                                  round(box[2] / shrunk) - round(box[0] / shrunk))  # fmt: skip
        size = crop.shape[1::-1]
        cut = load_image(row["photo"])[box[1] : box[3], box[0] : box[2]]
        cut = np.asarray(Image.fromarray(cut).resize(size, Image.Resampling.BOX), int)
        assert np.abs(crop - cut).mean() < 3


def test_the_smallest_face_shrinks_with_small_photos():
    for size, least, expected in (
        ((384, 512), 50, 50), ((1000, 3000), 50, 50), ((512, 288), 50, 38), ((100, 90), 50, 20),
        ((100, 90), 10, 10),
    ):  # fmt: skip
        assert smallest_face({"min_face_size": least}, size) == expected


def test_photos_of_different_sizes_may_be_decoded_to_the_same(tmp_path):
    settings, args = {**SETTINGS, "second_look": False}, Namespace(num_workers=0, crop_batch_size=9)
    photos = []
    for name, side in (("a.jpg", 2001), ("b.jpg", 2002), ("c.png", 1001)):
        Image.open(FACES[0]).resize((side, side)).save(tmp_path / name)
        photos.append((tmp_path / name, tmp_path / "crops" / name))
    args.crop_batch_size = 99  # all three would fit into a batch
    together = list(crop_photos(photos, settings, CPU, args))
    alone = [row for photo in photos for row in crop_photos([photo], settings, CPU, args)]
    assert [[row[name] for name in BOX] for row in together] == [
        [row[name] for name in BOX] for row in alone
    ]
    assert {row["method"] for row in alone} == {"mtcnn"}


def test_small_faces_are_found_in_small_photos(tmp_path):
    photo = Image.new("RGB", (150, 200), "gray")
    face = Image.open(FACES[0])
    photo.paste(face.resize((46, 61), Image.Resampling.BOX), (40, 60))  # a face of 16 pixels
    photo.save(tmp_path / "a.png")
    settings, args = {**SETTINGS, "second_look": False}, Namespace(num_workers=0, crop_batch_size=9)
    [row] = crop_photos([(tmp_path / "a.png", tmp_path / "b.png")], settings, CPU, args)
    assert row["method"] == "mtcnn"


def test_face_width_is_in_pixels_of_whole_photos(tmp_path):
    for name, zoom in (("small", 1), ("large", 6)):
        folder = tmp_path / name / "train/images"
        folder.mkdir(parents=True)
        face = Image.open(FACES[0])
        face.resize([zoom * side for side in face.size]).save(folder / "a.jpg")
    args = Namespace(**config.CROP, crop_dir=None)
    small, large = (
        crop_settings(Namespace(**vars(args), data_dir=tmp_path / name), ["a.jpg"], CPU)
        for name in ("small", "large")
    )
    assert large["face_width"] == pytest.approx(small["face_width"], rel=0.1)


@pytest.mark.parametrize(
    ("size", "least"), [((640, 480), 50), ((1999, 2500), 50), ((2400, 3200), 39)]
)
def test_other_photos_are_seen_whole(detector, tmp_path, size, least):
    Image.open(FACES[0]).resize(size).save(tmp_path / "a.jpg")
    settings = {**SETTINGS, "second_look": False, "min_face_size": least}
    args = Namespace(num_workers=0, crop_batch_size=9)
    [row] = crop_photos([(tmp_path / "a.jpg", tmp_path / "b.png")], settings, CPU, args)
    photo = load_image(tmp_path / "a.jpg")
    [[(face, prob)]] = find_largest_faces(detector, photo[None], least)
    x0, y0, x1, y1 = box = crop_box(face, size, settings)
    assert (tuple(row[name] for name in BOX), row["prob"]) == (box, round(prob, 6))
    assert np.array_equal(load_image(tmp_path / "b.png"), photo[y0:y1, x0:x1])


def test_crop_photos_crops_as_the_command_does(sample_dir, tmp_path):
    manifest = pd.read_csv(sample_dir / "eval/crops.csv").head(8)
    settings = json.loads((sample_dir / "eval/crops.json").read_text())
    args = Namespace(num_workers=1, crop_batch_size=None)
    photos = [(sample_dir / "eval/images" / file, tmp_path / file) for file in manifest["file"]]
    rows = list(crop_photos(photos, settings, CPU, args))
    assert [(row["photo"], row["crop"]) for row in rows] == photos
    assert {row["face"] for row in rows} == {1}
    found = pd.DataFrame(rows)[["method", *BOX, "prob"]]
    pd.testing.assert_frame_equal(found, manifest[["method", *BOX, "prob"]], check_dtype=False)
    for _, crop in photos:
        assert crop.read_bytes() == (sample_dir / "eval/new_images" / crop.name).read_bytes()


def test_crops_do_not_depend_on_the_worker_processes(photos_dir, tmp_path, spawned):
    crop_train(photos_dir, "--num-workers", 0, "--crop-batch-size", 4)
    crop_train(photos_dir, "--num-workers", 2, "--crop-batch-size", 4,
               "--crop-dir", tmp_path / "내 사진들")  # fmt: skip
    one, other = photos_dir / "train", tmp_path / "내 사진들/train"
    names = sorted(path.relative_to(other) for path in other.rglob("*.*") if path.is_file())
    assert len(names) == 14 + 3
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes()


# --- going on


def test_crops_are_made_once_and_again_where_something_changed(photos_dir):
    out = crop_train(photos_dir)
    assert "14 photos cropped" in out
    assert "incorrect_mask       2 photos" in out
    folder = photos_dir / "train/new_img"
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*.jpg")}
    assert len(times) == 14
    assert "cropped to" not in crop_train(photos_dir)

    one, other = sorted(photos_dir.glob("train/images/*/normal.jpg"))
    shutil.copyfile(other, one)
    changed, same, lost = (
        folder / photo.parent.name / photo.name for photo in (one, other, one.with_stem("mask1"))
    )
    lost.unlink()
    emptied = lost.with_stem("mask2")
    emptied.write_bytes(b"")  # as by a power cut
    assert "3 photos cropped" in crop_train(photos_dir)
    assert changed.read_bytes() == same.read_bytes()
    again = {path for path in times if path.stat().st_mtime_ns != times[path]}
    assert again == {changed, lost, emptied}
    assert all(path.stat().st_size for path in again)

    person = shutil.copytree(one.parent, one.parent.with_name("new"))
    with (photos_dir / "train/train.csv").open("a") as table:
        table.write(f"7,male,Drawn,30,{person.name}\n")
    assert "7 photos cropped" in crop_train(photos_dir)

    out = crop_train(photos_dir, "--margin-x", 0)
    assert "made with other settings" in out
    assert "21 photos cropped" in out


def test_both_is_train_alone_without_a_folder_eval(photos_dir):
    printed = run_ok("-m", "data.crop", "--data-dir", photos_dir)
    assert printed.endswith("train: 14 photos are cropped\n")
    (photos_dir / "eval").mkdir()
    assert_refused(run("-m", "data.crop", "--data-dir", photos_dir), "info.csv: no such file")


def test_bad_photos_are_all_named_or_left_out(photos_dir):
    photos = sorted((photos_dir / "train/images").glob("*/mask*.jpg"))[:3]
    whole = photos[0].read_bytes()
    for photo, content in zip(photos, (whole[:2000], b"", b"<html>not found</html>")):
        photo.write_bytes(content)
    names = [photo.relative_to(photos_dir).as_posix() for photo in photos]
    done = crop_train(photos_dir, run=run)
    assert_refused(done, photos_dir, "3 photos can't be read", "--skip-bad", *names)
    crops = photos_dir / "train/new_img"
    assert len(list(crops.glob("*/*.jpg"))) == 11  # all others are cropped by now

    out = crop_train(photos_dir, "--skip-bad")
    assert all(f"left out: {name}: not a readable image" in out for name in names)
    manifest = pd.read_csv(photos_dir / "train/crops.csv")
    bad = manifest["file"][manifest["method"] == "bad"]
    assert [f"train/images/{file}" for file in bad] == names
    record = photos_dir / "train/crops.csv"
    written = record.stat().st_mtime_ns
    again = crop_train(photos_dir, "--skip-bad")
    assert all(f"left out: {name}: not a readable image" in again for name in names)
    assert "cropped to" not in again
    assert record.stat().st_mtime_ns == written
    photos[0].write_bytes(whole)
    assert "1 photos cropped" in crop_train(photos_dir, "--skip-bad")
    photos[0].write_bytes(whole[:2000])  # whose crop goes
    crop_train(photos_dir, "--skip-bad")
    assert not (crops / photos[0].relative_to(photos_dir / "train/images")).exists()
    photos[0].write_bytes(whole)
    assert "1 photos cropped" in crop_train(photos_dir, "--skip-bad")
    for photo in photos[1:]:
        photo.write_bytes(whole)
    assert "2 photos cropped" in crop_train(photos_dir)


def test_face_width_is_not_that_of_other_photos(photos_dir, tmp_path):
    """Two sets of data may share a --crop-dir, as with MAG_CROP_DIR."""
    large = tmp_path / "large"
    for photo in (photos_dir / "train/images").rglob("*.jpg"):
        path = large / "train/images/one" / photo.name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.open(photo).crop((60, 80, 324, 432)).save(path)
    (large / "train/train.csv").write_text("id,gender,age,path\n1,male,30,one\n")

    def face_width():
        return json.loads((tmp_path / "crops/train/crops.json").read_text())["face_width"]

    crop_train(large, "--crop-dir", tmp_path / "crops")
    width = face_width()
    crop_train(photos_dir, "--crop-dir", tmp_path / "crops")
    assert face_width() < 0.8 * width
    crop_train(large, "--crop-dir", tmp_path / "crops")
    assert face_width() == width


def test_ctrl_c_keeps_the_crops_that_are_made(photos_dir, monkeypatch):
    def interrupted(*arguments):
        for number, row in enumerate(crop_photos(*arguments)):
            if number == 8:
                raise KeyboardInterrupt
            yield row

    monkeypatch.setattr(data.crop, "crop_photos", interrupted)
    assert crop_train(photos_dir, run=run).returncode == 130
    monkeypatch.undo()
    assert "6 photos cropped" in crop_train(photos_dir)


# Its own kill -9 after some batches, as the manifest is written after each.
KILLED = """
import os, signal, sys
import data.crop

write, turns = data.crop.write_manifest, iter(range(1000))

def write_and_die(*arguments):
    write(*arguments)
    if next(turns) == 3:
        os.kill(os.getpid(), signal.SIGKILL)

data.crop.write_manifest, data.crop.SAVE_EVERY = write_and_die, 0
data.crop.main()
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals")
def test_a_killed_command_goes_on(photos_dir, sample_dir):
    options = ["--split", "train", "--num-workers", 2, "--crop-batch-size", 2]
    killed = spawn("-c", KILLED, "--data-dir", photos_dir, *options)
    assert killed.returncode == -signal.SIGKILL
    folder = photos_dir / "train"
    made = len(pd.read_csv(folder / "crops.csv"))
    assert 0 < made < 14
    for path in folder.glob("new_img/*/*.jpg"):
        load_image(path)  # whole
    half = folder / "new_img" / sorted(os.listdir(folder / "images"))[0] / ".mask1.jpg.1.tmp"
    half.write_bytes(b"half")
    os.utime(half, (0, 0))
    assert f"{14 - made} photos cropped" in crop_train(photos_dir)
    assert not half.exists()
    mended, whole = (pd.read_csv(d / "train/crops.csv").head(14) for d in (photos_dir, sample_dir))
    assert mended[["file", "method"]].equals(whole[["file", "method"]])
    # The batch changes the last bits of the detector's sums, and those may decide a pixel.
    assert (mended[BOX] - whole[BOX]).abs().max(axis=None) <= 1


def test_a_second_command_waits_and_takes_the_crops_of_the_first(photos_dir, tmp_path):
    crop_train(photos_dir, "--crop-dir", tmp_path / "first")
    locked = threading.Event()

    def first_command():
        with FileLock(photos_dir / "train/crops.lock"):
            locked.set()
            time.sleep(1)
            shutil.copytree(tmp_path / "first/train", photos_dir / "train", dirs_exist_ok=True,
                            ignore=lambda *_: ["crops.lock"])  # fmt: skip

    threading.Thread(target=first_command).start()
    locked.wait()
    out = crop_train(photos_dir)
    assert "waiting for another command" in out
    assert "cropped to" not in out


@pytest.mark.parametrize("script", ["train.py", "test.py"])
def test_crops_that_are_replaced_meanwhile_are_noticed(photos_dir, sample_dir, runs_dir, script,
                                                       tmp_path, monkeypatch):  # fmt: skip
    data_dir = shutil.copytree(sample_dir, tmp_path / "copy")
    command = {
        "train.py": ["--target", "age", *SMALL, "--no-cache", "--output-dir", tmp_path / "runs"],
        "test.py": ["--runs", runs_dir, "--output", tmp_path / "x.csv"],
    }[script]
    module = importlib.import_module(script[:-3])
    name = {"train.py": "evaluate", "test.py": "predict"}[script]

    work = getattr(module, name)

    def replaced(*arguments):
        split = "train" if script == "train.py" else "eval"
        run_ok("-m", "data.crop", "--data-dir", data_dir, "--margin-x", 0, "--split", split,
               run=spawn)  # fmt: skip
        return work(*arguments)

    monkeypatch.setattr(module, name, replaced)
    done = run(script, *command, "--data-dir", data_dir, "--num-workers", 0)
    assert_refused(done, "another command replaced these crops")
    assert not [*tmp_path.glob("x.csv"), *tmp_path.glob("runs/*/best.pth")]


def test_photos_without_an_end_are_read_and_named_once(photos_dir):
    photo = next(photos_dir.glob("train/images/*/mask1.jpg"))
    photo.write_bytes(photo.read_bytes()[:-2])
    name = f"train/images/{photo.parent.name}/mask1.jpg"
    line = f"{name}: the file lacks its end, but all pixels are there\n"
    assert line in crop_train(photos_dir)
    assert line not in crop_train(photos_dir)


def test_what_cannot_be_read_or_written_is_one_line(photos_dir, tmp_path):
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    assert_refused(crop_train(photos_dir, "--crop-dir", in_the_way, run=run), in_the_way)

    person = next((photos_dir / "train/images").iterdir())
    crop = photos_dir / "train/new_img" / person.name / "mask1.jpg"
    crop.mkdir(parents=True)
    assert_refused(crop_train(photos_dir, run=run), crop, "can't be written")  # in a worker
    crop.rmdir()
    crop_train(photos_dir)
    for name in ("crops.csv", "crops.json"):
        path = photos_dir / "train" / name
        whole = path.read_bytes()
        path.write_bytes(b"{half")
        assert_refused(crop_train(photos_dir, run=run), "crops.json", "damaged", "delete both")
        path.write_bytes(whole)
    assert "cropped to" not in crop_train(photos_dir)
