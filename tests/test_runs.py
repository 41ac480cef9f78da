"""What a run's folder holds whatever happens to the run, and how --resume goes on."""

import os
import shutil
import signal
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from filelock import FileLock
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from conftest import SMALL, assert_refused, run, run_ok, spawn
from utils import runs
from utils.checkpoint import load_checkpoint
from utils.cli import InputError
from utils.files import hidden

BEST = ["--recipe", "best", "--epochs", 2]


@pytest.fixture
def command(sample_dir, tmp_path):
    return train_command(sample_dir, tmp_path)


def train_command(sample_dir, output):
    return ["train.py", "--target", "age", "--data-dir", sample_dir, "--output-dir", output,
            *SMALL, "--lr", 1e-3, "--num-workers", 0]  # fmt: skip


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def assert_same_run(folder, other):
    """The same weights, best and last, optimizer state, log and val predictions."""
    for name in ("log.csv", "val_predictions.csv", "best.pth"):
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name
    last, expected = (load_checkpoint(path / "last.pth") for path in (folder, other))
    assert last["log"] == expected["log"]
    for name in ("network", "optimizer"):
        torch.testing.assert_close(last[name], expected[name], rtol=0, atol=0)


@pytest.fixture(scope="module")
def uninterrupted(sample_dir, tmp_path_factory):
    output = tmp_path_factory.mktemp("uninterrupted")
    run_ok(*train_command(sample_dir, output), "--epochs", 2)
    return output / "age_fold0"


def test_more_epochs_end_as_if_they_had_been_asked_for_at_once(command, tmp_path, uninterrupted):
    folder = tmp_path / "age_fold0"
    run_ok(*command, "--epochs", 1, "--tensorboard")
    resume = [*command, "--epochs", 2, "--tensorboard", "--num-workers", 1, "--resume"]
    run_ok(*resume)
    assert_same_run(folder, uninterrupted)
    before = contents(folder)
    run_ok(*resume)  # nothing left to do
    assert contents(folder) == before

    log = pd.read_csv(folder / "log.csv")
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    scalars = {event.step: event.value for event in events.Scalars("val_loss")}
    assert scalars == pytest.approx(dict(zip(log["epoch"], log["val_loss"])))


def test_the_cosine_schedule_goes_on_after_ctrl_c(command, tmp_path, monkeypatch):
    run_ok(*command, *BEST, "--output-dir", tmp_path / "whole")
    save_epoch = runs.save_epoch

    def save_and_stop(*values):
        save_epoch(*values)
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "save_epoch", save_and_stop)
    assert run(*command, *BEST).returncode == 130
    monkeypatch.setattr(runs, "save_epoch", save_epoch)
    # Every learning rate depends on the number of all steps.
    assert_refused(run(*command, *BEST, "--epochs", 3, "--resume"), "--epochs 2")
    run_ok(*command, *BEST, "--resume")
    assert_same_run(tmp_path / "age_fold0", tmp_path / "whole/age_fold0")


KILL_IN_EPOCH_2 = """
import os, signal, sys
import train

def replace(source, target, replace=os.replace):
    replace(source, target)
    if target.name == "log.csv" and len(target.read_text().splitlines()) == 3:
        os.kill(os.getpid(), signal.SIGKILL)

os.replace = replace
train.main()
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signal")
def test_a_killed_run_goes_on(command, tmp_path, uninterrupted):
    """Killed when log.csv is of the second epoch and last.pth still of the first one."""
    arguments = [*command[1:], "--epochs", 2]
    assert spawn("-c", KILL_IN_EPOCH_2, *arguments).returncode == -signal.SIGKILL
    assert len(pd.read_csv(tmp_path / "age_fold0/log.csv")) == 2
    run_ok(*command, "--epochs", 2, "--resume")
    assert_same_run(tmp_path / "age_fold0", uninterrupted)


def test_resume_refuses_what_would_change_the_result(command, sample_dir, tmp_path):
    data, folder = tmp_path / "data", tmp_path / "age_fold0"
    shutil.copytree(sample_dir, data, copy_function=shutil.copy2)
    command += ["--data-dir", data, "--epochs", 1]
    run_ok(*command)
    before = contents(folder)

    def refused(*arguments):
        return run(*command, "--resume", *arguments)

    assert_refused(refused("--batch-size", 8, "--augment", "none"), "--batch-size 16", "--augment")
    assert_refused(refused("--margin-x", 5), "--margin-x 20")
    assert_refused(refused("--freeze-bn"), "--no-freeze-bn")
    assert_refused(refused("--overwrite"), "--overwrite", "--resume")
    table = pd.read_csv(data / "train/train.csv", dtype=str)
    person, age = table.loc[0, ["id", "age"]]
    fixes = tmp_path / "fixes.csv"
    fixes.write_text(f"id,field,old,new\n{person},age,{age},{int(age) + 1}\n")
    assert_refused(refused("--label-fixes", fixes), "photos or labels", "--overwrite")
    photos = data / "train/images"
    first, last = sorted(photos.rglob("mask1.jpg"))[:: len(table) - 1]
    shutil.copy(last, first)
    assert_refused(refused(), "photos or labels", "--overwrite")
    assert contents(folder) == before

    (folder / "best.pth").write_bytes(before["best.pth"][:-1000])
    assert_refused(refused(), "best.pth", "damaged")
    (folder / "best.pth").write_bytes(before["best.pth"])
    (folder / "last.pth").write_bytes(before["last.pth"][:-1000])
    assert_refused(refused(), "last.pth")
    (folder / "last.pth").unlink()
    assert_refused(refused(), "no last.pth", "--overwrite")


def test_a_run_is_replaced_only_if_asked_and_only_by_another_one(command, tmp_path):
    crops, folder = tmp_path / "crops", tmp_path / "age_fold0"
    command += ["--crop-dir", crops, "--epochs", 1, "--no-cache"]
    assert "84 photos cropped" in run_ok(*command, "--tensorboard")
    (folder / "best.0123.v1.onnx").write_bytes(b"of the old checkpoint")
    before = contents(folder)

    assert_refused(run(*command), "age_fold0", "--resume", "--overwrite")
    crop = next(crops.rglob("mask1.jpg"))
    crop.write_bytes(crop.read_bytes()[:99])
    for workers in (0, 1):  # the latter raises the error in another process
        done = run(*command, "--overwrite", "--num-workers", workers)
        assert_refused(done, f"{crop.parent.name}/mask1.jpg", "delete this crop")
    assert_refused(run(*command, "--overwrite", "--data-dir", tmp_path / "nowhere"), "nowhere")
    assert contents(folder) == before
    assert (folder / "tensorboard").exists()

    crop.unlink()
    run_ok(*command, "--overwrite", "--seed", 1)
    after = contents(folder)
    assert after.keys() == before.keys() - {"best.0123.v1.onnx"}
    assert after["best.pth"] != before["best.pth"]
    assert not (folder / "tensorboard").exists()


def write_and_fail(write, *arguments):
    write(*arguments)
    raise InputError("can't be written")


def test_a_run_survives_until_the_new_one_has_an_epoch(command, tmp_path, monkeypatch):
    command += ["--epochs", 1]
    run_ok(*command)
    before = contents(tmp_path / "age_fold0")
    for name in ("write_json", "write_csv", "save_checkpoint", "log_scalars"):
        monkeypatch.setattr(runs, name, partial(write_and_fail, getattr(runs, name)))
        assert_refused(run(*command, "--overwrite", "--tensorboard"), "can't be written")
        assert contents(tmp_path / "age_fold0") == before
        monkeypatch.undo()


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), KeyboardInterrupt()])
def test_a_run_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch, error):
    names = {"best.pth", "config.json", "log.csv"}
    new = tmp_path / ".first_epoch"
    new.mkdir()
    for name in names:
        (tmp_path / name).write_text("old")
        (new / name).write_text("new")
    replace, calls = Path.replace, []

    def fail(path, target):
        calls.append(path)
        if len(calls) == 5:  # the second of the new files
            raise error
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(type(error)):
        runs.replace_run(tmp_path, new)
    assert {name: (tmp_path / name).read_text() for name in names} == dict.fromkeys(names, "old")
    assert {name: (new / name).read_text() for name in names} == dict.fromkeys(names, "new")
    monkeypatch.undo()
    runs.replace_run(tmp_path, new)
    files = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert files == dict.fromkeys(names, "new")


def test_a_folder_is_for_one_run_at_a_time(command, tmp_path):
    (tmp_path / "age_fold0").mkdir()
    with FileLock(hidden(tmp_path / "age_fold0", ".lock")):
        assert_refused(run(*command, "--epochs", 1), "age_fold0: another command writes to it")


def test_options_of_other_versions_of_pytorch(command, tmp_path, uninterrupted):
    run_ok(*command, "--epochs", 1)
    path = tmp_path / "age_fold0/last.pth"
    last = torch.load(path, weights_only=True)
    del last["arguments"]["age_sigma"]  # and of this repository: as if it had been added since
    [options] = last["optimizer"]["param_groups"]
    del options["maximize"]
    torch.save(last, path)
    run_ok(*command, "--epochs", 2, "--resume")
    assert_same_run(tmp_path / "age_fold0", uninterrupted)


def test_a_folder_with_a_part_of_a_run_is_not_replaced(command, tmp_path):
    (tmp_path / "age_fold0").mkdir()
    (tmp_path / "age_fold0/best.pth").write_bytes(b"precious")
    assert_refused(run(*command), "age_fold0", "--overwrite")
    assert (tmp_path / "age_fold0/best.pth").read_bytes() == b"precious"


def test_resume_names_all_arguments_that_differ(command, tmp_path):
    run_ok(*command, "--epochs", 1, "--schedule", "cosine")
    refused = run(*command, "--epochs", 2, "--resume")
    assert_refused(refused, "needs the run's own arguments: ", "--schedule cosine", "--epochs 1")
