"""What the command-line scripts share: one-line errors and argument types."""

import argparse
import sys


class InputError(Exception):
    """Something the user gave is wrong. The message, one line, names it and the way out."""


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser, with one line on stderr instead of the whole usage."""

    def error(self, message):
        self.exit(2, f"error: {message} (see --help)\n")


def run(main):
    """Call main(); an InputError becomes one line on stderr and exit status 2."""
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


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


def positive_float(text):
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number above 0")
    return value


def fraction(text):
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 1)")
    return value
