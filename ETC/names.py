"""Names to show: of the official classes and of files."""

import numpy as np

from config.config import CLASSES
from data.labels import split_classes


def class_names():
    """The names of the 18 official classes in order; the first is "mask, male, under30"."""
    return [
        ", ".join(names[label] for names, label in zip(CLASSES.values(), labels))
        for labels in zip(*split_classes(np.arange(18)))
    ]


def printable(name):
    """A file name as text; bytes that are no text, and carriage returns, which tables don't keep,
    become question marks.
    """
    return name.encode(errors="replace").decode().replace("\r", "?")
