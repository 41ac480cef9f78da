import importlib
import json
import os
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
    assert commands == ["-m data.sample", "train.py", "train.py", "train.py", "test.py"]
    for one, command in zip(launch, commands):
        name = command.removeprefix("-m ").removesuffix(".py")
        importlib.import_module(name).get_args_parser().parse_args(one.get("args", []))
