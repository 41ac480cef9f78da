import pytest

from utils.metrics import classification_scores


def test_scores_of_a_few_photos():
    # Class 0: 2 hits, 1 false, 1 missed; class 1: 1 hit, 1 false, 2 missed; class 2: 1, 1, 0.
    scores = classification_scores([0, 0, 0, 1, 1, 1, 2], [0, 0, 1, 1, 0, 2, 2], 3)
    assert scores["class_f1"] == pytest.approx([2 / 3, 2 / 5, 2 / 3])
    assert scores["macro_f1"] == pytest.approx(26 / 45)
    assert scores["accuracy"] == pytest.approx(4 / 7)


def test_a_class_with_neither_targets_nor_predictions_counts_as_0():
    scores = classification_scores([0, 1], [0, 1], 4)
    assert scores["class_f1"] == [1, 1, 0, 0]
    assert scores["macro_f1"] == 0.5
