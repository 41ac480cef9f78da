"""The benchmark measures every workload, each in a fresh process, and the commands of scale."""

import importlib

import numpy as np
import pandas as pd
import pytest
import torch

from config import config
from conftest import assert_refused, run, run_ok
from data.labels import list_train_images, read_info
from ETC import benchmark
from utils.cli import InputError

CPU = torch.device("cpu")


def test_every_workload_is_measured(sample_dir, tmp_path, monkeypatch):
    def measure_in_this_process(*arguments):
        seconds, gpu, boxes = benchmark.measure_here(*arguments)
        return seconds, 1, gpu, boxes

    # A process for each of eleven workloads would take a minute to import torch.
    monkeypatch.setattr(benchmark, "measure", measure_in_this_process)
    out = run_ok(
        "-m", "ETC.benchmark", "all", "--data-dir", sample_dir, "--images", 6, "--repeats", 1,
        "--model", "efficientnet-lite0", "--resize", 64, "--batch-size", 3, "--num-workers", 0,
        "--output", tmp_path / "benchmark.csv",
    )  # fmt: skip
    assert f"torch {torch.__version__.split('+')[0]}" in out
    assert "without a face: original " in out
    table = pd.read_csv(tmp_path / "benchmark.csv")
    assert tuple(table) == benchmark.COLUMNS
    names = {name: set(group["way"]) for name, group in table.groupby("benchmark")}
    assert names["crop"] == {"original", "this", "limit"}
    assert names["train"] >= {"original", "this", "limit"}
    assert names["test"] >= {"original", "this, torch", "limit, torch", "this, onnx", "limit, onnx"}
    assert (table["images_per_s"] > 0).all()
    assert np.allclose(table["images"] / table["seconds"], table["images_per_s"])
    assert set(table["images"]) == {6}


def test_a_measurement_has_a_process_of_its_own(sample_dir, tmp_path):
    arguments = ["crop", "--data-dir", str(sample_dir), "--images", "3", "--num-workers", "1"]
    args = benchmark.get_args_parser().parse_args(arguments)
    job = benchmark.make_job(args, "crop", tmp_path, CPU)
    seconds, peak, gpu, boxes = benchmark.measure("crop", "this", job)
    assert 0 < seconds < 60
    assert (peak > 100, gpu) == (True, 0)  # megabytes: torch has been imported
    assert boxes.keys() == set(job.files)


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


@pytest.mark.parametrize("command", ["crop", "scale"])
def test_an_output_that_cannot_be_written_is_refused_first(command, tmp_path, monkeypatch):
    def too_late(*_):
        pytest.fail("measured before it looked")

    monkeypatch.setattr(benchmark, "make_job", too_late)
    monkeypatch.setattr(benchmark, "make_sample", too_late)
    assert_refused(run("-m", "ETC.benchmark", command, "--output", tmp_path), tmp_path, "--output")


def test_scale_repeats_people(sample_dir, tmp_path):
    benchmark.repeat_people(sample_dir, tmp_path, 13)  # of twelve
    images = list_train_images(tmp_path)
    assert images["path"].nunique() == images["id"].nunique() == 13
    assert len(images) == 13 * 7
    assert read_info(tmp_path)["ImageID"].nunique() == 13 * 7


def test_scale_runs_commands_that_are_understood(tmp_path, monkeypatch):
    commands = []

    def parse(*command):
        name, *arguments = command[command[0] == "-m" :]
        parser = importlib.import_module(name.removesuffix(".py")).get_args_parser()
        commands.append((name, parser.parse_args([*map(str, arguments)])))
        return 2.0, 100.0

    monkeypatch.setattr(benchmark, "measure_command", parse)
    monkeypatch.setattr(benchmark, "DRAWN", 6)
    run_ok("-m", "ETC.benchmark", "scale", "--images", 50, "--output", tmp_path / "scale.csv")
    table = pd.read_csv(tmp_path / "scale.csv")
    assert table["what"].tolist() == ["crop", "train", "test"]
    assert set(table["images"]) == {56}  # eight people
    assert set(table["images_per_s"]) == {28}
    trained = [args.target for name, args in commands if name == "train.py"]
    assert trained == [*config.CLASSES, "mask"]


def test_a_command_is_measured(tmp_path):
    seconds, peak = benchmark.measure_command("-c", "import time; time.sleep(0.5)")
    assert 0.5 <= seconds < 30
    assert peak > 1
    with pytest.raises(InputError, match=r"no_such\.py: failed"):
        benchmark.measure_command(tmp_path / "no_such.py")
