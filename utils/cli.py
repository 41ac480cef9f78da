"""What the command-line scripts share: one-line errors, argument types, common arguments."""

import argparse
import errno
import multiprocessing
import os
import shlex
import signal
import sys
from importlib.util import find_spec

from config import config


class InputError(Exception):
    """Something the user gave is wrong. The message, one line, names it and the way out."""


STDOUT = 1
# A spawned worker imports for seconds before it can be told, see leave_ctrl_c_to_the_parent.
if multiprocessing.parent_process():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
MEMORY = "lower --batch-size, --crop-batch-size or --num-workers"
# Faults of the machine that torch reports as RuntimeError, and the way out of each.
FAULTS = {
    "out of memory": "lower --batch-size, or, if photos were being cropped, --crop-batch-size or "
    "--num-workers",
    "can't allocate memory": MEMORY,
    "Cannot allocate memory": MEMORY,
    "ALLOC_FAILED": MEMORY,
    "shared memory": "lower --num-workers; in Docker, give more with --shm-size",
    "</torch_": "shared memory is full: lower --num-workers; in Docker, give more with --shm-size",
    "can't start new thread": "lower --num-workers",
    "DataLoader worker (pid": "was it killed for its memory? lower --num-workers",
}


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser without abbreviations, and with one line on stderr instead of the usage."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options, allow_abbrev=False)
        version = f"mask-age-gender {config.VERSION}"
        self.add_argument("--version", action="version", version=version,
                          help="print the version and exit (default: don't)")  # fmt: skip

    def error(self, message):
        self.exit(2, f"error: {message} (see --help)\n")


def answer_early(parser):
    """Answer --help, wrong arguments and a shell that completes arguments, and be stopped by Ctrl-C
    without a traceback, already before a script's slow imports: to be called between the quick ones
    and these.
    """
    if "_ARGCOMPLETE" in os.environ and find_spec("argcomplete"):
        import argcomplete

        argcomplete.autocomplete(parser)
    parser.parse_args()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored, as in nohup
        signal.signal(signal.SIGINT, leave_imports)


def leave_imports(number, frame):
    """A signal handler. Not by an exception, which a module that is being imported may catch."""
    print(f"interrupted; to go on: {command_to_go_on(())}", file=sys.stderr, flush=True)
    os._exit(130)


def leave_ctrl_c_to_the_parent(worker):
    """A DataLoader's worker_init_fn: else a worker may die of Ctrl-C first, and that looks like a
    fault.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def run(main, go_on=()):
    """Call main(); an InputError or a fault of the machine becomes one line on stderr and exit
    status 2, Ctrl-C a line and 130.

    go_on: a list that main fills with the arguments that make the command go on, once it could.
    """
    if signal.getsignal(signal.SIGINT) is leave_imports:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(sys.stdout, "reconfigure"):  # a file's name may have letters that its encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main()
        sys.stdout.flush()
    except InputError as error:
        # From a loader's worker it comes behind the worker's traceback.
        fail(str(error).rpartition("\nutils.cli.InputError: ")[2])
    except OSError as error:
        if error.filename is not None:
            fail(f"{error.filename}: {error.strerror}")
        if error.errno not in (errno.EPIPE, errno.ENOSPC, errno.EIO):
            fail(str(error).strip().splitlines()[-1])
        # What reads our output, such as head, has gone, or its file's disk is full.
        os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)  # or exit would flush, and fail, again
        fail(f"the output: {error.strerror}; to go on: {command_to_go_on(go_on)}")
    except MemoryError as error:
        fail(f"out of memory; {MEMORY} ({error})")
    except RuntimeError as error:
        for words, way_out in FAULTS.items():
            if words in str(error):
                line = next(line for line in str(error).splitlines() if words in line)
                fail(f"{line}; {way_out}")
        raise
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            print(f"interrupted; to go on: {command_to_go_on(go_on)}", file=sys.stderr)
        sys.exit(130)


def printable(name):
    """A file's name, which need not be text, as text."""
    return name.encode(errors="replace").decode()


def fail(message):
    """Print message as one line on stderr and exit with status 2."""
    process = os.environ.get("RANK", "0")  # of torchrun
    which = "" if process == "0" else f"process {process}: "
    print(f"error: {which}{' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def command_to_go_on(go_on):
    """The command line that was given, with the arguments go_on in the place of --overwrite."""
    module = sys.modules["__main__"].__spec__  # None for a script
    command = ["-m", module.name] if module else [sys.argv[0]]
    replaced = ("--overwrite", *go_on) if go_on else ()
    kept = [argument for argument in sys.argv[1:] if argument not in replaced]
    launcher = "torchrun ..." if "TORCHELASTIC_RUN_ID" in os.environ else "python"
    return f"{launcher} {shlex.join([*command, *kept, *go_on])}"


def number(convert, valid, meaning):
    """An argument type: text -> convert(text), refused with its meaning unless valid."""

    def parse(text):
        try:
            value = convert(text)
        except ValueError:
            value = None
        if value is None or not valid(value):
            raise argparse.ArgumentTypeError(f"{text} is not {meaning}")
        return value

    return parse


whole_number = number(int, lambda value: True, "a whole number")
positive_int = number(int, lambda value: 1 <= value < 2**31, "a whole number from 1 to 2^31 - 1")
natural_int = number(int, lambda value: 0 <= value < 2**31, "a whole number from 0 to 2^31 - 1")
seed = number(int, lambda value: 0 <= value < 2**32, "a whole number from 0 to 2^32 - 1")
positive_float = number(float, lambda value: 0 < value < float("inf"), "a finite number above 0")
natural_float = number(
    float, lambda value: 0 <= value < float("inf"), "a finite number of at least 0"
)
gigabytes = number(
    lambda text: text if text == "auto" else float(text),
    lambda value: value == "auto" or 0 <= value <= 1e6,
    "auto or a number of gigabytes from 0 to 1e6",
)
fraction = number(float, lambda value: 0 <= value < 1, "a number in [0, 1)")


def add_data_arguments(add):
    """Add --data-dir, --crop-dir and --skip-bad with add, an add_argument method."""
    # fmt: off
    add("--data-dir", default=config.DATA_DIR,
        help="folder with train/ and eval/ (default: input/data, or what MAG_DATA_DIR says)")
    add("--crop-dir", default=config.CROP_DIR,
        help="folder for the cropped faces (default: the data directory, or MAG_CROP_DIR)")
    add("--skip-bad", action="store_true",
        help="do without photos that can't be read (default: name them and stop)")
    # fmt: on


def add_machine_arguments(add):
    """Add --device and --num-workers with add, an add_argument method."""
    # fmt: off
    add("--device", default=config.DEVICE,
        help="auto (the first GPU, else the CPU), cpu, cuda or cuda:1 (default: %(default)s)")
    add("--num-workers", type=natural_int, default=config.NUM_WORKERS,
        help="what reads images beside the network (default: one a core, up to 4: %(default)s)")
    # fmt: on


def add_precision_arguments(add):
    """Add --precision and --deterministic with add, an add_argument method."""
    # fmt: off
    add("--precision", choices=("auto", "fp32", "fp16", "bf16"), default=config.PRECISION,
        help="auto is the GPU's fast one, and fp32 on a CPU (default: %(default)s)")
    add("--deterministic", action="store_true",
        help="the same bits in every run on a GPU, too (default: its fastest kernels)")
    # fmt: on


def add_runs(add):
    """Add --runs with add, an add_argument method."""
    add("--runs", nargs="+", default=[config.OUTPUT_DIR], metavar="FOLDER",
        help="folders with runs of train.py; each head is the mean of all its networks in them "
        f"(default: {config.OUTPUT_DIR})"
    )  # fmt: skip


def add_crop_batch_size(add):
    """Add --crop-batch-size with add, an add_argument method."""
    add("--crop-batch-size", type=positive_int, default=config.CROP_BATCH_SIZE,
        help="photos of 384 x 512 the detector takes at once (default: 8 on a CPU, 32 on a GPU)"
    )  # fmt: skip


def add_crop_arguments(parser):
    """Add the arguments that say how photos are cropped."""
    add = parser.add_argument_group("face crops (sizes in pixels of the photo)").add_argument
    # fmt: off
    add("--detector", choices=config.DETECTORS, default=config.DETECTOR,
        help="what finds the face: mtcnn, or keypoint_rcnn (torchvision's, whose weights are "
        "downloaded; slow, but finds people by more than the face) (default: %(default)s)")
    add("--min-face-size", type=positive_int, default=config.MIN_FACE_SIZE,
        help="smallest face looked for (default: %(default)s)")
    add("--margin-x", type=natural_int, default=config.MARGIN_X,
        help="added left and right of the found box (default: %(default)s)")
    add("--margin-y", type=natural_int, default=config.MARGIN_Y,
        help="added above and below the found box (default: %(default)s)")
    add("--center-size", type=positive_int, default=config.CENTER_SIZE,
        help="side of the central crop where no face is found (default: %(default)s)")
    add_crop_batch_size(add)
    # fmt: on
