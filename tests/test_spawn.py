"""As on Windows: workers are spawned, not forked, and paths hold spaces and Hangul."""

import multiprocessing
import shutil

import pandas as pd
import pytest

from conftest import SMALL, run_ok


@pytest.fixture
def spawned():
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


def test_all_commands_work_with_spawned_workers(spawned, sample_dir, runs_dir, tmp_path):
    data = tmp_path / "내 사진들 2021"
    for split in ("train", "eval"):
        shutil.copytree(sample_dir / split / "images", data / split / "images")
    shutil.copy(sample_dir / "train/train.csv", data / "train")
    shutil.copy(sample_dir / "eval/info.csv", data / "eval")
    # Crops are made by the first command that needs them.
    # Two epochs: only then are crops kept in memory, which the workers share.
    command = ["train.py", "--target", "mask", "--data-dir", data, *SMALL, "--epochs", 2]
    run_ok(*command, "--output-dir", tmp_path / "결과 runs", "--num-workers", 1)
    one, other = (pd.read_csv(folder / "train/crops.csv") for folder in (sample_dir, data))
    assert one[["file", "method"]].equals(other[["file", "method"]])
    log = pd.read_csv(tmp_path / "결과 runs/mask_fold0/log.csv")
    assert log[:1].equals(pd.read_csv(runs_dir / "mask_fold0/log.csv"))
    assert len(log) == 2
    command = ["test.py", "--runs", runs_dir, "--num-workers", 1, "--output"]
    run_ok(*command, tmp_path / "제출 1/submission.csv", "--data-dir", data)
    assert len(pd.read_csv(tmp_path / "제출 1/submission.csv")) == 42
    run_ok(*command, tmp_path / "사진.csv", "--images", data / "eval/images")
    assert len(pd.read_csv(tmp_path / "사진.csv")) == 42
