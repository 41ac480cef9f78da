"""What the command-line scripts share: one-line errors, argument types, common arguments."""

import argparse
import shlex
import sys

from config import config


class InputError(Exception):
    """Something the user gave is wrong. The message, one line, names it and the way out."""


# Faults of the machine that torch reports as RuntimeError, and the way out of each.
FAULTS = {
    "out of memory": "lower --batch-size, or --crop-batch-size if photos were being cropped",
    "can't allocate memory": "lower --batch-size, --crop-batch-size or --num-workers",
    "DataLoader worker (pid": "was it killed for its memory? lower --num-workers",
}


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser without abbreviations, and with one line on stderr instead of the usage."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options, allow_abbrev=False)

    def error(self, message):
        self.exit(2, f"error: {message} (see --help)\n")


def run(main, go_on=()):
    """Call main(); an InputError becomes one line on stderr and exit status 2, Ctrl-C 130.

    go_on: a list that main fills with the arguments that make the command go on, once it could.
    """
    try:
        main()
    except InputError as error:
        # From a loader's worker it comes behind the worker's traceback.
        message = str(error).rpartition("\nutils.cli.InputError: ")[2]
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        for words, way_out in FAULTS.items():
            if words in str(error):
                print(f"error: {str(error).splitlines()[0]} {way_out}", file=sys.stderr)
                sys.exit(2)
        raise
    except KeyboardInterrupt:
        module = sys.modules["__main__"].__spec__  # None for a script
        command = ["-m", module.name] if module else [sys.argv[0]]
        replaced = ("--overwrite", *go_on) if go_on else ()
        kept = [argument for argument in sys.argv[1:] if argument not in replaced]
        command = shlex.join(["python", *command, *kept, *go_on])
        print(f"interrupted; to go on: {command}", file=sys.stderr)
        sys.exit(130)


def positive_int(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return value


def natural_int(text):
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 0")
    return value


def seed(text):
    value = int(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0 to 2^32 - 1")
    return value


def positive_float(text):
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number above 0")
    return value


def natural_float(text):
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number of at least 0")
    return value


def fraction(text):
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 1)")
    return value


def add_data_arguments(add):
    """Add --data-dir, --crop-dir and --skip-bad with add, an add_argument method."""
    # fmt: off
    add("--data-dir", default=config.DATA_DIR,
        help="folder with train/ and eval/ (default: input/data, or what MAG_DATA_DIR says)")
    add("--crop-dir", default=config.CROP_DIR,
        help="folder for the cropped faces (default: the data directory)")
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


def add_precision_argument(add):
    """Add --precision with add, an add_argument method."""
    add("--precision", choices=("auto", "fp32", "fp16", "bf16"), default=config.PRECISION,
        help="auto is the GPU's fast one, and fp32 on a CPU (default: %(default)s)")  # fmt: skip
