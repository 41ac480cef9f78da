"""A run's predictions for its valid photos: what its report shows and what runs are compared by."""

import numpy as np
import pandas as pd

from config.config import HEADS
from data.labels import head_labels


def valid_predictions(photos, logits, target):
    """The table valid_predictions.csv, a row a photo in the order of photos.

    photos: the valid photos of load_fold; logits: float tensor (N, C) of a head.
    Columns: file; person, of whom one id's photos are; shot; method, "center" where no face was
    found; gender and age (years) as labelled; label and predicted, a class of the head each, with
    the official age border; p_<class>, probabilities; loss, -ln of the label's probability.
    """
    classes = np.array(HEADS[target]["classes"])
    labels = head_labels(photos, target)
    log_probs = logits.double().log_softmax(dim=1).numpy()
    table = photos[["file", "group", "shot", "method", "gender", "age"]].rename(
        columns={"group": "person"}
    )
    table["label"], table["predicted"] = classes[labels], classes[log_probs.argmax(axis=1)]
    probs = pd.DataFrame(np.exp(log_probs), table.index, [f"p_{name}" for name in classes])
    loss = pd.Series(-log_probs[np.arange(len(labels)), labels], table.index, name="loss")
    return pd.concat([table, probs.round(6), loss.round(6)], axis=1)
