"""ETC.gradcam: the heat is where the evidence is, for the answer that the network gives."""

import os
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from conftest import assert_refused, run, run_ok
from data.augment import resize
from data.images import load_image
from ETC import gradcam
from models.network import build_network, load_network
from utils.checkpoint import load_checkpoint


@pytest.fixture(scope="module")
def best(runs_dir):
    return runs_dir / "mask_fold0/best.pth"


@pytest.fixture(scope="module")
def photos(sample_dir):
    return sorted((sample_dir / "eval/images").iterdir())[:3]


def test_heat_is_what_each_place_adds_to_the_logit():
    torch.manual_seed(0)
    network = build_network("efficientnet-b0", 3, 96).eval()
    images = torch.randn(2, 3, 96, 96)
    logits, maps = gradcam.heat_maps(network, images)
    # For a mean and a linear layer Grad-CAM is the class activation map of Zhou et al. 2016.
    with torch.no_grad():
        torch.testing.assert_close(logits, network(images))
        features = network.extract_features(images)
        adds = torch.einsum("ck,nkhw->nchw", network._fc.weight, features) / features[0, 0].numel()
        torch.testing.assert_close(adds.sum(dim=(2, 3)) + network._fc.bias, logits)
    torch.testing.assert_close(maps, adds.relu())
    assert maps.max() > 0


class Corners(nn.Module):
    """Class 0 is red, class 1 is blue, wherever they are."""

    def __init__(self):
        super().__init__()
        self._fc = nn.Linear(3, 2)
        self._fc.weight.data = torch.tensor([[1.0, 0, 0], [0, 0, 1]])

    def extract_features(self, images):
        return F.avg_pool2d(images, 8)


def test_heat_lies_where_the_evidence_is():
    images = torch.zeros(1, 3, 32, 64)
    images[:, 0, :8, -16:] = 1  # red at the top right
    images[:, 2, -8:, :8] = 1  # blue at the bottom left
    _, [maps] = gradcam.heat_maps(Corners(), images)
    assert maps[0].nonzero().tolist() == [[0, 6], [0, 7]]
    assert maps[1].nonzero().tolist() == [[3, 0]]
    grey = np.full((32, 64, 3), 128, np.uint8)
    changed = (gradcam.overlay(grey, (maps[0] / maps[0].max()).numpy()) != grey).any(axis=2)
    rows, columns = changed.nonzero()
    assert changed[0, -1]
    assert rows.max() < 16
    assert columns.min() >= 32
    np.testing.assert_array_equal(gradcam.overlay(grey, np.zeros((2, 2), np.float32)), grey)


@pytest.mark.parametrize("age_border", [0, 60])
def test_explains_the_answer_that_the_network_gives(best, sample_dir, photos, age_border):
    checkpoint = load_checkpoint(best)
    network = load_network(checkpoint)
    if age_border:  # its classifier layer isn't linear
        network = build_network("efficientnet-lite0", 3, 64, age_border=age_border).eval()
    crop = load_image(sample_dir / "eval/new_images" / photos[0].name)
    probs, face, maps = gradcam.explain(crop, checkpoint, network)
    np.testing.assert_array_equal(face, resize(crop, 64))
    pixels = torch.from_numpy(face / 255).float().permute(2, 0, 1)[None]
    with torch.no_grad():
        expected = network((pixels - 0.5) / 0.5).softmax(dim=1)[0]
    assert probs == pytest.approx(expected.tolist(), abs=1e-5)
    assert maps.shape == (3, 2, 2)
    assert maps.max() == 1


def test_picture_has_a_row_for_each_photo(best, photos, tmp_path):
    folder = tmp_path / "photos 여름"
    folder.mkdir()
    shutil.copy(photos[0], folder)
    Image.new("RGB", (384, 512)).save(folder / "z.png")
    output = tmp_path / "new/a.png"
    command = ["-m", "ETC.gradcam", "--checkpoint", best, "--num-workers", 0, "--output", output]
    *lines, last = run_ok(*command, folder).splitlines()
    files = [line.rpartition(": ")[0] for line in lines]
    assert files == [str(folder / photos[0].name), str(folder / "z.png")]
    assert lines[1].endswith("(no face found)")
    assert last.startswith("Grad-CAM of 2 photos -> ")
    with Image.open(output) as picture:
        assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 1000
        assert picture.width > 4 * gradcam.SIDE
        assert 2 * gradcam.SIDE < picture.height < 3 * gradcam.SIDE
    assert os.listdir(output.parent) == ["a.png"]


def test_refused(best, photos, tmp_path, monkeypatch):
    broken, picture = tmp_path / "broken.png", tmp_path / "out/a.png"
    broken.write_bytes(b"no photo")
    for path, checkpoint, output, words in (
        (photos[0], tmp_path / "none.pth", picture, ["none.pth"]),
        (photos[0], photos[1], picture, [photos[1].name, "not a checkpoint"]),
        (broken, best, picture, ["broken.png", "not a readable image"]),
        (broken, best, broken, ["--output", "would overwrite", "broken.png"]),
        (photos[0], best, picture.with_suffix(".gif"), ["--output", "a.gif", ".png"]),
    ):
        command = ["-m", "ETC.gradcam", "--checkpoint", checkpoint, "--num-workers", 0]
        assert_refused(run(*command, "--output", output, path), *words)
    monkeypatch.setattr(gradcam, "MAX_PHOTOS", 2)
    refused = run("-m", "ETC.gradcam", "--checkpoint", best, "--output", picture, *photos)
    assert_refused(refused, "3 photos", "name 2 at most")
    assert broken.read_bytes() == b"no photo"
    assert not os.listdir(tmp_path / "out")
