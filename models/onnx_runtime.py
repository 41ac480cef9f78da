"""Networks run by ONNX Runtime, on a CPU twice as fast as by PyTorch.

Its packages, in requirements-onnx.txt, are optional: nothing else here imports them.
"""

import contextlib
import importlib.util
import io
import warnings
from pathlib import Path

import torch

from utils.cli import InputError
from utils.files import atomic_write

PACKAGES = ("onnx", "onnxruntime")
OPSET = 17
FORMAT = 1  # of our models: to be raised whenever other ones come out of the same checkpoint


def missing_packages():
    """The packages that this module needs and that are not installed."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def pick_backend(name, device, precision):
    """What runs the networks, "torch" or "onnx"; "auto" is onnx where it is installed and faster.

    Raises InputError where onnx can't be had.
    """
    suits = device.type == "cpu" and precision == torch.float32
    if name == "auto":
        return "onnx" if suits and not missing_packages() else "torch"
    if name == "onnx" and not suits:
        raise InputError("--backend onnx: runs with --device cpu and --precision fp32 only")
    if name == "onnx" and missing_packages():
        raise InputError(
            f"--backend onnx: {' and '.join(missing_packages())} not installed; "
            "python -m pip install -r requirements-onnx.txt"
        )
    return name


def export(network, inputs, outputs):
    """The ONNX model, bytes, of a network that takes uint8 images (N, side, side, 3).

    network: on the CPU, ready to predict; inputs: {name: side}, and outputs: names, both in the
    network's order. N is free in the model.
    """
    buffer = io.BytesIO()
    examples = tuple(torch.zeros(2, side, side, 3, dtype=torch.uint8) for side in inputs.values())
    with warnings.catch_warnings():
        # The newer exporter needs one package more, and its N is not free in older torch.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        # Of some paddings, which the runtime folds.
        warnings.filterwarnings("ignore", "Constant folding")
        torch.onnx.export(
            network.to(memory_format=torch.contiguous_format), examples, buffer,
            input_names=[*inputs], output_names=[*outputs],
            dynamic_axes={name: {0: "N"} for name in (*inputs, *outputs)},
            opset_version=OPSET, dynamo=False,
        )  # fmt: skip
    return buffer.getvalue()


def cached_model(checkpoint, build):
    """The ONNX model of a checkpoint, bytes, kept beside it by its digest and our FORMAT.

    build: called, without arguments, for the network when the model isn't there. Models of what
    the checkpoint was before are removed. Where it can't be kept, a line says so.
    """
    path = model_path(checkpoint)
    if path.exists():
        return path.read_bytes()
    model = export(build(), {"images": checkpoint["resize"]}, ["logits"])
    try:
        with atomic_write(path) as file:
            file.write(model)
    except InputError as error:
        print(f"{error}; until then, the model is made anew each time")
    for other in path.parent.glob(f"{Path(checkpoint['path']).stem}.*.onnx"):
        if other != path:
            with contextlib.suppress(OSError):  # a model of no use does no harm
                other.unlink()
    return model


def model_path(checkpoint):
    """Where the ONNX model of a checkpoint is kept."""
    name = f".{checkpoint['digest'][:16]}.v{FORMAT}.onnx"
    return Path(checkpoint["path"]).with_suffix(name)


def load_model(model, checkpoint):
    """A function from images, uint8 tensor (N, resize, resize, 3), to logits, float32 (N, classes).

    model: from cached_model. Raises InputError when it is damaged.
    """
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    damage = (errors.Fail, errors.InvalidArgument, errors.InvalidGraph, errors.InvalidProtobuf,
              errors.NotImplemented, errors.RuntimeException)  # fmt: skip
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that spin while they wait take the cores that read the images.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except damage as error:
        raise InputError(
            f"{model_path(checkpoint)}: not a readable ONNX model; delete it, it is made anew"
        ) from error
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
