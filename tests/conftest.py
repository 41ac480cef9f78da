"""Fixtures: a small data set of drawn faces with its crops, and a way to run the real commands."""

import contextlib
import importlib
import io
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import unittest.mock
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from filelock import FileLock
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

os.environ.pop("MAG_CROP_DIR", None)  # else the tests' crops would go there

import utils.cli
from data.labels import age_labels, merge_labels

# Started in the background by a shell script, this process and its children would ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parent.parent
# A network and sizes that take seconds on two cores.
SMALL = ["--model", "efficientnet-lite0", "--resize", "64", "--batch-size", "16"]
# Drawn by ETC.sample: 384 x 512 pixels, one person of each gender in each age group.
FACES = sorted((Path(__file__).parent / "faces").glob("*.jpg"))
SHOTS = ("normal", "mask1", "mask2", "mask3", "mask4", "mask5", "incorrect_mask")
MASK = np.array([[110, 255], [192, 240], [274, 255], [260, 320], [192, 368], [124, 320]])
COLOURS = ((245, 245, 245), (60, 60, 70), (120, 160, 220), (190, 60, 80), (60, 150, 110))


def draw_shot(face, shot, rng):
    """A person's photo, uint8 RGB (512, 384, 3): the drawn face with a mask, moved and noisy."""
    face = face.copy()
    if shot != "normal":
        lower = 45 if shot == "incorrect_mask" else 0
        cv2.fillPoly(
            face, [np.add(MASK, [0, lower])], COLOURS[rng.integers(len(COLOURS))], cv2.LINE_AA
        )
    move = np.array([[1, 0, rng.integers(-15, 16)], [0, 1, rng.integers(-15, 16)]], np.float32)
    face = cv2.warpAffine(face, move, (384, 512), borderMode=cv2.BORDER_REPLICATE)
    face = face * rng.uniform(0.85, 1.15) + rng.normal(0, 4, face.shape)
    return face.clip(0, 255).astype(np.uint8)


def draw_people(people, seed):
    """Yield gender, age and {shot: photo} of each person; every six have all combinations of
    gender and age group.
    """
    for index in range(people):
        rng = np.random.default_rng([*seed, index])
        path = FACES[index % len(FACES)]
        gender, age = path.stem.split("_")
        face = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        yield gender, int(age), {shot: draw_shot(face, shot, rng) for shot in SHOTS}


def write_jpeg(path, photo):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), photo[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])


def make_data(folder, people, eval_people, seed=777):
    """Write a data set in the competition's layout: seven photos each of people to train on and of
    eval_people to submit for, with the true classes in eval/answers.csv.
    """
    rows = []
    for number, (gender, age, photos) in enumerate(draw_people(people, [seed, 0]), start=1):
        path = f"{number:06d}_{gender}_Drawn_{age}"
        rows.append((f"{number:06d}", gender, "Drawn", age, path))
        for shot, photo in photos.items():
            write_jpeg(folder / "train/images" / path / f"{shot}.jpg", photo)
    table = pd.DataFrame(rows, columns=["id", "gender", "race", "age", "path"])
    table.to_csv(folder / "train/train.csv", index=False)
    names, answers = np.random.default_rng(seed), {}  # the names don't tell the person
    for gender, age, photos in draw_people(eval_people, [seed, 1]):
        for shot, photo in photos.items():
            name = f"{names.bytes(20).hex()}.jpg"
            write_jpeg(folder / "eval/images" / name, photo)
            mask = {"normal": 0, "incorrect_mask": 2}.get(shot, 1)
            answers[name] = int(merge_labels(mask, int(gender == "male"), age_labels(age)))
    table = pd.DataFrame(sorted(answers.items()), columns=["ImageID", "ans"])
    table.to_csv(folder / "eval/answers.csv", index=False)
    table.assign(ans=0).to_csv(folder / "eval/info.csv", index=False)


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
    """Run a script as spawn does, but in this process, which has imported everything already."""
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
    """The standard output of a command that must succeed."""
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


def damage(content, rng):
    """Cut, change, insert or delete bytes at one to three places."""
    content = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        start = rng.randrange(len(content) + 1)
        stop = start + rng.choice([1, 2, 16, 256])
        old = content[start:stop]
        new = rng.choice([rng.randbytes(len(old)), b"", bytes(len(old)), old + old])
        content[start : rng.choice([stop, stop, stop, None])] = new
    return bytes(content)


def contents(folder):
    """{path: bytes} of all files in a folder, paths relative to it and with "/"."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@contextlib.contextmanager
def made_once(tmp_path_factory, name):
    """A folder for the tests of all processes of pytest-xdist, and whether it has to be filled."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder = base / name
    with FileLock(base / f"{name}.lock"):
        yield folder, not (base / f"{name}.done").exists()
        (base / f"{name}.done").touch()


@pytest.fixture
def spawned():
    """Start worker processes as Windows and macOS do."""
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


@pytest.fixture(scope="session")
def sample_dir(tmp_path_factory):
    """Twelve people to train on and six to submit for, cropped."""
    with made_once(tmp_path_factory, "sample") as (folder, empty):
        if empty:
            make_data(folder / "data", people=12, eval_people=6)
            run_ok("-m", "data.crop", "--data-dir", folder / "data", run=spawn)
    return folder / "data"


@pytest.fixture(scope="session")
def runs_dir(sample_dir, tmp_path_factory):
    """One-epoch runs: mask_fold0, gender_fold1 (another network and size), age_fold0, age_fold3."""
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
        run_ok(
            "train.py", "--target", target, "--fold", fold, "--epochs", 1, *SMALL, *extra,
            "--data-dir", sample_dir, "--output-dir", folder, "--num-workers", 0,
            run=spawn if target == "mask" else run,
        )  # fmt: skip


@pytest.fixture
def short_path():
    """An empty folder for TMPDIR: below pytest's own, the paths of PyTorch's sockets are too long,
    and a loader would wait for ever.
    """
    with tempfile.TemporaryDirectory(prefix="t") as folder:
        yield Path(folder)


def pytest_unconfigure(config):
    """Say in the last line which tests were skipped, and why."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter and not hasattr(config, "workerinput"):  # else a process of pytest-xdist
        reports = reporter.stats.get("skipped", [])
        reasons = Counter(str(report.longrepr[2]).removeprefix("Skipped: ") for report in reports)
        lines = "; ".join(f"{count} ({reason})" for reason, count in reasons.items())
        print(f"skipped: {lines or 'nothing'}")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Chromium, whose camera sees the first of FACES."""
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not (binary and driver):  # Selenium would download one
        pytest.skip("chromium and chromedriver are needed: apt install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    camera = tmp_path_factory.mktemp("camera") / "face.mjpeg"
    camera.write_bytes(FACES[0].read_bytes())
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,900",
        "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-video-capture={camera}",
    ):  # fmt: skip
        options.add_argument(argument)
    browser = webdriver.Chrome(options, Service(driver))
    yield browser
    browser.quit()
