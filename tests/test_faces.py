"""Public photos of faces: which serve, whom they show, and the data set made of them."""

import re
from collections import Counter

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from config import config
from conftest import FACES, assert_refused, contents, run, run_ok, write_jpeg
from data.crop import crop_box, detector_of_process
from data.detect import find_largest_faces
from data.images import load_image
from ETC import faces, portrait, sample, scene
from ETC.masks import Head, choose_mask, face_light, wear
from ETC.occluders import Layer, draw_hand
from utils.cli import InputError

# Age and random seed of drawn people of whose faces MTCNN is sure, men and women in turn.
DRAWN = (
    (18, 1), (22, 3), (25, 4), (29, 5), (33, 9), (41, 10), (47, 24), (52, 13),
)  # fmt: skip


def left_out(text):
    """{reason: count} of what the command says it left out."""
    return {reason: int(count) for count, reason in re.findall(r"(\d+) ([^(;\n]+) \(", text)}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder as UTKFace comes: drawn people in part1 and part2, and what has to be left out."""
    folder = tmp_path_factory.mktemp("faces")
    for number, (age, seed) in enumerate(DRAWN):
        rng = np.random.default_rng([3, seed])
        traits = portrait.draw_traits(rng, ("male", "female")[number % 2], age)
        photo = portrait.draw_shot(traits, "normal", rng)
        name = f"{age}_{number % 2}_{number % 5}_2017.jpg.chip.jpg"
        write_jpeg(folder / f"part{1 + number % 2}" / name, photo)
    first, second = load_image(FACES[0]), load_image(FACES[1])
    write_jpeg(folder / "part3/28_1_0_1.jpg", first)
    write_jpeg(folder / "part3/31_1_0_2.jpg", cv2.resize(first, (300, 400)))
    write_jpeg(folder / "part3/30_1_0_3.jpg", np.full((300, 200, 3), 120, np.uint8))
    write_jpeg(folder / "part3/30_1_0_4.jpg", cv2.resize(second, (96, 128)))
    write_jpeg(folder / "part3/30_1_0_5.jpg", cv2.GaussianBlur(second, (0, 0), 6))
    write_jpeg(folder / "part3/8_1_0_6.jpg", second)
    write_jpeg(folder / "part3/61_1_20170109.jpg", second)
    (folder / "part3/40_1_0_7.jpg").write_bytes(b"no photo")
    return folder


@pytest.fixture(scope="module")
def made(photos, tmp_path_factory):
    """What the command makes of photos, and what it prints."""
    folder = tmp_path_factory.mktemp("made") / "data"
    command = "-m", "ETC.sample", "--faces", photos, "--eval-people", 3, "--output", folder
    return folder, run_ok(*command)


def test_what_is_left_out_is_counted(made):
    folder, printed = made
    expected = {
        "wrong name": 1, "age outside 18 to 100": 1, "unreadable": 1, "no face": 1,
        "face too small": 1, "blurred": 1, "copy of another photo": 1,
    }  # fmt: skip
    assert left_out(printed) == expected
    source = (folder / "SOURCE.txt").read_text()
    assert left_out(source.split("Left out: ")[1]) == expected
    assert "part3/31_1_0_2.jpg" in source
    assert "UTKFace" in source
    assert "--seed 777" in source


def test_people_and_their_photos(made):
    """The layout is that of drawn people, by the same functions."""
    folder, _ = made
    train = pd.read_csv(folder / "train/train.csv", dtype=str)
    assert len(train) == len(DRAWN) + 1 - 3
    photos = [load_image(path) for path in (folder / "train/images").rglob("*.jpg")]
    assert [photo.shape for photo in photos] == [(512, 384, 3)] * 7 * len(train)
    answers = pd.read_csv(folder / "eval/answers.csv")
    assert Counter(answers["ans"] // 6) == {0: 15, 1: 3, 2: 3}


@pytest.mark.parametrize(("given", "expected"), [
    ({}, (27, 3)), ({"people": 9}, (9, 1)), ({"people": 9, "eval_people": 12}, (9, 12)),
])  # fmt: skip
def test_nobody_is_in_train_and_eval(given, expected, tmp_path, monkeypatch):
    everybody = [{"id": number, "photos": []} for number in range(30)]
    used = {}

    def skip_drawing(mask, people, split):
        used[split] = [person["id"] for person in people]
        return [("male", "Drawn", 30, {}) for _ in people]

    monkeypatch.setattr(sample, "find_people", lambda *arguments: (everybody, {}))
    monkeypatch.setattr(sample, "in_processes", skip_drawing)
    arguments = ["--faces", "any", "--output", str(tmp_path / "data")]
    arguments += [text for name, value in given.items()
                  for text in (f"--{name.replace('_', '-')}", str(value))]  # fmt: skip
    sample.make_masked_sample(sample.get_args_parser().parse_args(arguments))
    assert (len(used["train"]), len(used["eval"])) == expected
    assert len({*used["train"], *used["eval"]}) == sum(expected)


def test_the_same_bytes_again(made, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("config.config.NUM_WORKERS", 1)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    output = tmp_path / "link"
    run_ok("-m", "ETC.sample", "--faces", photos, "--eval-people", 3, "--output", output)
    assert contents(tmp_path / "elsewhere") == contents(made[0])


def test_labels_of_a_table(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text(
        "face,Gender,age,id,race,other,other\n"
        "a.jpg,Female,20-29,7,East Asian,,\n"
        "b.jpg,M,more than 70,8,,,\n"
        "c.jpg,x,30,9,,,\n"
        "d.jpg,male,old,9,,,\n"
        "../e.jpg,male,30,9,,,\n"
        "f.jpg,male,29-20,9,,,\n"
        "g.jpg,male,99999999999999999999,9,,,\n"
    )
    table, wrong = faces.read_labels(path)
    assert wrong == ["line 4: gender", "line 5: age", "line 6: file", "line 7: age", "line 8: age"]
    assert table["gender"].tolist() == ["female", "male"]
    assert table["race"].tolist() == ["East-Asian", "Unknown"]
    ages = np.array(
        [[faces.drawn_age(row, seed) for row in table.itertuples()] for seed in range(99)]
    )
    assert ages.min(0).tolist() == [20, 70]
    assert ages.max(0).tolist() == [29, 80]


def test_a_folder_whose_name_is_no_utf_8():
    assert faces.person_seed(7, "\udcff/28_1_0_1.jpg") != faces.person_seed(7, "28_1_0_1.jpg")


def test_photos_of_one_id_are_one_person(tmp_path):
    rows = []
    for number, (age, seed) in enumerate(DRAWN[1::2]):  # whose women MTCNN sees
        rng = np.random.default_rng([3, seed])
        photo = portrait.draw_shot(portrait.draw_traits(rng, "female", age), "normal", rng)
        name = f"{number % 2}{'-2' * (number // 2)}.jpg"
        write_jpeg(tmp_path / name, photo)
        rows.append((name, "F", 30 + number, number % 2))
    rows[-1] = ("1-2.jpg", "M", 60, 1)
    labels = tmp_path / "labels.csv"
    pd.DataFrame(rows, columns=["file", "gender", "age", "id"]).to_csv(labels, index=False)
    people, out = faces.find_people(tmp_path, labels, 1)
    assert out == {"label that contradicts the person's first photo": ["1-2.jpg"]}
    files = {person["id"]: [file for file, _ in person["photos"]] for person in people}
    assert files == {"0": ["0.jpg", "0-2.jpg"], "1": ["1.jpg"]}


def test_balance_keeps_the_shares_of_the_competition():
    rng = np.random.default_rng(1)
    people = [{"gender": rng.choice(["male", "female"]), "age": int(rng.integers(18, 80))}
              for _ in range(3000)]  # fmt: skip
    chosen = faces.choose_people(people, "competition", 1)
    for some in (chosen, chosen[:200]):
        ages = np.digitize([person["age"] for person in some], [30, 60])
        assert np.bincount(ages) / len(some) == pytest.approx([0.47, 0.42, 0.10], abs=0.02)
        women = np.mean([person["gender"] == "female" for person in some])
        assert women == pytest.approx(0.61, abs=0.02)
    assert len(chosen) > 900
    assert len(faces.choose_people(people, None, 1)) == 3000
    with pytest.raises(InputError, match="--balance: no male people of the age group under30"):
        faces.choose_people([person for person in people if person["gender"] == "female"], 1, 1)


def test_children_do_not_become_adults(tmp_path):
    labels = tmp_path / "labels.csv"
    labels.write_text("file,gender,age\na.jpg,male,10-19\nb.jpg,male,95-105\n")
    with pytest.raises(InputError, match="2 age outside 18 to 100"):
        faces.find_people(tmp_path, labels, 1)


def test_copies_are_found_in_every_block():
    thumbs = np.random.default_rng(0).normal(size=(2100, 64)).astype(np.float32)
    thumbs[2000] = thumbs[3] + 0.01
    thumbs[2050] = thumbs[2049]
    thumbs /= np.linalg.norm(thumbs, axis=1, keepdims=True)
    assert np.flatnonzero(faces.find_copies(thumbs, 0.9)).tolist() == [2000, 2050]


@pytest.fixture(scope="module")
def face():
    """A photo and the landmarks in it."""
    photo = load_image(FACES[0])
    _, points = faces.find_landmarks(photo[None])
    return photo, points[0]


@pytest.mark.parametrize("how", ["worn", "nose", "chin", "eyes"])
def test_masks_cover_what_they_should(face, how):
    photo, points = face
    eyes, nose, mouth = points[:2].mean(0), points[2], points[3:].mean(0)
    for number, kind in enumerate(scene.KINDS):
        if kind == "scarf" and how != "worn":
            continue
        rng = np.random.default_rng([5, number])
        masked = photo.copy()
        wear(masked, points, choose_mask(rng, kind), how, 0.5, face_light(photo, points), rng)
        change = np.abs(masked.astype(int) - photo).sum(2)

        def covered(point, change=change):
            x, y = point.astype(int)
            return np.mean(change[y - 3 : y + 4, x - 3 : x + 4] > 6) > 0.6

        seen = [covered(point) for point in (points[0], points[1], nose, mouth)]
        assert (
            seen
            == {
                "worn": [False, False, True, True],
                "nose": [False, False, False, True],
                "chin": [False, False, False, False],
                "eyes": [True, True, seen[2], False],
            }[how]
        ), kind
        chin = mouth + (0.85 if how == "chin" else 0.55) * (mouth - eyes)  # it may hang below
        assert covered(chin) == (how != "eyes"), kind


def test_a_mask_on_the_chin_is_in_the_crop(face):
    photo, points = face
    found, _ = find_largest_faces(detector_of_process(torch.device("cpu")), photo[None], 50)[0][0]
    settings = {**config.CROP, "face_width": None}
    x0, y0, x1, y1 = crop_box(found, photo.shape[1::-1], settings)
    kinds = [kind for kind in scene.KINDS if kind != "scarf"]
    for number in range(40):
        rng, masked = np.random.default_rng([6, number]), photo.copy()
        mask = choose_mask(rng, kinds[number % len(kinds)])
        wear(masked, points, mask, "chin", 0.5, face_light(photo, points), rng)
        change = np.abs(masked.astype(int) - photo)[y0:y1, x0:x1].sum(2)
        assert (change > 20).mean() > 0.02


def test_a_hand_over_a_mask_has_the_colour_of_the_face(face):
    photo, points = face
    light = face_light(photo, points)
    masked = photo.copy()
    wear(masked, points, choose_mask(np.random.default_rng(4), "surgical"), "worn", 0.5, light,
         np.random.default_rng(4))  # fmt: skip
    for image in (photo.copy(), masked):
        before = image.copy()
        draw_hand(Layer(image, points, light), 0.5, np.random.default_rng(1))
        hand = np.abs(image.astype(int) - before).sum(2) > 60
        assert hand.mean() > 0.01
        tone = np.median(image[hand], axis=0) / light.skin
        assert np.ptp(tone) < 0.1


def test_a_head_that_is_turned_bends_the_mask(face):
    _, points = face
    flat = np.array([(-0.9, 1.0), (0.0, 1.0), (0.9, 1.0)])
    turned = points.copy()
    turned[2, 0] += 15
    for marks, order in ((points, 0), (turned, 1)):
        left, middle, right = Head(marks).project(flat)[:, 0]
        assert (middle - left > 1.2 * (right - middle)) == bool(order)
    maps = Head(turned).unproject((384, 512), 0.3, 1.9, 0)
    x, y = np.round(Head(turned).project(flat)[1]).astype(int)
    assert [image[y, x] for image in maps] == pytest.approx(
        (np.array([0, 0.7 / 1.6]) * (84, 124) + (1.3 * 84, 0.2 * 124)).tolist(), abs=2
    )


def test_a_tight_crop_is_completed_and_a_whole_photo_is_kept(face):
    photo, points = face
    whole, moved, _ = scene.portrait(photo, points, np.random.default_rng(1))
    assert whole.shape == (568, 440, 3)
    crop = photo[170:330, 120:260]
    tight, marks, _ = scene.portrait(crop, points - (120, 170), np.random.default_rng(1))
    assert tight.shape == (568, 440, 3)
    for image, expected in ((whole, moved), (tight, marks)):
        _, [found] = faces.find_landmarks(image[None])
        assert np.abs(found - expected).max() < 8


def test_bad_input_is_refused(photos, tmp_path):
    command = "-m", "ETC.sample", "--output", tmp_path / "new", "--faces"
    (tmp_path / "empty").mkdir()
    assert_refused(run(*command, tmp_path / "empty"), "no usable photos")
    assert_refused(run(*command, tmp_path / "none"), "no such folder")
    assert_refused(run(*command, photos, "--people", 500), "to choose from, but 500 are needed")
    few = "--people", 2, "--eval-people", 3
    assert_refused(run(*command, photos, *few), "but 5 are needed to train on and 3 to submit for")
    (tmp_path / "labels.csv").write_text("name,gender,age\na.jpg,male,3\n")
    labels = "--labels", tmp_path / "labels.csv"
    assert_refused(run(*command, photos, *labels), "no column file in name, gender, age")
    assert_refused(run(*command[:-1], *labels), "--faces")
    assert not (tmp_path / "new").exists()
