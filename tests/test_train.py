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

import efficientnet_pytorch
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.metrics import f1_score

import train
from conftest import FACES, ROOT, SMALL, assert_refused, run, run_ok
from models.network import build_network, load_network
from utils.checkpoint import load_checkpoint
from utils.cli import InputError


def train_small(data_dir, output, *arguments, target="age", run=run_ok):
    return run("train.py", "--target", target, "--data-dir", data_dir, "--output-dir", output,
               *SMALL, "--epochs", 1, "--num-workers", 0, *arguments)  # fmt: skip


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
                 "schedule": "constant", "tta": "none", "age_border": 59,
                 "freeze_bn": False}  # fmt: skip
    assert expected.items() <= vars(original).items()
    best = {"lr": 1e-3, "schedule": "cosine", "augment": "light", "tta": "flip"}
    best |= {"mask": {"augment": "wide", "epochs": 3, "freeze_bn": True}, "gender": {},
             "age": {"loss": "age_distribution"}}[target]  # fmt: skip
    largest = {} if target == "mask" else {"model": "efficientnet-b4", "epochs": 4}
    for recipe, changed in (("best", best), ("max", best | largest)):
        chosen = parse(monkeypatch, "--target", target, "--recipe", recipe)
        assert vars(chosen) == {**vars(original), "recipe": recipe, **changed}
        assert parse(monkeypatch, "--target", target, "--recipe", recipe, "--lr", 5e-4).lr == 5e-4
        command = ("--target", target, "--recipe", recipe, "--model", "efficientnet-b0")
        assert parse(monkeypatch, *command).model == "efficientnet-b0"


def test_frozen_batch_norms_keep_their_statistics_and_learn(sample_dir, tmp_path):
    train_small(sample_dir, tmp_path, "--freeze-bn")
    trained = load_checkpoint(tmp_path / "age_fold0/last.pth")["network"]
    start = build_network("efficientnet-lite0", 3, 64, pretrained=True).state_dict()
    same = {name: torch.equal(start[name], trained[name]) for name in start if "_bn" in name}
    assert all(same[name] for name in same if "running" in name)
    assert not any(same[name] for name in same if name.endswith(("weight", "bias")))


def test_batch_norms_without_weights_are_not_frozen(monkeypatch):
    options = ["--target", "mask", "--recipe", "best", "--no-pretrained"]
    assert parse(monkeypatch, *options[:-1]).freeze_bn
    assert not parse(monkeypatch, *options).freeze_bn
    assert not parse(monkeypatch, *options[:-1], "--no-freeze-bn").freeze_bn
    with pytest.raises(InputError, match="--freeze-bn and --no-pretrained"):
        parse(monkeypatch, *options, "--freeze-bn")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tar", "age"], ["--tar"]),
        (["--target", "mask", "--focal-gamma", 1], ["--focal-gamma", "--loss focal"]),
        (["--target", "mask", "--loss", "age_distribution"], ["age_distribution", "--target age"]),
        (["--weights", "nowhere.pth"], ["nowhere.pth"]),
        (["--weights", ""], ["--weights", "not the name of a file"]),
        (["--crop-dir", ""], ["--crop-dir", "not the name of a file or folder"]),
        (["--model", "resnet51"], ["--model resnet51", "efficientnet-b0 .. b7", "models.html"]),
        (["--model", "vit_b_16", "--resize", 112], ["--resize 112", "vit_b_16", "224"]),
        (["--device", "cuda:99"], ["--device cuda:99"]),
        (["--num-workers", 3000], ["--num-workers", "3000 is not a whole number from 0 to 256"]),
        (["--data-dir", "nowhere"], ["nowhere", "--data-dir", "MAG_DATA_DIR"]),
        (["--output-dir", "README.md"], ["README.md", "--output-dir"]),
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
    assert_refused(done, "Name or service not known", "--weights", "--no-pretrained")
    assert not (tmp_path / "crops").exists()


def test_a_network_of_torchvision_trains_and_predicts(sample_dir, tmp_path):
    options = ["--model", "mobilenet_v3_small", "--no-pretrained", "--loss", "age_distribution"]
    train_small(sample_dir, tmp_path, *options)
    checkpoint = load_checkpoint(tmp_path / "age_fold0/best.pth")
    assert checkpoint["std"] == [0.229, 0.224, 0.225]
    assert checkpoint["age_border"] == 59
    assert load_network(checkpoint)(torch.zeros(2, 3, 64, 64)).shape == (2, 3)


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


def test_photos_of_ones_own(tmp_path):
    """Five people, few photos each, of several sizes and formats, without a column race."""
    rows = []
    for number, face in enumerate(FACES[:5]):
        gender, age = face.stem.split("_")
        folder = tmp_path / f"data/train/images/person{number}"
        folder.mkdir(parents=True)
        with Image.open(face) as photo:
            photo.save(folder / ("normal.webp" if number % 2 else "mask12.png"))
            if number < 2:
                photo.resize((300, 400)).convert("L").save(folder / "incorrect_mask.jpg")
        rows.append((number, gender, age, folder.name))
    table = pd.DataFrame(rows, columns=["id", "gender", "age", "path"])
    table.to_csv(tmp_path / "data/train/train.csv", index=False)
    printed = train_small(tmp_path / "data", tmp_path, target="mask")
    table = pd.read_csv(tmp_path / "mask_fold0/val_predictions.csv")
    assert f"mask, fold 0: {7 - len(table)} train and {len(table)} val photos" in printed
    assert table["person"].nunique() == 1


def test_val_scores_use_the_official_border(sample_dir, tmp_path):
    train_small(sample_dir, tmp_path, "--loss", "cross_entropy", "--age-border", 31, "--fold", 2)
    table = pd.read_csv(tmp_path / "age_fold2/val_predictions.csv")
    assert table["label"][table["age"] == 45].tolist() == ["30to59"] * 7
    log = pd.read_csv(tmp_path / "age_fold2/log.csv")
    assert table["loss"].mean() == pytest.approx(log["val_loss"][0], rel=1e-3)


def test_macro_f1_is_computed_once_over_the_whole_val_set():
    """Batches of one class each would make an average of per-batch scores differ."""
    red, green, blue = (torch.eye(3, dtype=torch.uint8) * 255)[:, None, None]
    loader = [
        (torch.stack([red, green]), torch.tensor([0, 0])),
        (torch.stack([green, blue]), torch.tensor([1, 2])),
    ]
    stats = torch.tensor([[0.0] * 3, [1.0] * 3])
    network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    scores, logits = train.evaluate(
        network, loader, F.cross_entropy, stats, torch.float32, tta="none"
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
        ["--focal-gamma", "0"],
        ["--fold-seed", "1"],
        ["--precision", "bf16"],
    ],
    ids=" ".join,
)
def test_options_reach_the_training(baseline, sample_dir, tmp_path, arguments):
    train_small(sample_dir, tmp_path, *arguments)
    logs = [output / "age_fold0/log.csv" for output in (baseline, tmp_path)]
    assert logs[0].read_bytes() != logs[1].read_bytes()


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_run_of_one_step_trains_from_the_weights_in_a_file(sample_dir, tmp_path, schedule):
    weights = tmp_path / "weights.pth"
    network = build_network("efficientnet-lite0", 3, 64)
    torch.save(network.state_dict(), weights)
    options = ["--weights", weights, "--schedule", schedule, "--batch-size", 128, "--lr", 1e-3]
    train_small(sample_dir, tmp_path, *options)
    trained = load_checkpoint(tmp_path / "age_fold0/last.pth")["network"]
    step = trained["_conv_stem.weight"] - network.state_dict()["_conv_stem.weight"]
    args = Namespace(schedule=schedule, lr=1e-3, epochs=1)
    # Adam's first step is the learning rate.
    assert float(step.abs().max()) == pytest.approx(train.learning_rates(args, 1, 1)[0], rel=0.05)


def test_learning_rates():
    args = Namespace(schedule="cosine", lr=0.1, epochs=4)
    rates = np.concatenate([train.learning_rates(args, epoch, 25) for epoch in range(1, 5)])
    top = rates.argmax()
    assert top in (9, 10)  # of 100 steps, a tenth
    assert rates.max() == pytest.approx(0.1, rel=0.02)
    assert (np.diff(rates[: top + 1]) > 0).all()
    assert (np.diff(rates[top:]) < 0).all()
    assert 0 < rates[-1] < 1e-4
    for epochs, steps in ((1, 1), (1, 2), (3, 1)):
        args = Namespace(schedule="cosine", lr=0.1, epochs=epochs)
        few = [train.learning_rates(args, epoch + 1, steps) for epoch in range(epochs)]
        assert 0 < np.min(few) < 0.1
        assert np.max(few) > 0.05


@pytest.mark.parametrize(
    ("device", "precision"),
    [("cpu", "bf16"), ("cuda", "fp32"), ("cuda", "fp16"), ("cuda", "bf16")],
)
def test_crops_training_and_submission_on_a_device(
    sample_dir, runs_dir, tmp_path, device, precision
):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    machine = ["--device", device, "--precision", precision, "--num-workers", 2]
    options = [*machine, "--crop-dir", tmp_path / "crops"]
    train_small(sample_dir, tmp_path, *options)
    train_small(sample_dir, tmp_path, *options, "--epochs", 2, "--resume")
    log = pd.read_csv(tmp_path / "age_fold0/log.csv")
    assert np.isfinite(log).all(axis=None)
    assert len(log) == 2
    submission = tmp_path / "submission.csv"
    run_ok("test.py", "--data-dir", sample_dir, "--runs", runs_dir, *options,
           "--output", submission)  # fmt: skip
    assert pd.read_csv(submission)["ans"].between(0, 17).all()


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
    assert_refused(done, "not finite", "epoch 2", "--overwrite", "--lr")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.skipif(os.name == "nt", reason="Windows has no process groups")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopping_is_one_line_at_most_and_leaves_nothing(
    sample_dir, tmp_path, short_path, number, status
):
    def start(command, *arguments):
        return subprocess.Popen(
            [sys.executable, command, *map(str, arguments)], cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
            env={**os.environ, "TMPDIR": str(short_path)},
        )  # fmt: skip

    options = ["--epochs", 500, "--num-workers", 2]
    process = train_small(sample_dir, tmp_path, *options, run=start)
    while process.stdout.readline().split()[:1] != ["1"]:  # the first epoch's line
        assert process.poll() is None, process.stderr.read()
    os.killpg(process.pid, number)  # to the workers too, as a terminal does
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == status
    if number == signal.SIGINT:
        assert stderr.startswith("interrupted; ")
        assert "--resume" in stderr
    assert stderr.count("\n") == (number == signal.SIGINT)
    assert not [*short_path.iterdir()]
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_photos_that_cannot_be_read_are_named_or_left_out(sample_dir, tmp_path):
    shutil.copytree(sample_dir, tmp_path / "data", copy_function=shutil.copy2)
    photo = next((tmp_path / "data/train/images").rglob("mask1.jpg"))
    photo.write_bytes(b"<html>404</html>")
    done = train_small(tmp_path / "data", tmp_path, run=run)
    assert_refused(done, f"{photo.parent.name}/mask1.jpg", "--skip-bad")
    counts = re.search(r"(\d+) train and (\d+) val photos",
                       train_small(tmp_path / "data", tmp_path, "--skip-bad"))  # fmt: skip
    assert int(counts[1]) + int(counts[2]) == 83
