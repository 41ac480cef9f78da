"""ETC.gradcam: the heat is where the evidence is, for the answer that the network gives."""

import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import assert_refused, run, run_ok
from data.augment import resize
from data.images import load_image
from ETC import gradcam
from models.network import build_network, load_network
from utils.checkpoint import load_checkpoint, save_checkpoint


@pytest.fixture(scope="module")
def best(runs_dir):
    return runs_dir / "mask_fold0/best.pth"


@pytest.fixture(scope="module")
def photos(sample_dir):
    return sorted((sample_dir / "eval/images").iterdir())[:3]


def test_heat_is_what_each_place_adds_to_the_logit():
    torch.manual_seed(0)
    network = build_network("efficientnet-lite0", 3, 96, None, True).eval()
    images = torch.randn(2, 3, 96, 96)
    logits, maps = gradcam.heat_maps(network, images)
    # For a mean and a linear layer Grad-CAM is the class activation map of Zhou et al. 2016.
    with torch.no_grad():
        torch.testing.assert_close(logits, network(images))
        features = network.extract_features(images)
        adds = torch.einsum("ck,nkhw->nchw", network._fc.weight, features) / features[0, 0].numel()
        torch.testing.assert_close(adds.sum(dim=(2, 3)) + network._fc.bias, logits)
    torch.testing.assert_close(maps, adds.relu())
    assert adds.min() < -0.01 < 0.01 < adds.max()


@pytest.mark.parametrize(
    ("name", "shape"),
    [("resnet18", (2, 2)), ("densenet121", (2, 2)), ("swin_v2_t", (2, 2))],
)
def test_heat_of_torchvisions_networks(name, shape):
    torch.manual_seed(0)
    network = build_network(name, 3, 64).eval()
    images = torch.randn(2, 3, 64, 64)
    logits, maps = gradcam.heat_maps(network, images)
    with torch.no_grad():
        torch.testing.assert_close(logits, network(images))
    assert maps.shape == (2, 3, *shape)
    assert maps.min() >= 0
    assert maps.max() > 0
    if name == "resnet18":
        with torch.no_grad():
            features = torch.nn.Sequential(*list(network.children())[:-2])(images)
            adds = torch.einsum("ck,nkhw->nchw", network.fc.weight, features) / 4
        torch.testing.assert_close(maps, adds.relu())


def test_heat_is_laid_over_its_place():
    heat, grey = np.zeros((4, 8), np.float32), np.full((32, 64, 3), 128, np.uint8)
    np.testing.assert_array_equal(gradcam.overlay(grey, heat), grey)
    heat[0, 6:] = 1  # at the top right
    changed = (gradcam.overlay(grey, heat) != grey).any(axis=2)
    rows, columns = changed.nonzero()
    assert changed[0, -1]
    assert rows.max() < 16
    assert columns.min() >= 32


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
    first, second, last = run_ok(*command, folder).splitlines()
    assert first.startswith(f"{folder / photos[0].name}: ")
    assert second.endswith("(no face found)")
    assert last.startswith("Grad-CAM of 2 photos -> ")
    with Image.open(output) as picture:
        assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 1000
        assert picture.width > 4 * gradcam.SIDE
        assert 2 * gradcam.SIDE < picture.height < 3 * gradcam.SIDE
    assert os.listdir(output.parent) == ["a.png"]
    shutil.copy(output, folder / "own.png")  # may be a photo
    refused = run(*command[:-1], folder / "own.png", folder)
    assert_refused(refused, "own.png, which is read here; choose another one")


def test_refused(best, photos, tmp_path, monkeypatch):
    broken, picture = tmp_path / "broken.png", tmp_path / "out/a.png"
    broken.write_bytes(b"no photo")
    command = ["-m", "ETC.gradcam", "--num-workers", 0, "--checkpoint"]
    for path, checkpoint, output, words in (
        (photos[0], photos[1], picture, [photos[1].name, "not a checkpoint"]),
        (broken, best, picture, ["broken.png", "not a readable image"]),
        (broken, best, broken, ["--output", "would overwrite", "broken.png"]),
    ):
        assert_refused(run(*command, checkpoint, "--output", output, path), *words)
    vit = tmp_path / "vit.pth"
    save_checkpoint(vit, {**load_checkpoint(best), "model": "vit_b_16"})
    assert_refused(run(*command, vit, photos[0]), "vit.pth", "vit_b_16", "no map")
    monkeypatch.setattr(gradcam, "MAX_PHOTOS", 2)
    refused = run(*command, best, "--output", picture, *photos)
    assert_refused(refused, "3 photos", "name 2 at most")
    assert broken.read_bytes() == b"no photo"
    assert not os.listdir(tmp_path / "out")
