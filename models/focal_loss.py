"""Focal loss for class imbalance."""

import torch
import torch.nn.functional as F


def focal_loss(logits, targets, gamma=2.0, weight=None):
    """Cross-entropy with the easy examples played down: mean of -(1 - p)^gamma log p.

    From Lin et al. 2017, "Focal Loss for Dense Object Detection", for softmax outputs. gamma 0 is
    cross-entropy, with class weights too: the mean is then weighted as PyTorch weights it.

    logits: float (N, C); targets: int64 (N,) in [0, C); weight: float (C,) or None.
    Returns a scalar >= 0.
    """
    cross_entropy = F.cross_entropy(logits, targets, reduction="none")
    # 1 - p without cancellation, and above 0, where a gamma below 1 has no finite slope.
    one_minus_p = (-torch.expm1(-cross_entropy)).clamp(min=1e-8)
    losses = one_minus_p**gamma * cross_entropy
    if weight is None:
        return losses.mean()
    weights = weight[targets]
    return (weights * losses).sum() / weights.sum()
