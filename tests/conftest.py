"""Fixtures: a small drawn data set with its crops, and a way to run the real commands."""

import contextlib
import importlib
import io
import os
import signal
import subprocess
import sys
import unittest.mock
from pathlib import Path

import pytest
from filelock import FileLock

os.environ.pop("MAG_CROP_DIR", None)  # else the tests' crops would go there

import utils.cli
from ETC.sample import make_sample

# Started in the background by a shell script, this process and its children would ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parent.parent
# A network and sizes that take seconds on two cores.
SMALL = ["--model", "efficientnet-lite0", "--resize", "64", "--batch-size", "16", "--no-report"]


def spawn(*command):
    """Run a script of the repository as a user does; returns the finished process."""
    warnings = "error::UserWarning,ignore:This DataLoader will create:UserWarning"
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env={**os.environ, "PYTHONWARNINGS": warnings},
        capture_output=True,
        text=True,
        timeout=300,
    )


def run(*command):
    """What spawn does, but in this process, which has imported everything: seconds faster."""
    name, arguments = (command[1], command[2:]) if command[0] == "-m" else (command[0], command[1:])
    script = importlib.import_module(name.removesuffix(".py"))
    out, err, returncode = io.StringIO(), io.StringIO(), 0
    with (
        unittest.mock.patch.object(sys, "argv", [name, *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            utils.cli.run(script.main)
        except SystemExit as stop:
            returncode = stop.code
    return subprocess.CompletedProcess(command, returncode, out.getvalue(), err.getvalue())


def run_ok(*command, run=run):
    done = run(*command)
    assert done.returncode == 0, done.stderr
    return done.stdout


def assert_refused(done, *words):
    """Exit status 2, one line on stderr with all the words (paths in / or \\), no traceback."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stderr.startswith("error: ")
    for word in words:
        assert str(word).replace("\\", "/") in done.stderr.replace("\\", "/")


@contextlib.contextmanager
def made_once(tmp_path_factory, name):
    """A folder for the tests of all processes of pytest-xdist, and whether it is to be filled."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder = base / name
    with FileLock(base / f"{name}.lock"):
        yield folder, not (base / f"{name}.done").exists()
        (base / f"{name}.done").touch()


@pytest.fixture(scope="session")
def sample_dir(tmp_path_factory):
    """Twelve drawn people to train on and six to submit for, cropped."""
    with made_once(tmp_path_factory, "sample") as (folder, empty):
        if empty:
            make_sample(folder / "data", people=12, eval_people=6, seed=777)
            run_ok("-m", "data.crop", "--data-dir", folder / "data", run=spawn)
    return folder / "data"


@pytest.fixture(scope="session")
def runs_dir(sample_dir, tmp_path_factory):
    """One-epoch runs of the three heads: two folds of age, and gender by another network and with
    all pictures.
    """
    with made_once(tmp_path_factory, "runs") as (folder, empty):
        if empty:
            train_runs(sample_dir, folder)
    return folder


def train_runs(sample_dir, folder):
    other = ["--model", "efficientnet-b0", "--no-pretrained", "--resize", "80", "--tensorboard"]
    for target, fold, extra in (
        ("mask", 0, []),
        ("gender", 1, other),
        ("age", 0, []),
        ("age", 3, []),
    ):
        small = SMALL[:-1] if target == "gender" else SMALL
        run_ok(
            "train.py", "--target", target, "--fold", fold, "--epochs", 1, *small, *extra,
            "--data-dir", sample_dir, "--output-dir", folder, "--num-workers", 0,
            run=spawn if target == "mask" else run,
        )  # fmt: skip
