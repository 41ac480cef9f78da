"""Scores, each computed once over all images: an average of per-batch F1 is not an F1."""

from sklearn.metrics import accuracy_score, f1_score


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
