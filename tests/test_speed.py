"""What makes it fast changes nothing else."""

import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
from argparse import Namespace

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from efficientnet_pytorch import EfficientNet

import data.cache
import ETC.benchmark
import ETC.scale
import models.onnx_runtime
import test
from conftest import ROOT, SMALL, assert_refused, run, run_ok
from data.augment import build_transform
from data.cache import ImageCache, cache_limit, free_memory
from data.dataset import FaceDataset, build_loader
from data.images import load_image
from models.network import build_network, fold_batch_norm
from utils.checkpoint import load_checkpoint
from utils.cli import InputError
from utils.device import choose_kernels, compile_network

CPU = torch.device("cpu")
SCRIPTS = (["train.py"], ["test.py"], ["-m", "data.crop"], ["-m", "ETC.benchmark"])


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_comes_before_torch_is_imported(script):
    command = [sys.executable, "-X", "importtime", *script, "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stdout.startswith("usage: ")
    assert not re.search(r"\| +(torch|numpy|pandas)$", done.stderr, re.MULTILINE)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize("script", SCRIPTS[:3])
def test_ctrl_c_while_torch_is_imported_is_one_line(script):
    needed = ["--target", "mask"] if script == ["train.py"] else []
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", *script, *needed, "--data-dir", "nowhere"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not process.stderr.readline().endswith(" numpy.version\n"):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    stderr = re.sub("^import time:.*\n", "", stderr, flags=re.MULTILINE)
    assert stderr.startswith("interrupted; to go on: python "), stderr
    assert stderr.count("\n") == 1


def lively(network):
    """Give batch norms statistics as if trained, so that layers don't fade away."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if name.endswith("running_mean"):
                value.normal_(0, 0.1)
            elif name.endswith("running_var"):
                value.uniform_(0.01, 0.1)
    return network.eval()


@pytest.mark.parametrize("resize", [64, 75])
def test_padding_and_folding_change_no_logits(resize):
    options = {"num_classes": 3, "image_size": resize, "batch_norm_momentum": 0.9}
    package = lively(EfficientNet.from_name("efficientnet-b0", **options))
    network = build_network("efficientnet-b0", 3, resize)
    network.load_state_dict(package.state_dict())
    images = torch.randn(2, 3, resize, resize)
    with torch.inference_mode():
        expected = package(images)
        assert expected.std() > 0.1
        torch.testing.assert_close(network.eval()(images), expected, atol=1e-4, rtol=1e-4)
        folded = fold_batch_norm(network)
        torch.testing.assert_close(folded(images), expected, atol=1e-4, rtol=1e-4)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())


def test_onnx_gives_what_torch_gives(sample_dir, runs_dir, tmp_path):
    tables = {}
    for backend in ("torch", "onnx", "auto"):
        out = run_ok(
            "test.py", "--data-dir", sample_dir, "--runs", runs_dir, "--backend", backend,
            "--output", tmp_path / backend / "submission.csv", "--batch-size", 5,
        )  # fmt: skip
        assert f"run by {'torch' if backend == 'torch' else 'onnx'} on cpu" in out
        tables[backend] = [
            pd.read_csv(tmp_path / backend / name)
            for name in ("submission.csv", "probabilities.csv")
        ]
    (answers, probabilities), others = tables["torch"], (tables["onnx"], tables["auto"])
    for its_answers, its_probabilities in others:
        pd.testing.assert_frame_equal(its_answers, answers)
        pd.testing.assert_frame_equal(its_probabilities, probabilities, atol=1e-4, rtol=0)


def test_an_onnx_model_is_kept_until_its_checkpoint_changes(runs_dir, tmp_path):
    folder = tmp_path / "mask_fold0"
    folder.mkdir()
    shutil.copy(runs_dir / "mask_fold0/best.pth", folder)

    def models_there():
        test.build_predictor(load_checkpoint(folder / "best.pth"), CPU, "onnx")
        return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.onnx")}

    first = models_there()
    assert len(first) == 1
    assert models_there() == first
    shutil.copy(runs_dir / "age_fold0/best.pth", folder / "best.pth")
    second = models_there()
    assert len(second) == 1
    assert second.keys() != first.keys()
    (path,) = folder.glob("*.onnx")
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(InputError, match="delete it"):
        models_there()


def test_a_model_that_cannot_be_kept_is_used_all_the_same(runs_dir, tmp_path, monkeypatch, capsys):
    shutil.copytree(runs_dir / "mask_fold0", tmp_path / "mask_fold0", ignore=lambda *_: ["log.csv"])
    for path in tmp_path.rglob("*.onnx"):
        path.unlink()
    monkeypatch.setattr(models.onnx_runtime, "atomic_write", no_writing)
    checkpoint = load_checkpoint(tmp_path / "mask_fold0/best.pth")
    network = test.build_predictor(checkpoint, CPU, "onnx")
    assert network(torch.zeros(3, 64, 64, 3, dtype=torch.uint8)).shape == (3, 3)
    assert "made anew each time" in capsys.readouterr().out
    assert not list(tmp_path.rglob("*.onnx"))


def no_writing(path):
    raise InputError(f"{path}: can't be written (Permission denied)")


def test_onnx_where_it_cannot_be_had_is_refused(sample_dir, runs_dir, monkeypatch):
    command = ["test.py", "--data-dir", sample_dir, "--runs", runs_dir, "--backend", "onnx"]
    assert_refused(run(*command, "--precision", "bf16"), "--backend onnx", "fp32")
    monkeypatch.setattr(models.onnx_runtime, "PACKAGES", ("onnx", "no_such_package"))
    assert_refused(run(*command), "no_such_package", "requirements-onnx.txt")
    assert test.pick_backend("auto", CPU, torch.float32) == "torch"


@pytest.mark.parametrize("workers", [0, 2])
def test_cached_images_are_the_images(sample_dir, workers):
    files = sorted((sample_dir / "train/new_img").rglob("*.jpg"))[:20]

    def epochs(cache):
        dataset = FaceDataset(files, range(20), [build_transform(48, "age")], 1, cache)
        loader = build_loader(dataset, 8, workers, CPU, train=True)
        for loader.batch_sampler.epoch in (1, 2):
            yield torch.cat([images for images, _ in loader])

    side = 48 * 48 * 3 + 1
    for limit, cached in ((0, 0), (7 * side, 7), (10**9, 20)):
        cache = ImageCache(20, 48, limit)
        assert cache.nbytes <= limit
        for with_cache, without in zip(epochs(cache), epochs(None)):
            assert torch.equal(with_cache, without)
        assert sum(cache.filled) == cached
    resized = build_transform(48)(image=load_image(files[3]))["image"]
    assert np.array_equal(cache.get(3), resized)


def test_a_cached_image_is_not_read_again(sample_dir, tmp_path):
    source = next((sample_dir / "train/new_img").rglob("*.jpg"))
    path = tmp_path / "face.jpg"
    shutil.copy(source, path)
    dataset = FaceDataset([path], [0], [build_transform(48)], 1, ImageCache(1, 48, 10**6))
    first, _ = dataset[1, 0]
    path.unlink()
    again, _ = dataset[2, 0]
    assert torch.equal(first, again)


def test_the_cache_is_bounded(monkeypatch):
    assert free_memory() > 10**6
    monkeypatch.setattr(data.cache, "free_memory", lambda: 8 * 10**9)
    assert cache_limit("auto", 10**12) == 4 * 10**9
    assert cache_limit(100, 10**9) == 10**11  # more than is free, but not needed
    with pytest.raises(InputError, match=r"--cache 9: 8\.0 GB are free"):
        cache_limit(9, 10**12)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert cache_limit("auto", 10**12) == 10**9
    with pytest.raises(InputError, match="--cache 3"):
        cache_limit(3, 10**12)


def test_deterministic_kernels(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    try:
        choose_kernels(deterministic=False)
        assert torch.backends.cudnn.benchmark
        choose_kernels(deterministic=True)
        assert not torch.backends.cudnn.benchmark
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.skipif(os.name == "nt" or not shutil.which("g++"), reason="needs g++")
def test_a_compiled_network_is_the_same_network():
    network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.SiLU(), torch.nn.Linear(8, 2))
    images, names = torch.randn(3, 4), list(network.state_dict())
    expected = network(images)
    compile_network(network, CPU)
    torch.testing.assert_close(network(images), expected)
    assert list(network.state_dict()) == names


def test_no_compiler_is_one_line(sample_dir, tmp_path, monkeypatch):
    def fails(function):
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nin torch/_inductor")

    monkeypatch.setattr(torch, "compile", fails)
    done = run(
        "train.py", "--target", "mask", "--data-dir", sample_dir, "--output-dir", tmp_path,
        "--compile", *SMALL,
    )  # fmt: skip
    assert_refused(done, "--compile", "No working C++ compiler", "g++")


def test_benchmark_measures_every_way(sample_dir, tmp_path, monkeypatch):
    results = []

    def measure_in_this_process(benchmark, way, job):
        connection = Namespace(send=results.append)
        ETC.benchmark.measure_here(
            benchmark, way, job, connection, multiprocessing.get_start_method()
        )
        return results[-1][0], 1, *results[-1][1:]

    # A process of its own for each of twelve ways would take a minute to import torch.
    monkeypatch.setattr(ETC.benchmark, "measure", measure_in_this_process)
    out = run_ok(
        "-m", "ETC.benchmark", "all", "--data-dir", sample_dir, "--images", 6, "--repeats", 1,
        "--model", "efficientnet-lite0", "--resize", 64, "--batch-size", 3, "--num-workers", 0,
        "--csv", tmp_path / "benchmark.csv",
    )  # fmt: skip
    assert f"torch {torch.__version__.split('+')[0]}" in out
    assert f"onnxruntime {onnxruntime.__version__}" in out
    assert "without a face: original " in out
    table = pd.read_csv(tmp_path / "benchmark.csv")
    ways = {name: set(its["way"]) for name, its in table.groupby("benchmark")}
    assert ways["crop"] == {"original", "this", "limit"}
    assert ways["train"] >= {"original", "this", "limit"}
    assert ways["test"] >= {"original", *(f"{a}, {b}" for a in ("this", "limit")
                                          for b in ("torch", "onnx"))}  # fmt: skip
    assert (table["images_per_s"] > 0).all()
    assert np.allclose(table["images"] / table["seconds"], table["images_per_s"])
    assert set(table["images"]) == {6}


def test_benchmark_measures_in_a_process_of_its_own(sample_dir, tmp_path):
    args = ["crop", "--data-dir", str(sample_dir), "--images", "3", "--num-workers", "1"]
    args = ETC.benchmark.get_args_parser().parse_args(args)
    job = ETC.benchmark.make_job(args, "crop", tmp_path, CPU)
    seconds, peak, gpu, found = ETC.benchmark.measure("crop", "this", job)
    assert 0 < seconds < 60
    assert peak > 100
    assert gpu == 0
    assert len(found) == 3
    job.files = [tmp_path / "no_such.jpg"]
    with pytest.raises(InputError, match="crop, limit: failed"):
        ETC.benchmark.measure("crop", "limit", job)


@pytest.mark.parametrize("command", [("ETC.benchmark", "crop"), ("ETC.scale",)])
def test_a_table_that_cannot_be_written_shows_first(command, tmp_path, monkeypatch):
    def too_late(*_, **__):
        pytest.fail("measured before it looked")

    monkeypatch.setattr(ETC.benchmark, "make_job", too_late)
    monkeypatch.setattr(ETC.scale, "watch", too_late)
    assert_refused(run("-m", *command, "--csv", tmp_path), tmp_path, "--csv")


def test_ratios_are_taken_within_a_repeat():
    speeds = {"original": (1, 2, 10), "this": (2, 6, 20), "limit": (4, 8, 20)}
    table = pd.DataFrame(
        [("train", way, repeat, 1, 1 / speed, speed, 0, 0)
         for way, its in speeds.items() for repeat, speed in enumerate(its)],
        columns=ETC.benchmark.COLUMNS,
    )  # fmt: skip
    summary = ETC.benchmark.summary(table)
    assert summary.loc["this"].tolist()[:3] == [6, 2, 0.75]


def test_scale_repeats_people(sample_dir, tmp_path):
    ETC.scale.repeat_people(sample_dir, tmp_path / "more", 30)
    table = pd.read_csv(tmp_path / "more/train/train.csv", dtype=str)
    assert len(table) == table["id"].nunique() == table["path"].nunique() == 30
    assert len(pd.read_csv(tmp_path / "more/eval/info.csv")) == 30 * 7
    out = run_ok("-m", "data.crop", "--data-dir", tmp_path / "more")
    assert out.count("210 photos cropped") == 2
