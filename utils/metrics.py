"""Scores, each computed once over all images: an average of per-batch F1 is not an F1."""

import numpy as np
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score


def classification_scores(targets, predictions, num_classes):
    """Score class predictions.

    targets, predictions: int arrays (N,) in [0, num_classes).
    Returns {"accuracy": float, "macro_f1": float, "class_f1": [float] * num_classes}, all in
    [0, 1]. A class with neither a target nor a prediction counts as F1 0 in the macro average.
    """
    class_f1 = f1_score(
        targets, predictions, labels=range(num_classes), average=None, zero_division=0
    )
    return {
        "accuracy": float(accuracy_score(targets, predictions)),
        "macro_f1": float(class_f1.mean()),
        "class_f1": [float(value) for value in class_f1],
    }


def accuracy(confusions):
    """The share of predictions that are right. confusions: int (..., C, C), rows true, none of
    them empty. Returns float (...) in [0, 1].
    """
    hits = np.diagonal(confusions, axis1=-2, axis2=-1)
    return hits.sum(axis=-1) / confusions.sum(axis=(-2, -1))


def macro_f1(confusions, whole=None):
    """Macro-F1 of each of many confusion matrices.

    confusions: int (..., C, C), rows true. A class with neither targets nor predictions counts as
    F1 0, as in classification_scores.
    whole: the confusion matrix, int (C, C), of the set that confusions are resamples of. Then a
    class with targets in the set but none in a resample is left out of that one's mean: an F1 of 0
    would have the interval measure how often a rare class is missed by the draw. Predictions have
    no say in it, so that the means of two models on one resample are over the same classes.
    Returns float (...) in [0, 1].
    """
    hits = np.diagonal(confusions, axis1=-2, axis2=-1)
    targets, predictions = confusions.sum(axis=-1), confusions.sum(axis=-2)
    counted = np.ones_like(targets, dtype=bool)
    if whole is not None:
        counted = (targets > 0) | (whole.sum(axis=1) == 0)
    # Without targets, a class has no hits, and adds 0.
    class_f1 = 2 * hits / np.maximum(targets + predictions, 1)
    return class_f1.sum(axis=-1) / counted.sum(axis=-1)


def bootstrap_confusions(targets, predictions, groups, num_classes, samples=1000, seed=0):
    """Confusion matrices of resampled sets, for which whole groups are drawn with replacement.

    A person's photos resemble each other: drawn one by one, they would make an interval too narrow.
    targets, predictions: int arrays (N,) in [0, num_classes); groups: array (N,) of who is on each
    photo, any type. What is drawn depends on groups, samples and seed alone, so that the scores of
    two models on one set can be subtracted resample by resample.
    Returns int64 (samples, num_classes, num_classes), rows true.
    Method: the cluster bootstrap of Field and Welsh, Bootstrapping clustered data, 2007.
    """
    names, group = np.unique(groups, return_inverse=True)
    cells = num_classes**2
    cell = np.asarray(targets) * num_classes + np.asarray(predictions)
    counts = np.bincount(group * cells + cell, minlength=len(names) * cells)
    draw = np.random.default_rng(seed).multinomial
    times = draw(len(names), np.full(len(names), 1 / len(names)), size=samples)
    # As floats, which hold these counts exactly and are multiplied much faster than integers.
    confusions = times.astype(float) @ counts.reshape(len(names), cells).astype(float)
    return confusions.astype(np.int64).reshape(samples, num_classes, num_classes)


def bootstrap_macro_f1(targets, predictions, groups, num_classes, samples=1000, seed=0):
    """Macro-F1 of each resample of bootstrap_confusions, with its arguments: float (samples,)."""
    confusions = bootstrap_confusions(targets, predictions, groups, num_classes, samples, seed)
    return macro_f1(confusions, confusion_matrix(targets, predictions, labels=range(num_classes)))


def calibration(confidences, correct, bins=10):
    """How well the probability of the predicted class tells how often it is right.

    confidences: float (N,) in [0, 1]; correct: bool (N,); bin i of B holds (i / B, (i + 1) / B],
    the first one 0 as well.
    Returns (count, confidence, accuracy, error): int (B,), float (B,) means over each bin, NaN for
    empty ones, and the expected calibration error, the mean of |accuracy - confidence| weighted by
    count, in [0, 1].
    Source: Guo et al., On Calibration of Modern Neural Networks, 2017, equation 3.
    """
    index = np.digitize(confidences, np.arange(1, bins) / bins, right=True)
    count = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):  # 0 / 0 in an empty bin
        confidence = np.bincount(index, confidences, minlength=bins) / count
        right = np.bincount(index, correct, minlength=bins) / count
    gaps = np.abs(right - confidence)
    return count, confidence, right, float(np.nansum(gaps * count) / count.sum())
