"""test.py as its users run it, on the runs of a small data set."""

import shutil

import efficientnet_pytorch
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score

from conftest import assert_refused, run, run_ok, spawn

MASK = ["mask_normal", "mask_mask", "mask_incorrect"]
GENDER = ["gender_female", "gender_male"]
AGE = ["age_under30", "age_30to59", "age_60plus"]
# From a head's label to its share of the official class, as the competition numbers them.
OFFICIAL_MASK = np.array([12, 0, 6])
OFFICIAL_GENDER = np.array([3, 0])


@pytest.fixture(autouse=True)
def no_download(monkeypatch):
    def refuse(url, **options):
        pytest.fail(f"test.py downloads {url}")

    monkeypatch.setattr(efficientnet_pytorch.utils.model_zoo, "load_url", refuse)


@pytest.fixture
def command(sample_dir, runs_dir, tmp_path):
    return ["test.py", "--data-dir", sample_dir, "--runs", runs_dir, "--num-workers", 0,
            "--output", tmp_path / "submission.csv"]  # fmt: skip


def predict(command, output, *arguments, run=run):
    """Run test.py; returns its standard output, the submission and the probabilities."""
    out = run_ok(*command, "--output", output / "submission.csv", *arguments, run=run)
    return out, *(pd.read_csv(output / f"{name}.csv") for name in ("submission", "probabilities"))


def copy_runs(runs_dir, folder, *names):
    for name in names:
        (folder / name).mkdir(parents=True)
        shutil.copy(runs_dir / name / "best.pth", folder / name)
    return folder


def test_the_submission_is_the_merge_of_the_heads_mean_probabilities(
    command, sample_dir, runs_dir, tmp_path
):
    answers = sample_dir / "eval/answers.csv"
    out, submission, table = predict(command, tmp_path / "all", "--answers", answers, run=spawn)
    assert "run by onnx on cpu" in out
    info = pd.read_csv(sample_dir / "eval/info.csv")
    assert list(submission.columns) == ["ImageID", "ans"]
    assert list(table.columns) == ["ImageID", *MASK, *GENDER, *AGE]
    assert submission["ImageID"].tolist() == table["ImageID"].tolist() == info["ImageID"].tolist()
    mask, gender, age = (table[names].to_numpy() for names in (MASK, GENDER, AGE))
    for head in (mask, gender, age):
        np.testing.assert_allclose(head.sum(axis=1), 1, atol=1e-5)
    expected = OFFICIAL_MASK[mask.argmax(axis=1)] + OFFICIAL_GENDER[gender.argmax(axis=1)]
    assert submission["ans"].tolist() == (expected + age.argmax(axis=1)).tolist()

    true = pd.read_csv(answers)["ans"]
    f1 = f1_score(true, submission["ans"], labels=range(18), average="macro", zero_division=0)
    assert f"18 classes: macro-F1 {f1:.4f}, accuracy " in out

    # Each age fold alone: their mean is what both gave, from two folders of runs as well.
    folders, ages = [], []
    for name in ("age_fold0", "age_fold3"):
        folders.append(copy_runs(runs_dir, tmp_path / name, "mask_fold0", "gender_fold1", name))
        ages.append(predict(command, folders[-1], "--runs", folders[-1])[2][AGE].to_numpy())
    assert np.abs(ages[0] - ages[1]).max() > 1e-3
    np.testing.assert_allclose(np.mean(ages, axis=0), age, atol=2e-5)
    options = ["--runs", *folders, "--backend", "torch"]
    out, _, both = predict(command, tmp_path / "both", *options)
    assert "run by torch" in out
    assert "networks: 1 mask, 1 gender, 2 age" in out  # copies count once
    np.testing.assert_allclose(both.iloc[:, 1:], table.iloc[:, 1:], atol=1e-4)


def test_age_views_change_age_alone_and_flip_every_head(command, tmp_path):
    _, _, plain = predict(command, tmp_path / "plain")
    views = [
        predict(command, tmp_path / str(workers), "--age-views", 2, "--num-workers", workers)[2]
        for workers in (0, 1)
    ]
    assert views[0].equals(views[1])
    assert views[0][MASK + GENDER].equals(plain[MASK + GENDER])
    assert not views[0][AGE].equals(plain[AGE])
    _, _, flip = predict(command, tmp_path / "flip", "--tta", "flip")
    for names in (MASK, AGE):  # the untrained gender head says the same of every image
        assert not flip[names].equals(plain[names])


def test_heads_of_two_sizes_predict_val_photos_as_in_training(
    command, sample_dir, runs_dir, tmp_path
):
    """The age head's is the best recipe: an AgeHead that sees mirror images too."""
    runs, data = tmp_path / "runs", tmp_path / "data/eval"
    copy_runs(runs_dir, runs, "mask_fold0", "gender_fold1")
    run_ok("train.py", "--target", "age", "--recipe", "best", "--data-dir", sample_dir,
           "--output-dir", runs, "--model", "efficientnet-lite0", "--resize", 80, "--epochs", 1,
           "--num-workers", 0, "--no-pretrained")  # fmt: skip
    shutil.copytree(sample_dir / "train", data, copy_function=shutil.copy2)
    (data / "new_img").rename(data / "new_images")
    age = pd.read_csv(runs / "age_fold0/val_predictions.csv")
    pd.DataFrame({"ImageID": age["file"], "ans": 0}).to_csv(data / "info.csv", index=False)
    # 20 of 21 images a batch: the last one holds a single image.
    folders = ["--data-dir", data.parent, "--runs", runs]
    _, _, table = predict(command, tmp_path, *folders, "--batch-size", 20)
    mask = pd.read_csv(runs_dir / "mask_fold0/val_predictions.csv")
    for names, expected in ((MASK, mask), (AGE, age)):
        assert table["ImageID"].equals(expected["file"])
        np.testing.assert_allclose(table[names], expected.filter(like="p_"), atol=1e-4)


def test_info_keeps_its_order_and_other_columns(command, sample_dir, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(sample_dir / "eval/images", data / "eval/images")
    info = pd.read_csv(sample_dir / "eval/info.csv", dtype=str).sample(frac=1, random_state=0)
    info.insert(0, "note", ["007", "", *["NA"] * (len(info) - 2)])
    info.to_csv(data / "eval/info.csv", index=False)
    out = run_ok(*command, "--data-dir", data)
    assert "42 photos cropped" in out
    submission = pd.read_csv(tmp_path / "submission.csv", dtype=str, keep_default_na=False)
    assert submission.drop(columns="ans").equals(info.drop(columns="ans").reset_index(drop=True))


def test_bad_images_get_the_most_frequent_class(command, sample_dir, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(sample_dir / "eval", data / "eval", copy_function=shutil.copy2)
    bad = sorted((data / "eval/images").iterdir())[3]
    bad.write_bytes(bad.read_bytes()[:500])
    command += ["--data-dir", data]
    assert_refused(run(*command), f"eval/images/{bad.name}", "--skip-bad")
    assert not (tmp_path / "submission.csv").exists()
    out = run_ok(*command, "--skip-bad")
    submission = pd.read_csv(tmp_path / "submission.csv").set_index("ImageID")["ans"]
    most_frequent = submission.drop(bad.name).mode()[0]
    assert (len(submission), submission[bad.name]) == (42, most_frequent)
    assert f"1 images can't be read: given the most frequent class, {most_frequent}" in out
    table = pd.read_csv(tmp_path / "probabilities.csv").set_index("ImageID")
    assert table.loc[bad.name].isna().all()
    assert table.drop(bad.name).notna().all(axis=None)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--runs", "{tmp}/runs"], ["--runs", "try --runs {tmp}/runs/a"]),
        (["--runs", "{tmp}/runs/a"], ["python train.py --target gender"]),
        (["--backend", "onnx", "--precision", "bf16"], ["--backend onnx"]),
        (["--answers", "{data}/eval/info.csv"], ["info.csv", "every ans is 0"]),
        (["--output", "{data}/eval/info.csv"], ["info.csv", "folder of a run or of data"]),
        (["--output", "{tmp}/runs/a/mask_fold0/s.csv"], ["folder of a run"]),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_a_wrong_argument_is_one_line(command, sample_dir, runs_dir, tmp_path, arguments, words):
    copy_runs(runs_dir, tmp_path / "runs/a", "mask_fold0")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    arguments, words = (
        [str(text).format(tmp=tmp_path, data=sample_dir) for text in texts]
        for texts in (arguments, words)
    )
    assert_refused(run(*command, *arguments), *words)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before
