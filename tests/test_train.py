"""train.py as its users run it, on small drawn data."""

import json
import shutil
from argparse import Namespace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import f1_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import data.crop
import ETC.sample
import test
import train
from config import config
from conftest import SMALL, assert_refused, run, run_ok, spawn
from data.augment import apply_transform, build_transform
from data.dataset import load_fold
from data.images import load_image
from data.labels import assign_folds, head_labels, list_train_images
from models.network import normalize
from utils.checkpoint import load_checkpoint
from utils.plots import draw_confusion, draw_curves


def train_small(data_dir, output, *arguments):
    return run(
        "train.py",
        "--data-dir",
        data_dir,
        "--output-dir",
        output,
        *SMALL,
        "--epochs",
        1,
        *arguments,
    )


def test_a_run_leaves_its_files(runs_dir, sample_dir):
    folder = runs_dir / "gender_fold1"
    assert {path.name for path in folder.iterdir() if path.suffix != ".onnx"} == {
        "best.pth", "last.pth", "config.json", "log.csv", "valid_predictions.csv",
        "curves.png", "confusion.png", "report.html", "tensorboard",
    }  # fmt: skip
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert (settings["target"], settings["lr"], settings["loss"]) == (
        "gender",
        1e-4,
        "cross_entropy",
    )
    log = pd.read_csv(folder / "log.csv")
    assert list(log.columns) == [
        "epoch", "train_loss", "valid_loss", "accuracy", "macro_f1", "f1_female", "f1_male",
    ]  # fmt: skip
    best = torch.load(folder / "best.pth", weights_only=True)
    assert best["classes"] == ["female", "male"]
    assert (best["model"], best["resize"], best["fold"]) == ("efficientnet-b0", 80, 1)
    assert (best["mean"], best["std"]) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert best["crop"]["margin_y"] == 30
    assert best["valid_f1"] == log["macro_f1"].max()
    assert "optimizer" in torch.load(folder / "last.pth", weights_only=True)


def test_heads_have_the_originals_defaults():
    for target, lr, loss, epochs in (
        ("mask", 3e-4, "cross_entropy", 10),
        ("age", 1e-4, "focal", 4),
        ("gender", 1e-4, "cross_entropy", 10),
    ):
        head = config.HEADS[target]
        assert (head["lr"], head["loss"], head["epochs"]) == (lr, loss, epochs)
    assert (config.MODEL, config.RESIZE, config.BATCH_SIZE) == ("efficientnet-b3", 224, 64)
    assert (config.SEED, config.FOCAL_GAMMA, config.AGE_BORDER) == (777, 2, 59)
    out = run_ok("train.py", "--help", run=spawn)
    assert "mask 0.0003, gender 0.0001, age 0.0001" in " ".join(out.split())


@pytest.mark.parametrize(
    "parser",
    [
        train.get_args_parser(),
        test.get_args_parser(),
        data.crop.get_args_parser(),
        ETC.sample.get_args_parser(),
    ],
    ids=lambda parser: parser.prog,
)
def test_every_help_text_says_its_default(parser):
    for action in parser._actions:
        if not action.required and action.dest != "help":
            assert "(default" in action.help, action.dest


def test_the_epoch_line_has_fixed_columns(sample_dir, tmp_path):
    done = train_small(sample_dir, tmp_path, "--target", "mask", "--epochs", 3, "--lr", 3e-3)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    header = next(i for i, line in enumerate(lines) if line.startswith("epoch"))
    rows = lines[header + 1 : header + 4]
    assert {len(row) for row in rows} == {len(lines[header])}
    log = pd.read_csv(tmp_path / "mask_fold0/log.csv")
    assert [float(row.split()[4]) for row in rows] == pytest.approx(log["macro_f1"], abs=1e-4)
    assert load_checkpoint(tmp_path / "mask_fold0/last.pth")["epoch"] == 3
    assert log["train_loss"].iloc[-1] < log["train_loss"].iloc[0]


def test_best_is_the_best_epoch_and_last_the_last(sample_dir, tmp_path, monkeypatch):
    scores, real = iter([0.5, 0.9, 0.7]), train.evaluate
    monkeypatch.setattr(
        train, "evaluate", lambda *batches: {**real(*batches), "macro_f1": next(scores)}
    )
    done = train_small(sample_dir, tmp_path, "--target", "mask", "--epochs", 3)
    assert done.returncode == 0, done.stderr
    best, last = (load_checkpoint(tmp_path / f"mask_fold0/{name}.pth") for name in ("best", "last"))
    assert (best["epoch"], best["valid_f1"]) == (2, 0.9)
    assert (last["epoch"], last["valid_f1"]) == (3, 0.7)


def trained(sample_dir, output, *arguments):
    """The network's weights at the end of a run of the age head."""
    done = train_small(sample_dir, output, "--target", "age", *arguments)
    assert done.returncode == 0, done.stderr
    return load_checkpoint(output / "age_fold0/last.pth")["network"]


def equal(one, other):
    return all(torch.equal(one[key], other[key]) for key in one.keys() | other.keys())


def test_two_runs_end_bit_equal_for_any_number_of_workers(sample_dir, tmp_path):
    networks = [
        trained(sample_dir, tmp_path / str(workers), "--epochs", 2, "--num-workers", workers)
        for workers in (0, 2)
    ]
    assert equal(*networks)
    logs = [(tmp_path / f"{workers}/age_fold0/log.csv").read_bytes() for workers in (0, 2)]
    assert logs[0] == logs[1]


@pytest.fixture(scope="module")
def baseline(sample_dir, tmp_path_factory):
    return trained(sample_dir, tmp_path_factory.mktemp("baseline"), "--num-workers", 0)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--augment", "none"],
        ["--augment", "gender"],
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
    assert not equal(baseline, trained(sample_dir, tmp_path, "--num-workers", 0, *arguments))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_training_and_submission_on_a_gpu(runs_dir, sample_dir, tmp_path, precision):
    shared = ["--device", "cuda", "--precision", precision]
    trained(sample_dir, tmp_path, *shared)
    run_ok("test.py", "--data-dir", sample_dir, "--runs", runs_dir, *shared,
           "--output", tmp_path / "submission.csv")  # fmt: skip


def test_valid_scores_use_unseen_people_and_the_official_border(runs_dir, sample_dir):
    """Score a run's best network anew, from the photos on, by other code than train.py's."""
    checkpoint = load_checkpoint(runs_dir / "age_fold3/best.pth")
    images = list_train_images(sample_dir)
    valid = images[assign_folds(images, config.FOLD_SEED) == 3]
    network = test.load_network(checkpoint)
    predictions = []
    for file in valid["file"]:
        face = load_image(sample_dir / "train/new_img" / file)
        pixels = torch.from_numpy(apply_transform(build_transform(64), face, [0]))[None]
        stats = (torch.tensor(checkpoint[name]) for name in ("mean", "std"))
        with torch.inference_mode():
            predictions.append(int(network(normalize(pixels, *stats)).argmax()))
    truth = np.digitize(valid["age"], [30, 60])
    expected = f1_score(truth, predictions, labels=range(3), average="macro", zero_division=0)
    assert checkpoint["valid_f1"] == pytest.approx(expected)


def test_training_labels_are_shifted_and_valid_labels_are_not(sample_dir):
    images = list_train_images(sample_dir)
    images["fold"] = assign_folds(images, 777)
    aged59 = images.assign(age=59)
    assert set(head_labels(aged59, "age", config.AGE_BORDER)) == {2}
    assert set(head_labels(aged59, "age")) == {1}
    args = Namespace(
        data_dir=sample_dir, crop_dir=None, target="age", loss="focal", fold=0, fold_seed=777,
        age_border=31, resize=64, augment="none", seed=1, batch_size=8, num_workers=0,
        crop_batch_size=8, detector="mtcnn", min_face_size=20, margin_x=20, margin_y=30,
        center_size=300, skip_bad=False, epochs=2, cache="auto",
    )  # fmt: skip
    train_loader, valid_loader, valid, _ = load_fold(images, args, torch.device("cpu"))
    folds = images["fold"]
    assert sorted(valid_loader.dataset.labels) == sorted(head_labels(images[folds == 0], "age"))
    assert valid["file"].tolist() == images["file"][folds == 0].tolist()
    assert [str(path) for path in valid_loader.dataset.files] == [
        str(sample_dir / "train/new_img" / file) for file in valid["file"]
    ]
    manifest = pd.read_csv(sample_dir / "train/crops.csv").set_index("file")
    assert valid["method"].tolist() == manifest.loc[valid["file"], "method"].tolist()
    train_people = images[folds != 0]
    assert (train_loader.dataset.labels == np.digitize(train_people["age"], [30, 31])).all()
    assert (train_loader.dataset.labels != head_labels(train_people, "age")).any()
    people = [
        {path.parent.name for path in loader.dataset.files}
        for loader in (train_loader, valid_loader)
    ]
    assert len(people[0] | people[1]) == 12
    assert not people[0] & people[1]


def test_macro_f1_is_computed_once_over_the_whole_valid_set():
    """Batches of one class each would make an average of per-batch scores differ."""

    class Echo(torch.nn.Module):
        def forward(self, images):
            return images.mean((2, 3))

    loader = [
        (torch.tensor([[[[255, 0, 0]]], [[[0, 255, 0]]]], dtype=torch.uint8), torch.tensor([0, 0])),
        (torch.tensor([[[[0, 255, 0]]], [[[0, 0, 255]]]], dtype=torch.uint8), torch.tensor([1, 2])),
    ]
    stats = torch.tensor([[0.0] * 3, [1.0] * 3])
    scores = train.evaluate(Echo(), loader, torch.nn.functional.cross_entropy, stats, torch.float32)
    expected = f1_score([0, 0, 1, 2], [0, 1, 1, 2], average="macro")
    assert scores["macro_f1"] == pytest.approx(expected)
    assert scores["accuracy"] == 0.75


def test_valid_predictions_are_those_of_the_best_epoch(sample_dir, tmp_path):
    run_ok("train.py", "--target", "age", "--data-dir", sample_dir, "--output-dir", tmp_path,
           *SMALL, "--epochs", 3, "--lr", 3e-3)  # fmt: skip
    log = pd.read_csv(tmp_path / "age_fold0/log.csv")
    table = pd.read_csv(tmp_path / "age_fold0/valid_predictions.csv", dtype={"person": str})
    assert list(table.columns) == [
        "file", "person", "shot", "method", "gender", "age", "label", "predicted",
        "p_under30", "p_30to59", "p_60plus", "loss",
    ]  # fmt: skip
    classes = list(config.HEADS["age"]["classes"])
    probs = table[[f"p_{name}" for name in classes]].to_numpy()
    labels = [classes.index(name) for name in table["label"]]
    assert labels == np.digitize(table["age"], [30, 60]).tolist()
    assert [classes[i] for i in probs.argmax(axis=1)] == table["predicted"].tolist()
    np.testing.assert_allclose(probs.sum(axis=1), 1, atol=3e-6)
    its = probs[np.arange(len(labels)), labels]
    np.testing.assert_allclose(table["loss"], -np.log(its.clip(1e-9)), rtol=0.01, atol=1e-5)
    best = log["macro_f1"].max()
    f1 = f1_score(table["label"], table["predicted"], labels=classes, average="macro",
                  zero_division=0)  # fmt: skip
    assert f1 == pytest.approx(best)
    assert log["macro_f1"].nunique() > 1
    images = list_train_images(sample_dir).set_index("file").loc[table["file"]]
    for name, other in (("person", "group"), ("shot", "shot"), ("gender", "gender")):
        assert table[name].tolist() == images[other].tolist()


def test_no_report_leaves_the_pictures_out(runs_dir):
    names = {path.name for path in (runs_dir / "mask_fold0").iterdir() if path.suffix != ".onnx"}
    assert names == {"best.pth", "last.pth", "config.json", "log.csv", "valid_predictions.csv"}


def test_tensorboard_goes_on_where_the_run_does(sample_dir, tmp_path):
    command = ["train.py", "--target", "mask", "--data-dir", sample_dir, "--output-dir", tmp_path,
               *SMALL, "--tensorboard"]  # fmt: skip
    run_ok(*command, "--epochs", 1)
    run_ok(*command, "--epochs", 2, "--resume")
    folder = tmp_path / "mask_fold0"
    log = pd.read_csv(folder / "log.csv")

    def scalars():
        events = EventAccumulator(str(folder / "tensorboard")).Reload().Scalars("train_loss")
        return [(event.step, pytest.approx(event.value)) for event in events]

    assert scalars() == list(zip(log["epoch"], log["train_loss"]))
    shutil.rmtree(folder / "tensorboard")  # as if it had begun without
    run_ok(*command, "--epochs", 3, "--resume")
    log = pd.read_csv(folder / "log.csv")
    assert scalars() == list(zip(log["epoch"], log["train_loss"]))
    run_ok(*command, "--epochs", 1, "--overwrite")
    assert [step for step, _ in scalars()] == [1]


def test_tensorboard_has_the_scalars_of_the_log(runs_dir):
    events = EventAccumulator(str(runs_dir / "gender_fold1/tensorboard")).Reload()
    log = pd.read_csv(runs_dir / "gender_fold1/log.csv")
    assert set(events.Tags()["scalars"]) == set(log.columns) - {"epoch"}
    for name in events.Tags()["scalars"]:
        scalars = events.Scalars(name)
        assert [event.step for event in scalars] == log["epoch"].tolist()
        assert [event.value for event in scalars] == pytest.approx(log[name].tolist())


def test_curves_and_confusion_show_the_figures():
    log = pd.DataFrame({"epoch": [1, 2, 3], "train_loss": [1.0, 0.5, 0.2],
                        "valid_loss": [0.9, 0.7, 0.8], "macro_f1": [0.3, 0.6, 0.6],
                        "accuracy": [0.5, 0.7, 0.6]})  # fmt: skip
    losses, scores = draw_curves(log, "age").axes
    drawn = {
        line.get_label(): line.get_xydata().tolist() for line in (*losses.lines, *scores.lines)
    }
    assert drawn["train"] == [[1, 1.0], [2, 0.5], [3, 0.2]]
    assert drawn["valid"] == [[1, 0.9], [2, 0.7], [3, 0.8]]
    assert drawn["best: 0.6000, epoch 2"] == [[2, 0.6]]
    assert [axes.get_xlabel() for axes in (losses, scores)] == ["epoch", "epoch"]
    axes = draw_confusion(np.array([[3, 1, 0], [0, 0, 0], [2, 0, 2]]), ["a", "b", "c"], "t").axes[0]
    assert [text.get_text() for text in axes.texts] == [
        "3\n75.0%", "1\n25.0%", "0\n0.0%", *["0\n0.0%"] * 3, "2\n50.0%", "0\n0.0%", "2\n50.0%",
    ]  # fmt: skip
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")


def test_a_run_is_not_lost_to_a_command_that_fails(sample_dir, tmp_path):
    crops = tmp_path / "crops"
    command = ["train.py", "--target", "mask", "--data-dir", sample_dir, "--output-dir", tmp_path,
               "--crop-dir", crops, *SMALL, "--epochs", 1]  # fmt: skip
    run_ok(*command)
    folder = tmp_path / "mask_fold0"
    (folder / "best.0123.v1.onnx").write_bytes(b"of the old checkpoint")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    crop = next(crops.rglob("mask1.jpg"))
    good = crop.read_bytes()
    crop.write_bytes(good[:99])
    assert_refused(run(*command, "--overwrite", "--num-workers", 0), "mask1.jpg", "delete this")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    crop.write_bytes(good)
    run_ok(*command, "--overwrite")
    assert not list(folder.glob("*.onnx"))


def test_resume_mends_log_and_config(sample_dir, tmp_path):
    command = ["train.py", "--target", "mask", "--data-dir", sample_dir, "--output-dir", tmp_path,
               *SMALL, "--epochs", 1]  # fmt: skip
    run_ok(*command)
    files = [tmp_path / "mask_fold0" / name for name in ("log.csv", "config.json")]
    before = files[0].read_bytes()
    for path in files:
        path.write_text("{")
    assert_refused(run("-m", "ETC.report", tmp_path / "mask_fold0"), "config.json", "--resume")
    run_ok(*command, "--resume")
    assert files[0].read_bytes() == before
    assert json.loads(files[1].read_text())["target"] == "mask"


def test_a_run_is_not_overwritten_unless_asked(sample_dir, tmp_path):
    folder = tmp_path / "mask_fold0"
    folder.mkdir()
    # What a run killed in its first epoch may leave.
    (folder / "best.pth").write_bytes(b"precious")
    arguments = (sample_dir, tmp_path, "--target", "mask")
    assert_refused(train_small(*arguments), "mask_fold0", "--overwrite")
    assert (folder / "best.pth").read_bytes() == b"precious"
    assert train_small(*arguments, "--overwrite").returncode == 0
    assert load_checkpoint(folder / "best.pth")["epoch"] == 1


def test_the_data_directory_may_come_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("MAG_DATA_DIR", str(tmp_path / "elsewhere"))
    done = spawn("train.py", "--target", "age", *SMALL, "--output-dir", tmp_path)
    assert_refused(done, tmp_path / "elsewhere", "MAG_DATA_DIR")


def test_photos_are_cropped_and_reported_when_crops_are_missing(sample_dir, tmp_path):
    done = train_small(sample_dir, tmp_path, "--target", "mask", "--crop-dir", tmp_path / "crops")
    assert done.returncode == 0, done.stderr
    assert "84 photos cropped" in done.stdout
    assert "incorrect_mask      12 images" in done.stdout
    assert (tmp_path / "crops/train/crops.csv").exists()
