"""Networks run by ONNX Runtime, on a CPU more than twice as fast as by PyTorch.

Its packages, in requirements-onnx.txt, are optional: nothing else here imports them.
"""

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


def export(network, resize):
    """The ONNX model, bytes, of a network that takes uint8 (N, resize, resize, 3) to logits.

    network: on the CPU, ready to predict. N is free in the model.
    """
    buffer = io.BytesIO()
    example = torch.zeros(2, resize, resize, 3, dtype=torch.uint8)
    with warnings.catch_warnings():
        # The newer exporter needs one package more, and its N is not free in older torch.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        # Of some paddings, which the runtime folds.
        warnings.filterwarnings("ignore", "Constant folding")
        torch.onnx.export(
            network.to(memory_format=torch.contiguous_format), (example,), buffer,
            input_names=["images"], output_names=["logits"],
            dynamic_axes={"images": {0: "N"}, "logits": {0: "N"}},
            opset_version=OPSET, dynamo=False,
        )  # fmt: skip
    return buffer.getvalue()


def cached_model(checkpoint, build):
    """The path of the ONNX model of a checkpoint, kept beside it by its digest and our FORMAT.

    build: called, without arguments, for the network when the model isn't there. Models of what
    the checkpoint was before are removed.
    """
    path = Path(checkpoint["path"])
    model = path.with_suffix(f".{checkpoint['digest'][:16]}.v{FORMAT}.onnx")
    if not model.exists():
        content = export(build(), checkpoint["resize"])
        try:
            with atomic_write(model) as file:
                file.write(content)
        except InputError as error:
            raise InputError(f"{error}, or do without the model: --backend torch") from error
        for other in path.parent.glob(f"{path.stem}.*.onnx"):
            if other != model:
                other.unlink(missing_ok=True)
    return model


def load_model(path):
    """A function from images, uint8 tensor (N, resize, resize, 3), to logits, float32 (N, classes).

    Raises InputError when path holds no ONNX model.
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
        session = onnxruntime.InferenceSession(
            path.read_bytes(), options, providers=["CPUExecutionProvider"]
        )
    except damage as error:
        raise InputError(
            f"{path}: not a readable ONNX model; delete it, it is made anew"
        ) from error
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
