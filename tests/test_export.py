"""The model of ETC.export, run without this repository, answers as test.py does."""

import json
import shutil
import subprocess
import sys

import numpy as np
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


def other_head(checkpoint, target, resize, age_border=0):
    """A mask head's checkpoint turned into one of another head, with mirror images."""
    classes = list(CLASSES[target])
    torch.manual_seed(0)
    # Its classifier layer is random, but its ImageNet features tell faces apart.
    network = build_network(checkpoint["model"], len(classes), resize, None, True, age_border)
    values = {"target": target, "classes": classes, "resize": resize, "age_border": age_border}
    return {**checkpoint, **values, "tta": "flip", "network": network.state_dict()}


def test_the_model_answers_as_test_py_does(runs_dir, sample_dir, tmp_path):
    """Networks of two sizes, with and without mirror images and an AgeHead; two for age."""
    runs = shutil.copytree(runs_dir, tmp_path / "runs")
    mask = load_checkpoint(runs / "mask_fold0/best.pth")
    save_checkpoint(runs / "gender_fold1/best.pth", other_head(mask, "gender", 80))
    save_checkpoint(runs / "age_fold0/best.pth", other_head(mask, "age", 64, age_border=59))
    model = tmp_path / "new/faces.onnx"
    printed = run_ok("-m", "ETC.export", "--runs", runs, "--output", model)
    assert "1 mask, 1 gender, 2 age" in printed
    assert [path.name for path in model.parent.iterdir()] == [model.name]
    onnx.checker.check_model(str(model), full_check=True)
    done = subprocess.run(
        [sys.executable, "-I", "-c", CLIENT, sample_dir / "eval/new_images"],
        cwd=model.parent, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    metadata, columns, answers = json.loads(done.stdout)
    run_ok(
        "test.py", "--data-dir", sample_dir, "--runs", runs, "--backend", "torch",
        "--output", tmp_path / "submission.csv", "--num-workers", 0,
    )  # fmt: skip
    expected = pd.read_csv(tmp_path / "probabilities.csv", index_col="ImageID")
    expected["ans"] = pd.read_csv(tmp_path / "submission.csv", index_col="ImageID")["ans"]
    for rows in answers:
        table = pd.DataFrame.from_dict(rows, orient="index", columns=[*columns, "ans"])
        table = table.loc[expected.index].astype({"ans": int})
        assert (table["ans"] == expected["ans"]).all()
        pd.testing.assert_frame_equal(table, expected, check_names=False, atol=1e-4, rtol=0)

    assert metadata["format"] == ETC.export.FORMAT
    assert metadata["inputs"] == {"images_64": 64, "images_80": 80}
    assert metadata["crop"] == mask["crop"]
    assert metadata["classes"][7] == "incorrect, male, 30to59"  # as the competition counts
    age, other = metadata["networks"]["age"]
    digest = load_checkpoint(runs / "age_fold0/best.pth")["digest"]
    assert age == {"model": mask["model"], "resize": 64, "tta": "flip", "sha256": digest}
    assert other["tta"] == "none"


def test_one_size_and_the_choice_of_mirror_images(runs_dir):
    mask = load_checkpoint(runs_dir / "mask_fold0/best.pth")
    heads = {target: [other_head(mask, target, 64)] for target in CLASSES}
    images = np.random.default_rng(0).integers(256, size=(2, 64, 64, 3), dtype=np.uint8)
    for tta in ("none", "flip"):
        model = ETC.export.build_model(heads, tta)
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        [value] = session.get_inputs()
        assert (value.name, value.type) == ("images", "tensor(uint8)")
        shapes = {value.name: value.shape for value in session.get_outputs()}
        expected = {name: ["N", len(names)] for name, names in CLASSES.items()}
        assert shapes == {**expected, "class": ["N"]}
        both = [session.run(["age"], {"images": view})[0] for view in (images, images[:, :, ::-1])]
        assert np.allclose(*both, atol=1e-5) == (tta == "flip")


def test_what_cannot_be_exported_is_refused(runs_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(ETC.export, "build_model", lambda *_: pytest.fail("too late"))
    command = ["-m", "ETC.export", "--runs"]
    assert_refused(run(*command, tmp_path), "--runs", "best.pth")
    assert_refused(run(*command, runs_dir, "--output", tmp_path / "model.pt"), "ends in .onnx")
    monkeypatch.setattr(ETC.export, "missing_packages", lambda: ["onnxruntime"])
    assert_refused(run(*command, runs_dir), "onnxruntime not installed", "requirements-onnx.txt")
