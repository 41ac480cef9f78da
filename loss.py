"""The losses by name. Each takes logits, float (N, C), and targets, int64 (N,), to a scalar."""

from functools import partial

import torch.nn.functional as F

from config import config
from models.age_head import age_distribution_loss
from models.focal_loss import focal_loss


def soft_f1_loss(logits, targets):
    """1 - macro-F1 of the softmax probabilities, in [0, 1].

    A probability counts as that share of a prediction: per class F1 = 2 TP / (2 TP + FP + FN), and
    0 for a class with neither targets nor probability, as in scikit-learn.
    """
    probabilities = logits.softmax(dim=1)
    one_hot = F.one_hot(targets, logits.shape[1]).to(probabilities.dtype)
    true_positives = (probabilities * one_hot).sum(dim=0)
    # TP + FP is the probability given to a class, TP + FN its number of targets.
    total = probabilities.sum(dim=0) + one_hot.sum(dim=0)
    return 1 - (2 * true_positives / total.clamp(min=1e-7)).mean()


def ce_f1_loss(logits, targets):
    """Cross-entropy plus soft F1 loss, as in the original."""
    return F.cross_entropy(logits, targets) + soft_f1_loss(logits, targets)


LOSSES = {
    "cross_entropy": F.cross_entropy,
    "focal": focal_loss,
    "label_smoothing": F.cross_entropy,  # with the option that build_loss gives it
    "f1": soft_f1_loss,
    "ce_f1": ce_f1_loss,
    "age_distribution": age_distribution_loss,  # a logit for each age; targets are ages in years
}


def build_loss(
    name,
    gamma=config.FOCAL_GAMMA,
    smoothing=config.LABEL_SMOOTHING,
    sigma=config.AGE_SIGMA,
):
    """One of LOSSES with its option: gamma, smoothing or sigma."""
    options = {"focal": {"gamma": gamma}, "label_smoothing": {"label_smoothing": smoothing},
               "age_distribution": {"sigma": sigma}}  # fmt: skip
    return partial(LOSSES[name], **options.get(name, {}))
