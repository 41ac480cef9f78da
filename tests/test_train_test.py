"""The real commands on small drawn data: train.py, then test.py."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import f1_score

from config import config
from conftest import SMALL, assert_refused, run, run_ok
from data.labels import assign_folds, head_labels, list_train_images, merge_labels
from train import evaluate
from utils.checkpoint import load_checkpoint

PROBABILITIES = [
    "mask_normal", "mask_mask", "mask_incorrect", "gender_female", "gender_male",
    "age_under30", "age_30to59", "age_60plus",
]  # fmt: skip


def train(data, output, *arguments):
    return run(
        "train.py", "--data-dir", data, "--output-dir", output, *SMALL, "--epochs", 1, *arguments
    )


def test_a_run_leaves_its_files(runs_dir, sample_dir):
    folder = runs_dir / "gender_fold1"
    assert {path.name for path in folder.iterdir()} == {
        "best.pth", "last.pth", "config.json", "log.csv",
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
    assert (best["model"], best["resize"], best["fold"]) == ("efficientnet-lite0", 64, 1)
    assert best["mean"] == best["std"] == [0.5, 0.5, 0.5]
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
    out = run_ok("train.py", "--help")
    assert "mask 0.0003, gender 0.0001, age 0.0001" in " ".join(out.split())


def test_the_epoch_line_has_fixed_columns_and_best_is_the_best_epoch(sample_dir, tmp_path):
    done = train(sample_dir, tmp_path, "--target", "mask", "--epochs", 3, "--lr", 3e-3)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    header = next(i for i, line in enumerate(lines) if line.startswith("epoch"))
    rows = lines[header + 1 : header + 4]
    assert {len(row) for row in rows} == {len(lines[header])}
    log = pd.read_csv(tmp_path / "mask_fold0/log.csv")
    assert [float(row.split()[4]) for row in rows] == pytest.approx(log["macro_f1"], abs=1e-4)
    best = load_checkpoint(tmp_path / "mask_fold0/best.pth")
    assert best["epoch"] == log["epoch"][log["macro_f1"].idxmax()]
    assert load_checkpoint(tmp_path / "mask_fold0/last.pth")["epoch"] == 3
    assert log["train_loss"].iloc[-1] < log["train_loss"].iloc[0]


def test_two_runs_end_bit_equal_for_any_number_of_workers(sample_dir, tmp_path):
    networks = []
    for name, num_workers in (("one", 0), ("two", 2)):
        done = train(
            sample_dir,
            tmp_path / name,
            "--target",
            "age",
            "--epochs",
            2,
            "--num-workers",
            num_workers,
        )
        assert done.returncode == 0, done.stderr
        networks.append(load_checkpoint(tmp_path / name / "age_fold0/last.pth")["network"])
    assert networks[0].keys() == networks[1].keys()
    assert all(torch.equal(networks[0][key], networks[1][key]) for key in networks[0])
    logs = [(tmp_path / name / "age_fold0/log.csv").read_bytes() for name in ("one", "two")]
    assert logs[0] == logs[1]


def test_valid_scores_use_unseen_people_and_the_official_border(runs_dir, sample_dir):
    """Score a run's best network anew, from the photos on, by other code than train.py's."""
    from data.augment import apply_transform, build_transform, normalize
    from data.images import load_image
    from test import load_network

    checkpoint = load_checkpoint(runs_dir / "age_fold3/best.pth")
    images = list_train_images(sample_dir)
    valid = images[assign_folds(images, config.FOLD_SEED) == 3]
    network = load_network(checkpoint, torch.device("cpu"))
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
    images = list_train_images(sample_dir).assign(age=59)
    assert set(head_labels(images, "age", config.AGE_BORDER)) == {2}
    assert set(head_labels(images, "age")) == {1}
    from argparse import Namespace

    from data.dataset import load_fold

    args = Namespace(
        data_dir=sample_dir, crop_dir=None, target="age", fold=0, fold_seed=777, age_border=31,
        resize=64, augment="none", seed=1, batch_size=8, num_workers=0, crop_batch_size=8,
        min_face_size=20, margin_x=20, margin_y=30, center_size=300,
    )  # fmt: skip
    train_loader, valid_loader = load_fold(args, torch.device("cpu"))
    images = list_train_images(sample_dir)
    folds = assign_folds(images, 777)
    assert sorted(valid_loader.dataset.labels) == sorted(head_labels(images[folds == 0], "age"))
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
    stats = torch.zeros(3), torch.ones(3)
    scores = evaluate(Echo(), loader, torch.nn.functional.cross_entropy, stats, torch.float32)
    expected = f1_score([0, 0, 1, 2], [0, 1, 1, 2], average="macro")
    assert scores["macro_f1"] == pytest.approx(expected)
    assert scores["accuracy"] == 0.75


def test_submission_is_the_merge_of_the_heads_mean_probabilities(runs_dir, sample_dir, tmp_path):
    out = run_ok(
        "test.py", "--data-dir", sample_dir, "--runs", runs_dir, "--num-workers", 1,
        "--output", tmp_path / "all.csv", "--answers", sample_dir / "eval/answers.csv",
    )  # fmt: skip
    info = pd.read_csv(sample_dir / "eval/info.csv")
    submission = pd.read_csv(tmp_path / "all.csv")
    probabilities = pd.read_csv(tmp_path / "probabilities.csv")
    assert list(submission.columns) == ["ImageID", "ans"]
    assert list(probabilities.columns) == ["ImageID", *PROBABILITIES]
    assert (submission["ImageID"] == info["ImageID"]).all()
    assert (probabilities["ImageID"] == info["ImageID"]).all()
    heads = [probabilities[PROBABILITIES[i:j]].to_numpy() for i, j in ((0, 3), (3, 5), (5, 8))]
    for head in heads:
        np.testing.assert_allclose(head.sum(1), 1, atol=1e-5)
    assert (submission["ans"] == merge_labels(*(head.argmax(1) for head in heads))).all()

    answers = pd.read_csv(sample_dir / "eval/answers.csv").set_index("ImageID")["ans"]
    expected = f1_score(
        answers.loc[submission["ImageID"]], submission["ans"],
        labels=range(18), average="macro", zero_division=0,
    )  # fmt: skip
    assert f"18 classes: macro-F1 {expected:.4f}" in out
    for target in ("mask", "gender", "age"):
        assert f"{target}: macro-F1" in out

    # Each age fold alone: their mean is what both together gave.
    alone = []
    for fold in (0, 3):
        runs = tmp_path / f"fold{fold}"
        for name in ("mask_fold0", "gender_fold1", f"age_fold{fold}"):
            (runs / name).mkdir(parents=True)
            (runs / name / "best.pth").write_bytes((runs_dir / name / "best.pth").read_bytes())
        output = runs / "submission.csv"
        run_ok("test.py", "--data-dir", sample_dir, "--runs", runs, "--output", output)
        alone.append(pd.read_csv(runs / "probabilities.csv")[PROBABILITIES[5:]].to_numpy())
    assert np.abs(alone[0] - alone[1]).max() > 1e-3
    np.testing.assert_allclose(np.mean(alone, axis=0), heads[2], atol=2e-5)


def test_age_views_change_age_alone(runs_dir, sample_dir, tmp_path):
    tables = []
    for name, views in (("plain", 0), ("three", 3), ("again", 3)):
        run_ok(
            "test.py", "--data-dir", sample_dir, "--runs", runs_dir, "--age-views", views,
            "--output", tmp_path / name / "submission.csv", "--num-workers", len(tables),
        )  # fmt: skip
        tables.append(pd.read_csv(tmp_path / name / "probabilities.csv"))
    plain, three, again = tables
    assert three.equals(again)
    assert three[PROBABILITIES[:5]].equals(plain[PROBABILITIES[:5]])
    assert not three[PROBABILITIES[5:]].equals(plain[PROBABILITIES[5:]])
    np.testing.assert_allclose(three[PROBABILITIES[5:]].sum(axis=1), 1, atol=1e-5)


def test_info_keeps_its_order_and_other_columns(runs_dir, sample_dir, tmp_path):
    import shutil

    data = tmp_path / "data"
    shutil.copytree(sample_dir / "eval", data / "eval")
    info = pd.read_csv(data / "eval/info.csv", dtype=str).sample(frac=1, random_state=0)
    info.insert(0, "note", ["007", "", *["NA"] * (len(info) - 2)])
    info.to_csv(data / "eval/info.csv", index=False)
    run_ok("test.py", "--data-dir", data, "--runs", runs_dir, "--output", tmp_path / "s.csv")
    submission = pd.read_csv(tmp_path / "s.csv", dtype=str, keep_default_na=False)
    assert submission.drop(columns="ans").equals(info.drop(columns="ans").reset_index(drop=True))


def test_commands_crop_by_themselves(runs_dir, sample_dir, tmp_path):
    crops = tmp_path / "crops"
    done = train(sample_dir, tmp_path, "--target", "mask", "--crop-dir", crops)
    assert done.returncode == 0, done.stderr
    assert "84 photos cropped" in done.stdout
    assert (crops / "train/crops.csv").exists()
    out = run_ok(
        "test.py", "--data-dir", sample_dir, "--runs", runs_dir, "--crop-dir", crops,
        "--output", tmp_path / "submission.csv",
    )  # fmt: skip
    assert "42 photos cropped" in out
    assert (crops / "eval/new_images").is_dir()


def test_a_run_is_not_overwritten_unless_asked(runs_dir, sample_dir):
    best = runs_dir / "mask_fold0/best.pth"
    before = best.read_bytes()
    assert_refused(train(sample_dir, runs_dir, "--target", "mask"), "mask_fold0", "--overwrite")
    assert best.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "--target"),
        (["--target", "nose"], "nose"),
        (["--target", "age", "--fold", "5"], "--fold"),
        (["--target", "age", "--lr", "-1"], "--lr"),
        (["--target", "age", "--batch-size", "0"], "--batch-size"),
        (["--target", "age", "--loss", "hinge"], "hinge"),
        (["--target", "age", "--model", "resnet50"], "resnet50"),
        (["--target", "age", "--resize", "32"], "--resize"),
        (["--target", "age", "--age-border", "30"], "--age-border"),
        (["--target", "age", "--device", "cuda:7"], "cuda:7"),
        (["--target", "age", "--weights", "x.pth", "--no-pretrained"], "--no-pretrained"),
        (["--target", "age", "--weights", "x.pth"], "x.pth"),
        (["--target", "age", "--data-dir", "nowhere"], "--data-dir"),
    ],
)
def test_bad_arguments_are_named(sample_dir, tmp_path, arguments, word):
    done = run("train.py", "--data-dir", sample_dir, "--output-dir", tmp_path, *arguments)
    assert_refused(done, word)


def test_what_test_py_misses_is_named(runs_dir, sample_dir, tmp_path):
    done = run("test.py", "--data-dir", sample_dir, "--runs", tmp_path)
    assert_refused(done, "mask", "python train.py --target mask")
    answers = tmp_path / "answers.csv"
    answers.write_text("ImageID,ans\nx.jpg,1\n", encoding="utf-8")
    done = run(
        "test.py", "--data-dir", sample_dir, "--runs", runs_dir, "--answers", answers,
        "--output", tmp_path / "submission.csv",
    )  # fmt: skip
    assert_refused(done, "answers.csv", "42 images")
