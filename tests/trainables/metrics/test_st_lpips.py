"""ST-LPIPS against the values of its authors' network, and properties that a training loss needs."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.helpers.paths import EXPECTED
from trainables.metrics.names import MetricUnavailableError
from trainables.metrics.st_lpips import STLPIPS, weights_path

# Image pairs as bytes, with their distances and gradient norms from stlpips-pytorch 0.0.2.
PARITY = load_file(EXPECTED / "parity_st_lpips.safetensors")


def pair(case: str) -> tuple[Tensor, Tensor]:
    a, b = (PARITY[f"{case}/{key}"].float() / 127.5 - 1 for key in "ab")
    return a, b


@pytest.fixture(scope="module", params=["alex", "vgg"])
def metric(request: pytest.FixtureRequest) -> STLPIPS:
    return STLPIPS(request.param)


@pytest.fixture(scope="module")
def alex() -> STLPIPS:
    return STLPIPS("alex")


@pytest.mark.parametrize("net", ["alex", "vgg"])
@pytest.mark.parametrize("case", ["64x64", "96x80", "45x53", "37x40", "40x37"])
def test_equals_the_authors_network(net: str, case: str) -> None:
    distance = STLPIPS(net)(*pair(case))
    torch.testing.assert_close(distance, PARITY[f"{case}/{net}"], rtol=1e-5, atol=0)


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_gradient_equals_the_authors(net: str) -> None:
    a, b = pair("64x64")
    a.requires_grad_(True)
    STLPIPS(net)(a, b).sum().backward()
    norm = a.grad.flatten(1).norm(dim=1)
    torch.testing.assert_close(norm, PARITY[f"64x64/{net}_grad_norm"], rtol=1e-4, atol=0)


def test_batch_values_equal_single_image_values(alex: STLPIPS) -> None:
    a, b = pair("64x64")
    single = torch.cat([alex(a[i : i + 1], b[i : i + 1]) for i in range(len(a))])
    torch.testing.assert_close(alex(a, b), single, rtol=1e-5, atol=0)


def test_identical_images_have_zero_distance_and_gradient(metric: STLPIPS) -> None:
    a, _ = pair("64x64")
    a.requires_grad_(True)
    distance = metric(a, a.detach().clone())
    distance.sum().backward()
    # Their copies lie at other addresses and may be rounded otherwise: a change of 1e-7 reads 5e-14, its gradient 1e-9.
    assert distance.max() < 1e-11
    assert a.grad.abs().max() < 1e-7


def test_gradient_is_finite_where_all_features_are_zero() -> None:
    """If all channels at a position are 0, the gradient of a plain norm is NaN."""
    metric = STLPIPS("alex")
    metric.stages[0][0].bias.fill_(-1e3)
    a, b = pair("64x64")
    a.requires_grad_(True)
    metric(a, b).sum().backward()
    assert metric.stages[0](a).max() == 0
    assert torch.isfinite(a.grad).all()


def test_building_keeps_the_random_state() -> None:
    before = torch.get_rng_state()
    STLPIPS("alex")
    assert torch.equal(torch.get_rng_state(), before)


def test_min_side_is_as_documented(metric: STLPIPS) -> None:
    generator = torch.Generator().manual_seed(0)
    side = metric.min_side
    a, b = torch.rand(2, 1, 3, side, side, generator=generator) * 2 - 1
    assert metric(a, b).item() > 0
    with pytest.raises(ValueError, match=f"H, W >= {side}"):
        metric(a[..., 1:], b[..., 1:])


def test_half_precision_autocast_stays_close(alex: STLPIPS) -> None:
    """Repeated, over freed memory full of NaN, because some bfloat16 convolutions of torch read it."""
    a, b = pair("64x64")
    for size in (1_000, 10_000, 100_000):
        torch.full((size,), torch.nan)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            distance = alex(a, b)
        assert distance.dtype == torch.float32
        torch.testing.assert_close(distance, PARITY["64x64/alex"], rtol=0.01, atol=0)


def test_no_weight_is_trainable(metric: STLPIPS) -> None:
    assert not any(parameter.requires_grad for parameter in metric.parameters())


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [])
    with pytest.raises(MetricUnavailableError, match="pip install stlpips-pytorch"):
        weights_path("alex")
