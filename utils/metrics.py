"""Scores, computed once over a whole set: an average of per-batch F1 is not an F1."""

import numpy as np


def classification_scores(targets, predictions, num_classes):
    """Score class predictions.

    targets, predictions: int arrays (N,) in [0, num_classes).
    Returns {"accuracy": float, "macro_f1": float, "class_f1": [float] * num_classes}, all in
    [0, 1]. A class with neither targets nor predictions counts as F1 0 in the macro average.
    """
    from sklearn.metrics import f1_score  # its import takes a second

    labels = range(num_classes)
    class_f1 = f1_score(targets, predictions, labels=labels, average=None, zero_division=0)
    accuracy = float(np.mean(np.equal(targets, predictions)))
    macro_f1 = float(class_f1.mean())
    return {"accuracy": accuracy, "macro_f1": macro_f1, "class_f1": class_f1.tolist()}
