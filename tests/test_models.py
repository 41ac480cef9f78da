import urllib.error

import efficientnet_pytorch.utils
import pytest
import torch

from config.config import CROP_SETTINGS
from models.network import NETWORKS, build_network, normalization
from utils.checkpoint import NEEDED, load_checkpoint, read_tensors, save_checkpoint
from utils.cli import InputError


@pytest.mark.parametrize("name", ["efficientnet-b0", "efficientnet-b3", "efficientnet-lite0"])
def test_logits_of_one_per_class(name):
    network = build_network(name, 3, 64).eval()
    with torch.inference_mode():
        assert network(torch.randn(2, 3, 64, 64)).shape == (2, 3)


def test_names_and_pixel_statistics():
    assert set(NETWORKS) == {*(f"efficientnet-b{i}" for i in range(8)), "efficientnet-lite0"}
    assert normalization("efficientnet-lite0") == ((0.5,) * 3, (0.5,) * 3)
    assert normalization("efficientnet-b3") == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with pytest.raises(InputError, match="resnet50"):
        build_network("resnet50", 3, 64)


def test_lite0_starts_from_its_packages_weights():
    one, two = (build_network("efficientnet-lite0", 3, 64, pretrained=True) for _ in range(2))
    fresh = build_network("efficientnet-lite0", 3, 64)
    stem = "_conv_stem.weight"
    assert torch.equal(one.state_dict()[stem], two.state_dict()[stem])
    assert not torch.equal(one.state_dict()[stem], fresh.state_dict()[stem])
    assert not torch.equal(one.state_dict()["_fc.weight"], two.state_dict()["_fc.weight"])


def test_swish_is_the_fast_one_and_the_same_function():
    torch.manual_seed(0)
    network = build_network("efficientnet-b0", 3, 64).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        ours = network(images)
        network.set_swish(memory_efficient=True)
        torch.testing.assert_close(network(images), ours)


@pytest.mark.parametrize("name", ["efficientnet-b0", "efficientnet-lite0"])
def test_running_statistics_follow_within_tens_of_steps(name):
    network = build_network(name, 3, 64)
    momenta = [m.momentum for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert momenta == pytest.approx([0.1] * len(momenta))


def test_weights_from_a_file(tmp_path):
    source = build_network("efficientnet-b0", 1000, 64)
    half = {key: t.half() if t.is_floating_point() else t for key, t in source.state_dict().items()}
    torch.save(half, tmp_path / "half.pth")
    network = build_network("efficientnet-b0", 3, 64, weights=tmp_path / "half.pth")
    loaded = network.state_dict()
    assert loaded["_fc.weight"].shape == (3, 1280)
    for key, tensor in half.items():
        if not key.startswith("_fc"):
            assert loaded[key].dtype in (torch.float32, torch.int64)
            assert torch.equal(loaded[key], tensor.to(loaded[key].dtype))
    same = build_network("efficientnet-b0", 1000, 64, weights=tmp_path / "half.pth")
    assert torch.equal(same.state_dict()["_fc.bias"], half["_fc.bias"].float())


def test_unfit_weights_are_named(tmp_path):
    path = tmp_path / "weights.pth"
    with pytest.raises(InputError, match="no such file"):
        build_network("efficientnet-b0", 3, 64, weights=path)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match=r"weights\.pth"):
        build_network("efficientnet-b0", 3, 64, weights=path)
    torch.save([1, 2], path)
    with pytest.raises(InputError, match="not a state dict"):
        build_network("efficientnet-b0", 3, 64, weights=path)
    torch.save(build_network("efficientnet-lite0", 3, 64).state_dict(), path)
    with pytest.raises(InputError, match="not weights of efficientnet-b0"):
        build_network("efficientnet-b0", 3, 64, weights=path)


def test_a_failed_download_names_the_ways_out(monkeypatch):
    def offline(url, **options):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(efficientnet_pytorch.utils.model_zoo, "load_url", offline)
    with pytest.raises(InputError, match=r"--weights FILE.*--no-pretrained"):
        build_network("efficientnet-b3", 3, 64, pretrained=True)


def test_the_download_is_efficientnet_pytorchs(monkeypatch):
    source = build_network("efficientnet-b0", 1000, 64).state_dict()
    urls = []

    def serve(url, **options):
        urls.append(url)
        return dict(source)

    monkeypatch.setattr(efficientnet_pytorch.utils.model_zoo, "load_url", serve)
    network = build_network("efficientnet-b0", 3, 64, pretrained=True)
    assert urls == [efficientnet_pytorch.utils.url_map["efficientnet-b0"]]
    assert torch.equal(network.state_dict()["_conv_stem.weight"], source["_conv_stem.weight"])


def test_checkpoints_hold_tensors_and_plain_types_only(tmp_path):
    path = tmp_path / "best.pth"
    good = {
        "target": "gender", "classes": ["female", "male"], "model": "efficientnet-b0",
        "resize": 64, "mean": [0.5] * 3, "std": [0.5] * 3, "augment": "none",
        "tta": "none", "age_border": 0,
        "crop": {**dict.fromkeys(CROP_SETTINGS, 20), "detector": "mtcnn"},
        "network": {"w": torch.ones(2)}, "epoch": 3,
    }  # fmt: skip
    save_checkpoint(path, good)
    assert load_checkpoint(path)["epoch"] == 3
    for name in NEEDED:
        for odd in (None, 7, "x", [1, 2], {"a": 1}, -0.5, float("nan"), torch.ones(1)):
            save_checkpoint(path, {**good, name: odd})
            with pytest.raises(InputError, match=f"without usable {name}"):
                load_checkpoint(path)
    save_checkpoint(path, {"network": {"w": torch.ones(2)}})
    with pytest.raises(InputError, match="without usable target, classes"):
        load_checkpoint(path)
    torch.save({"epoch": 3}, path)
    with pytest.raises(InputError, match="not a checkpoint"):
        load_checkpoint(path)


class Bomb:
    def __reduce__(self):
        return print, ("code in a checkpoint ran",)


def test_code_in_a_checkpoint_is_not_run(tmp_path, capsys):
    torch.save({"network": Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(InputError, match=r"bomb\.pth"):
        read_tensors(tmp_path / "bomb.pth")
    assert capsys.readouterr().out == ""
