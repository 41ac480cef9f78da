"""test.py as its users run it, on runs of drawn data."""

import json
import re
import shutil

import efficientnet_pytorch.utils
import numpy as np
import pandas as pd
import torch
from sklearn.metrics import f1_score

import test
from conftest import assert_refused, run, run_ok, spawn
from data.augment import apply_transform, build_transform
from data.images import load_image
from data.labels import merge_labels
from models.network import normalize
from utils.checkpoint import load_checkpoint, save_checkpoint

PROBABILITIES = [
    "mask_normal", "mask_mask", "mask_incorrect", "gender_female", "gender_male",
    "age_under30", "age_30to59", "age_60plus",
]  # fmt: skip


def test_answers_that_are_none_are_refused(runs_dir, sample_dir, tmp_path):
    command = ["test.py", "--data-dir", sample_dir, "--runs", runs_dir,
               "--output", tmp_path / "x.csv", "--answers"]  # fmt: skip
    assert_refused(run(*command, sample_dir / "eval/info.csv"), "info.csv", "every ans is 0")
    answers = tmp_path / "answers.csv"
    lines = (sample_dir / "eval/answers.csv").read_text().splitlines()
    answers.write_text("\n".join([lines[0], *(f"{line},9" for line in lines[1:])]))
    assert_refused(run(*command, answers), "answers.csv", "not a readable CSV")
    assert not (tmp_path / "x.csv").exists()


def copy_runs(runs_dir, folder, *names):
    for name in names:
        (folder / name).mkdir(parents=True)
        shutil.copy(runs_dir / name / "best.pth", folder / name)
    return folder


def test_submission_is_the_merge_of_the_heads_mean_probabilities(runs_dir, sample_dir, tmp_path):
    out = run_ok(
        "test.py", "--data-dir", sample_dir, "--runs", runs_dir, "--num-workers", 1,
        "--output", tmp_path / "all.csv", "--answers", sample_dir / "eval/answers.csv",
        run=spawn,
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
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    data = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])
    assert data["classifications"][0]["name"] == "18 classes"
    assert data["classifications"][0]["target"] == answers[submission["ImageID"]].tolist()
    assert data["classifications"][0]["predicted"] == submission["ans"].tolist()
    assert data["photos"]["file"] == submission["ImageID"].tolist()

    # Each age fold alone: their mean is what both together gave, from two folders as well.
    alone = []
    for fold in (0, 3):
        runs = copy_runs(
            runs_dir, tmp_path / f"fold{fold}", "mask_fold0", "gender_fold1", f"age_fold{fold}"
        )
        output = runs / "submission.csv"
        run_ok("test.py", "--data-dir", sample_dir, "--runs", runs, "--output", output)
        alone.append(pd.read_csv(runs / "probabilities.csv")[PROBABILITIES[5:]].to_numpy())
    assert np.abs(alone[0] - alone[1]).max() > 1e-3
    np.testing.assert_allclose(np.mean(alone, axis=0), heads[2], atol=2e-5)
    folders = [tmp_path / "fold0", tmp_path / "fold3"]
    out = run_ok("test.py", "--data-dir", sample_dir, "--runs", *folders,
                 "--output", tmp_path / "votes/submission.csv")  # fmt: skip
    assert "networks: 1 mask, 1 gender, 2 age" in out  # copies count once
    both = pd.read_csv(tmp_path / "votes/probabilities.csv")[PROBABILITIES].to_numpy()
    np.testing.assert_allclose(both, np.concatenate(heads, axis=1), atol=2e-5)


def test_each_head_sees_images_as_its_own_network_needs_them(runs_dir, sample_dir, tmp_path):
    """Heads of two networks and two sizes, against one image at a time by other code."""
    output = tmp_path / "submission.csv"
    # 41 of 42 images a batch: the last one holds a single image.
    run_ok("test.py", "--data-dir", sample_dir, "--runs", runs_dir, "--output", output,
           "--batch-size", 41)  # fmt: skip
    table = pd.read_csv(tmp_path / "probabilities.csv").set_index("ImageID")
    for name, columns in (("mask_fold0", PROBABILITIES[:3]), ("gender_fold1", PROBABILITIES[3:5])):
        checkpoint = load_checkpoint(runs_dir / name / "best.pth")
        network = test.load_network(checkpoint)
        stats = torch.tensor([checkpoint["mean"], checkpoint["std"]])
        for image in (table.index[0], table.index[-1]):
            face = load_image(sample_dir / "eval/new_images" / image)
            pixels = apply_transform(build_transform(checkpoint["resize"]), face, [0])
            with torch.inference_mode():
                logits = network(normalize(torch.from_numpy(pixels)[None], *stats))
            np.testing.assert_allclose(table.loc[image, columns], logits.softmax(1)[0], atol=1e-4)


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
    data = tmp_path / "data"
    shutil.copytree(sample_dir / "eval", data / "eval")
    info = pd.read_csv(data / "eval/info.csv", dtype=str).sample(frac=1, random_state=0)
    info.insert(0, "note", ["007", "", *["NA"] * (len(info) - 2)])
    info.to_csv(data / "eval/info.csv", index=False)
    run_ok("test.py", "--data-dir", data, "--runs", runs_dir, "--output", tmp_path / "s.csv")
    submission = pd.read_csv(tmp_path / "s.csv", dtype=str, keep_default_na=False)
    assert submission.drop(columns="ans").equals(info.drop(columns="ans").reset_index(drop=True))


def test_nothing_is_downloaded(runs_dir, sample_dir, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("test.py went for ImageNet weights")

    monkeypatch.setattr(efficientnet_pytorch.utils.model_zoo, "load_url", refuse)
    run_ok("test.py", "--data-dir", sample_dir, "--runs", runs_dir, "--output", tmp_path / "s.csv")


def test_eval_photos_are_cropped_when_crops_are_missing(runs_dir, sample_dir, tmp_path):
    out = run_ok("test.py", "--data-dir", sample_dir, "--runs", runs_dir,
                 "--crop-dir", tmp_path / "crops", "--output", tmp_path / "s.csv")  # fmt: skip
    assert "42 photos cropped" in out
    assert (tmp_path / "crops/eval/new_images").is_dir()


def refuse(sample_dir, tmp_path, runs, *arguments):
    """Run test.py, which must write nothing; returns the finished process."""
    output = tmp_path / "out/submission.csv"
    done = run("test.py", "--data-dir", sample_dir, "--runs", runs, "--output", output, *arguments)
    assert not output.exists()
    return done


def test_runs_in_the_wrong_folder_are_pointed_to(runs_dir, sample_dir, tmp_path):
    copy_runs(runs_dir, tmp_path / "one", "mask_fold0", "age_fold0")
    copy_runs(runs_dir, tmp_path / "two/a", "gender_fold1")
    copy_runs(runs_dir, tmp_path / "two/b", "age_fold3")
    given = [tmp_path / name for name in ("one", "two", "two/a", "two/b")]
    for folders in (given[:2], given[1::-1]):
        command = ["test.py", "--data-dir", sample_dir, "--runs", *folders]
        done = run(*command, "--output", tmp_path / "out/submission.csv")
        assert_refused(done, f"try --runs {' '.join(map(str, [given[0], *given[2:]]))}, or some")
    done = refuse(sample_dir, tmp_path, tmp_path / "one")
    assert_refused(done, "no gender_fold<k>/best.pth", "--target gender --output-dir")


def test_views_need_an_augmentation(runs_dir, sample_dir, tmp_path):
    runs = copy_runs(runs_dir, tmp_path / "plain", "mask_fold0", "gender_fold1", "age_fold0")
    checkpoint = load_checkpoint(runs / "age_fold0/best.pth")
    save_checkpoint(runs / "age_fold0/best.pth", {**checkpoint, "augment": "none"})
    done = refuse(sample_dir, tmp_path, runs, "--age-views", 2)
    assert_refused(done, "--age-views")


def test_bad_eval_photos_get_the_most_frequent_class(runs_dir, sample_dir, tmp_path):
    shutil.copytree(sample_dir / "eval", tmp_path / "data/eval")
    bad = sorted((tmp_path / "data/eval/images").iterdir())[3]
    bad.write_bytes(bad.read_bytes()[:500])
    output = tmp_path / "submission.csv"
    command = ["test.py", "--data-dir", tmp_path / "data", "--runs", runs_dir, "--output", output]
    assert_refused(run(*command), f"eval/images/{bad.name}", "--skip-bad")
    assert not output.exists()
    out = run_ok(*command, "--skip-bad")
    submission = pd.read_csv(output).set_index("ImageID")["ans"]
    assert len(submission) == 42
    others = submission.drop(bad.name)
    assert submission[bad.name] == others.mode()[0]
    assert f"bad images, given the most frequent class, {others.mode()[0]}: 1" in out
