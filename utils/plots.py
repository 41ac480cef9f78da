"""The pictures of a run: curves.png and confusion.png."""

import io

import numpy as np
from matplotlib.figure import Figure

from utils.files import atomic_write

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"


def save_figure(path, figure):
    """Write a figure as PNG, whole or not at all. Raises InputError when it can't be written."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def draw_curves(log, title):
    """Losses and valid macro-F1 by epoch, the best epoch marked. log: the table log.csv."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    losses, scores = figure.subplots(1, 2)
    figure.suptitle(title)
    losses.plot(log["epoch"], log["train_loss"], "o-", color=BLUE, label="train")
    losses.plot(log["epoch"], log["valid_loss"], "s--", color=ORANGE, label="valid")
    top = 1.05 * log[["train_loss", "valid_loss"]].max(axis=None)
    losses.set(xlabel="epoch", ylabel="loss per photo", ylim=(0, top or None))
    losses.legend()
    best = log.loc[log["macro_f1"].idxmax()]  # the first of several, whose checkpoint was kept
    label = f"best: {best['macro_f1']:.4f}, epoch {best['epoch']:.0f}"
    scores.plot(log["epoch"], log["macro_f1"], "o-", color=BLUE, label="macro-F1")
    scores.plot(log["epoch"], log["accuracy"], "s--", color=GREEN, label="accuracy")
    scores.plot(best["epoch"], best["macro_f1"], "*", color=ORANGE, markersize=16, label=label)
    scores.set(xlabel="epoch", ylabel="valid score", ylim=(0, 1.03))
    scores.legend(loc="lower right")
    for axes in (losses, scores):
        axes.grid(alpha=0.3)
        axes.set_xlim(0.5, len(log) + 0.5)
        axes.locator_params(axis="x", integer=True, min_n_ticks=1)
    return figure


def draw_confusion(confusion, classes, title):
    """A confusion matrix, int (C, C), rows true: counts, shaded by and with their row's shares."""
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    size = 2.5 + 1.3 * len(classes)
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="cividis", vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(shares):
        text = f"{confusion[row, column]}\n{share:.1%}"
        color = "black" if share > 0.5 else "white"
        axes.text(column, row, text, ha="center", va="center", color=color)
    ticks = range(len(classes))
    axes.set(xlabel="predicted", ylabel="true", title=title)
    axes.set_xticks(ticks, classes)
    axes.set_yticks(ticks, classes, rotation=90, va="center")
    figure.colorbar(image, label="share of the true class's photos", shrink=0.8)
    return figure
