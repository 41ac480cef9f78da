import importlib
import json
import os
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score

from config import config
from conftest import ROOT, spawn
from utils.cli import InputError
from utils.device import pick_device, pick_precision
from utils.files import atomic_write, write_csv
from utils.metrics import classification_scores


def test_scores_are_scikit_learns():
    rng = np.random.default_rng(0)
    targets, predictions = rng.integers(3, size=(2, 50))
    scores = classification_scores(targets, predictions, 3)
    assert scores["macro_f1"] == pytest.approx(f1_score(targets, predictions, average="macro"))
    assert scores["accuracy"] == accuracy_score(targets, predictions)
    assert len(scores["class_f1"]) == 3


def test_a_class_that_occurs_nowhere_counts_as_0():
    scores = classification_scores([0, 1], [0, 1], 4)
    assert scores["class_f1"] == [1, 1, 0, 0]
    assert scores["macro_f1"] == 0.5


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ((6, 1), torch.float32),  # P40
        ((7, 0), torch.float16),  # V100
        ((7, 5), torch.float16),  # T4
        ((8, 0), torch.bfloat16),  # A100
        ((9, 0), torch.bfloat16),  # H100
        ((12, 0), torch.bfloat16),  # RTX 50
    ],
)
def test_precision_follows_the_compute_capability(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert pick_precision("auto", torch.device("cuda")) == expected
    assert pick_precision("fp32", torch.device("cuda")) == torch.float32


def test_precision_and_device_on_a_cpu():
    cpu = pick_device("cpu")
    assert pick_precision("auto", cpu) == torch.float32
    with pytest.raises(InputError, match="--precision fp16"):
        pick_precision("fp16", cpu)
    for name, message in (("warp", "not a device"), ("mps", "not supported"), ("cuda:99", "GPUs")):
        with pytest.raises(InputError, match=message):
            pick_device(name)


def write_half(path):
    with atomic_write(path, "w") as file:
        file.write("half a")
        raise ZeroDivisionError


def test_atomic_write_leaves_the_old_file_when_writing_fails(tmp_path):
    path = tmp_path / "table.csv"
    write_csv(path, pd.DataFrame({"a": [1], "이름": ["x"]}))
    before = path.read_bytes()
    with pytest.raises(ZeroDivisionError):
        write_half(path)
    assert path.read_bytes() == before == "a,이름\n1,x\n".encode()
    assert list(tmp_path.iterdir()) == [path]


def test_a_rename_waits_for_who_has_the_file_open(tmp_path, monkeypatch):
    """As Windows refuses it then."""
    path = tmp_path / "table.csv"
    write_csv(path, pd.DataFrame({"a": [1]}))
    before, real, refused = path.read_bytes(), os.replace, []

    def replace(*paths):
        refused.append(paths)
        if len(refused) < 3:
            raise PermissionError(13, "Access is denied")
        real(*paths)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(InputError, match="Access is denied"):
        write_csv(path, pd.DataFrame({"a": [2]}))
    assert path.read_bytes() == before
    monkeypatch.setattr("utils.files.WAIT_FOR_OTHERS", 2)
    refused.clear()
    write_csv(path, pd.DataFrame({"a": [2]}))
    assert len(refused) == 3
    assert path.read_text() == "a\n2\n"
    refused.clear()
    monkeypatch.setattr("utils.files.WAIT_FOR_OTHERS", 0.01)
    with pytest.raises(InputError, match=r"table\.csv: .*is it open in another program"):
        write_csv(path, pd.DataFrame({"a": [3]}))


def test_a_gpu_that_cannot_be_used_now(monkeypatch):
    def zeros(*shape, device):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch, "zeros", zeros)
    with pytest.raises(InputError, match=r"out of memory.*another program"):
        pick_device("cuda")


def test_version_and_completion(tmp_path):
    done = spawn("train.py", "--version")
    assert done.stdout.strip().endswith(config.VERSION)
    line = "train.py --tar"
    completions = tmp_path / "completions"
    environment = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)),
                   "_ARGCOMPLETE_STDOUT_FILENAME": str(completions)}  # fmt: skip
    subprocess.run(
        [sys.executable, "train.py"], cwd=ROOT, env={**os.environ, **environment}, timeout=60
    )
    assert completions.read_text().strip() == "--target"


def test_letters_that_the_output_lacks_are_no_error():
    done = subprocess.run(
        [sys.executable, "-c", "from utils.cli import run; run(lambda: print('한'))"],
        cwd=ROOT, env={**os.environ, "PYTHONIOENCODING": "cp1252"}, capture_output=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == rb"\ud55c"


def test_versions_agree():
    assert f"version: {config.VERSION}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## {config.VERSION}\n" in (ROOT / "CHANGELOG.md").read_text()


def test_vscode_starts_what_is_there():
    launch = json.loads((ROOT / ".vscode/launch.json").read_text())["configurations"]
    commands = [one.get("program") or f"-m {one['module']}" for one in launch]
    assert commands == ["-m ETC.sample", "train.py", "train.py", "train.py", "test.py"]
    parsed = []
    for one, command in zip(launch, commands):
        name = command.removeprefix("-m ").removesuffix(".py")
        parser = importlib.import_module(name).get_args_parser()
        parsed.append(parser.parse_args(one.get("args", [])))
    sample, *trainings, test = parsed
    assert [one.target for one in trainings] == [*config.HEADS]
    assert {one.output_dir for one in trainings} == {*test.runs}
    assert {str(one.data_dir) for one in (*trainings, test)} == {str(sample.output)}


def test_one_linter_for_all():
    rev = re.search(r"rev: v(\S+)", (ROOT / ".pre-commit-config.yaml").read_text())[1]
    assert f"ruff=={rev}\n" in (ROOT / "constraints.txt").read_text()
