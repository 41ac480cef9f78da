import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

from utils.metrics import accuracy, bootstrap_confusions, bootstrap_macro_f1, calibration, macro_f1


def test_macro_f1_and_accuracy_are_scikit_learns():
    rng = np.random.default_rng(0)
    targets, predictions = rng.integers(4, size=(2, 5, 60))
    confusions = np.array([confusion_matrix(*pair) for pair in zip(targets, predictions)])
    expected = [f1_score(*pair, average="macro") for pair in zip(targets, predictions)]
    assert macro_f1(confusions) == pytest.approx(expected)
    expected = [accuracy_score(*pair) for pair in zip(targets, predictions)]
    assert accuracy(confusions) == pytest.approx(expected)


def test_a_class_missed_by_the_draw_is_left_out_of_a_resample():
    """One of three classes was never there: it counts 0 in the set and in each resample."""
    whole = np.array([[2, 0, 0], [0, 2, 0], [0, 0, 0]])
    resample = np.array([[4, 0, 0], [0, 0, 0], [0, 0, 0]])
    assert macro_f1(whole) == pytest.approx(2 / 3)
    assert macro_f1(resample) == pytest.approx(1 / 3)
    assert macro_f1(resample, whole) == pytest.approx(1 / 2)


def test_a_model_that_is_nowhere_better_wins_no_resample():
    """Whatever it predicts that isn't there, or that the draw missed, counts against it."""
    groups = np.arange(40)
    targets = np.where(groups == 0, 2, groups % 2)
    for missed in (0, 1):  # class 2 has one person, or none
        right, worse = targets[missed:].copy(), targets[missed:].copy()
        worse[5] = 2
        one, other = (bootstrap_macro_f1(right, its, groups[missed:], 3) for its in (right, worse))
        assert (one >= other).all()
        assert (one > other).any()


def test_the_bootstrap_draws_whole_groups():
    """As a loop does that repeats each group's photos as often as the group was drawn."""
    rng = np.random.default_rng(1)
    groups = np.repeat(["007", "b", "a", "c", "d"], 6)
    targets, predictions = rng.integers(3, size=(2, 30))
    scores = bootstrap_macro_f1(targets, predictions, groups, 3, samples=20, seed=5)
    drawn = np.random.default_rng(5).multinomial(5, [1 / 5] * 5, size=20)
    for score, times in zip(scores, drawn):
        photos = np.repeat(np.arange(30), times[np.unique(groups, return_inverse=True)[1]])
        expected = f1_score(targets[photos], predictions[photos], average="macro")
        assert score == pytest.approx(expected)


def test_two_models_are_resampled_alike():
    rng = np.random.default_rng(2)
    groups = rng.integers(20, size=300)
    targets, one, other = rng.integers(3, size=(3, 300))
    drawn = [bootstrap_confusions(targets, predictions, groups, 3) for predictions in (one, other)]
    assert drawn[0].shape == (1000, 3, 3)
    assert (drawn[0].sum(axis=2) == drawn[1].sum(axis=2)).all()  # of each class the same photos
    assert drawn[0].sum(axis=(1, 2)).std() > 0
    assert (drawn[0] != drawn[1]).any()


def test_photos_of_one_person_make_no_sure_score():
    """Ten equal photos of each person say no more than one."""
    targets = np.arange(40) % 2
    predictions = np.where(np.arange(40) < 30, targets, 1 - targets)
    many = [np.repeat(labels, 10) for labels in (targets, predictions)]
    single = bootstrap_macro_f1(targets, predictions, np.arange(40), 2)
    by_person = bootstrap_macro_f1(*many, np.repeat(np.arange(40), 10), 2)
    by_photo = bootstrap_macro_f1(*many, np.arange(400), 2)
    assert (by_person == single).all()
    assert by_photo.std() < by_person.std() / 2


def test_calibration_by_hand():
    """A border belongs to the bin below it."""
    confidences = np.array([0, 0.1, 0.7, 0.71, 0.79, 1])
    correct = np.array([False, True, True, False, True, True])
    count, confidence, right, error = calibration(confidences, correct)
    assert count.tolist() == [2, 0, 0, 0, 0, 0, 1, 2, 0, 1]
    assert confidence[[0, 6, 7, 9]] == pytest.approx([0.05, 0.7, 0.75, 1])
    assert right[[0, 6, 7, 9]] == pytest.approx([0.5, 1, 0.5, 1])
    assert np.isnan(right[1])
    assert error == pytest.approx((2 * 0.45 + 0.3 + 2 * 0.25 + 0) / 6)
