"""train.py as its users run it, on a small data set."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
from argparse import Namespace

import cv2
import efficientnet_pytorch
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score
from torch.utils._python_dispatch import TorchDispatchMode

import train
from config import config
from conftest import ROOT, SMALL, assert_refused, run, run_ok
from data.images import load_image
from data.labels import assign_folds, list_train_images
from models.network import build_network, load_network, normalize
from utils.checkpoint import load_checkpoint


def train_small(data_dir, output, *arguments, target="age", run=run_ok):
    return run("train.py", "--target", target, "--data-dir", data_dir, "--output-dir", output,
               *SMALL, "--epochs", 1, "--num-workers", 0, *arguments)  # fmt: skip


def last_network(output):
    return load_checkpoint(output / "age_fold0/last.pth")["network"]


def equal(network, other):
    return all(torch.equal(network[name], other[name]) for name in network.keys() | other.keys())


# --- arguments


def parse(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["train.py", *map(str, arguments)])
    return train.parse_args()


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("mask", {"lr": 3e-4, "loss": "cross_entropy", "epochs": 10, "augment": "mask"}),
        ("gender", {"lr": 1e-4, "loss": "cross_entropy", "epochs": 10, "augment": "gender"}),
        ("age", {"lr": 1e-4, "loss": "focal", "epochs": 4, "augment": "age"}),
    ],
)
def test_the_recipes_are_defaults_that_arguments_override(monkeypatch, target, expected):
    original = parse(monkeypatch, "--target", target)
    expected |= {"model": "efficientnet-b3", "resize": 224, "batch_size": 64, "seed": 777,
                 "schedule": "constant", "tta": "none", "age_border": 59}  # fmt: skip
    assert expected.items() <= vars(original).items()
    changed = config.RECIPES["best"][target]
    best = vars(parse(monkeypatch, "--target", target, "--recipe", "best"))
    assert best == {**vars(original), "recipe": "best", **changed}
    given = ["--recipe", "best", "--lr", 5e-4, "--epochs", 1]
    assert vars(parse(monkeypatch, "--target", target, *given)).items() >= {"lr": 5e-4}.items()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--target", "nose"], ["--target", "nose"]),
        (["--model", "resnet50"], ["resnet50"]),
        (["--tar", "age"], ["--tar"]),
        (["--age-border", 101], ["--age-border 101"]),
        (["--target", "mask", "--focal-gamma", 1], ["--focal-gamma", "--loss focal"]),
        (["--target", "mask", "--loss", "age_distribution"], ["age_distribution", "--target age"]),
        (["--weights", "x.pth", "--no-pretrained"], ["--weights", "--no-pretrained"]),
        (["--weights", "nowhere.pth"], ["nowhere.pth"]),
        (["--weights", "README.md"], ["README.md"]),
        (["--device", "cuda:99"], ["--device cuda:99"]),
        (["--precision", "fp16", "--device", "cpu"], ["--precision fp16"]),
        (["--data-dir", "nowhere"], ["nowhere", "--data-dir", "MAG_DATA_DIR"]),
        (["--output-dir", "README.md"], ["README.md", "--output-dir"]),
        (["--crop-dir", "README.md"], ["README.md"]),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_a_wrong_argument_is_one_line(sample_dir, tmp_path, arguments, words):
    assert_refused(train_small(sample_dir, tmp_path, *arguments, run=run), *words)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_batch_has_to_be_shared_evenly_by_the_processes(sample_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "world_size", lambda: 3)
    assert_refused(train_small(sample_dir, tmp_path, run=run), "--batch-size 16", "processes")


def test_a_download_that_fails_is_one_line_before_hours_of_cropping(
    sample_dir, tmp_path, monkeypatch
):
    def fail(url, **options):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(efficientnet_pytorch.utils.model_zoo, "load_url", fail)
    options = ["--model", "efficientnet-b0", "--crop-dir", tmp_path / "crops"]
    done = train_small(sample_dir, tmp_path, *options, run=run)
    assert_refused(done, "Name or service not known", "--weights FILE", "--no-pretrained")
    assert not (tmp_path / "crops").exists()


# --- what a run leaves


def test_the_files_of_a_run(runs_dir):
    folder = runs_dir / "gender_fold1"
    assert {path.name for path in folder.iterdir() if path.suffix != ".onnx"} == {
        "best.pth", "last.pth", "config.json", "log.csv", "val_predictions.csv", "curves.png",
        "confusion.png", "tensorboard",
    }  # fmt: skip
    arguments = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert {"target": "gender", "lr": 1e-4, "model": "efficientnet-b0"}.items() <= arguments.items()
    log = pd.read_csv(folder / "log.csv")
    assert list(log.columns) == [
        "epoch", "train_loss", "val_loss", "accuracy", "macro_f1", "f1_female", "f1_male",
    ]  # fmt: skip
    expected = {
        "target": "gender", "classes": ["female", "male"], "fold": 1, "model": "efficientnet-b0",
        "resize": 80, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
        "val_f1": log["macro_f1"].max(),
    }  # fmt: skip
    assert expected.items() <= load_checkpoint(folder / "best.pth").items()


def test_val_predictions_are_those_of_the_best_network_for_unseen_people(runs_dir, sample_dir):
    """Predict a run's val photos anew, from the crops on, by other code than train.py's."""
    checkpoint = load_checkpoint(runs_dir / "age_fold3/best.pth")
    images = list_train_images(sample_dir)
    is_val = assign_folds(images, config.FOLD_SEED) == 3
    val = images[is_val]
    assert not set(val["group"]) & set(images["group"][~is_val])
    network, probs = load_network(checkpoint), []
    for file in val["file"]:
        face = load_image(sample_dir / "train/new_img" / file)
        pixels = cv2.resize(face, (64, 64), interpolation=cv2.INTER_AREA)
        stats = torch.tensor([checkpoint["mean"], checkpoint["std"]])
        with torch.inference_mode():
            logits = network(normalize(torch.from_numpy(pixels)[None], *stats))
        probs.append(logits.softmax(dim=1)[0].numpy())

    table = pd.read_csv(runs_dir / "age_fold3/val_predictions.csv")
    assert table["file"].tolist() == val["file"].tolist()
    names = np.array(config.CLASSES["age"])
    labels = np.digitize(val["age"], [30, 60])  # the official border, not the training labels'
    assert table["label"].tolist() == names[labels].tolist()
    assert table["predicted"].tolist() == names[np.argmax(probs, axis=1)].tolist()
    np.testing.assert_allclose(table.filter(like="p_"), probs, atol=1e-4)
    f1 = f1_score(table["label"], table["predicted"], labels=names, average="macro",
                  zero_division=0)  # fmt: skip
    assert f1 == pytest.approx(checkpoint["val_f1"])


class Echo(torch.nn.Module):
    """The mean of each colour as its logit."""

    def forward(self, images):
        return images.mean((2, 3))


def test_macro_f1_is_computed_once_over_the_whole_val_set():
    """Batches of one class each would make an average of per-batch scores differ."""
    red, green, blue = (torch.eye(3, dtype=torch.uint8) * 255)[:, None, None]
    loader = [
        (torch.stack([red, green]), torch.tensor([0, 0])),
        (torch.stack([green, blue]), torch.tensor([1, 2])),
    ]
    stats = torch.tensor([[0.0] * 3, [1.0] * 3])
    scores, logits = train.evaluate(
        Echo(), loader, F.cross_entropy, stats, torch.float32, tta="none"
    )
    assert logits.tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1]]
    expected = f1_score([0, 0, 1, 2], [0, 1, 1, 2], average="macro")
    assert scores["macro_f1"] == pytest.approx(expected)
    assert scores["accuracy"] == 0.75


def test_the_checkpoint_of_the_best_epoch_is_kept(sample_dir, tmp_path, monkeypatch):
    given, real, tables = iter([0.5, 0.9, 0.7]), train.evaluate, []

    def evaluate(*arguments):
        scores, logits = real(*arguments)
        tables.append(logits.softmax(dim=1).numpy())
        return {**scores, "macro_f1": next(given)}, logits

    monkeypatch.setattr(train, "evaluate", evaluate)
    out = train_small(sample_dir, tmp_path, "--epochs", 3)
    best, last = (load_checkpoint(tmp_path / f"age_fold0/{name}.pth") for name in ("best", "last"))
    assert (best["epoch"], best["val_f1"]) == (2, 0.9)
    assert (last["epoch"], last["val_f1"]) == (3, 0.7)
    assert "best val macro-F1 0.9000" in out
    table = pd.read_csv(tmp_path / "age_fold0/val_predictions.csv")
    np.testing.assert_allclose(table.filter(like="p_"), tables[1], atol=2e-6)


# --- training


@pytest.fixture(scope="module")
def baseline(sample_dir, tmp_path_factory):
    output = tmp_path_factory.mktemp("baseline")
    train_small(sample_dir, output)
    return output


def test_the_same_bits_whatever_the_number_of_workers(baseline, sample_dir, tmp_path):
    train_small(sample_dir, tmp_path, "--num-workers", 2)
    for name in ("best.pth", "log.csv", "val_predictions.csv"):
        files = [output / "age_fold0" / name for output in (baseline, tmp_path)]
        assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--augment", "none"],
        ["--loss", "cross_entropy"],
        ["--focal-gamma", "0"],
        ["--age-border", "45"],
        ["--lr", "2e-4"],
        ["--seed", "778"],
        ["--fold-seed", "1"],
        ["--no-pretrained"],
        ["--precision", "bf16"],
    ],
    ids=" ".join,
)
def test_options_reach_the_training(baseline, sample_dir, tmp_path, arguments):
    train_small(sample_dir, tmp_path, *arguments)
    assert not equal(last_network(tmp_path), last_network(baseline))


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_run_of_one_step_trains_from_the_weights_in_a_file(sample_dir, tmp_path, schedule):
    weights = tmp_path / "weights.pth"
    network = build_network("efficientnet-lite0", 3, 64)
    torch.save(network.state_dict(), weights)
    options = ["--weights", weights, "--schedule", schedule, "--batch-size", 128, "--lr", 1e-3]
    train_small(sample_dir, tmp_path, *options)
    step = last_network(tmp_path)["_conv_stem.weight"] - network._conv_stem.weight
    assert 1e-5 < step.abs().max() <= 1.01e-3  # Adam's first step is the learning rate


def test_learning_rates():
    args = Namespace(schedule="cosine", lr=0.1, epochs=4)
    rates = np.concatenate([train.learning_rates(args, epoch, 25) for epoch in range(1, 5)])
    top = rates.argmax()
    assert top in (9, 10)  # of 100 steps, a tenth
    assert rates.max() == pytest.approx(0.1, rel=0.02)
    assert (np.diff(rates[: top + 1]) > 0).all()
    assert (np.diff(rates[top:]) < 0).all()
    assert 0 < rates[-1] < 1e-4
    half_cosine = (1 + np.cos(np.linspace(0, np.pi, 100 - top))) / 20
    np.testing.assert_allclose(rates[top:], half_cosine, atol=2e-3)
    for epochs, steps in ((1, 1), (1, 2), (3, 1)):
        args = Namespace(schedule="cosine", lr=0.1, epochs=epochs)
        few = [train.learning_rates(args, epoch + 1, steps) for epoch in range(epochs)]
        assert np.min(few) > 0
        assert np.max(few) > 0.05
    args = Namespace(schedule="constant", lr=0.1, epochs=4)
    assert train.learning_rates(args, 2, 25) == [0.1] * 25


class CountReads(TorchDispatchMode):
    """Counts the values that Python reads of tensors, for which the CPU has to wait for a GPU."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def test_a_step_does_not_wait_for_the_gpu():
    network = build_network("efficientnet-lite0", 3, 64)
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    batch = torch.zeros(2, 64, 64, 3, dtype=torch.uint8), torch.tensor([0, 1])
    stats = torch.tensor([[0.5] * 3] * 2)
    counts = []
    for steps in (1, 4):
        with CountReads() as reads:
            train.train_one_epoch(
                network, [batch] * steps, F.cross_entropy, optimizer,
                torch.amp.GradScaler("cpu", enabled=False), [1e-3] * steps, stats, torch.float32,
            )  # fmt: skip
        counts.append(reads.count)
    assert counts[0] == counts[1] > 0  # at the end of the epoch alone


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_training_on_a_gpu(sample_dir, tmp_path, precision):
    train_small(sample_dir, tmp_path, "--device", "cuda", "--precision", precision)


# --- what goes wrong


def test_a_loss_that_is_not_finite_is_named_and_replaces_nothing(sample_dir, tmp_path, monkeypatch):
    train_small(sample_dir, tmp_path)
    folder = tmp_path / "age_fold0"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    real = train.build_loss

    def overflowing(*options):
        criterion, steps = real(*options), iter(range(100))
        return lambda *batch: criterion(*batch) / (next(steps) != 2)

    monkeypatch.setattr(train, "build_loss", overflowing)
    done = train_small(sample_dir, tmp_path, "--epochs", 2, "--resume", run=run)
    assert_refused(done, "not finite", "epoch 2", "--lr")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.skipif(os.name == "nt", reason="Windows has no process groups")
def test_ctrl_c_is_one_line_and_leaves_no_process(sample_dir, tmp_path):
    def start(command, *arguments):
        return subprocess.Popen(
            [sys.executable, command, *map(str, arguments)], cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    options = ["--epochs", 500, "--num-workers", 2]
    process = train_small(sample_dir, tmp_path, *options, run=start)
    while process.stdout.readline().split()[:1] != ["1"]:  # the first epoch's line
        assert process.poll() is None, process.stderr.read()
    os.killpg(process.pid, signal.SIGINT)  # to the workers too, as a terminal does
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.startswith("interrupted; --resume goes on")
    assert stderr.count("\n") == 1
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    assert load_checkpoint(tmp_path / "age_fold0/last.pth")["epoch"] >= 1


def test_photos_that_cannot_be_read_are_named_or_left_out(sample_dir, tmp_path):
    shutil.copytree(sample_dir, tmp_path / "data", copy_function=shutil.copy2)
    photo = next((tmp_path / "data/train/images").rglob("mask1.jpg"))
    photo.write_bytes(b"<html>404</html>")
    done = train_small(tmp_path / "data", tmp_path, run=run)
    assert_refused(done, f"{photo.parent.name}/mask1.jpg", "--skip-bad")
    counts = re.search(r"(\d+) train and (\d+) val photos",
                       train_small(tmp_path / "data", tmp_path, "--skip-bad"))  # fmt: skip
    assert int(counts[1]) + int(counts[2]) == 83
