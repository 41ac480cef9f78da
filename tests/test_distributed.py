"""Two processes of torchrun do what one process does."""

import os
import shutil
import subprocess
import sys
from argparse import Namespace
from itertools import chain

import numpy as np
import pandas as pd
import pytest
import torch

import data.dataset
import models.parallel
from conftest import ROOT, run_ok
from data.dataset import EpochBatches
from data.manifest import COLUMNS
from models.network import build_network
from models.parallel import as_one
from utils.checkpoint import load_checkpoint
from utils.distributed import begin_step

SMALL = ["--model", "efficientnet-lite0", "--resize", 64, "--num-workers", 1]


on_linux = pytest.mark.skipif(
    os.name == "nt", reason="PyTorch for Windows has no torchrun that works"
)


def torchrun(*command):
    """Run a script of the repository in two processes; returns their output."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launch, *map(str, command)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def parts(count, batch_size, train, world, monkeypatch):
    """What each of world processes takes of an epoch: lists of batches of indices."""
    monkeypatch.setattr(data.dataset, "world_size", lambda: world)
    taken = []
    for rank in range(world):
        monkeypatch.setattr(data.dataset, "rank", lambda rank=rank: rank)
        batches = EpochBatches(count, batch_size, train, seed=7)
        batches.epoch = 3
        taken.append([[index for _, index in batch] for batch in batches])
        assert len(taken[-1]) == len(batches)
    return batches.sizes, taken


@pytest.mark.parametrize("count", [32, 35, 37])
def test_training_batches_are_split_among_processes(count, monkeypatch):
    sizes, ((*whole,),) = parts(count, 8, True, 1, monkeypatch)
    assert sizes == [len(batch) for batch in whole]
    assert sorted(chain(*whole)) == list(range(count))
    sizes, taken = parts(count, 8, True, 2, monkeypatch)
    if count % 8 != 1:
        for batch, *its in zip(whole, *taken):
            assert its == [batch[0::2], batch[1::2]]
    assert sorted(chain(*chain(*taken))) == list(range(count))
    assert [sum(map(len, its)) for its in zip(*taken)] == sizes


def test_no_process_goes_without_an_image(monkeypatch):
    sizes, taken = parts(33, 8, True, 4, monkeypatch)
    assert sizes == [8, 8, 8, 9]
    assert all(min(map(len, its)) >= 2 for its in taken)


def test_other_batches_are_dealt_out_whole(monkeypatch):
    _, ((*whole,),) = parts(35, 8, False, 1, monkeypatch)
    assert [*chain(*whole)] == list(range(35))
    _, taken = parts(35, 8, False, 2, monkeypatch)
    assert taken == [whole[0::2], whole[1::2]]


@on_linux
def test_crops_and_manifest_are_those_of_one_process(sample_dir, tmp_path):
    shutil.copytree(
        sample_dir / "train/images", tmp_path / "train/images", copy_function=shutil.copy2
    )
    shutil.copy(sample_dir / "train/train.csv", tmp_path / "train")
    out = torchrun(
        "-m", "data.crop", "--data-dir", tmp_path, "--split", "train", "--num-workers", 1
    )
    assert out.count("photos cropped") == 1
    one, two = (pd.read_csv(folder / "train/crops.csv") for folder in (sample_dir, tmp_path))
    assert two["file"].tolist() == one["file"].tolist()
    pd.testing.assert_frame_equal(two[COLUMNS[:7]], one[COLUMNS[:7]])
    for file in one["file"]:
        crop = "train/new_img/" + file
        assert (tmp_path / crop).read_bytes() == (sample_dir / crop).read_bytes()


@on_linux
def test_a_head_is_trained_as_by_one_process(sample_dir, tmp_path):
    # Steps too small to matter: the losses differ by no more than the order of sums. The loss of an
    # F1 is no mean over images, and the last batch is no multiple of two.
    command = [
        "train.py", "--target", "age", "--data-dir", sample_dir, "--loss", "ce_f1", "--epochs", 2,
        "--lr", 1e-7, "--batch-size", 10, *SMALL, "--output-dir",
    ]  # fmt: skip
    run_ok(*command, tmp_path / "one")
    out = torchrun(*command, tmp_path / "two")
    assert "on 2 x cpu" in out
    assert out.count("best valid macro-F1") == 1
    logs = [pd.read_csv(tmp_path / name / "age_fold0/log.csv") for name in ("one", "two")]
    for name in ("train_loss", "valid_loss"):
        np.testing.assert_allclose(logs[1][name], logs[0][name], rtol=2e-5)
    tables = [
        pd.read_csv(tmp_path / name / "age_fold0/valid_predictions.csv") for name in ("one", "two")
    ]
    assert tables[1]["file"].equals(tables[0]["file"])
    np.testing.assert_allclose(tables[1]["loss"], tables[0]["loss"], rtol=1e-3)
    one, two = (load_checkpoint(tmp_path / name / "age_fold0/last.pth") for name in ("one", "two"))
    assert one["network"].keys() == two["network"].keys()
    for name, value in one["network"].items():  # running statistics among them
        torch.testing.assert_close(two["network"][name], value, rtol=1e-3, atol=1e-4, msg=name)
    # Adam's weights don't tell the size of gradients, but its averages do: here rounding moves them
    # by some percent, other on each CPU, and a process's own share of a gradient by far more.
    for number, state in one["optimizer"]["state"].items():
        expected, mean = (its["exp_avg"] for its in (state, two["optimizer"]["state"][number]))
        assert (mean - expected).norm() <= 0.2 * expected.norm() + 1e-6, number


def test_stochastic_depth_outlives_the_conversion_for_gpus(monkeypatch):
    monkeypatch.setattr(models.parallel, "DistributedDataParallel", lambda network, **_: network)
    network = as_one(build_network("efficientnet-b0", 3, 64), Namespace(type="cuda"))
    norms = [block._bn2 for block in network._blocks]
    assert all(isinstance(norm, torch.nn.SyncBatchNorm) for norm in norms)
    # Of 16 blocks, 9 have a skip connection.
    assert sum(bool(norm._forward_hooks) for norm in norms) == 9
    begin_step(4)
    network.train()
    hook = next(iter(norms[14]._forward_hooks.values()))
    torch.manual_seed(0)
    shares = [float(hook(norms[14], None, torch.ones(4, 2, 3, 3)).mean()) for _ in range(200)]
    assert np.mean(shares) == pytest.approx(1, abs=0.1)
    assert np.std(shares) > 0.1


@on_linux
def test_the_submission_is_that_of_one_process(sample_dir, runs_dir, tmp_path):
    command = ["test.py", "--data-dir", sample_dir, "--runs", runs_dir, "--batch-size", 4,
               "--num-workers", 1, "--output"]  # fmt: skip
    run_ok(*command, tmp_path / "one.csv")
    (tmp_path / "probabilities.csv").rename(tmp_path / "one_probabilities.csv")
    out = torchrun(*command, tmp_path / "two.csv")
    assert out.count(" images, networks: ") == 1
    assert (tmp_path / "two.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()
    one, two = (
        pd.read_csv(tmp_path / name) for name in ("one_probabilities.csv", "probabilities.csv")
    )
    pd.testing.assert_frame_equal(two, one, rtol=0, atol=1e-5)


@on_linux
def test_a_batch_has_to_be_shared_out_evenly(sample_dir, tmp_path):
    with pytest.raises(AssertionError, match="--batch-size 5: no multiple of the 2 processes"):
        torchrun(
            "train.py", "--target", "age", "--data-dir", sample_dir, "--output-dir", tmp_path,
            "--batch-size", 5, *SMALL,
        )  # fmt: skip
