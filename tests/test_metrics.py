import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from utils.metrics import classification_scores


def test_scores_are_scikit_learns():
    targets, predictions = np.random.default_rng(0).integers(3, size=(2, 50))
    scores = classification_scores(targets, predictions, 3)
    assert scores["macro_f1"] == pytest.approx(f1_score(targets, predictions, average="macro"))
    assert scores["class_f1"] == pytest.approx(f1_score(targets, predictions, average=None))
    assert scores["accuracy"] == accuracy_score(targets, predictions)


def test_a_class_with_neither_targets_nor_predictions_counts_as_0():
    scores = classification_scores([0, 1], [0, 1], 4)
    assert scores["class_f1"] == [1, 1, 0, 0]
    assert scores["macro_f1"] == 0.5
