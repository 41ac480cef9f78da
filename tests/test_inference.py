import numpy as np
import pytest
import torch

from models import inference
from models.inference import build_members, build_predictor, pick_backend, predict
from models.network import build_network, load_network, normalize
from test_network import as_if_trained
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.cli import InputError

CPU = torch.device("cpu")


def make_checkpoint(path, seed=0, **changes):
    """A checkpoint as train.py saves it, loaded from path; seed: of the classifier layer."""
    values = {
        "target": "age", "classes": ["under30", "30to59", "60plus"], "fold": 0, "resize": 64,
        "model": "efficientnet-lite0", "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4],
        "augment": "age", "tta": "none", "age_border": 0, "crop": {}, "epoch": 1, "val_f1": 0.5,
        **changes,
    }  # fmt: skip
    torch.manual_seed(seed)
    pretrained = values["model"] == "efficientnet-lite0"  # whose weights are installed
    arguments = values["model"], 3, values["resize"], None, pretrained, values["age_border"]
    network = build_network(*arguments)
    if not pretrained:
        as_if_trained(network, values["resize"])
    save_checkpoint(path, {**values, "network": network.state_dict()})
    return load_checkpoint(path)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("run") / "best.pth")


def random_images(count, side=64):
    images = np.random.default_rng(count).integers(0, 256, (count, side, side, 3), np.uint8)
    return torch.from_numpy(images)


def logits_of(checkpoint, images):
    stats = torch.tensor([checkpoint["mean"], checkpoint["std"]])
    with torch.inference_mode():
        return load_network(checkpoint)(normalize(images, *stats))


@pytest.mark.parametrize(
    "changes",
    [{}, {"model": "efficientnet-b0", "resize": 75}, {"age_border": 59},
     {"model": "convnext_tiny", "age_border": 59}, {"model": "resnet18"}],
    ids=["lite0", "b0", "age head", "convnext", "resnet"],
)  # fmt: skip
def test_torch_and_onnx_give_the_networks_logits(tmp_path, changes):
    checkpoint = make_checkpoint(tmp_path / "best.pth", **changes)
    for backend in ("torch", "onnx"):
        predictor = build_predictor(checkpoint, CPU, backend)
        for count in (1, 3):
            images = random_images(count, checkpoint["resize"])
            with torch.inference_mode():
                logits = predictor(images)
            assert logits.std() > 0.01
            torch.testing.assert_close(logits, logits_of(checkpoint, images), atol=1e-4, rtol=1e-4)


def test_flip_averages_an_image_and_its_mirror_image(checkpoint):
    images = random_images(2)
    views = [logits_of(checkpoint, view).softmax(dim=1) for view in (images, images.flip(2))]
    assert not torch.allclose(*views, atol=1e-5)
    for trained, given in (("none", "flip"), ("flip", None)):
        predictor = build_predictor({**checkpoint, "tta": trained}, CPU, "torch", given)
        with torch.inference_mode():
            probs = predictor(images).softmax(dim=1)
        torch.testing.assert_close(probs, sum(views) / 2)


def test_a_heads_networks_and_views_have_equal_votes(checkpoint, tmp_path):
    other = make_checkpoint(tmp_path / "best.pth", seed=1, augment="light")
    checkpoints = {"mask": [other], "age": [checkpoint, other]}
    members, views = build_members(checkpoints, CPU, "torch", age_views=2)
    assert views == [(64, "none"), *[(64, "age")] * 2, *[(64, "light")] * 2]
    assert [seen for _, seen in members["mask"]] == [[0]]
    assert [seen for _, seen in members["age"]] == [[0, 1, 2], [0, 3, 4]]

    batches = [[random_images(count + view)[:count] for view in range(5)] for count in (3, 2)]
    probs = predict(members, [(*batch, None) for batch in batches], CPU, torch.float32)
    views = [torch.cat(view) for view in zip(*batches)]
    for target, seen in (
        ("mask", [(other, 0)]),
        (
            "age",
            [(checkpoint, 0), (checkpoint, 1), (checkpoint, 2), *((other, i) for i in (0, 3, 4))],
        ),
    ):
        expected = [logits_of(network, views[i]).softmax(dim=1).numpy() for network, i in seen]
        np.testing.assert_allclose(probs[target], np.mean(expected, axis=0), atol=1e-5)


def test_age_views_need_an_augmentation(checkpoint):
    checkpoints = {"age": [{**checkpoint, "augment": "none"}]}
    with pytest.raises(InputError, match=r"--age-views.*best\.pth"):
        build_members(checkpoints, CPU, "torch", age_views=2)


def test_an_onnx_model_is_kept_until_its_checkpoint_changes(tmp_path):
    path = tmp_path / "best.pth"

    def models_there():
        build_predictor(load_checkpoint(path), CPU, "onnx")
        return {model: model.stat().st_mtime_ns for model in tmp_path.glob("*.onnx")}

    make_checkpoint(path)
    first = models_there()
    assert len(first) == 1
    assert models_there() == first
    make_checkpoint(path, seed=1)
    [second] = models_there()
    assert second not in first
    second.write_bytes(second.read_bytes()[:-5000])
    with pytest.raises(InputError, match=rf"{second.name}: .*delete"):
        models_there()


def test_what_onnx_cannot_express_is_one_line(tmp_path):
    checkpoint = make_checkpoint(tmp_path / "best.pth", model="alexnet", resize=448)
    with pytest.raises(InputError, match=r"no ONNX model at 448 px: .*--backend torch"):
        build_predictor(checkpoint, CPU, "onnx")


def test_onnx_needs_a_cpu_full_precision_and_its_packages(monkeypatch):
    assert pick_backend("auto", CPU, torch.float32) == "onnx"
    assert pick_backend("torch", CPU, torch.float32) == "torch"
    for device, precision in ((CPU, torch.bfloat16), (torch.device("cuda"), torch.float32)):
        assert pick_backend("auto", device, precision) == "torch"
        with pytest.raises(InputError, match="--backend onnx"):
            pick_backend("onnx", device, precision)
    monkeypatch.setattr(inference, "missing_packages", lambda: ["onnx"])
    assert pick_backend("auto", CPU, torch.float32) == "torch"
    with pytest.raises(InputError, match=r"requirements-onnx\.txt"):
        pick_backend("onnx", CPU, torch.float32)
