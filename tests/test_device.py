"""Devices, precisions, and two processes of torchrun on the CPU."""

import os
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from conftest import SMALL, run_ok, spawn
from utils.cli import InputError
from utils.device import pick_device, pick_precision


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ((6, 1), torch.float32),  # P40
        ((7, 0), torch.float16),  # V100
        ((8, 0), torch.bfloat16),  # A100
    ],
)
def test_precision_follows_the_compute_capability(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert pick_precision("auto", torch.device("cuda")) == expected
    assert pick_precision("fp32", torch.device("cuda")) == torch.float32


def test_precision_and_device_on_a_cpu():
    cpu = pick_device("cpu")
    assert pick_precision("auto", cpu) == torch.float32
    assert pick_precision("bf16", cpu) == torch.bfloat16
    with pytest.raises(InputError, match="--precision fp16"):
        pick_precision("fp16", cpu)
    for name in ("warp", "meta", "cuda:99"):
        with pytest.raises(InputError, match=f"--device {name}"):
            pick_device(name)


def test_a_gpu_that_cannot_be_used_now(monkeypatch):
    def zeros(*shape, device):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 MiB.")

    monkeypatch.setattr(torch, "zeros", zeros)
    with pytest.raises(InputError, match=r"--device cuda: CUDA out of memory\."):
        pick_device("cuda")


# --- torchrun


on_linux = pytest.mark.skipif(os.name == "nt", reason="PyTorch for Windows has no torchrun")


def torchrun(*command):
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "--no-python"]
    return spawn(*launch, sys.executable, *command)


# train.py, which fails if the weights or batch norm statistics of two processes ever differ.
TRAIN = """
import train
from utils.device import gather

def evaluate(network, *arguments, evaluate=train.evaluate):
    first, second = gather([tensor.double().sum() for tensor in network.state_dict().values()])
    assert first == second
    return evaluate(network, *arguments)

train.evaluate = evaluate
train.cli.run(train.main)
"""


@on_linux
def test_two_processes_crop_and_train_as_one_does(sample_dir, tmp_path):
    arguments = ["--target", "age", "--data-dir", sample_dir, *SMALL, "--num-workers", 0]
    run_ok("train.py", *arguments, "--epochs", 2, "--output-dir", tmp_path / "one")
    arguments += ["--output-dir", tmp_path / "two"]
    options = ["--epochs", 1, "--crop-dir", tmp_path]
    out = run_ok("-c", TRAIN, *arguments, *options, run=torchrun)
    assert "on 2 x cpu" in out
    assert out.count("84 photos cropped") == out.count("best val macro-F1") == 1

    crops = [pd.read_csv(folder / "train/crops.csv") for folder in (sample_dir, tmp_path)]
    assert crops[0].equals(crops[1])
    for file in crops[0]["file"]:
        crop = f"train/new_img/{file}"
        assert (tmp_path / crop).read_bytes() == (sample_dir / crop).read_bytes()

    run_ok("train.py", *arguments, "--epochs", 2, "--resume")  # now as one process
    one, two = (tmp_path / name / "age_fold0" for name in ("one", "two"))
    tables = [pd.read_csv(folder / "val_predictions.csv") for folder in (one, two)]
    assert tables[0]["file"].equals(tables[1]["file"])
    # Not closer: each process draws its own dropout, which alone moves this loss by 6 %, and on a
    # CPU its batch norms see its own half of a batch alone.
    logs = [pd.read_csv(folder / "log.csv") for folder in (one, two)]
    np.testing.assert_allclose(logs[1]["train_loss"], logs[0]["train_loss"], rtol=0.15)
    np.testing.assert_allclose(logs[1]["val_loss"], logs[0]["val_loss"], rtol=0.15)


@on_linux
def test_the_submission_of_two_processes_is_that_of_one(sample_dir, runs_dir, tmp_path):
    command = ["test.py", "--data-dir", sample_dir, "--runs", runs_dir, "--batch-size", 4,
               "--num-workers", 0, "--output"]  # fmt: skip
    run_ok(*command, tmp_path / "one/submission.csv")
    out = run_ok(*command, tmp_path / "two/submission.csv", run=torchrun)
    assert out.count(" images, networks: ") == 1
    for name in ("submission.csv", "probabilities.csv"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
