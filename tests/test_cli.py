import argparse
import os
import re
import subprocess
import sys
import tempfile

import pytest
import torch
from torch._dynamo.exc import TorchRuntimeError
from torch._inductor.exc import InvalidCxxCompiler

import data.crop
import test
import train
from conftest import ROOT, assert_refused
from utils import cli
from utils.cli import InputError


def run_in_process(code, **options):
    command = [sys.executable, "-c", f"from utils import cli\n{code}"]
    options = {"stdout": subprocess.PIPE, "text": True, "timeout": 60, **options}
    return subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, **options)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such sockets")
@pytest.mark.parametrize(("length", "status"), [(71, 0), (72, 2)])
def test_a_tmpdir_in_which_workers_would_wait_for_ever_is_refused(length, status):
    folder = tempfile.mkdtemp(prefix="t" * (length - len(tempfile.gettempdir()) - 9))
    assert len(folder) == length  # and 14 for "/pymp-" and 8 letters
    done = run_in_process("cli.run(lambda: None)", env={**os.environ, "TMPDIR": folder})
    os.rmdir(folder)  # nothing was left in it
    assert done.returncode == status, done.stderr
    assert ("set TMPDIR to a shorter" in done.stderr) == (status == 2)
    assert done.stderr.count("\n") == (status == 2)


@pytest.mark.parametrize("script", ["train.py", "test.py", "-m data.crop"])
def test_help_does_not_wait_for_heavy_imports(script):
    command = [sys.executable, "-X", "importtime", *script.split(), "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    imports = re.findall(r"\| +(\w+)$", done.stderr, re.MULTILINE)
    assert imports.index("config") < imports.index("torch")  # whose threads it tells how to wait
    assert not {*imports} & {"albumentations", "sklearn", "matplotlib", "facenet_pytorch", "onnx"}


@pytest.mark.parametrize("module", [train, test, data.crop], ids=lambda module: module.__name__)
def test_every_help_text_says_its_default(module):
    for action in module.get_args_parser()._actions:
        if not action.required and action.dest != "help":
            assert "(default" in action.help or action.dest == "version", action.dest


@pytest.mark.parametrize(
    ("convert", "good", "bad"),
    [
        (cli.positive_int, "7", ["0", "-1", "1.5", "x", "99999999999999999999"]),
        (cli.natural_int, "0", ["-1", "1.5"]),
        (cli.seed_int, "4294967295", ["4294967296", "-1"]),
        (cli.input_size, "64", ["63", "4097"]),
        (cli.positive_float, "1e-4", ["0", "-1", "nan", "inf", "fast"]),
        (cli.natural_float, "0", ["-1", "nan", "inf"]),
        (cli.fraction, "0.5", ["1", "-0.1", "nan"]),
    ],
)
def test_numbers(convert, good, bad):
    assert convert(good) == float(good)
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError, match=f"{text} is not a"):
            convert(text)


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (InputError("train.csv: no such file"), "train.csv: no such file"),
        (InputError("two\nlines"), "two lines"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), "--batch-size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), "--batch-size"),
        (RuntimeError("OutOfMemoryError: CUDA out of memory."), "--batch-size"),
        (MemoryError(), "--batch-size"),
        (RuntimeError("CUDA error: out of memory"), "--batch-size"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), "--batch-size"),
        (RuntimeError("unable to open shared memory object </torch_1>"), "--num-workers"),
        (RuntimeError("can't start new thread"), "--num-workers"),
        (PermissionError(13, "Permission denied", "/a/b"), "/a/b: Permission denied"),
        (OSError(24, "Too many open files"), "Too many open files"),
    ],
)
def test_what_the_user_can_change_is_one_line(capsys, error, word):
    def main():
        raise error

    with pytest.raises(SystemExit) as stop:
        cli.run(main)
    out, err = capsys.readouterr()
    assert_refused(subprocess.CompletedProcess("", stop.value.code, out, err), word)


def test_compile_without_a_compiler_is_one_line(capsys):
    def backend(graph, examples):
        raise InvalidCxxCompiler

    with pytest.raises(SystemExit) as stop:
        cli.run(lambda: torch.compile(torch.sin, backend=backend)(torch.ones(1)))
    out, err = capsys.readouterr()
    assert_refused(subprocess.CompletedProcess("", stop.value.code, out, err), "--compile", "g++")


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        cli.run(lambda: 1 / 0)
    with pytest.raises(TorchRuntimeError):
        cli.run(torch.compile(lambda: torch.ones(2) @ torch.ones(3), backend="eager"))
    with pytest.raises(RuntimeError, match="size"):
        cli.run(lambda: torch.ones(2) @ torch.ones(3))


def test_ctrl_c_is_one_line(capsys):
    def main():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop:
        cli.run(main, "the same command goes on")
    assert stop.value.code == 130
    assert capsys.readouterr().err == "interrupted; the same command goes on\n"


def test_output_that_cannot_be_written_is_one_line():
    code = "cli.run(lambda: print('x' * 100_000))"
    if os.path.exists("/dev/full"):
        with open("/dev/full", "w") as full:
            assert_refused(run_in_process(code, stdout=full), "output: No space left")
    reader, writer = os.pipe()
    os.close(reader)
    assert_refused(run_in_process(code, stdout=writer), "output: Broken pipe")
    os.close(writer)


def test_letters_that_the_terminal_lacks_are_escaped():
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    done = run_in_process("cli.run(lambda: print('한'))", env=environment)
    assert (done.returncode, done.stdout.strip()) == (0, r"\ud55c")
