"""Several processes that work as one, started by torchrun: who does what, and how they exchange it.

Started without torchrun, a script is the one process of a world of size 1, and nothing here waits
for or asks anybody.
"""

import atexit
import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist

from config import config
from utils.cli import InputError
from utils.device import pick_device

# How long a process waits for another, which may wait for a command that crops the same photos.
PATIENCE = timedelta(days=7)
STEP = {"size": None}


def join_processes(name):
    """Join the processes that torchrun started, if it did, and pick_device(name) for this one.

    Only the first process of all keeps its standard output. Raises InputError as pick_device does.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return pick_device(name)
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"--device {name}: under torchrun each process has a GPU of its own; "
                         "use auto, cpu or cuda")  # fmt: skip
    if name != "cpu" and torch.cuda.is_available():
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    device = pick_device(name)
    if device.type == "cuda":
        if not dist.is_nccl_available():
            raise InputError("torchrun: this build of torch has no NCCL, those for Windows never "
                             "have; use one process, or Linux (WSL)")  # fmt: skip
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", timeout=PATIENCE, device_id=device)
    else:
        dist.init_process_group("gloo", timeout=PATIENCE)
        # torchrun makes it 1, however many cores there are.
        torch.set_num_threads(max(1, config.CORES // int(os.environ["LOCAL_WORLD_SIZE"])))
    atexit.register(dist.destroy_process_group)
    if not is_first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
    return device


def world_size():
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank():
    """Which of them this is, from 0 on."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first():
    """Whether this process is the one that writes and prints."""
    return rank() == 0


def progress_off():
    """tqdm's disable: no progress bar where nobody looks, and one for all processes."""
    return None if is_first() else True


def shared(value):
    """The first process's value, a plain object, in every process."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def gathered(value):
    """Every process's value, a plain object, as a list in the order of the ranks."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    with torch.inference_mode(False):  # in which older PyTorch's gloo can't receive
        dist.all_gather_object(values, value)
    return values


def wait_for_all():
    """Return once every process has come here."""
    if world_size() > 1:
        dist.barrier()


def in_order(mine):
    """Lists of which every process has every world_size()-th item, as one list in every process."""
    everyone = gathered(mine)
    return [everyone[i % len(everyone)][i // len(everyone)] for i in range(sum(map(len, everyone)))]


def begin_step(size):
    """Say how many images all processes together have in the batch that comes."""
    STEP["size"] = size


def step_size():
    """What begin_step was told."""
    return STEP["size"]


def whole_batch(rows):
    """The rows of all processes, tensor (step_size(), ...), each having every world_size()-th.

    A gradient flows back to the process's own rows alone.
    """
    world, own, size = world_size(), rank(), step_size()
    if world == 1:
        return rows
    padded = rows.new_zeros(-(-size // world), *rows.shape[1:])  # the last batch may be uneven
    padded[: len(rows)] = rows.detach()
    everyone = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(everyone, padded)
    everyone[own] = torch.cat([rows, padded[len(rows) :]])
    return torch.stack(everyone, dim=1).flatten(0, 1)[:size]
