import itertools
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score

from config.config import CLASSES
from conftest import assert_refused, run, run_ok
from test_report import make_table, write_run


@pytest.fixture
def write_runs(tmp_path):
    """Write runs whose val_predictions.csv is of 30 people a fold, a share of it correct."""

    def write(name, share, seed=0, folds=(0, 1), targets=CLASSES):
        for fold, target in itertools.product(folds, targets):
            table = make_table(target, fold, share, seed, first=f"{fold}-1")
            write_run(tmp_path / name / f"{target}_fold{fold}", table, target, fold)
        return tmp_path / name

    return write


def compare(*arguments, run=run_ok):
    return run("-m", "ETC.compare", *arguments)


def lines_of(printed, folder):
    return [line for line in printed.splitlines() if line.startswith(str(folder))]


def interval(line):
    return [float(number) for number in line.split("[")[1].rstrip("]").split(",")]


def scores(table):
    true, predicted = table["label"] == "male", table["predicted"] == "male"
    return f1_score(true, predicted, average="macro")


def test_a_gain_is_told_from_luck(write_runs):
    base, better = (write_runs(f"{name}/s1", share, seed).parent for name, share, seed in
                    (("base", 0.6, 0), ("better", 0.9, 2)))  # fmt: skip
    write_runs("base/s2", 0.6, seed=1)
    write_runs("better/s2", 0.9, seed=3)
    same = write_runs("same", 0.6, seed=4)
    printed = compare(base, better, same)
    assert printed.count("60 val people") == 4
    gains, luck = lines_of(printed, better), lines_of(printed, same)
    assert len(gains) == len(luck) == 4
    for line in gains:
        low, high = interval(line)
        assert "4 runs" in line
        assert 0.05 < low < float(line.split()[-3]) < high
    for line in luck:
        low, high = interval(line)
        assert low < 0.05
        assert high > -0.05
    # Scores as scikit-learn computes them, for a head of a set.
    tables = [pd.read_csv(same / f"gender_fold{fold}/val_predictions.csv") for fold in (0, 1)]
    runs = [scores(table) for table in tables]
    assert f"{np.mean(runs):.4f} +- {np.std(runs, ddof=1):.4f}" in luck[2]
    assert f" {scores(pd.concat(tables)):.4f} " in luck[2]


def test_the_same_runs_differ_by_nothing(write_runs):
    """Also by a link, so that sets may share a head."""
    first, second = write_runs("first", 0.6), write_runs("second", 0.7, seed=1)
    for fold in (0, 1):
        shutil.rmtree(second / f"mask_fold{fold}")
        (second / f"mask_fold{fold}").symlink_to(first / f"mask_fold{fold}", True)
    arguments = json.loads((first / "age_fold0/config.json").read_text())
    (first / "age_fold0/config.json").write_text(json.dumps({**arguments, "epochs": 4}))
    printed = compare(first, second)
    assert f"{first / 'age_fold0'}: stopped after 2 of 4 epochs" in printed
    mask = lines_of(printed[printed.index("\nmask,") :], second)[0]
    assert "+0.0000  [+0.0000, +0.0000]" in mask
    assert "age, 30 val people" in compare(first / "age_fold0", second / "age_fold0")


def test_what_cannot_be_compared_is_left_out_or_refused(write_runs, tmp_path):
    first, mask = write_runs("first", 0.6), write_runs("mask", 0.6, targets=["mask"])
    printed = compare(first, mask)
    assert "\nmask," in printed
    assert f"age: left out, because {mask} has no run of it" in printed
    assert f"{mask}: no 18 classes, because it lacks a head" in printed
    other = write_runs("other", 0.6, folds=(0,), targets=["mask"])
    write_runs("other", 0.6, targets=["age", "gender"])
    assert "no 18 classes, because its heads have different folds" in compare(other)
    done = compare(mask, write_runs("age", 0.6, targets=["age"]), run=run)
    assert_refused(done, "no head of which each of them has a run")
    assert_refused(compare(first, other, run=run), "other val photos", "other", "--label-fixes")
    (first / "mask_fold0").rename(first / "mask_fold7")  # its arguments count, not its name
    shutil.copytree(first / "mask_fold1", first / "copy")
    assert_refused(compare(first, run=run), "another run of mask, fold 1")
    assert_refused(compare(tmp_path / "nothing", run=run), "nothing", "val_predictions.csv")
    (other / "age_fold0/val_predictions.csv").write_text("file,label\na,old\n")
    assert_refused(compare(other, run=run), "age_fold0/val_predictions.csv: can't be read")
