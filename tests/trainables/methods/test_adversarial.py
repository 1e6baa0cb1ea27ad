"""The adversarial losses: the logits they favour, and the bound of their weight."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trainables.common.errors import InputError
from trainables.methods.shared.adversarial import adaptive_weight, discriminator_loss, generator_loss

MODES = ["vanilla", "lsgan", "hinge"]


@pytest.mark.parametrize("mode", MODES)
def test_discriminator_loss_separates_real_from_generated(mode: str) -> None:
    """Starting from equal logits, gradient descent raises those of real images and lowers the others."""
    real, fake = torch.zeros(2, 1, 3, 3, requires_grad=True), torch.zeros(2, 1, 3, 3, requires_grad=True)
    real_grad, fake_grad = torch.autograd.grad(discriminator_loss(mode, real, fake), (real, fake))
    assert (real_grad < 0).all() and (fake_grad >= 0).all()
    told_apart = discriminator_loss(mode, torch.ones_like(real), -torch.ones_like(fake))
    assert told_apart <= discriminator_loss(mode, real, fake)


@pytest.mark.parametrize("mode", MODES)
def test_generator_loss_has_a_gradient_against_a_sure_discriminator(mode: str) -> None:
    """The surer the discriminator, the larger the loss; its gradient never vanishes."""
    fake = torch.tensor([-100.0, -5.0, 0.0, 0.9], requires_grad=True)
    losses = torch.stack([generator_loss(mode, logit) for logit in fake])
    assert (losses.diff() < 0).all()
    (grad,) = torch.autograd.grad(losses.sum(), fake)
    assert (grad < 0).all() and torch.isfinite(losses).all()


@pytest.mark.parametrize("mode", MODES)
def test_half_precision_logits_are_averaged_in_float32(mode: str) -> None:
    logits = torch.linspace(-0.9, 1.1, 999).to(torch.bfloat16)
    for loss, exact in (
        (generator_loss(mode, logits), generator_loss(mode, logits.double())),
        (discriminator_loss(mode, logits, logits), discriminator_loss(mode, logits.double(), logits.double())),
    ):
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, exact)


def test_unknown_modes_are_refused() -> None:
    logits = torch.zeros(1)
    with pytest.raises(InputError, match=r"wgan.*vanilla, lsgan or hinge"):
        generator_loss("wgan", logits)
    with pytest.raises(InputError, match=r"wgan.*vanilla, lsgan or hinge"):
        discriminator_loss("wgan", logits, logits)


def test_adaptive_weight_makes_gradient_norms_equal() -> None:
    layer = nn.Parameter(torch.tensor([1.0, 2.0]))
    reconstruction, adversarial = (3 * layer).sum(), 12 * layer.sum()
    weight = adaptive_weight(reconstruction, adversarial, layer)
    assert weight.item() == pytest.approx(0.25, rel=1e-4)
    assert not weight.requires_grad
    # The next backward pass can still use both graphs, and measuring the weight left no gradient.
    assert layer.grad is None
    (reconstruction + weight * adversarial).backward()
    assert layer.grad is not None
    torch.testing.assert_close(layer.grad, torch.tensor([6.0, 6.0]), rtol=1e-4, atol=0)


def test_adaptive_weight_in_fp16_is_that_in_fp32() -> None:
    """The gradients of a mean over many pixels are below the smallest number of fp16."""
    layer, pixels = nn.Parameter(torch.ones(1, 1, 1, 1)), torch.rand(1, 1, 256, 256)

    def weight(dtype: torch.dtype | None) -> float:
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            image = F.conv2d(pixels, layer)
        means = 1e-3 * image.float().mean(), 1e-2 * image.float().mean()
        return adaptive_weight(*means, layer).item()

    assert weight(torch.float16) == pytest.approx(weight(None), rel=0.01)  # three digits


def test_adaptive_weight_is_bounded() -> None:
    """The weight is finite even if the discriminator's gradient is zero."""
    layer = nn.Parameter(torch.ones(4))
    assert adaptive_weight((1e6 * layer).sum(), (0 * layer).sum(), layer) == 1e4
    assert adaptive_weight((1e6 * layer).sum(), layer.sum(), layer, max=3.0) == 3.0
    assert adaptive_weight((0 * layer).sum(), layer.sum(), layer) == 0
