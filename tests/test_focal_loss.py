import pytest
import torch
import torch.nn.functional as F

from models.focal_loss import focal_loss


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(64, 3, generator=generator, dtype=torch.float64) * 3
    return logits.requires_grad_(), torch.randint(3, (64,), generator=generator)


def test_gamma_0_is_cross_entropy(batch):
    logits, targets = batch
    losses = [focal_loss(logits, targets, gamma=0), F.cross_entropy(logits, targets)]
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in losses]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients)


def test_gamma_2_follows_the_formula(batch):
    logits, targets = batch
    p = logits.softmax(dim=1)[torch.arange(64), targets]
    losses = [focal_loss(logits, targets), (-((1 - p) ** 2) * p.log()).mean()]
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in losses]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_loss_and_gradient_are_finite_where_the_network_is_sure(gamma):
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    loss = focal_loss(logits, torch.tensor([0, 0]), gamma=gamma)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()
