"""Files that appear whole or not at all."""

import contextlib
import glob
import json
import os
import tempfile
import time
from pathlib import Path

from utils.cli import InputError

# A temporary file older than this, in seconds, belongs to a process that was killed.
LEFT_BEHIND = 3600
# Seconds that a rename waits: Windows refuses it while a virus scanner, say, has the file open.
WAIT_FOR_OTHERS = 3 if os.name == "nt" else 0


@contextlib.contextmanager
def atomic_write(path, mode="wb"):
    """Open a temporary file beside path; rename it to path once all of it is on disk.

    A reader sees the old file or the new one, never a part, whatever ends the process. Raises
    InputError when it can't be written, on a full disk for example; the old file stays.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    try:
        with open(temporary, mode, **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        replace(temporary, path)
    except OSError as error:
        reason = error.strerror or str(error)
        way_out = "free space or go elsewhere"
        if WAIT_FOR_OTHERS and isinstance(error, PermissionError):
            way_out = "is it open in another program?"
        raise InputError(f"{path}: can't be written ({reason}); {way_out}") from error
    finally:
        with contextlib.suppress(OSError):  # it's gone after the rename, or never was
            temporary.unlink()


def replace(temporary, path):
    """os.replace that waits up to WAIT_FOR_OTHERS seconds for those who have path open."""
    end = time.monotonic() + WAIT_FOR_OTHERS
    while True:
        try:
            return os.replace(temporary, path)
        except PermissionError:
            if time.monotonic() >= end:
                raise
        time.sleep(0.05)


def remove_leftovers(folder, pattern=".*"):
    """Remove what killed processes left of atomic_write in folder; pattern as for Path.glob."""
    for path in Path(folder).glob(f"{pattern}.*.tmp"):
        with contextlib.suppress(OSError):  # gone, or not ours to remove: it does no harm
            if time.time() - path.stat().st_mtime > LEFT_BEHIND:
                path.unlink()


def make_folder(path, way_out):
    """Make a folder, its parents too, that files can be written to.

    Raises InputError, ending with way_out, when that can't be.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise InputError(f"{path}: no folder to write to ({error.strerror}); {way_out}") from error


def check_file(path, way_out):
    """Make sure, before long work, that a file can be written. Raises InputError, with way_out."""
    make_folder(Path(path).parent, way_out)
    try:
        with open(path, "a"):
            pass
    except OSError as error:
        raise InputError(f"{path}: can't be written ({error.strerror}); {way_out}") from error


def check_output(output, suffix, names, inputs):
    """Make sure that the file of --output, which ends in suffix, and those of these names beside it
    can be written, are different ones, none of the inputs and no run's. Returns the paths of the
    latter. Raises InputError.
    """
    beside = [output.parent / name for name in names]
    paths = [output, *beside]
    if output.suffix.lower() != suffix or output.name in names:
        raise InputError(f"--output {output}: name a file that ends in {suffix}")
    # Those of atomic_write are longer, and most file systems take 255 bytes.
    if any(len(os.fsencode(path.name)) > 235 for path in paths):
        raise InputError(f"--output {output}: name too long; take one of 200 bytes at most")
    for path in paths:
        if path.exists() and not path.is_file():
            raise InputError(f"--output {output}: {path} is there and no file; go elsewhere")
    if any((output.parent / name).exists() for name in ("best.pth", "last.pth")):
        raise InputError(f"--output {output}: {output.parent} holds a run; go elsewhere")
    make_folder(output.parent, "give another --output")
    for path in paths:
        if path.exists() and any(path.samefile(read) for read in inputs):
            raise InputError(f"--output {output}: would overwrite {path}, which is read here")
        remove_leftovers(output.parent, f".{glob.escape(path.name)}")
    return beside


def write_csv(path, table):
    """Write a DataFrame as CSV with a header and no index, whole or not at all."""
    with atomic_write(path, "w") as file:
        table.to_csv(file, index=False, lineterminator="\n")


def write_json(path, value):
    """Write plain types as indented JSON, whole or not at all."""
    with atomic_write(path, "w") as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")
