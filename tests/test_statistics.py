import numpy as np
import pandas as pd
import pytest
from sklearn import metrics

from ETC.statistics import (
    accuracy,
    bootstrap_confusions,
    calibration,
    confusion_matrix,
    macro_f1,
    score_groups,
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
    assert macro_f1(resample, whole.sum(axis=1) > 0) == pytest.approx(1 / 2)
    predicted = np.array([[3, 0, 1], [0, 0, 0], [0, 0, 0]])  # the third, of nobody who was drawn
    assert macro_f1(predicted, True) == pytest.approx(6 / 7)


def test_the_bootstrap_draws_whole_groups():
    """Compared with a loop that repeats each group's photos as often as the group was drawn."""
    rng = np.random.default_rng(1)
    groups = np.repeat(["007", "b", "a", "c", "d"], 6)
    targets, predictions = rng.integers(3, size=(2, 30))
    scores = macro_f1(bootstrap_confusions(targets, predictions, groups, 3, samples=20, seed=5))
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
    better, other = macro_f1(first, True), macro_f1(second, True)
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


def test_groups_are_compared_with_all_others():
    """Intervals as a bootstrap of its own computes them: shares of people of 4 photos each."""
    rng = np.random.default_rng(2)
    people = np.arange(400).repeat(4)
    groups = pd.Categorical(np.where(people < 100, "few", "many"), ["many", "few", "none"])
    targets = np.where(people % 3, 0, 2)
    correct = rng.random(400).repeat(4) < np.where(people < 100, 0.6, 0.9)
    predictions = np.where(correct, targets, 1)
    many, few = score_groups(groups, targets, predictions, people, 3, samples=4000)
    assert (many.name, many.photos, many.people) == ("many", 1200, 300)
    assert (few.name, few.photos, few.people) == ("few", 400, 100)
    mean, rest = correct[:400].mean(), correct[400:].mean()
    assert few.accuracy[0] == pytest.approx(mean)
    assert few.difference[0] == pytest.approx(mean - rest)
    assert many.difference[0] == pytest.approx(rest - mean)
    labels = {"labels": [0, 2], "average": "macro"}
    expected = metrics.f1_score(targets[:400], predictions[:400], **labels)
    assert few.macro_f1[0] == pytest.approx(expected)
    assert few.macro_f1[1][0] < expected < few.macro_f1[1][1]
    # The standard error of a share of people, who are right or wrong in all of their photos.
    for size, share, (score, (low, high)) in (
        (100, mean, few.accuracy),
        (300, rest, many.accuracy),
    ):
        error = 1.96 * (share * (1 - share) / size) ** 0.5
        assert (score - low, high - score) == pytest.approx((error, error), abs=0.012)
    error = 1.96 * (mean * (1 - mean) / 100 + rest * (1 - rest) / 300) ** 0.5
    low, high = few.difference[1]
    assert (high - low) / 2 == pytest.approx(error, rel=0.06)


def test_groups_too_small_or_of_one_class():
    groups = pd.Categorical(["a", "a", "b", "b", "b"])
    targets, people = np.array([0, 0, 0, 1, 1]), np.array([1, 1, 2, 3, 3])
    one, two = score_groups(groups, targets, targets, people, 2)
    assert (one.accuracy, one.difference, one.macro_f1) == ((1, None), (0, None), None)
    assert (two.accuracy, two.difference) == ((1, (1, 1)), (0, None))
    assert two.macro_f1 == (1, (1, 1))
    (everybody,) = score_groups(pd.Categorical(["a"] * 5), targets, targets, people, 2)
    assert everybody.difference is None
    # As many people in the group as outside: were they drawn alike, the difference wouldn't vary.
    people, groups = np.arange(40), pd.Categorical(np.arange(40) // 20)
    for half in score_groups(groups, np.zeros(40, int), people % 2, people, 2):
        assert half.difference[1][0] < -0.2
        assert half.difference[1][1] > 0.2
