"""Focal loss for class imbalance."""

import torch
import torch.nn.functional as F


def focal_loss(logits, targets, gamma=2.0):
    """Cross-entropy that plays down easy examples: the mean of -(1 - p)^gamma log p.

    logits: float (N, C); targets: int64 (N,) in [0, C). Returns a scalar >= 0.
    Source: Lin et al. 2017, "Focal Loss for Dense Object Detection", for softmax outputs.
    """
    cross_entropy = F.cross_entropy(logits, targets, reduction="none")
    # 1 - p without cancellation, and above 0, where a gamma below 1 has an infinite slope.
    one_minus_p = (-torch.expm1(-cross_entropy)).clamp(min=1e-8)
    return (one_minus_p**gamma * cross_entropy).mean()
