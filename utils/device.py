"""Which device to compute on, and in which precision."""

import os

import torch

from utils.cli import InputError

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def pick_device(name):
    """Return the torch.device for "auto" (the first GPU, else the CPU) or a name like "cuda:1".

    Raises InputError where the name means nothing, and where that device isn't there or is too old
    for the installed torch.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"--device {name}: not a device; use auto, cpu, cuda or cuda:1") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device {name}: not supported; use auto, cpu or cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise InputError(f"--device {name}: torch sees {count} GPUs here; try --device auto")
    try:
        torch.zeros(1, device=device).add_(1)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        way_out = "is another program using it?"
        if "no kernel image" in reason or "not compiled" in reason:
            way_out = "install a build of torch for your card (README, GPU boxes)"
        raise InputError(
            f"--device {name}: can't be used ({reason}); {way_out} --device cpu works anywhere"
        ) from error
    return device


def pick_precision(name, device):
    """Return the dtype for autocast: torch.float32 means no mixed precision.

    "auto" is bf16 from compute capability 8.0 on (A100, RTX 30), fp16 from 7.0 on (V100, T4),
    and fp32 on older GPUs (P40: no fast half precision) and on the CPU.
    """
    if name != "auto":
        if device.type == "cpu" and name == "fp16":
            raise InputError("--precision fp16: needs a GPU; use fp32 or bf16 on a CPU")
        return PRECISIONS[name]
    if device.type == "cpu":
        return torch.float32
    major, _ = torch.cuda.get_device_capability(device)
    return torch.bfloat16 if major >= 8 else torch.float16 if major == 7 else torch.float32


def choose_kernels(deterministic):
    """Let cuDNN try which of its kernels is fastest, or ask for kernels that always give the same
    bits; PyTorch warns of an operation that has none. On a CPU both are the same.
    """
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS asks for
        torch.use_deterministic_algorithms(True, warn_only=True)


def compile_network(network, device):
    """Let torch.compile build the network's kernels when it is first called; its name for
    everything else stays.

    Raises InputError when there is no compiler for device.
    """
    try:
        torch.compile(torch.cos)(torch.ones(2, device=device))  # a second, not minutes
    except RuntimeError as error:
        needed = "a C++ compiler (g++)" if device.type == "cpu" else "Triton and a C compiler"
        raise InputError(
            f"--compile: torch.compile needs {needed}, and fails here "
            f"({str(error).strip().splitlines()[0]}); install it or leave --compile out"
        ) from error
    network.compile()


def precision_name(precision):
    """fp32, fp16 or bf16 for a dtype."""
    return next(name for name, dtype in PRECISIONS.items() if dtype == precision)


def autocast(device, precision):
    """The context to run a network in; one that changes nothing for torch.float32."""
    return torch.autocast(device.type, precision, enabled=precision != torch.float32)
