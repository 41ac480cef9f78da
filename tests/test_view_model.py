"""utils.view_model: the table counts right, and the graph has all blocks."""

import os

import pytest

from conftest import assert_refused, run, run_ok
from models.network import build_network
from utils.view_model import build_skeleton, count_layers

for package in ("torchinfo", "torchview", "graphviz"):
    pytest.importorskip(package, reason="requirements-look.txt is not installed")
LITE0 = ["--model", "efficientnet-lite0", "--resize", 64]


def view(*arguments, run=run):
    return run("-m", "utils.view_model", *arguments)


# Multiply-adds in 1e9 from table 2 of Tan and Le 2019, "EfficientNet: Rethinking Model Scaling for
# Convolutional Neural Networks", each at the network's own size.
@pytest.mark.parametrize(
    ("name", "resize", "published"), [("efficientnet-b0", 224, 0.39), ("efficientnet-b3", 300, 1.8)]
)
def test_totals_are_the_published_ones(name, resize, published):
    network = build_network(name, 1000, resize)
    table = count_layers(build_skeleton(name, 1000, resize), resize, 1)
    assert table.total_mult_adds / 1e9 == pytest.approx(published, rel=0.02)
    assert table.total_params == sum(parameter.numel() for parameter in network.parameters())


def test_table(runs_dir):
    lines = view("--model", "efficientnet-b0", run=run_ok).splitlines()
    [stem] = [line for line in lines if "_conv_stem" in line]
    assert "[1, 32, 112, 112]" in stem
    # 32 filters of 3 x 3 x 3, at each of 112 x 112 places
    assert stem.split()[-2:] == [f"{32 * 27:,}", f"{32 * 27 * 112 * 112:,}"]
    blocks, layers = view(*LITE0, run=run_ok), view(*LITE0, "--depth", 2, run=run_ok)
    assert blocks.count("MBConvBlock") == layers.count("MBConvBlock") == 16
    assert blocks.count("_depthwise_conv") == 0
    assert layers.count("_depthwise_conv") == 16
    assert view("--checkpoint", runs_dir / "mask_fold0/best.pth", run=run_ok) == blocks
    swin = view("--model", "swin_v2_t", "--resize", 64, "--depth", 2, run=run_ok)
    assert swin.count("SwinTransformerBlockV2") == 12
    gender = view("--checkpoint", runs_dir / "gender_fold1/best.pth", run=run_ok)
    assert "[1, 2] " in gender
    assert "[1, 32, 40, 40]" in gender


@pytest.mark.skipif(os.name == "nt", reason="a script of sh")
def test_graph(tmp_path, monkeypatch):
    graph = tmp_path / "graph.svg"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert_refused(view(*LITE0, "--graph", graph), "--graph", "dot", "apt install graphviz")
    (tmp_path / "dot").write_text('#!/bin/sh\nwhile read -r line; do echo "$line"; done\n')
    (tmp_path / "dot").chmod(0o755)  # draws nothing, but repeats what it is asked to draw
    view(*LITE0, "--graph", graph, run=run_ok)
    source = graph.read_text()
    assert source.count(">MBConvBlock<") == 16
    assert "(1, 3, 64, 64)" in source
    assert "(1, 3)" in source
    assert sorted(os.listdir(tmp_path)) == ["dot", "graph.svg"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--checkpoint", __file__], [__file__, "not a checkpoint"]),
        (["--resize", "63"], ["--resize", "63"]),
        (["--depth", "3"], ["--depth", "3"]),
        (["--graph", "a.jpg"], ["--graph a.jpg", ".svg, .png, .pdf"]),
    ],
)
def test_refused(arguments, words):
    assert_refused(view(*arguments), *words)


def test_missing_package(monkeypatch):
    monkeypatch.setattr("utils.view_model.find_spec", lambda name: None)
    assert_refused(view(), "python -m pip install -r requirements-look.txt")
