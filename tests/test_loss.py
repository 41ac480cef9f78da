import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score

from config import config
from loss import LOSSES, build_loss, ce_f1_loss, soft_f1_loss
from models.focal_loss import focal_loss


def random_batch(seed, size=32, classes=3):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, classes, generator=generator, dtype=torch.float64) * 3
    targets = torch.randint(classes, (size,), generator=generator)
    return logits.requires_grad_(), targets


@pytest.mark.parametrize("weight", [None, torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)])
def test_focal_with_gamma_0_is_cross_entropy(weight):
    for seed in range(5):
        logits, targets = random_batch(seed)
        ours = focal_loss(logits, targets, gamma=0, weight=weight)
        reference = F.cross_entropy(logits, targets, weight=weight)
        torch.testing.assert_close(ours, reference)
        torch.testing.assert_close(
            torch.autograd.grad(ours, logits)[0], torch.autograd.grad(reference, logits)[0]
        )


def test_focal_follows_its_formula():
    logits, targets = random_batch(0)
    p = logits.softmax(1)[torch.arange(len(targets)), targets]
    expected = (-((1 - p) ** 2) * p.log()).mean()
    torch.testing.assert_close(focal_loss(logits, targets, gamma=2), expected)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_is_finite_where_the_network_is_sure(gamma):
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    loss = focal_loss(logits, torch.tensor([0, 0]), gamma=gamma)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


def test_soft_f1_of_hard_predictions_is_scikit_learns():
    for seed in range(10):
        logits, targets = random_batch(seed, size=12, classes=4)
        if seed % 2:  # a class that occurs nowhere
            targets = targets.clamp(max=2)
            logits = torch.cat([logits[:, :3], torch.full_like(logits[:, :1], -1e9)], dim=1)
        predictions = logits.argmax(1)
        one_hot_logits = F.one_hot(predictions, 4).double() * 1e4
        expected = f1_score(targets, predictions, labels=range(4), average="macro", zero_division=0)
        assert 1 - float(soft_f1_loss(one_hot_logits, targets)) == pytest.approx(expected)


def test_losses_are_those_that_the_command_line_offers():
    assert tuple(LOSSES) == config.LOSSES


def test_ce_f1_is_the_sum_of_both():
    logits, targets = random_batch(1)
    expected = F.cross_entropy(logits, targets) + soft_f1_loss(logits, targets)
    torch.testing.assert_close(ce_f1_loss(logits, targets), expected)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_learns(name):
    logits, targets = random_batch(2)
    criterion = build_loss(name)
    before = criterion(logits, targets)
    (gradient,) = torch.autograd.grad(before, logits)
    assert criterion(logits - gradient, targets) < before


def test_options_reach_their_loss():
    logits, targets = random_batch(3)
    assert build_loss("focal", gamma=0)(logits, targets) == F.cross_entropy(logits, targets)
    smooth = F.cross_entropy(logits, targets, label_smoothing=0.3)
    assert build_loss("label_smoothing", smoothing=0.3)(logits, targets) == smooth
