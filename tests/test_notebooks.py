"""The two notebooks, committed clean and run whole, and the modules that draw in them."""

import os
import re
import shutil
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from nbclient import NotebookClient

from config import config
from conftest import ROOT, SHOTS
from ETC import explore, keypoints


@pytest.fixture(scope="module")
def data_dir(sample_dir, tmp_path_factory):
    """Three people of the sample, with their crops."""
    folder = shutil.copytree(sample_dir, tmp_path_factory.mktemp("three") / "data")
    table = pd.read_csv(folder / "train/train.csv", dtype=str)
    table[:3].to_csv(folder / "train/train.csv", index=False)
    return folder


def execute(name, folder, data_dir):
    """Run a notebook with Jupyter started in folder, offline; any error in a cell is raised."""
    notebook = nbformat.read(ROOT / "ETC" / name, as_version=4)
    client = NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": folder}}
    )
    environment = {
        **os.environ,
        "MAG_DATA_DIR": str(data_dir),
        "MAG_CROP_DIR": "",
        "TORCH_HOME": str(data_dir.parent / "torch"),  # without weights of an earlier download
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
def test_committed_clean(name):
    notebook = nbformat.read(ROOT / "ETC" / name, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.metadata
        if cell.cell_type == "code":
            assert cell.execution_count is None
            assert not cell.outputs


def test_show_image(data_dir):
    text, [header, _, *rows, _], pictures = execute("show_image.ipynb", ROOT / "ETC", data_dir)
    # Statistics, classes, people, histograms, the darkest, the most blurred, augmentations; and the
    # photos without a face, if there are any.
    manifest = pd.read_csv(data_dir / "train/crops.csv")[:21]
    found = manifest["method"].value_counts()
    again, missed = found.get("mtcnn, second look", 0), found.get("center", 0)
    assert pictures == 7 + (missed > 0)
    assert "3 people, 21 photos" in text
    assert header == ["", "photos", "second look", "without a face", "percent"]
    assert [row[0] for row in rows] == [*sorted(SHOTS), "all"]
    assert rows[-1] == ["all", "21", f"{again}", f"{missed}", f"{100 * missed / 21:.1f}"]


def test_crop_test_img(data_dir):
    text, [header, _, *rows, _], pictures = execute("crop_test_img.ipynb", ROOT, data_dir)
    assert pictures == 2
    assert "left out: Keypoint R-CNN: " in text
    assert "weights could not be downloaded" in text
    assert keypoints.WEIGHTS.url in text
    assert header == ["shot", *sorted(SHOTS), "all", "of", "ms"]
    misses = {row[0]: [int(value) for value in row[1:-1]] for row in rows}
    assert len(misses) == 7
    assert misses["centre"] == [3] * 7 + [21, 21]
    methods = pd.read_csv(data_dir / "train/crops.csv")["method"][:21]  # of data.crop
    assert misses["MTCNN (default)"][-2] == (methods == "center").sum()
    assert misses["MTCNN, no second look"][-2] == (methods != "mtcnn").sum() > 0
    assert misses["MTCNN, no margins"] == misses["MTCNN (default)"]


def test_find_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MAG_DATA_DIR", raising=False)
    monkeypatch.setattr(config, "DATA_DIR", "input/data")
    monkeypatch.setattr(config, "CROP_DIR", "crops-of-real-photos")
    monkeypatch.setattr(explore, "make_sample", lambda folder, *_: Path(folder).mkdir(parents=True))
    # Crops of drawn people never go where those of real photos are.
    assert explore.find_data() == (explore.SAMPLE, None)
    assert Path(explore.SAMPLE).exists()
    Path("input/data/train").mkdir(parents=True)
    Path("input/data/train/train.csv").touch()
    assert explore.find_data() == ("input/data", "crops-of-real-photos")


def test_brightness_and_sharpness():
    assert explore.brightness_and_sharpness(np.full((40, 30, 3), 100, np.uint8)) == (100, 0)
    # On a checkerboard of 0 and 2 each Laplacian is 4 neighbours less 4 times itself: +-8.
    board = np.indices((40, 40)).sum(axis=0) % 2 * 2
    board = np.repeat(board[..., None], 3, axis=2).astype(np.uint8)
    assert explore.brightness_and_sharpness(board) == (1, 64)


def test_heads_of_people():
    points = np.zeros((17, 2), np.float32)
    points[:5] = [(200, 150), (220, 130), (180, 130), (240, 135), (160, 135)]
    narrow = np.array([170, 100, 230, 500], np.float32)
    assert keypoints.head_box(narrow, points) == pytest.approx((170, 100, 230, 198))

    def network(images):  # three people: one small, one unlikely, one large
        assert [image.max() <= 1 and image.shape == (3, 512, 384) for image in images] == [True]
        boxes = torch.tensor([[100, 20, 300, 500], [0, 0, 384, 512], [0, 0, 384, 512.0]])
        three = torch.from_numpy(np.stack([points, points, 1.5 * points]))
        return [{"boxes": boxes, "keypoints": three, "scores": torch.tensor([0.9, 0.7, 0.99])}]

    network.parameters = lambda: iter([torch.zeros(1)])
    images = np.full((2, 512, 384, 3), 255, np.uint8)
    for (large, large_score), (small, small_score) in keypoints.find_heads(network, images, 20):
        assert (large_score, small_score) == pytest.approx((0.99, 0.9))
        assert large == pytest.approx((240, 135, 360, 297))
        assert small == pytest.approx((160, 90, 240, 198))
    assert [len(heads) for heads in keypoints.find_heads(network, images, 100)] == [1, 1]
