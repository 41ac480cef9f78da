"""The benchmark measures every workload, each in a fresh process, and the commands of scale."""

import importlib
from shutil import copytree

import numpy as np
import pandas as pd
import pytest
import torch

from config import config
from conftest import assert_refused, run, run_ok
from data.labels import list_train_images, read_info
from ETC import benchmark
from utils.cli import InputError


def test_every_workload_is_measured(sample_dir, tmp_path, monkeypatch):
    def measure_in_this_process(*arguments):
        seconds, gpu, result = benchmark.measure_here(*arguments)
        return seconds, 1, gpu, result

    # A process for each of eleven workloads would take a minute to import torch.
    monkeypatch.setattr(benchmark, "measure", measure_in_this_process)
    out = run_ok(
        "-m", "ETC.benchmark", "all", "--data-dir", sample_dir, "--images", 4, "--repeats", 1,
        "--model", "efficientnet-lite0", "--resize", 64, "--batch-size", 2, "--num-workers", 0,
        "--output", tmp_path / "benchmark.csv",
    )  # fmt: skip
    assert "without a face: original " in out
    table = pd.read_csv(tmp_path / "benchmark.csv")
    names = {name: set(group["way"]) for name, group in table.groupby("benchmark")}
    assert names["crop"] == {"original", "this", "limit"}
    assert names["train"] >= {"original", "this", "limit"}
    assert names["test"] >= {"original", "this, torch", "limit, torch", "this, onnx", "limit, onnx"}
    assert np.allclose(table["images"] / table["seconds"], table["images_per_s"])
    assert set(table["images"]) == {4}


def test_a_measurement_has_a_process_of_its_own(sample_dir, tmp_path):
    arguments = ["crop", "--data-dir", str(sample_dir), "--images", "1"]
    args = benchmark.get_args_parser().parse_args(arguments)
    job = benchmark.make_job(args, "crop", tmp_path, torch.device("cpu"))
    seconds, peak, gpu, _ = benchmark.measure("crop", "limit", job)
    assert 0 < seconds < 60
    assert (peak > 100, gpu) == (True, 0)  # megabytes: torch has been imported


def test_ratios_are_taken_within_a_repeat():
    speeds = {"original": (1, 2, 10), "this": (2, 6, 20), "limit": (4, 8, 20)}
    table = pd.DataFrame(
        [("train", name, repeat, 1, 1 / speed, speed, 0, 0)
         for name, group in speeds.items() for repeat, speed in enumerate(group)],
        columns=benchmark.COLUMNS,
    )  # fmt: skip
    summary = benchmark.summary(table)
    assert summary.index.tolist() == ["original", "this", "limit"]
    assert summary.loc["this"].tolist()[:3] == [6, 2, 0.75]
    assert np.isnan(summary.loc["limit", "of limit"])


def test_scale_runs_commands_that_are_understood(sample_dir, tmp_path, monkeypatch):
    commands = []

    def parse(*command):
        name, *arguments = command[command[0] == "-m" :]
        parser = importlib.import_module(name.removesuffix(".py")).get_args_parser()
        args = parser.parse_args([*map(str, arguments)])
        if name == "data.crop":  # of twelve people
            assert list_train_images(args.data_dir)["id"].nunique() == 14
            assert len(read_info(args.data_dir)[1]) == 14 * 7
        commands.append((name, args))
        return 2.0, 100.0

    monkeypatch.setattr(benchmark, "measure_command", parse)
    monkeypatch.setattr(benchmark, "make_sample", lambda to, *_, **__: copytree(sample_dir, to))
    run_ok("-m", "ETC.benchmark", "scale", "--images", 92, "--output", tmp_path / "scale.csv")
    table = pd.read_csv(tmp_path / "scale.csv")
    assert table["what"].tolist() == ["crop", "train", "test"]
    assert set(table["images"]) == {98}
    assert set(table["images_per_s"]) == {49}
    trained = [args.target for name, args in commands if name == "train.py"]
    assert trained == [*config.CLASSES, "mask"]


def test_a_command_is_measured_and_an_output_checked(tmp_path):
    seconds, peak = benchmark.measure_command("-c", "import time; time.sleep(0.5)")
    assert 0.5 <= seconds < 30
    assert peak > 1
    with pytest.raises(InputError, match=r"no_such\.py: failed"):
        benchmark.measure_command(tmp_path / "no_such.py")
    assert_refused(run("-m", "ETC.benchmark", "all", "--output", tmp_path), tmp_path, "--output")
