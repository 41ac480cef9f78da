"""Files that appear whole or not at all."""

import contextlib
import glob
import json
import os
import tempfile
import time
from pathlib import Path

from utils.cli import InputError

ABANDONED = 3600  # seconds; an older temporary file belongs to a process that was killed


@contextlib.contextmanager
def atomic_write(path, mode="wb"):
    """Open a temporary file beside path and rename it to path once it is on disk.

    A reader sees the old file or the new one, never a part of it. Raises InputError when it can't
    be written, for example because the disk is full; the old file stays.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    try:
        with open(temporary, mode, **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(
            f"{path}: can't be written ({error.strerror or error}); free space, close it in other "
            "programs, or choose another folder"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder, pattern=".*"):
    """Remove temporary files that killed processes left in folder; pattern as for Path.glob."""
    for path in Path(folder).glob(f"{pattern}.*.tmp"):
        with contextlib.suppress(OSError):  # gone already, or another user's
            if time.time() - path.stat().st_mtime > ABANDONED:
                path.unlink()


def make_folder(path, way_out):
    """Make a folder and its parents. Raises InputError, with way_out, when it can't be written."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise InputError(f"{path}: can't be written to ({error.strerror}); {way_out}") from error


def check_output(output, suffixes, inputs, beside=()):
    """Check that --output, with one of suffixes, and files of the names beside can be written,
    replacing none of inputs, outside of a run's folder; else raises InputError. Returns the paths
    of those beside it.
    """
    output = Path(output)
    if output.suffix.lower() not in suffixes or output.name in beside:
        raise InputError(f"--output {output}: name a file that ends in {' or '.join(suffixes)}")
    paths = [output, *(output.with_name(name) for name in beside)]
    make_folder(output.parent, "choose another --output")
    if any((output.parent / name).exists() for name in ("best.pth", "last.pth")):
        raise InputError(f"--output {output}: {output.parent} holds a run; choose another folder")
    for path in paths:
        if path.exists() and not path.is_file():
            raise InputError(f"--output {output}: {path} is not a file; choose another folder")
        if path.exists() and any(path.samefile(read) for read in inputs):
            raise InputError(f"--output {output}: would overwrite {path}, which is read here")
        remove_leftovers(path.parent, f".{glob.escape(path.name)}")
    return paths[1:]


def write_csv(path, table):
    """Write a DataFrame as CSV, with a header and without its index."""
    with atomic_write(path, "w") as file:
        table.to_csv(file, index=False, lineterminator="\n")


def write_json(path, value):
    """Write plain types as indented JSON."""
    with atomic_write(path, "w") as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")
