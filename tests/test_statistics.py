import numpy as np
import pytest
from sklearn import metrics

from ETC.statistics import (
    accuracy,
    bootstrap_confusions,
    bootstrap_macro_f1,
    calibration,
    confusion_matrix,
    macro_f1,
)


def test_confusion_macro_f1_and_accuracy_are_scikit_learns():
    rng = np.random.default_rng(0)
    targets, predictions = rng.integers(4, size=(2, 5, 60))
    pairs = list(zip(targets, predictions))
    confusions = np.array([confusion_matrix(*pair, 5) for pair in pairs])  # class 4 never occurs
    expected = [metrics.confusion_matrix(*pair, labels=range(5)) for pair in pairs]
    assert (confusions == expected).all()
    expected = [metrics.f1_score(*pair, average="macro") for pair in pairs]
    assert macro_f1(confusions[:, :4, :4]) == pytest.approx(expected)
    assert macro_f1(confusions) == pytest.approx([4 / 5 * score for score in expected])
    expected = [metrics.accuracy_score(*pair) for pair in pairs]
    assert accuracy(confusions) == pytest.approx(expected)


def test_a_class_missed_by_the_draw_is_left_out_of_a_resample():
    """The third class has no photos in the set, either: it counts as 0 throughout."""
    whole = np.array([[2, 0, 0], [0, 2, 0], [0, 0, 0]])
    resample = np.array([[4, 0, 0], [0, 0, 0], [0, 0, 0]])
    assert macro_f1(whole) == pytest.approx(2 / 3)
    assert macro_f1(resample) == pytest.approx(1 / 3)
    assert macro_f1(resample, whole) == pytest.approx(1 / 2)
    predicted = np.array([[3, 0, 1], [0, 0, 0], [0, 0, 0]])  # the third, of nobody who was drawn
    assert macro_f1(predicted, 2 * np.eye(3)) == pytest.approx(6 / 7)


def test_the_bootstrap_draws_whole_groups():
    """Compared with a loop that repeats each group's photos as often as the group was drawn."""
    rng = np.random.default_rng(1)
    groups = np.repeat(["007", "b", "a", "c", "d"], 6)
    targets, predictions = rng.integers(3, size=(2, 30))
    scores = bootstrap_macro_f1(targets, predictions, groups, 3, samples=20, seed=5)
    drawn = np.random.default_rng(5).multinomial(5, [1 / 5] * 5, size=20)
    for score, times in zip(scores, drawn):
        photos = np.repeat(np.arange(30), times[np.unique(groups, return_inverse=True)[1]])
        expected = metrics.f1_score(targets[photos], predictions[photos], average="macro")
        assert score == pytest.approx(expected)


def test_two_models_are_resampled_alike():
    """So a model that is nowhere better wins no resample."""
    groups = np.arange(40)
    targets = np.where(groups == 0, 2, groups % 2)  # class 2 is of one person
    worse = np.where(groups == 5, 2, targets)
    first, second = (bootstrap_confusions(targets, model, groups, 3) for model in (targets, worse))
    assert (first.sum(axis=2) == second.sum(axis=2)).all()  # the same photos of each class
    assert (first != first[0]).any()
    better, other = (bootstrap_macro_f1(targets, model, groups, 3) for model in (targets, worse))
    assert (better >= other).all()
    assert (better > other).any()


def test_calibration_by_hand():
    """A border belongs to the bin below it."""
    confidences = np.array([0, 0.1, 0.7, 0.71, 0.79, 1])
    correct = np.array([False, True, True, False, True, True])
    count, confidence, share, error = calibration(confidences, correct)
    assert count.tolist() == [2, 0, 0, 0, 0, 0, 1, 2, 0, 1]
    assert confidence[[0, 6, 7, 9]] == pytest.approx([0.05, 0.7, 0.75, 1])
    assert share[[0, 6, 7, 9]] == pytest.approx([0.5, 1, 0.5, 1])
    assert np.isnan(share[1])
    assert error == pytest.approx((2 * 0.45 + 0.3 + 2 * 0.25 + 0) / 6)
