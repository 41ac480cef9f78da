"""The model of ETC.export, run without this repository, answers as test.py does."""

import json
import shutil
import subprocess
import sys

import onnx
import onnxruntime
import pandas as pd
import pytest
import torch

import ETC.export
from config.config import CLASSES
from conftest import assert_refused, run, run_ok
from models.network import build_network
from utils.checkpoint import load_checkpoint, save_checkpoint

# A program of someone who has the model and crops, and nothing else of ours.
CLIENT = """
import json, pathlib, sys
import cv2, numpy, onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession("faces.onnx", providers=["CPUExecutionProvider"])
metadata = session.get_modelmeta().custom_metadata_map
metadata = {name: json.loads(value) for name, value in metadata.items()}
shrink, enlarge = (getattr(cv2, metadata["resize"][step]) for step in ("shrink", "enlarge"))

def resize(crop, side):
    height, width = crop.shape[:2]
    crop = cv2.resize(crop, (min(width, side), min(height, side)), interpolation=shrink)
    return cv2.resize(crop, (side, side), interpolation=enlarge)

crops = {file.name: numpy.asarray(Image.open(file)) for file in pathlib.Path(sys.argv[1]).iterdir()}
images = {name: [resize(crop, side) for crop in crops.values()]
          for name, side in metadata["inputs"].items()}
answers = []
for batch in (1, 5):  # of 42 images, so that the last batch is smaller
    rows = []
    for start in range(0, len(crops), batch):
        feed = {name: numpy.stack(stack[start : start + batch]) for name, stack in images.items()}
        mask, gender, age, classes = session.run(["mask", "gender", "age", "class"], feed)
        rows += numpy.hstack([mask, gender, age, classes[:, None]]).tolist()
    answers.append(dict(zip(crops, rows)))
columns = [f"{head}_{name}" for head, names in metadata["heads"].items() for name in names]
assert not {"torch", "utils", "models", "data", "config"} & sys.modules.keys()
print(json.dumps([metadata, columns, answers]))
"""


@pytest.fixture(scope="module")
def one_size_dir(runs_dir, tmp_path_factory):
    """Runs of one size: mask without mirror images, gender with them, and age with them and an
    AgeHead, and without either.
    """
    folder = tmp_path_factory.mktemp("one_size")
    shutil.copytree(runs_dir / "mask_fold0", folder / "mask_fold0")
    shutil.copytree(runs_dir / "age_fold3", folder / "age_fold3")
    torch.manual_seed(0)
    for target, border in (("gender", 0), ("age", 59)):
        classes = list(CLASSES[target])
        # Its classifier layer is random, but its ImageNet features tell faces apart.
        network = build_network("efficientnet-lite0", len(classes), 64, None, True, border)
        checkpoint = load_checkpoint(runs_dir / "mask_fold0/best.pth")
        checkpoint |= {"target": target, "classes": classes, "tta": "flip", "age_border": border}
        (folder / f"{target}_fold0").mkdir()
        save_checkpoint(
            folder / f"{target}_fold0/best.pth", checkpoint | {"network": network.state_dict()}
        )
    return folder


def export_and_ask(runs, sample_dir, folder, *options):
    """Export to folder, and run CLIENT there and test.py.

    Returns the metadata and three tables with a row an eval image: the model's answers in batches
    of 1, and of 5, and those of test.py.
    """
    folder.mkdir(exist_ok=True)
    model, submission = folder / "faces.onnx", folder / "submission.csv"
    printed = run_ok("-m", "ETC.export", "--runs", runs, "--output", model, *options)
    assert "1 mask, 1 gender, 2 age" in printed
    assert [path.name for path in folder.iterdir()] == [model.name]
    done = subprocess.run(
        [sys.executable, "-I", "-c", CLIENT, sample_dir / "eval/new_images"],
        cwd=folder, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    metadata, columns, answers = json.loads(done.stdout)
    run_ok(
        "test.py", "--data-dir", sample_dir, "--runs", runs, "--backend", "torch",
        "--output", submission, "--num-workers", 0, *options,
    )  # fmt: skip
    expected = pd.read_csv(folder / "probabilities.csv", index_col="ImageID")
    expected["ans"] = pd.read_csv(submission, index_col="ImageID")["ans"]
    tables = [
        pd.DataFrame.from_dict(rows, orient="index", columns=[*columns, "ans"]) for rows in answers
    ]
    return metadata, *(table.loc[expected.index].astype({"ans": int}) for table in tables), expected


def assert_same(answers, expected):
    assert (answers["ans"] == expected["ans"]).all()
    pd.testing.assert_frame_equal(answers, expected, check_names=False, atol=1e-4, rtol=0)


def test_networks_of_several_sizes(runs_dir, sample_dir, tmp_path):
    metadata, single, five, expected = export_and_ask(runs_dir, sample_dir, tmp_path / "new")
    assert metadata["inputs"] == {"images_64": 64, "images_80": 80}
    assert_same(single, expected)
    assert_same(five, expected)


def test_networks_of_one_size_with_and_without_mirror_images(one_size_dir, sample_dir, tmp_path):
    metadata, single, five, as_trained = export_and_ask(one_size_dir, sample_dir, tmp_path / "as")
    assert_same(single, as_trained)
    assert_same(five, as_trained)
    assert_metadata(metadata, one_size_dir)
    assert_shapes(tmp_path / "as/faces.onnx")
    options = "--tta", "none"
    metadata, single, _, plain = export_and_ask(one_size_dir, sample_dir, tmp_path / "no", *options)
    assert_same(single, plain)
    assert {fold["tta"] for head in metadata["networks"].values() for fold in head} == {"none"}
    # Mirror images make a difference, which a model without them would show.
    gap = (as_trained - plain).abs().max()
    assert gap["mask_mask"] == 0
    assert min(gap["gender_male"], gap["age_60plus"]) > 1e-3


def assert_metadata(metadata, runs):
    checkpoint = load_checkpoint(runs / "age_fold0/best.pth")
    networks, names, resize = (metadata.pop(name) for name in ("networks", "classes", "resize"))
    assert {target: len(head) for target, head in networks.items()} == {
        "mask": 1, "gender": 1, "age": 2,
    }  # fmt: skip
    assert [fold["tta"] for fold in networks["age"]] == ["flip", "none"]
    assert networks["age"][0] == {
        "model": "efficientnet-lite0", "resize": 64, "tta": "flip", "sha256": checkpoint["digest"],
    }  # fmt: skip
    assert len(names) == 18
    assert names[0] == "mask, male, under30"  # as the competition counts
    assert names[7] == "incorrect, male, 30to59"
    assert names[17] == "normal, female, 60plus"
    assert (resize["shrink"], resize["enlarge"]) == ("INTER_AREA", "INTER_LINEAR")
    assert metadata["crop"].keys() >= {"margin_x", "margin_y", "center_size", "face_width"}
    assert metadata == {
        "format": ETC.export.FORMAT,
        "inputs": {"images": 64},
        "crop": checkpoint["crop"],
        "heads": {target: list(names) for target, names in CLASSES.items()},
    }


def assert_shapes(path):
    onnx.checker.check_model(str(path), full_check=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    described = {value.name: (value.type, value.shape) for value in session.get_inputs()}
    assert described == {"images": ("tensor(uint8)", ["N", 64, 64, 3])}
    described = {value.name: (value.type, value.shape) for value in session.get_outputs()}
    assert described == {
        "mask": ("tensor(float)", ["N", 3]),
        "gender": ("tensor(float)", ["N", 2]),
        "age": ("tensor(float)", ["N", 3]),
        "class": ("tensor(int64)", ["N"]),
    }


def test_what_cannot_be_exported_is_refused(runs_dir, tmp_path, monkeypatch):
    def refused(*words, runs=runs_dir, output=tmp_path / "new/model.onnx"):
        done = run("-m", "ETC.export", "--runs", runs, "--output", output)
        assert_refused(done, *words)
        assert not list(tmp_path.rglob("*.onnx"))

    monkeypatch.setattr(ETC.export, "build_model", lambda *_: pytest.fail("too late"))
    refused("--runs", "best.pth", runs=tmp_path)
    refused("--output", "ends in .onnx", output=tmp_path / "model.pt")
    monkeypatch.setattr(ETC.export, "LIMIT", 10**7)
    refused("--runs", "4 networks", "fewer runs")
    monkeypatch.setattr(ETC.export, "missing_packages", lambda: ["onnxruntime"])
    refused("onnxruntime not installed", "requirements-onnx.txt")
