"""What the command lines of all scripts share: arguments, one-line errors, exit status."""

import argparse
import atexit
import contextlib
import errno
import multiprocessing.util
import os
import re
import signal
import sys
import threading

from config import config

AT_END = contextlib.ExitStack()  # closed when a command, or Python, ends
atexit.register(AT_END.close)
# Texts of errors that have no type of their own, or that torch.compile wraps.
OUT_OF_MEMORY = (
    r"out of memory|allocate memory|DataLoader worker \(pid|shared memory|new thread|open files|"
    r"_ALLOC_FAILED|OutOfMemoryError"
)
NO_COMPILER = "InvalidCxxCompiler|TritonMissing|working triton|GPUTooOldForTriton"


class InputError(Exception):
    """The user gave something wrong. The message, one line, names it and the way out."""

    def __init__(self, message):
        # A DataLoader raises a worker's error anew, with the worker's traceback in front.
        name = f"{type(self).__module__}.{type(self).__qualname__}: "
        super().__init__(message.rpartition(name)[2].strip())


class ArgumentParser(argparse.ArgumentParser):
    """An argparse parser that takes no abbreviations and reports an error in one line."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options, allow_abbrev=False)
        version = f"mask-age-gender {config.VERSION}"
        self.add_argument("--version", action="version", version=version)

    def error(self, message):
        self.exit(2, f"error: {message} (see --help)\n")


def run(main, on_interrupt="nothing was written"):
    """Call main() and exit as all scripts do: bad input, a full disk and a lack of memory end in
    one line on stderr and status 2, Ctrl-C in a line and status 130, SIGTERM in status 143.

    on_interrupt: what the line for Ctrl-C says about going on.
    """
    if hasattr(sys.stdout, "reconfigure"):  # a file name may hold letters the terminal lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in handlers.items():
        if handler != signal.SIG_IGN:  # as a shell script's `command &` ignores Ctrl-C
            signal.signal(number, stop)
    try:
        # Made before the workers: a folder of their own would stay behind when stop kills them.
        folder = multiprocessing.util.get_temp_dir()
        if os.name != "nt" and len(os.fsencode(folder)) > 85:  # what their sockets' paths allow
            raise InputError(f"{folder}: too long a path for PyTorch's workers; set TMPDIR to a "
                             "shorter one")  # fmt: skip
        with AT_END:
            main()
        sys.stdout.flush()
    except InputError as error:
        fail(error)
    except OSError as error:
        if error.filename is None and error.errno in (errno.EPIPE, errno.ENOSPC):
            # Our output can't be written; at a normal exit Python would try, and fail, again.
            print(f"error: output: {error.strerror}", file=sys.stderr, flush=True)
            os._exit(2)
        fail(f"{error.filename or type(error).__name__}: {error.strerror or error}")
    except (MemoryError, RuntimeError) as error:
        if re.search(NO_COMPILER, f"{type(error).__name__}: {error}"):
            fail("--compile: needs g++ or, on a GPU, Triton that supports it; leave it out")
        if not isinstance(error, MemoryError) and not re.search(OUT_OF_MEMORY, str(error)):
            raise
        fail(f"out of memory; lower --batch-size, --crop-batch-size or --num-workers ({error})")
    except KeyboardInterrupt:
        print(f"interrupted; {on_interrupt}", file=sys.stderr)
        sys.exit(130)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        threading.excepthook = threading.__excepthook__


def stop(number, _):
    """Handle Ctrl-C, or SIGTERM, which schedulers send: end the command as an error would, so that
    it removes its temporary files, but first the workers, which could still write some.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the next one ends it at once
    if hasattr(signal, "SIGCHLD"):  # not on Windows; PyTorch's handler would report the workers
        signal.signal(signal.SIGCHLD, lambda *_: None)
    threading.excepthook = lambda *_: None  # so would its thread for pinned memory
    for child in multiprocessing.active_children():
        child.kill()
        child.join()
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(143)


def fail(message):
    """Print message as one line on stderr and exit with status 2."""
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr)
    sys.exit(2)


def start_worker(*_):
    """Have a worker process ignore Ctrl-C, which the main one handles, and end with that one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent():
    """End this process when its parent ends: else it would outlive one that was killed."""
    multiprocessing.parent_process().join()
    os._exit(1)


def checked(convert, accepts, meaning):
    """An argparse type: convert(text), refused with its meaning unless accepts(value)."""

    def parse(text):
        with contextlib.suppress(ValueError):
            if accepts(value := convert(text)):
                return value
        raise argparse.ArgumentTypeError(f"{text} is not {meaning}")

    return parse


file_name = checked(str, bool, "the name of a file or folder")
positive_int = checked(int, lambda n: 1 <= n < 2**31, "a whole number from 1 to 2^31 - 1")
natural_int = checked(int, lambda n: 0 <= n < 2**31, "a whole number from 0 to 2^31 - 1")
worker_count = checked(int, lambda n: 0 <= n <= 256, "a whole number from 0 to 256")
seed_int = checked(int, lambda n: 0 <= n < 2**32, "a whole number from 0 to 2^32 - 1")
input_size = checked(int, lambda n: 64 <= n <= 4096, "a whole number from 64 to 4096")
positive_float = checked(float, lambda x: 0 < x < float("inf"), "a finite number above 0")
natural_float = checked(float, lambda x: 0 <= x < float("inf"), "a finite number of at least 0")
fraction = checked(float, lambda x: 0 <= x < 1, "a number from 0 to below 1")


# Each adds arguments with add, the add_argument method of a parser or a group.
# fmt: off
def add_data_arguments(add):
    add("--data-dir", type=file_name, default=config.DATA_DIR,
        help="folder that holds train/ and eval/ (default: MAG_DATA_DIR, or input/data)")
    add("--crop-dir", type=file_name, default=config.CROP_DIR,
        help="folder for the face crops (default: MAG_CROP_DIR, or the data directory)")
    add("--skip-bad", action="store_true",
        help="go on without photos that can't be read (default: stop and name them)")


def add_device_argument(add):
    add("--device", default=config.DEVICE,
        help="auto (the first GPU, else the CPU), cpu, cuda or cuda:1 (default: %(default)s)")


def add_machine_arguments(add):
    add_device_argument(add)
    add("--num-workers", type=worker_count, default=config.NUM_WORKERS,
        help="processes that read, crop and augment images (default: one per core, up to 4: "
        "%(default)s)")


def add_precision_arguments(add):
    add("--precision", choices=("auto", "fp32", "fp16", "bf16"), default=config.PRECISION,
        help="auto: whichever the GPU does well, fp32 on a CPU (default: %(default)s)")
    add("--deterministic", action="store_true",
        help="bit-identical runs on a GPU too; PyTorch warns about layers that can't do it "
        "(default: faster kernels)")


def add_runs_argument(add):
    add("--runs", type=file_name, nargs="+", default=[config.OUTPUT_DIR], metavar="FOLDER",
        help=f"runs or folders of runs, whose networks are averaged (default: {config.OUTPUT_DIR})")


def add_prediction_arguments(add):
    add_runs_argument(add)
    add("--age-views", type=natural_int, default=config.AGE_VIEWS,
        help="augmented views for the age head, besides the plain one (default: %(default)s)")
    add("--tta", choices=("none", "flip"),
        help="flip: average a face and its mirror image (default: as each head was trained)")
    add("--batch-size", type=positive_int, default=config.BATCH_SIZE,
        help="images per step (default: %(default)s)")
    add("--backend", choices=("auto", "torch", "onnx"), default=config.BACKEND,
        help="auto: onnx, if it is installed, on a CPU in fp32, else torch (default: %(default)s)")
# fmt: on
