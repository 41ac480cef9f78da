import pandas as pd
import pytest

from utils import plots


@pytest.fixture
def figures(tmp_path, monkeypatch):
    """The figures of a run of three epochs, by file name."""
    pd.DataFrame({"epoch": [1, 2, 3], "train_loss": [1.0, 0.5, 0.2], "val_loss": [0.9, 0.7, 0.8],
                  "accuracy": [0.5, 0.7, 0.6], "macro_f1": [0.3, 0.6, 0.6]}
                 ).to_csv(tmp_path / "log.csv", index=False)  # fmt: skip
    pd.DataFrame({"label": ["a", "a", "a", "c"], "predicted": ["a", "a", "b", "c"]}).to_csv(
        tmp_path / "val_predictions.csv", index=False
    )
    drawn = {}
    monkeypatch.setattr(plots, "save_figure", lambda path, fig: drawn.update({path.name: fig}))
    plots.save_plots(tmp_path, ["a", "b", "c"])
    return drawn


def test_curves_show_the_log_and_its_first_best_epoch(figures):
    lines = [line for axes in figures["curves.png"].axes for line in axes.lines]
    assert {line.get_label(): line.get_xydata().tolist() for line in lines} == {
        "train_loss": [[1, 1.0], [2, 0.5], [3, 0.2]],
        "val_loss": [[1, 0.9], [2, 0.7], [3, 0.8]],
        "macro_f1": [[1, 0.3], [2, 0.6], [3, 0.6]],
        "accuracy": [[1, 0.5], [2, 0.7], [3, 0.6]],
        "best: 0.6000, epoch 2": [[2, 0.6]],
    }


def test_confusion_has_a_row_for_each_true_class(figures):
    axes = figures["confusion.png"].axes[0]
    assert [text.get_text() for text in axes.texts] == [*"210", *"000", *"001"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("Predicted label", "True label")
