"""The table counts right, the graph is a picture, and the heat is where the evidence is."""

import importlib.util
import os
import shutil
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from conftest import assert_refused, run, run_ok
from data.augment import build_transform
from data.crop import build_detector
from data.images import load_image
from models.network import build_network
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.view_model import build_skeleton, count, crop_face, heat_maps, load_network, overlay

for package in ("torchinfo", "torchview", "torchcam"):
    pytest.importorskip(package, reason="requirements-look.txt is not installed")
needs_dot = pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")
LITE0 = ["--model", "efficientnet-lite0", "--resize", 64]


def view(*arguments, run=run):
    return run("-m", "utils.view_model", *arguments)


@pytest.fixture(scope="module")
def best(runs_dir):
    return runs_dir / "mask_fold0" / "best.pth"


@pytest.fixture(scope="module")
def photos(sample_dir):
    return sorted((sample_dir / "eval" / "images").iterdir())[:3]


# Multiply-adds in 1e9 from table 2 of Tan and Le 2019, "EfficientNet: Rethinking Model Scaling for
# Convolutional Neural Networks", each at the network's own size.
@pytest.mark.parametrize(
    ("name", "resize", "published"), [("efficientnet-b0", 224, 0.39), ("efficientnet-b3", 300, 1.8)]
)
def test_totals_are_the_published_ones(name, resize, published):
    table = count(build_skeleton(name, 1000, resize), resize, 1)
    assert table.total_mult_adds / 1e9 == pytest.approx(published, rel=0.02)


@pytest.mark.parametrize("name", ["efficientnet-b3", "efficientnet-lite0"])
def test_totals_are_those_of_a_real_pass(name):
    network = build_network(name, 3, 96).eval()
    expected = 0

    def add(layer, inputs, output):
        nonlocal expected
        bias = 0 if layer.bias is None else 1
        expected += output.numel() * (layer.weight[0].numel() + bias)

    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(add)
    with torch.inference_mode():
        network(torch.zeros(1, 3, 96, 96))
    norms = sum(layer.weight.numel() + layer.bias.numel() for layer in network.modules()
                if isinstance(layer, nn.BatchNorm2d))  # fmt: skip
    table = count(build_skeleton(name, 3, 96), 96, 1)
    assert table.total_params == sum(parameter.numel() for parameter in network.parameters())
    assert table.total_mult_adds == expected + norms


def test_a_row_counted_by_hand():
    lines = run_ok("-m", "utils.view_model", "--model", "efficientnet-b0").splitlines()
    [stem] = [line for line in lines if "_conv_stem" in line]
    assert "[1, 32, 112, 112]" in stem
    # 32 filters of 3 x 3 x 3, at each of 112 x 112 places
    assert stem.split()[-2:] == [f"{32 * 27:,}", f"{32 * 27 * 112 * 112:,}"]


def test_depth_opens_the_blocks():
    blocks = view(*LITE0).stdout
    layers = view(*LITE0, "--depth", 2).stdout
    assert blocks.count("MBConvBlock") == layers.count("MBConvBlock") == 16
    assert blocks.count("_depthwise_conv") == 0
    assert layers.count("_depthwise_conv") == 16


def test_default_network_is_configs():
    out = run_ok("-m", "utils.view_model")
    assert "10,700,843" in out
    assert "(M): 961.28" in out
    assert len(out.splitlines()) < 60


def test_checkpoint_says_which_network(best, runs_dir):
    assert view("--checkpoint", best).stdout == view(*LITE0).stdout
    gender = view("--checkpoint", runs_dir / "gender_fold1" / "best.pth").stdout
    assert "[1, 2] " in gender
    assert "[1, 32, 40, 40]" in gender


@needs_dot
def test_graph_is_whole(tmp_path):
    path = tmp_path / "new" / "graph.svg"
    run_ok("-m", "utils.view_model", *LITE0, "--graph", path)
    texts = [node.text for node in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count("MBConvBlock") == 16
    assert "(1, 3, 64, 64)" in texts
    assert "(1, 3)" in texts
    assert os.listdir(path.parent) == ["graph.svg"]


@needs_dot
@pytest.mark.parametrize(("suffix", "start"), [(".PNG", b"\x89PNG"), (".pdf", b"%PDF")])
def test_graph_in_other_formats(tmp_path, suffix, start):
    path = tmp_path / f"graph{suffix}"
    run_ok("-m", "utils.view_model", *LITE0, "--graph", path)
    assert path.read_bytes().startswith(start)


def test_no_dot(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    done = view(*LITE0, "--graph", tmp_path / "graph.svg")
    assert_refused(done, "--graph", "dot", "apt install graphviz", "graphviz.org")
    assert not os.listdir(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="a script of sh")
def test_dot_fails(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    dot = tmp_path / "bin" / "dot"
    dot.write_text("#!/bin/sh\nwhile read -r line; do :; done\necho no such format >&2\nexit 1\n")
    dot.chmod(0o755)
    monkeypatch.setenv("PATH", str(dot.parent))
    done = view(*LITE0, "--graph", tmp_path / "graph.pdf")
    assert_refused(done, "graph.pdf", "no such format")
    assert os.listdir(tmp_path) == ["bin"]


def test_heat_is_what_each_place_adds_to_the_logit(best):
    network = load_network(load_checkpoint(best))
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    logits, maps = heat_maps(network, images)
    # Grad-CAM of a network that ends in a mean and a linear layer, in closed form: the class
    # activation map of Zhou et al. 2016.
    with torch.no_grad():
        features = network.extract_features(images)
        adds = torch.einsum("ck,nkhw->nchw", network._fc.weight, features) / features[0, 0].numel()
        torch.testing.assert_close(adds.sum(dim=(2, 3)) + network._fc.bias, logits)
    torch.testing.assert_close(maps, adds.relu())
    assert maps.max() > 0


class Corners(nn.Module):
    """Class 0 is red, class 1 blue, wherever they are."""

    def __init__(self):
        super().__init__()
        self._swish = nn.ReLU()
        self._fc = nn.Linear(3, 2)
        self._fc.weight.data = torch.tensor([[1.0, 0, 0], [0, 0, 1]])

    def forward(self, images):
        features = self._swish(F.avg_pool2d(images.requires_grad_(), 8))
        return self._fc(features.mean(dim=(2, 3)))


def test_heat_lies_where_the_evidence_is():
    images = torch.zeros(1, 3, 32, 64)
    images[:, 0, :8, -16:] = 1  # red at the top right
    images[:, 2, -8:, :8] = 1  # blue at the bottom left
    _, [maps] = heat_maps(Corners(), images)
    assert maps[0].nonzero().tolist() == [[0, 6], [0, 7]]
    assert maps[1].nonzero().tolist() == [[3, 0]]
    grey = np.full((32, 64, 3), 128, np.uint8)
    changed = (overlay(grey, (maps[0] / maps[0].max()).numpy()) != grey).any(axis=2)
    rows, columns = changed.nonzero()
    assert changed[0, -1]
    assert rows.max() < 16
    assert columns.min() >= 32


def test_no_heat_leaves_the_face():
    face = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    np.testing.assert_array_equal(overlay(face, np.zeros((2, 2), np.float32)), face)


def test_sheet(best, photos, tmp_path):
    sheet = tmp_path / "sheet.png"
    out = view("--checkpoint", best, "--images", *photos, "--output", sheet, run=run_ok)
    with Image.open(sheet) as image:
        three = image.size
        assert len(np.unique(np.asarray(image).reshape(-1, 4), axis=0)) > 1000
    assert three[0] > 1000
    assert three[1] > 3 * 200
    assert os.listdir(tmp_path) == ["sheet.png"]
    lines = [line for line in out.splitlines() if line.startswith(str(photos[0].parent))]
    assert [line.rpartition(": ")[0] for line in lines] == [str(photo) for photo in photos]
    assert all(line.split()[-2] in ("normal", "mask", "incorrect") for line in lines)
    view("--checkpoint", best, "--images", photos[0], "--output", sheet, run=run_ok)
    with Image.open(sheet) as image:
        assert image.size[0] == three[0]
        assert image.size[1] < three[1] / 2


def test_network_sees_the_face_that_training_saw(best, sample_dir, photos):
    checkpoint = load_checkpoint(best)
    detector = build_detector(checkpoint["crop"], torch.device("cpu"))
    face, found = crop_face(load_image(photos[0]), detector, checkpoint)
    crop = load_image(sample_dir / "eval" / "new_images" / photos[0].name)
    expected = build_transform(64)(image=crop)["image"].astype(float)
    assert found
    assert face.shape == (64, 64, 3)
    assert np.abs(face - expected).mean() < 2  # training's went through a JPEG
    blank, found = crop_face(np.zeros((512, 384, 3), np.uint8), detector, checkpoint)
    assert not found
    assert not blank.any()


def test_odd_file_names(best, photos, tmp_path):
    names = ["$x^$ {한국}.jpg", "no_space" * 8 + ".jpg"]
    if os.name != "nt":
        names.append(os.fsdecode(b"\xff.jpg"))
    for name in names:
        shutil.copy(photos[0], tmp_path / name)
    out = view(
        "--checkpoint", best, "--images", tmp_path, "--output", tmp_path / "a.png", run=run_ok
    )
    assert names[0] in out
    assert (tmp_path / "a.png").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--images", "{photo}"], ["--images", "--checkpoint"]),
        (["--checkpoint", "{best}", "--model", "efficientnet-b0"], ["--checkpoint", "--model"]),
        (["--checkpoint", "{best}", "--resize", "64"], ["--checkpoint", "--resize"]),
        (["--output", "{out}/a.png"], ["--output", "--images"]),
        (["--checkpoint", "{out}/none.pth"], ["none.pth", "no such file"]),
        (["--checkpoint", ""], ["a folder", "best.pth"]),
        (["--checkpoint", "{photo}"], ["not a readable checkpoint"]),
        (["--resize", "63"], ["--resize", "63"]),
        (["--model", "resnet18"], ["--model", "resnet18"]),
        (["--depth", "3"], ["--depth", "3"]),
        (["--checkpoint", "{best}", "--images", "{out}/none.jpg"], ["none.jpg"]),
        (["--checkpoint", "{best}", "--images", "{out}"], ["no photos"]),
        (["--checkpoint", "{best}", "--images", "{best}", "--output", "{out}/a.png"],
         ["best.pth", "not a readable image"]),
        (["--checkpoint", "{best}", "--images", "{best}", __file__, "--output", "{out}/a.png"],
         ["2 bad photos", "best.pth", "test_view_model.py"]),
        (["--checkpoint", "{best}", "--images", "{photo}", "--output", "{out}/a.gif"],
         ["--output", "a.gif", ".png"]),
        (["--checkpoint", "{best}", "--images", "{photo}", "--output", "{out}/folder.png"],
         ["--output", "folder"]),
        (["--checkpoint", "{best}", "--images", "{photo}", "--output", "{out}/curves.png"],
         ["--output", "a run's own"]),
        (["--checkpoint", "{best}", "--images", "{photo}", "--output", "{photo}/a.png"],
         ["--output", "no folder"]),
    ],
)  # fmt: skip
def test_refused(arguments, words, best, photos, tmp_path):
    (tmp_path / "folder.png").mkdir()
    filled = [text.format(best=best, photo=photos[0], out=tmp_path) for text in arguments]
    assert_refused(view(*filled), *words)
    assert os.listdir(tmp_path) == ["folder.png"]


@needs_dot
def test_pictures_replace_nothing_that_is_read(best, photos, tmp_path):
    photo = tmp_path / "photo.png"
    Image.fromarray(load_image(photos[0])).save(photo)
    before = photo.read_bytes()
    images = ["--checkpoint", best, "--images", photo]
    assert_refused(view(*images, "--output", photo), "--output", "overwrite")
    assert_refused(view(*images, "--graph", photo), "--graph", "overwrite")
    both = ["--output", tmp_path / "a.png", "--graph", tmp_path / "a.png"]
    assert_refused(view(*images, *both), "--output", "--graph")
    assert_refused(view("--graph", tmp_path / "graph.jpg"), "--graph", ".svg or .png or .pdf")
    assert photo.read_bytes() == before
    assert os.listdir(tmp_path) == ["photo.png"]


def test_too_many_photos(best, photos, tmp_path):
    for number in range(51):
        os.link(shutil.copy(photos[0], tmp_path / "a.jpg"), tmp_path / f"{number}.jpg")
    done = view("--checkpoint", best, "--images", tmp_path)
    assert_refused(done, "--images", "52 photos", "50")


def test_other_weights(best, tmp_path):
    checkpoint = load_checkpoint(best)
    del checkpoint["path"], checkpoint["digest"]
    save_checkpoint(tmp_path / "b0.pth", {**checkpoint, "model": "efficientnet-b0"})
    assert_refused(view("--checkpoint", tmp_path / "b0.pth"), "b0.pth", "not weights of")


@pytest.mark.parametrize("package", ["torchinfo", "torchview", "graphviz", "torchcam"])
def test_missing_package(package, best, photos, tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else find_spec(name)
    )
    everything = ["--checkpoint", best, "--images", photos[0], "--graph", tmp_path / "graph.svg"]
    assert_refused(
        view(*everything, "--output", tmp_path / "a.png"),
        package, "python -m pip install -r requirements-look.txt",
    )  # fmt: skip
    assert not os.listdir(tmp_path)
