"""Images kept in memory, so that each is decoded and resized once a run and not once an epoch."""

import ctypes
import multiprocessing
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import psutil

from data.augment import build_transform
from utils.cli import InputError

CGROUP = Path("/sys/fs/cgroup")  # where a container's memory is limited, on Linux


def free_memory():
    """Bytes of memory that are free for images, here and where shared memory is kept."""
    free = psutil.virtual_memory().available
    try:
        limit, used = ((CGROUP / f"memory.{name}").read_text() for name in ("max", "current"))
        free = min(free, int(limit) - int(used))
    except (OSError, ValueError):  # no such limit: no file, or the word max in it
        pass
    # Shared memory is a file; multiprocessing takes the first of these with enough space.
    folders = [path for path in ("/dev/shm", tempfile.gettempdir()) if os.path.isdir(path)]
    free = min(free, max(shutil.disk_usage(path).free for path in folders))
    return max(0, free)


def cache_limit(gigabytes, needed):
    """Bytes that images may take in one process of torchrun: its share of half of the free memory
    if gigabytes is "auto", else gigabytes. needed: bytes that all images would take.

    Raises InputError when gigabytes are asked for and needed, but not free.
    """
    free, processes = free_memory(), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if gigabytes == "auto":
        return free // 2 // processes
    limit = int(gigabytes * 1e9)
    if min(limit, needed) * processes > free:
        raise InputError(f"--cache {gigabytes:g}: {free / 1e9:.1f} GB are free; ask for less")
    return limit


class ImageCache:
    """The first images of a data set, as many as fit into limit bytes, in memory that all workers
    of a loader share and fill as they come by.

    count: number of images, all uint8 (side, side, 3).
    """

    def __init__(self, count, side, limit):
        self.resize = build_transform(side)
        self.shape = (min(count, limit // (side * side * 3 + 1)), side, side, 3)
        # Raw arrays and not NumPy's: these travel to a spawned worker as memory and not as a copy.
        self.pixels = multiprocessing.RawArray(ctypes.c_uint8, int(np.prod(self.shape)))
        self.filled = multiprocessing.RawArray(ctypes.c_uint8, self.shape[0])

    @property
    def nbytes(self):
        return len(self.pixels) + len(self.filled)

    def images(self):
        return np.frombuffer(self.pixels, np.uint8).reshape(self.shape)

    def get(self, index):
        """A copy of the image at index, or None when it isn't there yet."""
        if index >= self.shape[0] or not self.filled[index]:
            return None
        return self.images()[index].copy()

    def put(self, index, image):
        """Resize an image of any size, keep it if it is one of the first that fit, return it."""
        image = self.resize(image=image)["image"]
        if index < self.shape[0]:
            self.images()[index] = image
            self.filled[index] = 1  # after its pixels: no other worker takes half an image
        return image
