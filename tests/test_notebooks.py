"""The two notebooks, committed clean and run whole, and the modules that draw in them."""

import ast
import itertools
import os
import re

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from nbclient import NotebookClient

from config import config
from conftest import ROOT
from data.labels import list_train_images
from ETC import compare_crops, explore, keypoints

SHOTS = ["incorrect_mask", "mask1", "mask2", "mask3", "mask4", "mask5", "normal"]


def execute(name, folder, sample_dir):
    """Run a notebook with Jupyter started in folder, offline; any error in a cell is raised."""
    notebook = nbformat.read(ROOT / "ETC" / name, as_version=4)
    client = NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": folder}}
    )
    environment = {
        **os.environ,
        "MAG_DATA_DIR": str(sample_dir),
        "MAG_CROP_DIR": "",
        "TORCH_HOME": str(sample_dir.parent / "torch"),  # without weights of an earlier download
        "https_proxy": "http://127.0.0.1:9",  # where nobody answers
        "OMP_NUM_THREADS": "1",
    }
    client.execute(env=environment)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = "".join(output.get("text", "") for output in outputs)
    data = [output.get("data", {}) for output in outputs]
    [table] = [shown["text/html"] for shown in data if "text/html" in shown]
    rows = [re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row) for row in table.split("</tr>")]
    return text, rows, sum("image/png" in shown for shown in data)


@pytest.mark.parametrize("name", ["show_image.ipynb", "crop_test_img.ipynb"])
def test_committed_clean_and_thin(name):
    notebook = nbformat.read(ROOT / "ETC" / name, as_version=4)
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.language_info == {"name": "python"}
    for cell in notebook.cells:
        assert not cell.metadata
        if cell.cell_type == "code":
            assert cell.execution_count is None
            assert not cell.outputs
            code = re.sub(r"^%.*", "", cell.source, flags=re.MULTILINE)
            defined = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
            assert not any(isinstance(node, defined) for node in ast.walk(ast.parse(code)))
            assert len(code.splitlines()) <= 20
            assert not re.search(r"""["'](/|~|[A-Za-z]:\\)""", code)


def test_show_image(sample_dir):
    text, [header, _, *rows, _], pictures = execute("show_image.ipynb", ROOT / "ETC", sample_dir)
    # Statistics, classes, people, misses, histograms, the darkest, the most blurred, augmentations.
    assert pictures == 8
    assert "12 people, 84 photos" in text
    assert header == ["", "photos", "without a face", "percent"]
    assert [row[0] for row in rows] == [*SHOTS, "all"]
    assert [int(row[1]) for row in rows] == [12] * 7 + [84]


def test_crop_test_img(sample_dir):
    text, [header, _, *rows, _], pictures = execute("crop_test_img.ipynb", ROOT, sample_dir)
    assert pictures == 2
    assert "left out: Keypoint R-CNN: " in text
    assert "weights could not be downloaded" in text
    assert keypoints.WEIGHTS.url in text
    assert header == ["shot", *SHOTS, "all", "of", "ms"]
    misses = {row[0]: [int(value) for value in row[1:-1]] for row in rows}
    assert len(misses) == 6
    assert misses["centre"] == [12] * 7 + [84, 84]
    assert misses["MTCNN (default)"][6] == 0  # every drawn face without a mask is found
    assert sum(misses["MTCNN (default)"][:7]) == misses["MTCNN (default)"][7]
    assert misses["MTCNN, no margins"] == misses["MTCNN (default)"]
    assert all(float(row[-1]) > 0 for row in rows if row[0] != "centre")


def test_find_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MAG_DATA_DIR", raising=False)
    monkeypatch.setattr(config, "DATA_DIR", "input/data")
    monkeypatch.setattr(config, "CROP_DIR", "crops-of-real-photos")
    drawn = []
    monkeypatch.setattr(explore, "make_sample", lambda folder, *_: drawn.append(folder))
    # Crops of drawn people never go where those of real photos are.
    assert explore.find_data() == (explore.SAMPLE, None)
    assert drawn == [explore.SAMPLE]
    # A folder that is asked for is taken, for its reader to say what is missing.
    monkeypatch.setenv("MAG_DATA_DIR", "input/data")
    assert explore.find_data() == ("input/data", "crops-of-real-photos")
    monkeypatch.delenv("MAG_DATA_DIR")
    (tmp_path / "input/data/train").mkdir(parents=True)
    (tmp_path / "input/data/train/train.csv").touch()
    assert explore.find_data() == ("input/data", "crops-of-real-photos")
    assert len(drawn) == 1


def test_choose_people(sample_dir):
    photos = list_train_images(sample_dir)
    chosen = explore.choose_people(photos, 3, seed=1)
    assert chosen["path"].nunique() == 3
    assert (chosen.groupby("path").size() == 7).all()
    assert chosen.equals(explore.choose_people(photos, 3, seed=1))
    assert explore.choose_people(photos, 99, seed=1).equals(photos)


def test_count_classes():
    photos = pd.DataFrame(
        [
            ("mask1", "male", 29),  # 0
            ("mask5", "female", 30),  # 4
            ("mask2", "female", 59),  # 4
            ("incorrect_mask", "male", 60),  # 8
            ("normal", "female", 80),  # 17
        ],
        columns=["shot", "gender", "age"],
    )
    counts = explore.count_classes(photos)
    assert np.flatnonzero(counts).tolist() == [0, 4, 8, 17]
    assert counts["mask, female, 30to59"] == 2
    assert counts.index[8] == "incorrect, male, 60plus"


def test_brightness_and_sharpness():
    assert explore.brightness_and_sharpness(np.full((40, 30, 3), 100, np.uint8)) == (100, 0)
    red = np.full((4, 4, 3), (255, 0, 0), np.uint8)
    assert explore.brightness_and_sharpness(red)[0] == 76  # red's share is 0.299
    # On a checkerboard of 0 and 2 each Laplacian is 4 neighbours less 4 times itself: +-8.
    board = np.indices((40, 40)).sum(axis=0) % 2 * 2
    board = np.repeat(board[..., None], 3, axis=2).astype(np.uint8)
    assert explore.brightness_and_sharpness(board) == (1, 64)
    plain = pd.DataFrame({"brightness": [0.0, 255.0], "sharpness": [0.0, 0.0]})
    for axes in explore.draw_quality(plain).axes:
        assert sum(bar.get_height() for bar in axes.patches) == 2


def test_count_misses_of_crops():
    photos = pd.DataFrame(
        {"shot": ["normal", "mask1", "mask1"], "method": ["mtcnn", "center", "mtcnn"]}
    )
    table = explore.count_misses(photos)
    assert table.index.tolist() == ["mask1", "normal", "all"]
    assert table["photos"].tolist() == [2, 1, 3]
    assert table["without a face"].tolist() == [1, 0, 1]
    assert table["percent"].tolist() == [50.0, 0.0, 33.3]


def test_compare_ways():
    """Images without a face, of two sizes."""
    images = {
        "a/mask1.jpg": np.zeros((512, 384, 3), np.uint8),
        "b/mask1.jpg": np.zeros((200, 100, 3), np.uint8),
        "a/normal.jpg": np.zeros((512, 384, 3), np.uint8),
    }
    default = config.CROP | {"face_width": 160}
    ways = {"MTCNN": ("mtcnn", default), "centre": ("center", default | {"center_size": 120})}
    found = compare_crops.compare_ways(ways, images, torch.device("cpu"))
    assert sorted(zip(found["way"], found["file"])) == sorted(itertools.product(ways, images))
    assert (found["method"] == "center").all()
    boxes = found.set_index(["way", "file"])[["x0", "y0", "x1", "y1"]]
    assert tuple(boxes.loc[("MTCNN", "a/normal.jpg")]) == (42, 106, 342, 406)
    assert tuple(boxes.loc[("centre", "a/normal.jpg")]) == (132, 196, 252, 316)
    figure = compare_crops.draw_ways(found, images)
    assert [axes.get_ylabel() for axes in figure.axes[::3]] == list(ways)
    assert [axes.get_title() for axes in figure.axes[:3]] == ["mask1", "mask1", "normal"]
    [text] = compare_crops.draw_ways(found, {}).texts
    assert text.get_text() == "there are none"


def test_count_misses_of_ways():
    photos = pd.DataFrame({"file": ["a", "b", "c"], "shot": ["normal", "mask1", "mask1"]})
    found = pd.DataFrame(
        [
            ("z", "b", "center", 1.0),
            ("z", "a", "mtcnn", 2.0),
            ("centre", "b", "center", 0.0),
            ("centre", "a", "center", 0.0),
            ("z", "c", "mtcnn", 6.0),
            ("centre", "c", "center", 0.0),
        ],
        columns=["way", "file", "method", "ms"],
    )
    table = compare_crops.count_misses(found, photos)
    assert table.columns.tolist() == ["mask1", "normal", "all", "of", "ms"]
    assert table.index.tolist() == ["z", "centre"]  # as given
    assert table.loc["z"].tolist() == [1, 0, 1, 3, 3.0]
    assert table.loc["centre"].tolist() == [2, 1, 3, 3, 0.0]


def test_heads_of_people():
    points = np.zeros((17, 2), np.float32)
    points[:5] = [(200, 150), (220, 130), (180, 130), (240, 135), (160, 135)]
    person = np.array([100, 20, 300, 500], np.float32)
    assert keypoints.head_box(person, points) == pytest.approx((160, 90, 240, 198))
    narrow = np.array([170, 100, 230, 500], np.float32)
    assert keypoints.head_box(narrow, points) == pytest.approx((170, 100, 230, 198))

    def network(images):  # three people: one small, one unlikely, one large
        assert [image.max() <= 1 and image.shape == (3, 512, 384) for image in images] == [True]
        boxes = torch.tensor([[100, 20, 300, 500], [0, 0, 384, 512], [0, 0, 384, 512.0]])
        three = torch.from_numpy(np.stack([points, points, 1.5 * points]))
        three = torch.cat([three, torch.ones(3, 17, 1)], dim=2)
        return [{"boxes": boxes, "keypoints": three, "scores": torch.tensor([0.9, 0.7, 0.99])}]

    network.parameters = lambda: iter([torch.zeros(1)])
    images = np.full((2, 512, 384, 3), 255, np.uint8)
    for heads in keypoints.find_heads(network, images, 20):
        assert [score for _, score in heads] == pytest.approx([0.99, 0.9])
        assert heads[1][0] == pytest.approx((160, 90, 240, 198))
    assert [len(heads) for heads in keypoints.find_heads(network, images, 100)] == [1, 1]
