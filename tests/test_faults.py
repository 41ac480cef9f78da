"""Real processes that are killed, cut short or starved: what they leave, and how they go on.

`make test` kills 20 of them, `make soak` ten times as many.
"""

import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

import data.crop
import train
import utils.cli
import utils.files
from conftest import ROOT, SMALL, assert_refused, run, run_ok
from data.images import load_image
from utils.checkpoint import load_checkpoint

ROUNDS = 10 if os.environ.get("SOAK") else 1
RUN_FILES = ("best.pth", "last.pth", "log.csv", "valid_predictions.csv")
TABLES = ("submission.csv", "probabilities.csv")

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has neither fork nor signals")


def run_script(command, log, limit, kill_at):
    """In a process of its own: run a script with its output in the file log.

    limit: the size of file that the disk has room for; kill_at: which renaming never happens.
    """
    # As in a process that a user starts; one from a forkserver would start its workers by another.
    multiprocessing.set_start_method("fork", force=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if limit:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if kill_at:
        replace, turns = os.replace, iter(range(1, 1000))

        def kill_or_replace(*paths):
            if next(turns) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(*paths)

        os.replace = kill_or_replace
    data.crop.SAVE_EVERY = 0.2
    done = run(*command)
    os.write(1, (done.stdout + done.stderr).encode())
    os._exit(done.returncode)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A function that starts run_script in a process forked from one that has imported all."""
    logs = tmp_path_factory.mktemp("logs")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["conftest", "train", "test", "data.crop", "facenet_pytorch"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))

        def start_script(*command, limit=None, kill_at=None):
            command = [str(word) for word in command]
            log = logs / f"{time.monotonic_ns()}.txt"
            process = context.Process(target=run_script, args=(command, log, limit, kill_at))
            process.start()
            process.log = log
            return process

        finish(start_script("train.py", "--help"))  # the server is up
        yield start_script


def finish(process):
    process.join(120)
    assert process.exitcode == 0, process.log.read_text()


def assert_nothing_half(folder):
    """Every file below folder that isn't a leftover is whole."""
    for path in Path(folder).rglob("*"):
        if path.name.endswith(".tmp") or path.is_dir():
            continue
        if path.suffix == ".pth":
            load_checkpoint(path)
        elif path.suffix == ".csv":
            assert path.read_bytes().endswith(b"\n")
            pd.read_csv(path)
        elif path.suffix == ".jpg":
            load_image(path)


def kill_and_finish(start, commands, folder, seed, kills):
    """Kill a command at random moments while it works, each time going on, then let it finish.

    commands: a function that returns the command to go on with; folder: all that it writes.
    """
    moments = random.Random(seed)
    begin = time.monotonic()
    finish(start(*commands()))
    seconds = time.monotonic() - begin
    shutil.rmtree(folder)
    while kills:
        process = start(*commands())
        process.join(moments.uniform(0, seconds))
        process.kill()
        process.join()
        assert_nothing_half(folder)
        if process.exitcode == -signal.SIGKILL:
            kills -= 1
        else:  # it was faster than the moment
            finish(process)
            shutil.rmtree(folder)
    finish(start(*commands()))


def train_command(sample_dir, output, *arguments):
    folders = ["--data-dir", sample_dir, "--output-dir", output]
    return ["train.py", "--target", "age", *folders, *SMALL, "--lr", "1e-3", *arguments]


@pytest.fixture(scope="module")
def uninterrupted(sample_dir, tmp_path_factory):
    """A run that nothing happens to."""
    output = tmp_path_factory.mktemp("uninterrupted")
    run_ok(*train_command(sample_dir, output, "--epochs", 3, "--num-workers", 0))
    return output / "age_fold0"


@pytest.mark.parametrize("turn", range(ROUNDS))
@pytest.mark.parametrize(("workers", "kills"), [(0, 4), (2, 2)])
def test_killed_training(start, uninterrupted, sample_dir, tmp_path, workers, kills, turn):
    folder = tmp_path / "age_fold0"

    def commands():
        going_on = "--resume" if (folder / "last.pth").exists() else "--overwrite"
        arguments = train_command(sample_dir, tmp_path, "--epochs", 3)
        return [*arguments, "--num-workers", workers, going_on]

    kill_and_finish(start, commands, folder, f"train {workers} {turn}", kills)
    for name in RUN_FILES:
        assert (folder / name).read_bytes() == (uninterrupted / name).read_bytes()


@pytest.mark.parametrize("kill_at", range(2, 10) if ROUNDS > 1 else (5, 6))
def test_training_killed_between_two_files(start, uninterrupted, sample_dir, tmp_path, kill_at):
    """A run writes config.json, then log.csv, valid_predictions.csv, best.pth and last.pth in each
    epoch, the two in the middle only if it is better than those before.
    """
    arguments = train_command(sample_dir, tmp_path, "--epochs", 3, "--num-workers", 0)
    process = start(*arguments, kill_at=kill_at)
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    folder = tmp_path / "age_fold0"
    assert_nothing_half(folder)
    going_on = "--resume" if (folder / "last.pth").exists() else "--overwrite"
    finish(start(*arguments, going_on))
    for name in RUN_FILES:
        assert (folder / name).read_bytes() == (uninterrupted / name).read_bytes()


@pytest.mark.parametrize("turn", range(ROUNDS))
def test_killed_cropping(start, sample_dir, tmp_path, turn):
    crops = tmp_path / "crops"

    def commands():
        folders = ["--data-dir", sample_dir, "--crop-dir", crops]
        return ["-m", "data.crop", *folders, "--num-workers", 1, "--crop-batch-size", 8]

    kill_and_finish(start, commands, crops, f"crop {turn}", 6)
    for split, folder in (("train", "new_img"), ("eval", "new_images")):
        whole, mended = (pd.read_csv(d / split / "crops.csv") for d in (sample_dir, crops))
        assert (whole[["file", "method"]] == mended[["file", "method"]]).all(axis=None)
        # The detector's sums depend on the batch in the last bits, and those may decide a pixel.
        box = ["x0", "y0", "x1", "y1"]
        assert (whole[box] - mended[box]).abs().max(axis=None) <= 1
        for row in mended.itertuples():
            crop = load_image(crops / split / folder / row.file)
            assert crop.shape == (row.y1 - row.y0, row.x1 - row.x0, 3)


@pytest.mark.parametrize("turn", range(ROUNDS))
def test_killed_prediction(start, runs_dir, sample_dir, tmp_path, turn):
    arguments = ["test.py", "--data-dir", sample_dir, "--runs", runs_dir, "--num-workers", 1]
    run_ok(*arguments, "--output", tmp_path / "whole/submission.csv")

    def commands():
        return [*arguments, "--output", tmp_path / "out/submission.csv"]

    kill_and_finish(start, commands, tmp_path / "out", f"predict {turn}", 5)
    for name in TABLES:
        whole = (tmp_path / "whole" / name).read_bytes()
        assert (tmp_path / "out" / name).read_bytes() == whole


def test_what_killed_processes_leave_is_removed(sample_dir, tmp_path, monkeypatch):
    (tmp_path / "age_fold0").mkdir()
    old, new = (tmp_path / f"age_fold0/.best.pth.{pid}.tmp" for pid in (1, 2))
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    run_ok(*train_command(sample_dir, tmp_path, "--epochs", 1))
    assert not old.exists()
    assert new.exists()  # another process may be at it

    crops = tmp_path / "crops/train/new_img/somebody"
    crops.mkdir(parents=True)
    (crops / ".mask1.jpg.1.tmp").write_bytes(b"half")
    monkeypatch.setattr(utils.files, "LEFT_BEHIND", -1)
    run_ok("-m", "data.crop", "--data-dir", sample_dir, "--crop-dir", tmp_path / "crops")
    assert not list(crops.iterdir())


def test_two_commands_crop_one_folder_once(start, sample_dir, tmp_path):
    command = ["-m", "data.crop", "--data-dir", sample_dir, "--crop-dir", tmp_path / "crops"]
    processes = [start(*command) for _ in range(2)]
    for process in processes:
        finish(process)
    output = "".join(process.log.read_text() for process in processes)
    assert output.count("photos cropped to") == 2  # train's and eval's
    assert_nothing_half(tmp_path / "crops")
    assert len(pd.read_csv(tmp_path / "crops/train/crops.csv")) == 84


def test_a_full_disk_is_one_line_and_keeps_what_was_there(start, runs_dir, sample_dir, tmp_path):
    arguments = train_command(sample_dir, tmp_path / "runs", "--num-workers", 0)
    run_ok(*arguments, "--epochs", 1)
    folder = tmp_path / "runs/age_fold0"
    before = {name: (folder / name).read_bytes() for name in ("best.pth", "last.pth")}
    for command, limit, word in (
        ([*arguments, "--epochs", 2, "--resume"], 10**6, ".pth"),
        (["-m", "data.crop", "--data-dir", sample_dir, "--crop-dir", tmp_path / "crops"],
         5000, ".jpg"),
        (["test.py", "--data-dir", sample_dir, "--runs", runs_dir, "--num-workers", 0,
          "--output", tmp_path / "out/submission.csv"], 1000, "submission.csv"),
        (["-m", "ETC.sample", "--output", tmp_path / "drawn", "--people", 6], 5000, ".jpg"),
    ):  # fmt: skip
        process = start(*command, limit=limit)
        process.join()
        assert process.exitcode == 2, process.log.read_text()
        message = process.log.read_text().splitlines()[-1]
        assert message.startswith("error: "), message
        assert word in message
        assert "can't be written (File too large)" in message
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert_nothing_half(tmp_path)
    assert not list(tmp_path.rglob("*.tmp"))
    assert not list((tmp_path / "out").iterdir())
    assert not list((tmp_path / "drawn").iterdir())


@pytest.fixture
def long_run(sample_dir, tmp_path):
    """A long training in a process of its own, once its first epoch is over."""
    arguments = train_command(sample_dir, tmp_path, "--epochs", 500, "--num-workers", 2)
    process = subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not process.stdout.readline().strip().startswith("1"):
        assert process.poll() is None, process.stderr.read()
    yield process
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def assert_no_process_left(process):
    for _ in range(50):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("a process is left")


def test_ctrl_c_says_how_to_go_on_and_leaves_no_worker(long_run, tmp_path):
    process = long_run
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers, too
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.startswith("interrupted; to go on: python train.py --target age")
    assert stderr.endswith("--resume\n")
    assert stderr.count("\n") == 1, stderr
    assert_no_process_left(process)


@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
def test_a_killed_worker_is_one_line(long_run, tmp_path):
    process = long_run
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    names = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in children}
    workers = [int(pid) for pid, name in names.items() if "train.py" in name]
    assert len(workers) >= 2, names
    os.kill(random.Random(0).choice(workers), signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    # The other worker may complain, after this line, that its parent has gone.
    first = stderr.splitlines()[0]
    done = subprocess.CompletedProcess("train.py", process.returncode, "", first)
    assert_refused(done, "worker", "--num-workers")
    assert_nothing_half(tmp_path)
    assert_no_process_left(process)


def test_a_closed_pipe_is_one_line(long_run, tmp_path):
    process = long_run
    process.stdout.close()
    stderr = process.stderr.read()
    done = subprocess.CompletedProcess("train.py", process.wait(60), "", stderr)
    assert_refused(done, "output", "--resume")
    assert_nothing_half(tmp_path)


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "--batch-size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), "--batch-size"),
        (MemoryError("Unable to allocate 9. GiB for an array"), "--batch-size"),
        (PermissionError(13, "Permission denied", "/a/b"), "/a/b: Permission denied"),
        (OSError(28, "No space left on device"), "the output: No space left"),
        (OSError(24, "Too many open files"), "Too many open files"),
        (MemoryError(), "--batch-size"),
        (RuntimeError("unable to write to file </torch_1>: No space left"), "--shm-size"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_fault_of_the_machine_is_one_line(sample_dir, tmp_path, monkeypatch, error, word):
    def starve(*_):
        raise error

    monkeypatch.setattr(train, "train_one_epoch", starve)
    monkeypatch.setattr(utils.cli, "STDOUT", os.open(os.devnull, os.O_WRONLY))
    assert_refused(run(*train_command(sample_dir, tmp_path)), word)


def test_an_error_of_our_own_keeps_its_traceback(sample_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "train_one_epoch", lambda *_: [][0])
    with pytest.raises(IndexError):
        run(*train_command(sample_dir, tmp_path))
    monkeypatch.setattr(train, "train_one_epoch", lambda *_: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError):
        run(*train_command(sample_dir, tmp_path))
