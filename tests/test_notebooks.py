"""The two notebooks: committed clean, and run whole on drawn people; what they call."""

import ast
import itertools
import os
import re

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from nbclient import NotebookClient

from config import config
from conftest import ROOT
from data.labels import list_train_images
from ETC import compare_crops, explore
from ETC.quality import brightness, sharpness

ETC = ROOT / "ETC"
SHOTS = ["incorrect_mask", "mask1", "mask2", "mask3", "mask4", "mask5", "normal"]
DEFAULT = {name: getattr(config, name.upper()) for name in config.CROP_SETTINGS}


def execute(name, sample_dir):
    """Run a notebook as from ETC/, without a network; any error in a cell is raised."""
    notebook = nbformat.read(ETC / name, as_version=4)
    client = NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": ETC}}
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
    return notebook


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def printed(notebook):
    return "".join(output.get("text", "") for output in outputs(notebook))


def tables(notebook):
    """The cells' texts, row by row, of each table a notebook shows."""
    html = [output.get("data", {}).get("text/html", "") for output in outputs(notebook)]
    return [
        [re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row) for row in text.split("</tr>")]
        for text in html
        if text
    ]


def count_pictures(notebook):
    return sum("image/png" in output.get("data", {}) for output in outputs(notebook))


@pytest.fixture(scope="module")
def show_image(sample_dir):
    return execute("show_image.ipynb", sample_dir)


@pytest.fixture(scope="module")
def crop_test_img(sample_dir):
    return execute("crop_test_img.ipynb", sample_dir)


@pytest.mark.parametrize("name", ["show_image.ipynb", "crop_test_img.ipynb"])
def test_committed_clean_and_thin(name):
    notebook = nbformat.read(ETC / name, as_version=4)
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


def test_show_image(show_image):
    # Statistics, classes, people, misses, histograms, the darkest, the most blurred, augmentations.
    assert count_pictures(show_image) == 8
    assert "12 people, 84 photos" in printed(show_image)
    [[header, _, *rows, _]] = tables(show_image)
    assert header == ["", "photos", "without a face", "percent"]
    assert [row[0] for row in rows] == [*SHOTS, "all"]
    assert [int(row[1]) for row in rows] == [12] * 7 + [84]


def test_crop_test_img(crop_test_img):
    assert count_pictures(crop_test_img) == 2
    text = printed(crop_test_img)
    assert "Keypoint R-CNN is left out: --detector keypoint_rcnn: its weights could not be " in text
    [[header, _, *rows, _]] = tables(crop_test_img)
    assert header == ["shot", *SHOTS, "all", "of", "ms per photo"]
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
    assert explore.find_data() == ("demo/notebook", None)
    assert drawn == ["demo/notebook"]
    for folder in ("demo/data", "input/data"):
        (tmp_path / folder / "train").mkdir(parents=True)
        (tmp_path / folder / "train" / "train.csv").touch()
        crops = "crops-of-real-photos" if folder == "input/data" else None
        assert explore.find_data() == (folder, crops)
    # A folder that is asked for is taken, for its reader to say that nothing is there.
    monkeypatch.setenv("MAG_DATA_DIR", "nowhere")
    monkeypatch.setattr(config, "DATA_DIR", "nowhere")
    assert explore.find_data() == ("nowhere", "crops-of-real-photos")
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
    assert len(counts) == 18
    assert np.flatnonzero(counts).tolist() == [0, 4, 8, 17]
    assert counts.iloc[4] == counts["mask, female, 30to59"] == 2
    assert counts["mask, male, under30"] == counts["normal, female, 60plus"] == 1
    assert counts.index[8] == "incorrect, male, 60plus"
    assert isinstance(explore.draw_classes(counts), Figure)


def test_brightness_and_sharpness():
    gray = np.full((40, 30, 3), 100, np.uint8)
    assert brightness(gray) == 100
    assert sharpness(gray) == 0
    assert brightness(np.full((4, 4, 3), (255, 0, 0), np.uint8)) == 76  # red's share is 0.299
    # On a checkerboard of 0 and 2 each Laplacian is 4 neighbours less 4 times itself: +-8.
    board = np.indices((40, 40)).sum(axis=0) % 2 * 2
    assert sharpness(np.repeat(board[..., None], 3, axis=2).astype(np.uint8)) == 64


def test_measure(sample_dir):
    photos = list_train_images(sample_dir).head(3)
    measured = explore.measure(photos, sample_dir / "train" / "images")
    assert measured["file"].tolist() == photos["file"].tolist()
    assert measured["brightness"].between(1, 254).all()
    assert (measured["sharpness"] > 0).all()


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
    ways = {"MTCNN": DEFAULT, "centre": DEFAULT | {"detector": "center", "center_size": 120}}
    found = compare_crops.compare_ways(ways, images, torch.device("cpu"))
    assert sorted(zip(found["way"], found["file"])) == sorted(itertools.product(ways, images))
    assert (found["method"] == "center").all()
    boxes = found.set_index(["way", "file"])[["x0", "y0", "x1", "y1"]]
    assert tuple(boxes.loc[("MTCNN", "a/normal.jpg")]) == (42, 106, 342, 406)
    assert tuple(boxes.loc[("centre", "a/normal.jpg")]) == (132, 196, 252, 316)
    assert tuple(boxes.loc[("centre", "b/mask1.jpg")]) == (0, 40, 100, 160)
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
    assert table.columns.tolist() == ["mask1", "normal", "all", "of", "ms per photo"]
    assert table.index.tolist() == ["z", "centre"]  # as given
    assert table.loc["z"].tolist() == [1, 0, 1, 3, 3.0]
    assert table.loc["centre"].tolist() == [2, 1, 3, 3, 0.0]


def test_pictures_of_nothing_and_of_plain_photos():
    nothing = pd.DataFrame(columns=["file", "shot"])
    [text] = explore.draw_photos(nothing, "", []).texts
    assert text.get_text() == "there are none"
    plain = pd.DataFrame({"brightness": [0.0, 255.0], "sharpness": [0.0, 0.0]})
    light, focus = explore.draw_quality(plain).axes
    for axes in (light, focus):
        assert sum(bar.get_height() for bar in axes.patches) == 2
