import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.age_head import MAX_AGE, AgeHead, age_distribution_loss


def test_the_groups_add_up_their_ages():
    head, features = AgeHead(8, border=59), torch.randn(5, 8)
    logits = F.linear(features, head.weight, head.bias)
    assert torch.equal(head(features), logits)
    ages = logits.softmax(dim=1)
    groups = [ages[:, :30].sum(1), ages[:, 30:59].sum(1), ages[:, 59:].sum(1)]
    torch.testing.assert_close(head.eval()(features).exp(), torch.stack(groups, dim=1))


def test_the_groups_are_exact_in_half_precision():
    head = AgeHead(8, border=59).eval()
    with torch.autocast("cpu", torch.bfloat16):
        groups = head(torch.randn(64, 8))
    torch.testing.assert_close(groups.exp().sum(1), torch.ones(64))


def test_targets_are_normal_distributions_around_the_ages():
    logits, ages = torch.randn(4, MAX_AGE + 1, dtype=torch.float64), torch.tensor([0, 25, 60, 100])
    years = np.arange(MAX_AGE + 1)
    expected = 0
    for row, age in zip(logits.log_softmax(dim=1).numpy(), ages.numpy()):
        density = np.exp(-((years - age) ** 2) / (2 * 2.5**2))
        expected -= (density / density.sum() * row).sum() / 4
    assert float(age_distribution_loss(logits, ages, sigma=2.5)) == pytest.approx(expected)


def test_ages_above_the_last_one_count_as_the_last_one():
    logits = torch.randn(2, MAX_AGE + 1)
    losses = [age_distribution_loss(logits, torch.tensor(ages)) for ages in ([7, 120], [7, 100])]
    assert losses[0] == losses[1]
