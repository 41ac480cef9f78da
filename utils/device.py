"""Where to compute, in which precision, and with how many processes."""

import atexit
import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist

from config import config
from utils.cli import InputError

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def pick_device(name):
    """The torch.device for "auto" (the first GPU, else the CPU) or a name such as "cuda:1".

    Raises InputError for a device that isn't there or can't be used.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is not None:
            # Else loaders would pin memory through the first GPU.
            torch.cuda.set_device(device)
        torch.zeros(1, device=device).add_(1)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        way_out = "see ETC/MACHINES.md, or use --device cpu"
        raise InputError(f"--device {name}: {reason}; {way_out}") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device {name}: not supported; use auto, cpu, cuda or cuda:1")
    return device


def autocast(device, precision):
    """torch.autocast in precision, a dtype; with torch.float32, a context that changes nothing."""
    return torch.autocast(device.type, precision, enabled=precision != torch.float32)


def pick_precision(name, device):
    """The dtype for autocast; torch.float32 means no mixed precision.

    "auto" is bf16 from compute capability 8.0 (A100, RTX 30), fp16 from 7.0 (V100, T4), and fp32
    on older GPUs (P40: no fast half precision) and on the CPU.
    """
    if name != "auto":
        if device.type == "cpu" and name == "fp16":
            raise InputError("--precision fp16: needs a GPU; use fp32 or bf16 on a CPU")
        return PRECISIONS[name]
    if device.type == "cpu":
        return torch.float32
    major, _ = torch.cuda.get_device_capability(device)
    return torch.bfloat16 if major >= 8 else torch.float16 if major == 7 else torch.float32


def use_deterministic_kernels():
    """From now on, give the same bits in every run on a GPU where PyTorch has kernels for that; it
    warns about layers without. Call it before the first matrix product there, when cuBLAS reads the
    variable.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS asks for
    torch.use_deterministic_algorithms(True, warn_only=True)


def join_processes(name):
    """Join the other processes if torchrun started this one; returns its pick_device(name). Only
    the first process keeps its standard output.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return pick_device(name)
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"--device {name}: torchrun gives each process a GPU; use auto or cpu")
    if name != "cpu" and torch.cuda.is_available():
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    device = pick_device(name)
    if device.type == "cpu":  # torchrun allows one thread a process, however many cores there are
        torch.set_num_threads(max(1, config.CORES // int(os.environ["LOCAL_WORLD_SIZE"])))
    # One process may wait long for another, which waits for a command that crops the same photos.
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(days=1))
    atexit.register(dist.destroy_process_group)
    if not is_first():
        # Open until the process ends. It escapes what can't be encoded, as cli.run has it.
        sys.stdout = open(os.devnull, "w", errors="backslashreplace")  # noqa: SIM115
    return device


def world_size():
    return dist.get_world_size() if dist.is_initialized() else 1


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def is_first():  # the only process that writes and prints
    return rank() == 0


def progress_off():
    """tqdm's disable: no progress bar outside a terminal, and one for all processes."""
    return None if is_first() else True


def gather(value):
    """Every process's value, plain objects or CPU tensors, as a list by rank."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    with torch.inference_mode(False):  # older versions of gloo can't receive in it
        dist.all_gather_object(values, value)
    return values


def from_first(value):
    """The first process's value, in every process."""
    return gather(value)[0]


def share_buffers(network):
    """Give the batch norm statistics of the first process to all."""
    for buffer in network.buffers() if world_size() > 1 else ():
        dist.broadcast(buffer, 0)


def gather_batches(batches):
    """In every process, all batches in order, of which each process had every world_size()-th."""
    shares = gather(batches)
    return [shares[i % len(shares)][i // len(shares)] for i in range(sum(map(len, shares)))]
