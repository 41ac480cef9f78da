"""A classifier layer that learns the age in years and answers with the three age groups."""

import torch
from torch import nn

MAX_AGE = 100


class AgeHead(nn.Linear):
    """In training, features (N, in_features) -> a logit for each age from 0 to MAX_AGE, float
    (N, MAX_AGE + 1); otherwise -> log-probabilities of the groups under 30, 30 to border - 1, and
    from border, float (N, 3).
    """

    def __init__(self, in_features, border):
        super().__init__(in_features, MAX_AGE + 1)
        self.border = border

    def forward(self, features):
        logits = super().forward(features)
        if self.training:
            return logits
        groups = logits.float().log_softmax(dim=1).tensor_split((30, self.border), dim=1)
        return torch.stack([group.logsumexp(dim=1) for group in groups], dim=1)


def age_distribution_loss(logits, ages, sigma=3.0):
    """Cross-entropy against a normal distribution around the labelled age: neighbouring ages look
    alike, and labels may be a year or two off.

    logits: float (N, MAX_AGE + 1), one per age; ages: int64 (N,), years, clamped to MAX_AGE;
    sigma: years, above 0.
    Source: Gao et al. 2017, "Deep Label Distribution Learning with Label Ambiguity".
    """
    years = torch.arange(logits.shape[1], device=logits.device)
    ages = ages.clamp(max=MAX_AGE)
    targets = (-0.5 * ((years - ages[:, None]) / sigma) ** 2).softmax(dim=1)
    return -(targets * logits.log_softmax(dim=1)).sum(dim=1).mean()
