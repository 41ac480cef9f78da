"""The pictures of a run: curves.png and confusion.png."""

from pathlib import Path

import pandas as pd

from utils.files import atomic_write

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"


def save_figure(path, figure):
    """Write a matplotlib Figure as PNG. Raises InputError when path can't be written."""
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=120)


def save_plots(folder, classes):
    """Draw curves.png and confusion.png of the run in folder; classes: their names, in order."""
    from matplotlib.figure import Figure  # it and scikit-learn take a second to import
    from sklearn.metrics import ConfusionMatrixDisplay

    folder = Path(folder)
    log = pd.read_csv(folder / "log.csv", index_col="epoch")
    best = log["macro_f1"].idxmax()  # of equal ones the first, whose checkpoint is kept
    figure = Figure(figsize=(10, 4), layout="constrained")
    losses, scores = figure.subplots(1, 2)
    log[["train_loss", "val_loss"]].plot(ax=losses, color=[BLUE, ORANGE], marker="o", ylim=0)
    log[["macro_f1", "accuracy"]].plot(ax=scores, color=[BLUE, GREEN], marker="o", ylim=(0, 1.03))
    label = f"best: {log['macro_f1'][best]:.4f}, epoch {best}"
    scores.plot(best, log["macro_f1"][best], "*", color=ORANGE, markersize=16, label=label)
    scores.legend(loc="lower right")
    for axes in (losses, scores):
        axes.set_xticks(log.index[:: 1 + len(log) // 10])
        axes.grid(alpha=0.3)
    figure.suptitle(f"{folder.name}: loss and val scores")
    save_figure(folder / "curves.png", figure)

    table = pd.read_csv(folder / "val_predictions.csv", usecols=["label", "predicted"], dtype=str)
    figure = Figure(figsize=(4 + len(classes), 3 + len(classes)), layout="constrained")
    axes = figure.subplots()
    ConfusionMatrixDisplay.from_predictions(
        table["label"], table["predicted"], labels=classes, ax=axes, cmap="cividis"
    )
    axes.set_title(f"{folder.name}: val photos")
    save_figure(folder / "confusion.png", figure)
