"""How sure a score is: intervals by resampling people, and calibration."""

from collections import namedtuple

import numpy as np

INTERVAL = 0.025, 0.975  # the quantiles of a 95 % interval

# name: str; photos, people: int; accuracy, difference, macro_f1: each (score, interval), see
# score_groups.
Group = namedtuple("Group", "name photos people accuracy difference macro_f1")


def confusion_matrix(targets, predictions, num_classes):
    """Counts, int64 (C, C), rows true, of int arrays (N,) in [0, num_classes)."""
    cells = np.asarray(targets) * num_classes + np.asarray(predictions)
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def accuracy(confusions):
    """The share of correct predictions, float (...) in [0, 1], of int confusions (..., C, C)."""
    hits = np.diagonal(confusions, axis1=-2, axis2=-1)
    return hits.sum(axis=-1) / confusions.sum(axis=(-2, -1))


def macro_f1(confusions, optional=False):
    """Macro-F1 of each confusion matrix, float (...) in [0, 1].

    confusions: int (..., C, C), rows true. A class with neither targets nor predictions counts as
    F1 0, as in classification_scores.
    optional: bool or bool (C,): classes that are left out of the mean of a matrix without targets
    of them. For the resamples of a set these are the classes that the set has: an F1 of 0 would
    make the interval measure how often a rare class is missed by the draw. Which classes count
    depends on the targets alone, so that two models are averaged over the same ones.
    """
    hits = np.diagonal(confusions, axis1=-2, axis2=-1)
    targets, predictions = confusions.sum(axis=-1), confusions.sum(axis=-2)
    counted = (targets > 0) | ~np.bool_(optional)
    # A class without targets has no hits, and adds 0.
    class_f1 = 2 * hits / np.maximum(targets + predictions, 1)
    return class_f1.sum(axis=-1) / counted.sum(axis=-1)


def bootstrap_confusions(targets, predictions, groups, num_classes, samples=1000, seed=0):
    """Confusion matrices of resampled sets, int64 (samples, C, C), rows true, for which whole
    groups are drawn with replacement: a person's photos resemble each other, and drawn singly they
    would make an interval too narrow.

    targets, predictions: int arrays (N,) in [0, num_classes); groups: array (N,) of who is on each
    photo, any type. What is drawn depends on groups, samples and seed alone, so that the scores of
    two models on the same photos can be subtracted resample by resample.
    Source: Field and Welsh 2007, "Bootstrapping clustered data".
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


def score_groups(groups, targets, predictions, people, num_classes, samples=1000):
    """The scores of each group of people, a list of Group.

    groups: pandas.Categorical (N,), in whose order they are listed; the others are as in
    bootstrap_confusions. Groups are compared by accuracy: one may have a single class, as the men
    have for the gender head, and accuracy is then its recall. difference: the group's accuracy
    minus that of everyone else, None if the group is everyone. macro_f1: over the classes with
    targets in the group, None if there is only one. Intervals are (low, high), over people; None if
    there are fewer than two in the group or, for difference, outside of it.
    """

    def resample(chosen, seed):
        answers = targets[chosen], predictions[chosen]
        drawn = bootstrap_confusions(*answers, people[chosen], num_classes, samples, seed)
        return confusion_matrix(*answers, num_classes), drawn, len(np.unique(people[chosen]))

    found = []
    for name in groups.remove_unused_categories().categories:
        chosen = groups == name
        confusion, drawn, count = resample(chosen, seed=0)
        score, scores, difference, f1 = accuracy(confusion), accuracy(drawn), None, None
        if not chosen.all():
            # Another seed: with the same one, as many others would be drawn alike.
            rest, rest_drawn, rest_count = resample(~chosen, seed=1)
            spread = interval(scores - accuracy(rest_drawn), min(count, rest_count))
            difference = score - accuracy(rest), spread
        if np.count_nonzero(confusion.sum(axis=1)) > 1:
            f1 = macro_f1(confusion, True), interval(macro_f1(drawn, True), count)
        whole = score, interval(scores, count)
        found.append(Group(name, confusion.sum(), count, whole, difference, f1))
    return found


def interval(scores, people):
    """The interval (low, high) of resampled scores; None for fewer than two people."""
    return tuple(np.quantile(scores, INTERVAL)) if people > 1 else None


def calibration(confidences, correct, bins=10):
    """How well the probability of the predicted class tells how often it is correct.

    confidences: float (N,) in [0, 1]; correct: bool (N,). Bin i holds (i / bins, (i + 1) / bins],
    the first bin 0 as well.
    Returns (count, confidence, accuracy, error): int (bins,); float (bins,) means over each bin,
    NaN for empty ones; and the expected calibration error, the mean of |accuracy - confidence|
    weighted by count, in [0, 1].
    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 3.
    """
    index = np.digitize(confidences, np.arange(1, bins) / bins, right=True)
    count = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):  # 0 / 0 in an empty bin
        confidence = np.bincount(index, confidences, minlength=bins) / count
        share = np.bincount(index, correct, minlength=bins) / count
        error = np.nansum(np.abs(share - confidence) * count) / count.sum()
    return count, confidence, share, float(error)
