import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from facenet_pytorch import MTCNN
from PIL import Image, ImageOps
from torchvision.models.detection import keypointrcnn_resnet50_fpn

from conftest import assert_refused, run, run_ok
from data.crop import (
    build_detector,
    center_box,
    equal_size_batches,
    face_box,
    find_boxes,
    find_faces,
)
from data.detect import area_resize, detect, pyramid, sum_table
from data.images import load_image, upright_size
from data.keypoints import WEIGHTS, find_heads, head_box

CPU = torch.device("cpu")
SETTINGS = {
    "detector": "mtcnn",
    "min_face_size": 20,
    "margin_x": 20,
    "margin_y": 30,
    "center_size": 300,
}


@pytest.fixture
def photos_dir(sample_dir, tmp_path):
    """A copy of two people's photos without crops."""
    folder = tmp_path / "data"
    people = pd.read_csv(sample_dir / "train/train.csv", dtype=str).head(2)
    for path in people["path"]:
        shutil.copytree(sample_dir / "train/images" / path, folder / "train/images" / path)
    people.to_csv(folder / "train/train.csv", index=False)
    return folder


def crop_train(folder, *arguments):
    return run_ok("-m", "data.crop", "--data-dir", folder, "--split", "train", *arguments)


def test_face_box_is_widened_and_clipped():
    assert face_box([100.9, 120.2, 200.7, 260.9], (384, 512), SETTINGS) == (80, 90, 220, 290)
    assert face_box([5.0, 10.0, 380.0, 500.0], (384, 512), SETTINGS) == (0, 0, 384, 512)
    assert face_box([-90.0, 10.0, -50.0, 60.0], (384, 512), SETTINGS) is None


def test_center_box():
    assert center_box((384, 512), 300) == (42, 106, 342, 406)
    assert center_box((200, 512), 300) == (0, 106, 200, 406)
    assert center_box((1, 1), 300) == (0, 0, 1, 1)


def test_batches_hold_one_size_and_a_bounded_number_of_pixels():
    sizes = [(384, 512), (10, 10), (384, 512), (4000, 3000), (384, 512), (4000, 3000)]
    assert list(equal_size_batches(dict(enumerate(sizes)), 2)) == [[3], [5], [0, 2], [4], [1]]


def test_boxes_are_those_of_the_originals_detector(sample_dir):
    photos = sorted((sample_dir / "train/images").glob("*/*.jpg"))[:28]
    images = np.stack([*map(load_image, photos), np.full((512, 384, 3), 90, np.uint8)])
    original = MTCNN(keep_all=True)
    found = detect(original, images, pyramid(512, 384, 20), same_face=1)
    assert found[-1] == []
    for image, faces in zip(images, found):
        boxes, probs = original.detect(Image.fromarray(image))
        assert len(faces) == (0 if boxes is None else len(boxes))
        for (box, prob), its, its_prob in zip(faces, boxes if faces else [], probs):
            assert np.abs(box - its).max() < 0.1
            assert prob == pytest.approx(its_prob, abs=1e-4)

    # With the coarse levels first, other boxes of the same faces, and no face less.
    results = find_boxes(build_detector(SETTINGS, CPU), images, SETTINGS)
    for (method, box, prob), faces in zip(results, found):
        if method == "center":
            assert not faces
            assert box == (42, 106, 342, 406)
            assert np.isnan(prob)
        elif faces:
            expected = face_box(faces[0][0], (384, 512), SETTINGS)
            assert np.abs(np.subtract(box, expected)).max() <= 20
    assert {method for method, _, _ in results} == {"mtcnn", "center"}


@pytest.mark.parametrize("min_face_size", [20, 40])  # 40: at half the size
def test_small_faces_are_found_where_there_is_no_large_one(sample_dir, min_face_size):
    face = load_image(next((sample_dir / "train/images").glob("*/normal.jpg")))
    photo = np.full((512, 384, 3), 90, np.uint8)
    photo[40:168, 200:296] = cv2.resize(face, (96, 128), interpolation=cv2.INTER_AREA)
    settings = {**SETTINGS, "min_face_size": min_face_size}
    [(method, (x0, y0, x1, y1), _)] = find_boxes(
        build_detector(SETTINGS, CPU), photo[None], settings
    )
    assert method == "mtcnn"
    assert 180 <= x0 < x1 <= 316
    assert 10 <= y0 < y1 <= 198
    settings = {**SETTINGS, "min_face_size": 150}
    assert find_boxes(build_detector(SETTINGS, CPU), photo[None], settings)[0][0] == "center"


def test_every_face_is_found_the_largest_first(sample_dir):
    face = load_image(next((sample_dir / "train/images").glob("*/normal.jpg")))
    photo = np.full((512, 768, 3), 90, np.uint8)
    photo[100:356, 20:212] = cv2.resize(face, (192, 256), interpolation=cv2.INTER_AREA)
    photo[:, 300:684] = face
    [faces] = find_faces(build_detector(SETTINGS, CPU), photo[None], SETTINGS, every=True)
    assert len(faces) == 2
    assert faces[0][0][0] > 300 > 212 > faces[1][0][2]


@pytest.fixture
def untrained_keypoint_rcnn(tmp_path, monkeypatch):
    """Untrained weights where torchvision keeps those that it has downloaded."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder = tmp_path / "torch/hub/checkpoints"
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    network = keypointrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    with torch.no_grad():
        network.roi_heads.box_predictor.cls_score.bias[1] += 9  # it sees people everywhere
    torch.save(network.state_dict(), folder / Path(WEIGHTS.url).name)


def test_crops_by_keypoint_rcnn(photos_dir, untrained_keypoint_rcnn, monkeypatch):
    def build_small(settings, device):
        network = build_detector(settings, device)
        network.transform.min_size = (128,)  # its 800 pixels, and what an untrained network sees
        network.rpn.post_nms_top_n = lambda: 10  # in them, take many seconds
        return network

    monkeypatch.setattr("data.crop.build_detector", build_small)
    monkeypatch.setattr("data.keypoints.PERSON_SCORE", 0)  # to see people at all
    for photo in list((photos_dir / "train/images").glob("*/mask?.jpg")):
        photo.unlink()
    crop_train(photos_dir, "--detector", "keypoint_rcnn", "--num-workers", 0,
               "--min-face-size", 1)  # fmt: skip
    manifest = pd.read_csv(photos_dir / "train/crops.csv")
    assert len(manifest) == 4
    assert set(manifest["method"]) == {"keypoint_rcnn"}
    assert (manifest[["x1", "y1"]].to_numpy() > manifest[["x0", "y0"]].to_numpy()).all()
    settings = json.loads((photos_dir / "train/crops.json").read_text())
    assert settings["detector"] == "keypoint_rcnn"


def test_keypoint_rcnn_without_network_says_where_its_weights_go(photos_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    done = run("-m", "data.crop", "--data-dir", photos_dir, "--split", "train",
               "--detector", "keypoint_rcnn", "--num-workers", 0)  # fmt: skip
    # Older PyTorch says on stderr what it downloads.
    done.stderr = re.sub(r"^Downloading: .*\n", "", done.stderr)
    assert_refused(done, "keypoint_rcnn", "could not be downloaded", WEIGHTS.url, "empty")


def test_heads_of_people():
    keypoints = np.zeros((17, 2), np.float32)
    keypoints[:5] = [(200, 150), (220, 130), (180, 130), (240, 135), (160, 135)]
    person = np.array([100, 20, 300, 500], np.float32)
    box = head_box(person, keypoints)
    assert box == pytest.approx((160, 90, 240, 198))
    assert head_box(np.array([170, 100, 230, 500.0]), keypoints) == pytest.approx(
        (170, 100, 230, 198)
    )

    def network(images):  # three people: one small, one unlikely, one large
        boxes = torch.tensor([[100, 20, 300, 500], [0, 0, 384, 512], [0, 0, 384, 512.0]])
        points = torch.from_numpy(np.stack([keypoints, keypoints, 1.5 * keypoints]))
        points = torch.cat([points, torch.ones(3, 17, 1)], dim=2)
        people = {"boxes": boxes, "keypoints": points, "scores": torch.tensor([0.9, 0.7, 0.99])}
        assert all(image.max() <= 1 and image.shape == (3, 512, 384) for image in images)
        return [people for _ in images]

    network.parameters = lambda: iter([torch.zeros(1)])
    images = np.full((2, 512, 384, 3), 255, np.uint8)
    for heads in find_heads(network, images, 20):
        assert [score for _, score in heads] == pytest.approx([0.99, 0.9])
        assert heads[1][0] == pytest.approx((160, 90, 240, 198))
    assert [len(heads) for heads in find_heads(network, images, 100)] == [1, 1]


def test_areas_are_averaged_as_torch_does(sample_dir):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 50, 40, 3), dtype=np.uint8)
    boxes = torch.tensor([[0, 0, 40, 50], [3, 7, 31, 22], [5, 5, 9, 11]])
    which = torch.tensor([0, 1, 1])
    table = sum_table(images, torch.device("cpu"))
    areas = area_resize(table, which, boxes, 12, 9)
    for area, image, (x0, y0, x1, y1) in zip(areas, images[which], boxes.tolist()):
        cut = torch.from_numpy(image[y0:y1, x0:x1].copy()).permute(2, 0, 1).float()
        expected = (torch.nn.functional.adaptive_avg_pool2d(cut, (12, 9)) - 127.5) / 128
        torch.testing.assert_close(area, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("side", "min_face_size"), [(12, 20), (19, 20), (20, 20), (47, 47)])
def test_an_image_as_small_as_a_face_is_cropped_centrally(side, min_face_size):
    settings = {**SETTINGS, "min_face_size": min_face_size}
    tiny = np.zeros((2, side, 60, 3), np.uint8)
    results = find_boxes(build_detector(SETTINGS, CPU), tiny, settings)
    assert [(method, box) for method, box, _ in results] == [("center", (0, 0, 60, side))] * 2


def test_crops_and_manifest(sample_dir):
    for split, source, crops, count in (
        ("train", "images", "new_img", 84), ("eval", "images", "new_images", 42),
    ):  # fmt: skip
        manifest = pd.read_csv(sample_dir / split / "crops.csv")
        assert list(manifest.columns[:7]) == ["file", "method", "x0", "y0", "x1", "y1", "prob"]
        assert len(manifest) == count
        assert set(manifest["method"]) <= {"mtcnn", "center"}
        assert (manifest["prob"].isna() == (manifest["method"] == "center")).all()
        for row in manifest.itertuples():
            crop = load_image(sample_dir / split / crops / row.file)
            assert crop.shape == (row.y1 - row.y0, row.x1 - row.x0, 3)
        photo = load_image(sample_dir / split / source / row.file)[row.y0 : row.y1, row.x0 : row.x1]
        assert (
            np.abs(crop.astype(int) - photo).mean() < 3
        )  # the pixels of the box, JPEG's loss apart


def test_crops_are_made_once_and_again_with_other_settings(photos_dir):
    out = crop_train(photos_dir)
    assert "14 photos cropped" in out
    assert "normal" in out
    folder = photos_dir / "train/new_img"
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*.jpg")}
    assert len(times) == 14

    assert "cropped to" not in crop_train(photos_dir)
    lost = next(iter(times))
    lost.unlink()
    out = crop_train(photos_dir)
    assert "1 photos cropped" in out
    assert "14 images" in out
    assert lost.exists()
    kept = {path for path in times if path.stat().st_mtime_ns == times[path]}
    assert kept == set(times) - {lost}

    before = pd.read_csv(photos_dir / "train/crops.csv")
    assert "14 photos cropped" in crop_train(photos_dir, "--margin-x", 0)
    after = pd.read_csv(photos_dir / "train/crops.csv")
    found = before["method"] == "mtcnn"
    assert (after["x0"][found] >= before["x0"][found]).all()
    assert (after["x0"][found] > before["x0"][found]).any()


def test_photos_of_all_sizes_and_kinds(photos_dir, tmp_path):
    person = sorted((photos_dir / "train/images").iterdir())[0]
    with Image.open(person / "normal.jpg") as photo:
        photo.resize((768, 1024)).save(person / "mask1.png")
        exif = photo.getexif()
        exif[0x0112] = 6  # stored lying on its side
        photo.rotate(90, expand=True).save(person / "mask2.jpg", exif=exif)
        photo.convert("L").resize((192, 256)).save(person / "mask3.jpg")
    (person / "mask1.jpg").unlink()
    assert upright_size(person / "mask2.jpg") == (384, 512)
    assert load_image(person / "mask2.jpg").shape == (512, 384, 3)
    crops = tmp_path / "elsewhere"
    crop_train(photos_dir, "--crop-dir", crops, "--crop-batch-size", 3)
    assert not (photos_dir / "train/new_img").exists()
    manifest = pd.read_csv(crops / "train/crops.csv").set_index("file")
    assert len(manifest) == 14
    assert manifest.loc[f"{person.name}/mask2.jpg", "method"] == "mtcnn"
    assert (crops / "train/new_img" / person.name / "mask1.png").exists()


@pytest.mark.parametrize("orientation", range(10))
def test_photos_of_every_orientation_are_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(0).integers(0, 256, (3, 2, 3)).astype(np.uint8)
    photo = Image.fromarray(pixels.repeat(16, axis=0).repeat(16, axis=1))
    for name in ("a.jpg", "a.png"):
        photo.save(tmp_path / name, exif=exif)
        with Image.open(tmp_path / name) as image:
            expected = np.array(ImageOps.exif_transpose(image).convert("RGB"))
        assert np.array_equal(load_image(tmp_path / name), expected)
        assert upright_size(tmp_path / name) == expected.shape[1::-1]


def test_a_changed_photo_is_cropped_again(photos_dir):
    crop_train(photos_dir)
    one, other = sorted(photos_dir.glob("train/images/*/normal.jpg"))
    shutil.copyfile(other, one)
    crops = [photos_dir / "train/new_img" / path.parent.name / path.name for path in (one, other)]
    assert crops[0].read_bytes() != crops[1].read_bytes()
    assert "1 photos cropped" in crop_train(photos_dir)
    assert crops[0].read_bytes() == crops[1].read_bytes()


def test_bad_photos_are_all_named_or_left_out(photos_dir):
    photos = sorted((photos_dir / "train/images").glob("*/mask*.jpg"))
    whole = photos[0].read_bytes()
    photos[0].write_bytes(whole[:2000])
    photos[1].write_bytes(b"")
    photos[2].write_bytes(b"<html>not found</html>")
    done = run("-m", "data.crop", "--data-dir", photos_dir, "--split", "train")
    names = [photo.relative_to(photos_dir).as_posix() for photo in photos[:3]]
    assert_refused(done, photos_dir, "3 bad photos", "--skip-bad", *names)
    assert len(list((photos_dir / "train/new_img").glob("*/*.jpg"))) == 11  # all others are done

    out = crop_train(photos_dir, "--skip-bad")
    assert "bad photos, in no crop: 3" in out
    manifest = pd.read_csv(photos_dir / "train/crops.csv")
    bad = manifest["file"][manifest["method"] == "bad"]
    assert set(bad) == {f"{path.parent.name}/{path.name}" for path in photos[:3]}
    assert manifest[manifest["method"] == "bad"][["x0", "prob"]].isna().all(axis=None)

    assert_refused(run("-m", "data.crop", "--data-dir", photos_dir, "--split", "train"), "3 bad")
    for path in photos[:3]:
        path.write_bytes(whole)
    assert "3 photos cropped" in crop_train(photos_dir)


def odd_photos():
    """Photos that Pillow reads, of every kind a data set may hold: {name: (image, options)}."""
    grey = Image.fromarray(np.linspace(0, 255, 64 * 48).reshape(64, 48).astype(np.uint8))
    deep = Image.fromarray(np.linspace(0, 65535, 64 * 48).reshape(64, 48).astype(np.uint16))
    return {
        "grey.jpg": (grey, {}),
        "grey_alpha.png": (grey.convert("LA"), {}),
        "palette.png": (grey.convert("P"), {"transparency": bytes(range(256))}),
        "cmyk.jpg": (grey.convert("CMYK"), {}),
        "deep.png": (deep, {}),
        "animated.png": (grey, {"save_all": True, "append_images": [grey.rotate(90)]}),
        "UPPER.JPG": (grey, {}),
        "bilevel.png": (grey.convert("1"), {}),
    }


@pytest.mark.parametrize("name", odd_photos())
def test_odd_photos_look_as_they_should(name, tmp_path):
    image, options = odd_photos()[name]
    image.save(tmp_path / name, **options)
    assert upright_size(tmp_path / name) == (48, 64)
    pixels = load_image(tmp_path / name)
    assert (pixels.shape, pixels.dtype) == ((64, 48, 3), np.uint8)
    # Dark above, bright below, whatever the encoding.
    assert pixels[:8].mean() < 60
    assert pixels[-8:].mean() > 190


def test_a_folder_that_cannot_be_made_is_named(photos_dir, tmp_path):
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    done = run("-m", "data.crop", "--data-dir", photos_dir, "--split", "train",
               "--crop-dir", in_the_way)  # fmt: skip
    assert_refused(done, in_the_way, "--crop-dir")
