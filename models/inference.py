"""Trained networks, run by PyTorch or, twice as fast on a CPU, by ONNX Runtime (optional)."""

import contextlib
import importlib.util
import io
import warnings
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from models.network import average_logits, fold_batch_norm, load_network, normalize
from utils.cli import InputError
from utils.device import autocast, gather_batches, progress_off
from utils.files import atomic_write

OPSET = 17
CACHE_FORMAT = 2  # of cached_onnx: raise it whenever the same checkpoint gives another model


class FromPixels(nn.Module):
    """A checkpoint's network, on the CPU, ready to predict, with the normalisation in front: uint8
    (N, resize, resize, 3) -> logits (N, classes).
    """

    def __init__(self, checkpoint):
        super().__init__()
        self.network = fold_batch_norm(load_network(checkpoint))
        self.register_buffer("mean", torch.tensor(checkpoint["mean"]))
        self.register_buffer("std", torch.tensor(checkpoint["std"]))
        self.eval()

    def forward(self, images):
        return self.network(normalize(images, self.mean, self.std))


def missing_packages():
    """The packages for ONNX Runtime that are not installed."""
    return [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]


def pick_backend(name, device, precision):
    """ "torch" or "onnx"; for "auto", onnx on a CPU that has it. Raises InputError without onnx."""
    fits = device.type == "cpu" and precision == torch.float32
    if name == "auto":
        return "onnx" if fits and not missing_packages() else "torch"
    if name == "onnx" and not fits:
        raise InputError("--backend onnx: needs --device cpu and --precision fp32")
    if name == "onnx" and missing_packages():
        raise InputError("--backend onnx: python -m pip install -r requirements-onnx.txt")
    return name


def build_predictor(checkpoint, device, backend, tta=None):
    """A checkpoint's network as a function: uint8 (N, resize, resize, 3) -> logits (N, classes).

    tta: none or flip, which averages an image and its mirror image; None as in training.
    """
    predictor = load_onnx(checkpoint) if backend == "onnx" else FromPixels(checkpoint).to(device)
    if (tta or checkpoint["tta"]) == "none":
        return predictor

    def predict_both(images):
        return average_logits([predictor(view).float() for view in (images, images.flip(2))])

    return predict_both


def build_members(checkpoints, device, backend, tta=None, age_views=0):
    """The networks of find_checkpoints as ({target: [(predictor, [numbers of its views])]}, the
    views of each image as FaceDataset takes them).

    tta: as for build_predictor; age_views: augmented views for the age head besides the plain one.
    """
    members, views = {target: [] for target in checkpoints}, []
    for target, head in checkpoints.items():
        for checkpoint in head:
            side = checkpoint["resize"]
            # Networks with the same triple share a view; the number tells augmented views apart.
            seen = [(side, "none", 0)]
            if target == "age" and age_views:
                if checkpoint["augment"] == "none":
                    raise InputError(f"--age-views: {checkpoint['path']} has --augment none")
                seen += [(side, checkpoint["augment"], 1 + i) for i in range(age_views)]
            views += [view for view in seen if view not in views]
            predictor = build_predictor(checkpoint, device, backend, tta)
            members[target].append((predictor, [views.index(view) for view in seen]))
    return members, [(side, augmentation) for side, augmentation, _ in views]


@torch.inference_mode()
def predict(members, loader, device, precision):
    """The probabilities of each head for each image, averaged over its networks and their views.

    members: {target: [(predictor, [the views of loader it looks at])]}; loader: of a FaceDataset.
    Returns {target: float64 array (N, classes)}.
    """
    batches = {target: [] for target in members}
    # leave=None: below another bar, it vanishes.
    for *views, _ in tqdm(loader, "predict", leave=None, unit="batch", disable=progress_off()):
        views = [images.to(device, non_blocking=True) for images in views]
        for target, networks in members.items():
            with autocast(device, precision):
                logits = [network(views[i]) for network, seen in networks for i in seen]
            # Left on the device: fetching it here would make the CPU wait for the GPU.
            batches[target].append(torch.stack(logits).double().softmax(dim=2).mean(dim=0))
    return {
        target: torch.cat(gather_batches([batch.cpu() for batch in probs])).numpy()
        for target, probs in batches.items()
    }


def export_onnx(network, inputs, outputs):
    """The ONNX model, bytes, of a network that takes uint8 images (N, side, side, 3).

    network: on the CPU, in eval mode; inputs: {name: side}; outputs: names. N is free.
    Raises InputError for a network that ONNX can't express at this side.
    """
    buffer = io.BytesIO()
    examples = tuple(torch.zeros(2, side, side, 3, dtype=torch.uint8) for side in inputs.values())
    with warnings.catch_warnings():
        # The newer exporter needs another package, and fixes N in older versions of torch.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", "Constant folding")  # of paddings: the runtime does it
        # The tracer warns that sizes become constants: the side should, and N is freed below.
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        try:
            torch.onnx.export(
                network.to(memory_format=torch.contiguous_format), examples, buffer,
                input_names=[*inputs], output_names=[*outputs],
                dynamic_axes={name: {0: "N"} for name in (*inputs, *outputs)},
                opset_version=OPSET, dynamo=False,
            )  # fmt: skip
        except torch.onnx.errors.OnnxExporterError as error:  # AlexNet above 224 px
            sides = ", ".join(map(str, inputs.values()))
            why = str(error).partition(". ")[0]
            raise InputError(f"no ONNX model at {sides} px: {why}; use --backend torch") from error
    return buffer.getvalue()


def cached_onnx(checkpoint):
    """The path and the bytes of a checkpoint's ONNX file, exported at first use and kept."""
    path = Path(checkpoint["path"])
    path = path.with_suffix(f".{checkpoint['digest'][:16]}.v{CACHE_FORMAT}.onnx")
    if path.exists():
        return path, path.read_bytes()
    model = export_onnx(FromPixels(checkpoint), {"images": checkpoint["resize"]}, ["logits"])
    try:
        with atomic_write(path) as file:
            file.write(model)
    except InputError as error:
        print(f"{error}; the ONNX file is not kept, and exported again each time")
    for other in path.parent.glob(f"{Path(checkpoint['path']).stem}.*.onnx"):
        if other != path:  # of what the checkpoint was before
            with contextlib.suppress(OSError):
                other.unlink()
    return path, model


def load_onnx(checkpoint):
    """A checkpoint's network in ONNX Runtime, as build_predictor returns it without tta.

    Raises InputError when the ONNX file beside it is damaged.
    """
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    damage = (errors.Fail, errors.InvalidArgument, errors.InvalidGraph, errors.InvalidProtobuf,
              errors.NotImplemented, errors.RuntimeException)  # fmt: skip
    path, model = cached_onnx(checkpoint)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that spin while they wait take the cores that read the images.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except damage as error:
        raise InputError(f"{path}: damaged; delete it to have it made anew") from error
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
