"""Stability over seeds against CCSR's own scripts, and the names of its metrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.helpers.paths import EXPECTED
from trainables.common.errors import InputError
from trainables.metrics import METRICS, MetricSet, global_std, local_std, measure_stability

# Noisy restorations of 3 images with 4 seeds, values of 3 metrics, and the results of CCSR's scripts.
CCSR = np.load(EXPECTED / "stability.npz")


def test_local_std_equals_ccsr() -> None:
    restorations = torch.from_numpy(CCSR["restorations"]).float() / 255
    measured = local_std(restorations[..., 4:-4, 4:-4])  # CCSR ignores a border
    np.testing.assert_allclose(measured, CCSR["l_std"], rtol=0, atol=5.1e-7)  # logged with 6 digits
    np.testing.assert_allclose(measured.mean(), CCSR["l_std_mean"], rtol=1e-6)


@pytest.mark.parametrize("metric", ["psnr", "ssim", "lpips"])
def test_global_std_equals_ccsr(metric: str) -> None:
    measured = global_std(torch.from_numpy(CCSR[f"values_{metric}"]))
    np.testing.assert_allclose(measured, CCSR[f"g_std_{metric}"], rtol=1e-12)


def test_equal_restorations_have_zero_deviation() -> None:
    image = torch.rand(1, 2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    assert local_std(image.expand(5, -1, -1, -1, -1)).tolist() == [0, 0]
    assert global_std(torch.tensor([[20.5, 31.25]] * 5)).tolist() == [0, 0]


def test_only_the_image_with_nan_gets_nan() -> None:
    restorations = torch.rand(3, 2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    restorations[1, 0, 0, 5, 5] = torch.nan
    assert local_std(restorations).isnan().tolist() == [True, False]


def test_one_seed_is_refused() -> None:
    with pytest.raises(ValueError, match=r"with 1 seed\(s\)"):
        local_std(torch.rand(1, 2, 3, 8, 8))
    with pytest.raises(ValueError, match=r"with 1 seed\(s\)"):
        global_std(torch.rand(1, 2))


def test_stability_covers_all_metrics_of_a_set() -> None:
    restorations = torch.from_numpy(CCSR["restorations"]).float() / 255
    target = restorations.mean(dim=0)
    metrics = MetricSet(["val/psnr", "val/ssim"])
    values = [metrics(restored, target) for restored in restorations]
    measured = measure_stability(values, restorations)
    assert list(measured) == ["val/g_std_psnr", "val/g_std_ssim", "val/l_std"]
    for name, value in measured.items():
        assert METRICS[name].direction == "min" and METRICS[name].compared_with == "other seeds"
        assert value.shape == (3,) and (value > 0).all()
    psnr = np.stack([one["val/psnr"] for one in values])
    np.testing.assert_allclose(measured["val/g_std_psnr"], psnr.std(axis=0), rtol=1e-4)
    assert torch.equal(measured["val/l_std"], local_std(restorations))


def test_every_metric_of_one_restoration_has_a_g_std() -> None:
    for name, metric in METRICS.items():
        if metric.compared_with != "other seeds":
            spread = METRICS[f"val/g_std_{name.removeprefix('val/')}"]
            assert (spread.direction, spread.unit, spread.perceptual) == ("min", metric.unit, False)


def test_metric_set_refuses_metrics_over_seeds() -> None:
    with pytest.raises(InputError, match=r"val/l_std.*metrics of one restoration"):
        MetricSet(["val/psnr", "val/l_std"])
