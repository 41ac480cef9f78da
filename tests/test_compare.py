import itertools
import json
import re
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


def shares_by_group(folder, targets, groups):
    """Of the photos for which all heads of a set in targets are right, the share in each group."""
    correct = 1
    for target in targets:
        tables = [pd.read_csv(folder / f"{target}_fold{fold}/val_predictions.csv", dtype=str)
                  for fold in (0, 1)]  # fmt: skip
        table = pd.concat(tables).set_index("file")
        correct = correct * (table["label"] == table["predicted"])
    return correct.groupby(groups).mean()


def test_accuracy_by_group(write_runs):
    """As pandas computes it; the 18 classes are right where the three heads are."""
    sets = [write_runs(f"set{seed}", share, seed) for seed, share in enumerate((0.5, 0.9, 0.5))]
    assert "by race" not in compare(*sets)
    _, merged, mask, _, age = compare(*sets, "--by", "race", "age").split(" val people\n")
    tables = [pd.read_csv(sets[0] / f"age_fold{fold}/val_predictions.csv", keep_default_na=False)
              for fold in (0, 1)]  # fmt: skip
    table = pd.concat(tables).set_index("file")
    decades = (table["age"] // 10 * 10).astype(str) + "s"
    for groups in (table["race"].replace("", "unknown"), decades):
        people = table["person"].groupby(groups).nunique()
        assert len(people) > 4
        for targets, printed in ((CLASSES, merged), (["mask"], mask), (["age"], age)):
            shares = [shares_by_group(folder, targets, groups) for folder in sets]
            for group in people.index:
                (line,) = [line for line in printed.split("\n") if line.startswith(f"  {group}  ")]
                numbers = re.findall(r"[-+]?\d\.\d{4}", line.removeprefix(f"  {group}"))
                assert int(line.removeprefix(f"  {group}").split()[0]) == people[group]
                assert len(numbers) == (9 if people[group] > 1 else 5)
                expected = [share[group] for share in shares]
                gain = expected[1] - expected[0]
                assert list(map(float, numbers[:3])) == pytest.approx(
                    [*expected[:2], gain], abs=6e-5
                )
                if people[group] > 1:
                    assert float(numbers[3]) <= float(numbers[2]) <= float(numbers[4])
                    assert float(numbers[5]) == pytest.approx(expected[2], abs=6e-5)
    printed = re.findall(r"^  (\d+)s ", age, re.MULTILINE)
    assert printed == sorted(printed, key=int)


def test_runs_without_race_are_compared_without_it(write_runs):
    first, second = (write_runs(name, 0.6, targets=["mask"]) for name in ("first", "second"))
    path = second / "mask_fold1/val_predictions.csv"
    pd.read_csv(path).drop(columns="race").to_csv(path, index=False)
    assert "by gender" in compare(first, second, "--by", "gender", "age")
    done = compare(first, second, "--by", "gender", "race", run=run)
    assert_refused(done, path, "no column race", "--by")
    assert_refused(compare(first, "--by", "name", run=run), "--by", "name")
    assert compare(second, "--by", "gender", "gender").count("by gender") == 1


def test_what_cannot_be_compared_is_left_out_or_refused(write_runs, tmp_path):
    first, mask = write_runs("first", 0.6), write_runs("mask", 0.6, targets=["mask"])
    printed = compare(first, mask)
    assert "\nmask," in printed
    assert f"age: left out, because {mask} has no run of it" in printed
    assert f"{mask}: 18 classes not scored: a head is missing" in printed
    other = write_runs("other", 0.6, folds=(0,), targets=["mask"])
    write_runs("other", 0.6, targets=["age", "gender"])
    assert "18 classes not scored: its heads have different folds" in compare(other)
    done = compare(mask, write_runs("age", 0.6, targets=["age"]), run=run)
    assert_refused(done, "no head of which each of them has a run")
    assert_refused(compare(first, other, run=run), "other val photos", "other", "--label-fixes")
    (first / "mask_fold0").rename(first / "mask_fold7")  # its arguments count, not its name
    shutil.copytree(first / "mask_fold1", first / "copy")
    assert_refused(compare(first, run=run), "another run of mask, fold 1")
    assert_refused(compare(tmp_path / "nothing", run=run), "nothing", "val_predictions.csv")
    (other / "age_fold0/val_predictions.csv").write_text("file,label\na,old\n")
    assert_refused(compare(other, run=run), "age_fold0/val_predictions.csv: can't be read")


def test_an_ensemble_is_scored_by_its_mean_probabilities(write_runs):
    """Also one whose heads have different numbers of networks."""
    single = write_runs("single/s1", 0.6).parent
    several = [write_runs(f"several/s{seed}", 0.6, seed) for seed in range(3)]
    for fold in (0, 1):
        shutil.rmtree(several[2] / f"mask_fold{fold}")
    printed = compare(single, several[0].parent, "--ensemble")
    whole, mask, gender, age = lines_of(printed, several[0].parent)
    tables = {
        (target, fold): [
            pd.read_csv(path / f"{target}_fold{fold}/val_predictions.csv")
            for path in several
            if (path / f"{target}_fold{fold}").exists()
        ]
        for target, fold in itertools.product(CLASSES, (0, 1))
    }
    labels, answers = {}, {}
    for target, line in {"mask": mask, "gender": gender, "age": age}.items():
        names = np.array(CLASSES[target])
        probs = [
            sum(table[[f"p_{name}" for name in names]].to_numpy() for table in tables[target, fold])
            for fold in (0, 1)
        ]
        answers[target] = names[np.concatenate(probs).argmax(axis=1)]
        labels[target] = pd.concat([tables[target, fold][0] for fold in (0, 1)])["label"]
        assert f" {f1_score(labels[target], answers[target], average='macro'):.4f} " in line
        assert "2 folds" in line
    true, predicted = (
        ["/".join(answer) for answer in zip(*(heads[target] for target in CLASSES))]
        for heads in (labels, answers)
    )
    assert f" {f1_score(true, predicted, average='macro'):.4f} " in whole
    *_, alone = lines_of(compare(single, several[0].parent), several[0].parent)
    assert float(alone.split()[3]) < float(age.split()[3])  # one is wrong where others aren't
    shutil.copytree(several[0], several[0].with_name("copy"))
    again = compare(single, several[0].parent, "--ensemble")
    assert again == printed  # a copy counts once
    assert f"age: mean of 3 networks in each fold of {several[0].parent}" in again
    shutil.rmtree(several[1] / "age_fold1")
    done = compare(several[0].parent, "--ensemble", run=run)
    assert_refused(done, "other val photos", "several/s1")
