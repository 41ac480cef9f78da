"""Runs that are stopped, by a limit of epochs or by force, and go on."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

import train
from conftest import ROOT, SMALL, assert_refused, run, run_ok

FILES = ("best.pth", "last.pth", "log.csv")


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


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_runs_end_as_if_nothing_had_happened(uninterrupted, sample_dir, tmp_path, workers):
    moments = random.Random(workers)
    arguments = command(sample_dir, tmp_path, "--epochs", 4, "--num-workers", workers)
    for _ in range(3):
        going_on = ["--resume"] if (tmp_path / "age_fold0/last.pth").exists() else ["--overwrite"]
        process = subprocess.Popen(
            [sys.executable, *map(str, [*arguments, *going_on])],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for line in process.stdout:  # the header: training begins
            if line.startswith("epoch"):
                break
        time.sleep(moments.uniform(0, 2))
        process.kill()
        process.communicate()
    going_on = ["--resume"] if (tmp_path / "age_fold0/last.pth").exists() else ["--overwrite"]
    run_ok(*arguments, *going_on)
    assert contents(tmp_path) == uninterrupted


def test_resume_refuses_what_would_change_the_result(sample_dir, tmp_path):
    arguments = command(sample_dir, tmp_path, "--epochs", 1)
    assert_refused(run(*arguments, "--resume"), "last.pth", "--overwrite")
    run_ok(*arguments)
    before = contents(tmp_path)
    done = run(*arguments, "--resume", "--batch-size", 8, "--augment", "none")
    assert_refused(done, "--batch-size 16", "--augment age")
    assert_refused(run(*arguments, "--resume", "--precision", "bf16"), "--precision fp32")
    assert_refused(run(*arguments, "--resume", "--skip-bad"), "no --skip-bad")
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


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such limit")
def test_a_full_disk_is_one_line_and_keeps_the_last_checkpoint(sample_dir, tmp_path):
    run_ok(*command(sample_dir, tmp_path, "--epochs", 1, "--num-workers", 0))
    before = contents(tmp_path)
    arguments = command(sample_dir, tmp_path, "--epochs", 2, "--num-workers", 0, "--resume")
    limited = (
        "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (10**6,) * 2); "
    )
    limited += "sys.argv = sys.argv[1:]; runpy.run_path('train.py', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", limited, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert_refused(done, ".pth", "can't be written", "File too large")
    after = contents(tmp_path)
    assert after["last.pth"] == before["last.pth"]
    assert after["best.pth"] == before["best.pth"]
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C reaches a console, not one process, on Windows")
def test_ctrl_c_says_how_to_go_on_and_leaves_no_worker(sample_dir, tmp_path):
    arguments = command(sample_dir, tmp_path, "--epochs", 50, "--num-workers", 2)
    process = subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not process.stdout.readline().strip().startswith("1"):
        pass  # the line of the first epoch
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers, too
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.startswith("interrupted; to go on: python train.py --target age")
    assert stderr.endswith("--resume\n")
    assert stderr.count("\n") == 1, stderr
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
