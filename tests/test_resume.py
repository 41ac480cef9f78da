"""Runs that go on after their last epoch; tests/test_faults.py stops them by force."""

import pytest

import train
from conftest import SMALL, assert_refused, run, run_ok

FILES = ("best.pth", "last.pth", "log.csv", "valid_predictions.csv")


def command(sample_dir, output, *arguments):
    folders = ["--data-dir", sample_dir, "--output-dir", output]
    return ["train.py", "--target", "age", *folders, *SMALL, "--lr", "1e-3", *arguments]


def contents(output):
    return {name: (output / "age_fold0" / name).read_bytes() for name in FILES}


@pytest.fixture(scope="module")
def uninterrupted(sample_dir, tmp_path_factory):
    output = tmp_path_factory.mktemp("uninterrupted")
    run_ok(*command(sample_dir, output, "--epochs", 4, "--num-workers", 0))
    return contents(output)


def test_a_finished_run_goes_on_with_more_epochs(uninterrupted, sample_dir, tmp_path):
    run_ok(*command(sample_dir, tmp_path, "--epochs", 1, "--num-workers", 0))
    run_ok(*command(sample_dir, tmp_path, "--epochs", 4, "--num-workers", 1, "--resume"))
    assert contents(tmp_path) == uninterrupted
    run_ok(*command(sample_dir, tmp_path, "--epochs", 4, "--resume"))  # nothing left to do
    assert contents(tmp_path) == uninterrupted


def test_resume_refuses_what_would_change_the_result(sample_dir, tmp_path):
    arguments = command(sample_dir, tmp_path, "--epochs", 1)
    assert_refused(run(*arguments, "--resume"), "last.pth", "--overwrite")
    run_ok(*arguments)
    before = contents(tmp_path)
    done = run(*arguments, "--resume", "--batch-size", 8, "--augment", "none")
    assert_refused(done, "--batch-size 16", "--augment age")
    assert_refused(run(*arguments, "--resume", "--precision", "bf16"), "--precision fp32")
    assert_refused(run(*arguments, "--resume", "--overwrite"), "--overwrite and --resume")
    assert_refused(run(*arguments), "--resume", "--overwrite")
    assert contents(tmp_path) == before


def test_a_loss_that_overflows_is_named_and_nothing_overwritten(sample_dir, tmp_path, monkeypatch):
    run_ok(*command(sample_dir, tmp_path, "--epochs", 1))
    before = contents(tmp_path)
    real = train.build_loss

    def overflowing(*options):
        criterion, steps = real(*options), iter(range(100))
        return lambda *batch: criterion(*batch) / (next(steps) != 2)

    monkeypatch.setattr(train, "build_loss", overflowing)
    done = run(*command(sample_dir, tmp_path, "--epochs", 2, "--resume"))
    assert_refused(done, "train loss", "epoch 2, step 3", "0.001", "--lr")
    assert contents(tmp_path) == before
