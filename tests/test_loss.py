import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score

from loss import LOSSES, build_loss, soft_f1_loss


def random_batch(seed, size=32, classes=3):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, classes, generator=generator, dtype=torch.float64) * 3
    targets = torch.randint(classes, (size,), generator=generator)
    return logits.requires_grad_(), targets


def test_soft_f1_of_hard_predictions_is_scikit_learns():
    for seed in range(10):
        logits, targets = random_batch(seed, size=12, classes=4)
        predictions = logits.argmax(dim=1)
        if seed % 2:  # a class with neither targets nor predictions
            targets, predictions = targets.clamp(max=2), predictions.clamp(max=2)
        one_hot_logits = F.one_hot(predictions, 4).double() * 1e4
        expected = f1_score(targets, predictions, labels=range(4), average="macro", zero_division=0)
        assert 1 - float(soft_f1_loss(one_hot_logits, targets)) == pytest.approx(expected)


def test_ce_f1_is_the_sum_of_both():
    logits, targets = random_batch(2)
    expected = F.cross_entropy(logits, targets) + soft_f1_loss(logits, targets)
    assert build_loss("ce_f1")(logits, targets) == expected


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_reach_every_logit_and_lead_down(name):
    logits, targets = random_batch(2)
    criterion = build_loss(name)
    before = criterion(logits, targets)
    (gradient,) = torch.autograd.grad(before, logits)
    assert gradient.all()
    assert criterion(logits - gradient, targets) < before


def test_options_reach_their_loss():
    logits, targets = random_batch(3)
    assert build_loss("focal", gamma=0)(logits, targets) == F.cross_entropy(logits, targets)
    smooth = F.cross_entropy(logits, targets, label_smoothing=0.3)
    assert build_loss("label_smoothing", smoothing=0.3)(logits, targets) == smooth
    wide, narrow = (build_loss("age_distribution", sigma=s)(logits, targets) for s in (9, 0.1))
    torch.testing.assert_close(narrow, F.cross_entropy(logits, targets))
    assert abs(wide - narrow) > 0.1
