"""data/detect.py against the detector of the original, facenet_pytorch's MTCNN."""

import cv2
import numpy as np
import pytest
import torch
from facenet_pytorch import MTCNN
from PIL import Image

from conftest import FACES
from data.detect import (
    build_detector,
    detect,
    find_all_faces,
    find_largest_faces,
    look_again,
    overlap,
    pyramid,
)
from data.images import load_image

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def mtcnn():
    return build_detector(CPU)


@pytest.fixture(scope="module")
def photos(sample_dir):
    """Photos of all shots, uint8 (15, 512, 384, 3); in the last is no face."""
    files = sorted((sample_dir / "train/images").glob("*/*.jpg"))[:14]
    return np.stack([*map(load_image, files), np.full((512, 384, 3), 90, np.uint8)])


def test_faces_are_those_of_the_package(mtcnn, photos):
    package = MTCNN(keep_all=True)
    found = detect(mtcnn, photos, pyramid((384, 512), 20), (384, 512), same_face=1)
    for photo, faces in zip(photos, found):
        boxes, probs = package.detect(Image.fromarray(photo))
        assert len(faces) == (0 if boxes is None else len(boxes))
        for (box, prob), package_box, package_prob in zip(faces, boxes if faces else [], probs):
            assert np.abs(box - package_box).max() < 0.1
            assert prob == pytest.approx(package_prob, abs=1e-4)
    assert found[-1] == []
    assert sum(map(bool, found)) > 9

    # With the coarse levels first: other boxes of the same faces, and no face less.
    largest = find_largest_faces(mtcnn, photos, 20)
    for faces, all_faces in zip(largest, found):
        assert len(faces) == min(1, len(all_faces))
        for (box, _), (package_box, _) in zip(faces, all_faces):
            assert np.abs(np.subtract(box, package_box)).max() <= 20


@pytest.mark.parametrize("min_face_size", [20, 40])  # 40: in a photo of half the size
def test_small_faces_are_found_where_there_is_no_large_one(mtcnn, min_face_size):
    photo = np.full((512, 384, 3), 90, np.uint8)
    face = cv2.resize(load_image(FACES[0]), (96, 128), interpolation=cv2.INTER_AREA)
    photo[40:168, 200:296] = face
    [[((x0, y0, x1, y1), _)]] = find_largest_faces(mtcnn, photo[None], min_face_size)
    assert 200 <= x0 < x1 <= 296
    assert 40 <= y0 < y1 <= 168
    assert find_largest_faces(mtcnn, photo[None], 150) == [[]]


def test_second_look_finds_a_face_behind_a_mask(mtcnn):
    photo = np.full((512, 384, 3), 90, np.uint8)
    face = next(path for path in FACES if path.stem == "female_45")
    photo[100:420, 72:312] = cv2.resize(load_image(face), (240, 320))
    [[(bare, _)]] = find_largest_faces(mtcnn, photo[None], 50)
    x0, x1, y1 = (int(bare[side]) for side in (0, 2, 3))
    photo[int(0.6 * bare[1] + 0.4 * bare[3]) : y1 + 20, x0 - 20 : x1 + 20] = 200, 120, 40
    assert find_largest_faces(mtcnn, photo[None], 50) == [[]]
    empty = np.full_like(photo, 90)
    [[(box, prob)], nothing] = look_again(mtcnn, np.stack([photo, empty]))
    assert nothing == []
    assert 0.2 < prob < 0.7
    assert overlap(box, bare) > 0.6
    # In a corner of a large photo, it could be anything.
    large = np.full((1024, 768, 3), 90, np.uint8)
    large[:512, :384] = photo
    assert look_again(mtcnn, large[None]) == [[]]


def test_second_look_finds_faces_that_leave_the_photo(mtcnn):
    face = load_image(FACES[0])
    [[((x0, y0, x1, y1), _)]] = find_largest_faces(mtcnn, face[None], 50)
    corner = left, top = int(x0 + 0.2 * (x1 - x0)), int(y0 + 0.2 * (y1 - y0))
    cut = face[top : int(y1 - 0.2 * (y1 - y0)), left : int(x1 - 0.2 * (x1 - x0))]
    for zoom in (1, 6):  # the larger one is seen at a part of its size
        photo = cv2.resize(cut, None, fx=zoom, fy=zoom)
        assert find_largest_faces(mtcnn, photo[None], 20) == [[]]
        [[(box, prob)]] = look_again(mtcnn, photo[None])
        assert prob > 0.9
        whole = tuple(np.divide(box, zoom) + corner * 2)
        assert overlap(whole, (x0, y0, x1, y1)) > 0.8


def test_all_faces_are_found_the_largest_first(mtcnn):
    face = load_image(FACES[0])
    photo = np.full((512, 768, 3), 90, np.uint8)
    photo[100:356, 20:212] = cv2.resize(face, (192, 256), interpolation=cv2.INTER_AREA)
    photo[:, 300:684] = face
    [[large, small]] = find_all_faces(mtcnn, photo[None], 20)
    assert large[0][0] > 300 > 212 > small[0][2]
    assert find_largest_faces(mtcnn, photo[None], 20) == [[large]]


@pytest.mark.parametrize("find", [find_largest_faces, find_all_faces])
def test_boxes_are_in_pixels_of_the_photo_of_which_a_smaller_copy_is_seen(mtcnn, find):
    face = load_image(FACES[0])
    photo = np.full((800, 1001, 3), 90, np.uint8)
    photo[100:356, 20:212] = cv2.resize(face, (192, 256), interpolation=cv2.INTER_AREA)
    photo[200:712, 400:784] = face
    [faces] = find(mtcnn, photo[None], 40)
    half = cv2.resize(photo, (501, 400), interpolation=cv2.INTER_AREA)[None]
    [seen] = find(mtcnn, half, 40, (1001, 800))
    assert len(seen) == len(faces) == (2 if find is find_all_faces else 1)
    for (box, _), (whole, _) in zip(seen, faces):
        assert np.abs(np.subtract(box, whole)).max() < 12
    assert find(mtcnn, half, 500, (1001, 800)) == [[]]
    half = cv2.resize(face, (192, 256), interpolation=cv2.INTER_AREA)[None]
    [[(box, _)]] = look_again(mtcnn, half, (384, 512))
    [[(whole, _)]] = look_again(mtcnn, face[None])
    assert overlap(box, whole) > 0.8


@pytest.mark.parametrize(("side", "min_face_size"), [(1, 20), (20, 20)])
def test_no_photo_is_too_small(mtcnn, side, min_face_size):
    tiny = np.zeros((2, side, 60, 3), np.uint8)
    assert find_largest_faces(mtcnn, tiny, min_face_size) == [[], []]
    assert find_all_faces(mtcnn, tiny, min_face_size) == [[], []]
    assert look_again(mtcnn, tiny) == [[], []]
