"""Metrics of pyiqa by name: direction and kind as the package states them, its own values, and messages without it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sweeps.planning.objectives import further_metrics, metric_name
from sweeps.planning.run_settings import register_recorded
from tests.helpers.paths import EXPECTED
from trainables.common.errors import InputError
from trainables.metrics import METRICS, MetricSet, MetricUnavailableError, build_metrics, check_size, resolve_metrics
from trainables.metrics.names import global_std_name

installed = pytest.mark.skipif(importlib.util.find_spec("pyiqa") is None, reason="pyiqa is optional, not installed")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """The known metrics are those of before the test."""
    before = dict(METRICS)
    yield
    METRICS.clear()
    METRICS.update(before)


@pytest.fixture(scope="module")
def pair() -> tuple[Tensor, Tensor]:
    """(restored, target), each (3, 3, 96, 80) in [0, 1]."""
    found = load_file(EXPECTED / "parity_sinsr_psnr_y.safetensors")
    images = found["restored"].float().clamp(0, 1), found["target"].float() / 255
    restored, target = (torch.nn.functional.interpolate(image, scale_factor=2) for image in images)
    return restored, target


def test_without_pyiqa_one_line_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [p for p in sys.path if not (Path(p) / "pyiqa").exists()])
    for name in [name for name in sys.modules if name.partition(".")[0] == "pyiqa"]:
        monkeypatch.delitem(sys.modules, name)
    for ask in (
        further_metrics,
        lambda name: MetricSet([f"val/{name}"]),
        lambda name: metric_name("--objective", name),
    ):
        with pytest.raises(MetricUnavailableError, match=r"^val/pyiqa_niqe is absent: .* pip install pyiqa, ") as error:
            ask("pyiqa_niqe")
        assert "\n" not in str(error.value)


def test_recorded_metric_is_known_without_pyiqa() -> None:
    register_recorded({"metrics": ["val/psnr"]})
    for wrong in ({"val/pyiqa_niqe": ["less", "nothing"]}, {"val/psnr": ["min", "target"]}, {"val/pyiqa_niqe": "min"}):
        with pytest.raises(ValueError, match="pyiqa holds"):
            register_recorded({"pyiqa": wrong})
    register_recorded({"pyiqa": {"val/pyiqa_niqe": ["min", "nothing"]}})
    assert METRICS["val/pyiqa_niqe"].direction == "min"
    assert METRICS[global_std_name("val/pyiqa_niqe")].compared_with == "other seeds"
    # It is reported if it was asked for, not because it needs no target.
    choice = resolve_metrics("none")
    assert "val/pyiqa_niqe" not in choice.names and "pyiqa" not in "".join(choice.notes)


def test_further_metrics_are_refused_by_name() -> None:
    assert further_metrics("dists, val/ssim_y") == ("val/dists", "val/ssim_y")
    with pytest.raises(InputError, match="--metrics dists,dists: dists is given twice"):
        further_metrics("dists,dists")
    with pytest.raises(InputError, match=r"--metrics l_std: val/l_std compares .* training.stability_draws=2"):
        further_metrics("l_std")
    with pytest.raises(InputError, match=r"--metrics dist: no such metric; expected .*dists.* or pyiqa_NAME"):
        further_metrics("dist")


@installed
def test_direction_and_kind_are_those_of_pyiqa() -> None:
    names = ("niqe", "gmsd", "vif", "clipiqa")
    asked = further_metrics(",".join(f"pyiqa_{name}" for name in names))
    assert asked == tuple(f"val/pyiqa_{name}" for name in names)
    facts = {
        name: (METRICS[f"val/pyiqa_{name}"].direction, METRICS[f"val/pyiqa_{name}"].compared_with) for name in names
    }
    without_target = {"niqe": ("min", "nothing"), "clipiqa": ("max", "nothing")}  # docs/metrics.md names the second
    assert facts == {**without_target, "gmsd": ("min", "target"), "vif": ("max", "target")}
    with pytest.raises(InputError, match=r"val/pyiqa_nique: pyiqa has no metric nique .*nearest: .*pyiqa_niqe"):
        further_metrics("pyiqa_nique")
    with pytest.raises(InputError, match="pyiqa has no metric fid of single images"):
        further_metrics("pyiqa_fid")


@installed
@pytest.mark.parametrize("name", ["gmsd", "fsim", "piqe"])  # without weights; piqe needs no target
def test_values_are_those_of_pyiqa(name: str, pair: tuple[Tensor, Tensor]) -> None:
    import pyiqa

    state = torch.get_rng_state()
    metrics = build_metrics([f"val/pyiqa_{name}"], border=4)
    values = metrics(*pair)[f"val/pyiqa_{name}"]
    assert torch.equal(torch.get_rng_state(), state)
    package = pyiqa.create_metric(name, device="cpu")
    expected = package(pair[0]) if name == "piqe" else package(*pair)
    torch.testing.assert_close(values, expected.float().flatten(), rtol=1e-6, atol=0)
    alone = metrics(pair[0][:1], pair[1][:1])[f"val/pyiqa_{name}"]
    torch.testing.assert_close(alone, values[:1], rtol=1e-5, atol=0)


@installed
def test_absent_weights_name_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyiqa.utils.download_util

    monkeypatch.setattr(pyiqa.utils.download_util, "DEFAULT_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(MetricUnavailableError, match=r"^val/pyiqa_niqe is absent: pyiqa cannot make it .*belong into"):
        build_metrics(["val/pyiqa_niqe"])


@installed
def test_sizes_that_pyiqa_cannot_measure_are_refused() -> None:
    check_size(["val/psnr", "val/pyiqa_gmsd"], 64)
    with pytest.raises(InputError, match="val/pyiqa_ms_ssim: pyiqa cannot measure images of 8 x 8 pixels"):
        check_size([further_metrics("pyiqa_ms_ssim")[0]], 8)
