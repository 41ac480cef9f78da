"""Files that appear whole or not at all."""

import contextlib
import errno
import glob
import json
import os
import secrets
import tempfile
import zlib
from pathlib import Path

from filelock import FileLock, Timeout

from utils.cli import AT_END, InputError
from utils.device import is_first

try:
    import fcntl
except ImportError:  # Windows, where every file system has locks
    fcntl = None


@contextlib.contextmanager
def atomic_write(path, mode="wb", sync=True):
    """Open a temporary file beside path and rename it to path once it is written and, if sync, on
    the disk.

    A reader sees the old file or the new one, never a part of it. Raises InputError when it can't
    be written, for example because the disk is full; the old file stays.
    """
    path = Path(path)
    temporary = hidden(path, f".{secrets.token_hex(4)}.tmp")
    # Bytes in a file name that are no text are escaped, as in JSON.
    text = {"encoding": "utf-8", "newline": "", "errors": "backslashreplace"}
    try:
        with open(temporary, mode, **({} if "b" in mode else text)) as file:
            yield file
            file.flush()
            try:
                if sync:
                    os.fsync(file.fileno())
            except OSError as error:  # some file systems can't
                if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                    raise
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(
            f"{path}: can't be written ({error.strerror or error}); free space, close it in other "
            "programs, or choose another folder"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # or it would hide the first error
            temporary.unlink(missing_ok=True)


def hidden(path, ending):
    """A hidden path beside path, of its own, and short: names have at most 255 bytes."""
    return path.with_name(f".{path.name[:40]}.{zlib.crc32(os.fsencode(path.name)):08x}{ending}")


def has_locks(folder):
    """Whether files in folder can be locked; in old versions, FileLock would wait for ever."""
    make_folder(folder, "choose another folder")
    with tempfile.TemporaryFile(dir=folder) as file, contextlib.suppress(OSError):
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


@contextlib.contextmanager
def locked(path, held, wait=False):
    """Hold the lock file path, in the first process on behalf of all, once no other command does.

    held: the message when one does. With wait, it is printed; otherwise it is an InputError. Where
    files can't be locked, this is printed, and nothing is locked.
    """
    if not is_first():
        return (yield)
    if not has_locks(path.parent):
        print(f"{path.parent}: files can't be locked here; let no other command write to it")
        return (yield)
    lock = FileLock(path, mode=0o666)  # for other users of the folder too
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        if not wait:
            raise InputError(held) from error
        print(held, flush=True)
        lock.acquire()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; choose another folder") from error
    try:
        yield
    finally:
        if not wait:  # nobody waits for this very file
            with contextlib.suppress(OSError):  # Windows
                path.unlink()
        lock.release()


def hold(path, way_out):
    """Hold the lock of a file or folder, without leftovers, until the command ends: nobody else may
    write to it. Raises InputError, with way_out, when another command does.
    """
    held = f"{path}: another command writes to it; {way_out}"
    AT_END.enter_context(locked(hidden(path.absolute(), ".lock"), held))
    if is_first() and path.is_dir():
        remove_leftovers(path)
    elif is_first():
        remove_leftovers(path.parent, glob.escape(hidden(path, "").name))


def remove_leftovers(folder, pattern=".*"):
    """Remove temporary files that killed processes left in folder, to which no other process may
    write now; pattern as for Path.glob.
    """
    for path in Path(folder).glob(f"{pattern}.*.tmp"):
        with contextlib.suppress(OSError):  # another user's
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
    """Check and lock --output and the files of the names beside it; returns the paths of these.

    Raises InputError unless it has one of suffixes, and if a file can't be written, is one of
    inputs, or lies in the folder of a run or of data.
    """
    output = Path(output)
    if output.suffix.lower() not in suffixes or output.name in beside:
        other = f", and is not {' or '.join(beside)}" if beside else ""
        raise InputError(f"--output {output}: name a file that ends in {suffixes[0]}{other}")
    paths = [output, *(output.with_name(name) for name in beside)]
    inputs = [path for path in inputs if os.path.exists(path)]  # others are reported when read
    make_folder(output.parent, "choose another --output")
    holds = ("best.pth", "last.pth", "train.csv", "info.csv")
    if any((output.parent / name).exists() for name in holds):
        raise InputError(f"--output {output}: in a folder of a run or of data; choose another one")
    for path in paths:
        if path.exists() and not path.is_file():
            raise InputError(f"--output {output}: {path} is not a file; choose another folder")
        if path.exists() and any(path.samefile(read) for read in inputs):
            raise InputError(
                f"--output {output}: would overwrite {path}, which is read here; choose another one"
            )
        hold(path, "wait for it, or choose another --output")
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
