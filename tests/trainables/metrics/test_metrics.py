"""Validation metrics against second implementations: scikit-image, SinSR's luma PSNR, the lpips package."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from skimage import metrics as skimage_metrics
from torch import Tensor, nn

from tests.helpers.paths import EXPECTED
from trainables.common.errors import InputError
from trainables.methods.shared.perceptual_loss import PerceptualLoss
from trainables.metrics import (
    DISTS,
    LPIPS,
    MAX_PSNR,
    METRICS,
    STLPIPS,
    MetricSet,
    MetricUnavailableError,
    build_metrics,
    ensure_available,
    psnr,
    psnr_y,
    resolve_perceptual,
    ssim,
    ssim_y,
)
from trainables.metrics.lpips import _download, backbone_path, ensure_backbone
from trainables.metrics.names import OF_PIXELS
from trainables.settings import PerceptualSettings

# Crops of three photographs, a blurred and noisy version of each, and their values from SinSR's batch_PSNR.
SINSR = load_file(EXPECTED / "parity_sinsr_psnr_y.safetensors")
WITH_BACKBONE = ("val/lpips", "val/lpips_vgg", "val/dists")
WITHOUT_DOWNLOAD = tuple(
    name for name, metric in METRICS.items() if metric.compared_with == "target" and name not in WITH_BACKBONE
)


@pytest.fixture(scope="module")
def pair() -> tuple[Tensor, Tensor]:
    """(restored, target), each (3, 3, 48, 40) in [0, 1]."""
    return SINSR["restored"].float(), SINSR["target"].float() / 255


@pytest.fixture(scope="module")
def metrics() -> MetricSet:
    return MetricSet(WITHOUT_DOWNLOAD)


@pytest.fixture
def empty_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty torch hub cache; returns the path of the LPIPS backbone in it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert tmp_path in backbone_path().parents
    return backbone_path()


def test_names_load_without_torch() -> None:
    script = "import sys, trainables.metrics as m; assert m.METRICS; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_st_lpips_min_side_equals_the_networks() -> None:
    assert METRICS["val/st_lpips"].min_side == STLPIPS("alex").min_side


def test_psnr_equals_scikit_image(pair: tuple[Tensor, Tensor]) -> None:
    expected = [
        skimage_metrics.peak_signal_noise_ratio(t.double().numpy(), r.double().numpy(), data_range=1)
        for r, t in zip(*pair, strict=True)
    ]
    torch.testing.assert_close(psnr(*pair).double(), torch.tensor(expected).double(), rtol=1e-6, atol=0)


def test_psnr_y_equals_sinsr(pair: tuple[Tensor, Tensor]) -> None:
    torch.testing.assert_close(psnr_y(*pair).double(), SINSR["psnr_y"], rtol=1e-6, atol=0)


@pytest.mark.parametrize("side", [11, 12, 40])
def test_ssim_equals_scikit_image(pair: tuple[Tensor, Tensor], side: int) -> None:
    restored, target = (images[..., :side, :side] for images in pair)
    expected = [
        skimage_metrics.structural_similarity(
            t.permute(1, 2, 0).double().numpy(),
            r.permute(1, 2, 0).double().numpy(),
            channel_axis=2,
            data_range=1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for r, t in zip(restored, target, strict=True)
    ]
    torch.testing.assert_close(ssim(restored, target), torch.tensor(expected).float(), rtol=1e-6, atol=0)


def luma(image: Tensor) -> np.ndarray:
    """The 8-bit BT.601 luma of a (3, H, W) image in [0, 1], as Matlab's `rgb2ycbcr` gives it: (H, W) from 16 to 235."""
    red, green, blue = image.double().numpy()
    return np.round(65.481 * red + 128.553 * green + 24.966 * blue + 16)


@pytest.mark.parametrize("side", [11, 12, 40])
def test_ssim_y_equals_scikit_image(pair: tuple[Tensor, Tensor], side: int) -> None:
    restored, target = (images[..., :side, :side] for images in pair)
    expected = [
        skimage_metrics.structural_similarity(
            luma(t), luma(r), data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        for r, t in zip(restored, target, strict=True)
    ]
    torch.testing.assert_close(ssim_y(restored, target), torch.tensor(expected).float(), rtol=1e-6, atol=0)
    assert not torch.equal(ssim_y(restored, target), ssim(restored, target))


def test_border_is_left_out_by_the_metrics_of_pixels_alone(pair: tuple[Tensor, Tensor]) -> None:
    restored, target = pair
    cropped = [images[..., 4:-4, 4:-4] for images in pair]
    with_border = MetricSet(WITHOUT_DOWNLOAD, border=4)
    expected = MetricSet(OF_PIXELS)(*cropped) | MetricSet(["val/st_lpips"])(restored, target)
    assert all(torch.equal(value, expected[name]) for name, value in with_border(restored, target).items())
    edge = restored.clone()
    edge[..., :4] = 0
    values = MetricSet(OF_PIXELS, border=4)(edge, target)
    assert all(torch.equal(values[name], expected[name]) for name in OF_PIXELS)
    assert MetricSet(["val/ssim"], border=4).min_side == 19
    with pytest.raises(ValueError, match="H, W >= 19"):
        MetricSet(["val/ssim"], border=4)(restored[..., :18, :18], target[..., :18, :18])


def test_batch_values_equal_single_image_values(metrics: MetricSet, pair: tuple[Tensor, Tensor]) -> None:
    restored, target = pair
    batched = metrics(restored, target)
    assert tuple(batched) == WITHOUT_DOWNLOAD
    for i in range(len(restored)):
        for name, value in metrics(restored[i : i + 1], target[i : i + 1]).items():
            torch.testing.assert_close(batched[name][i : i + 1], value, rtol=1e-5, atol=0)


def test_restored_images_are_clamped(metrics: MetricSet, pair: tuple[Tensor, Tensor]) -> None:
    restored, target = pair
    stretched = restored * 3 - 1
    values, clamped = metrics(stretched, target), metrics(stretched.clamp(0, 1), target)
    assert all(torch.equal(values[name], clamped[name]) for name in values)
    assert not torch.equal(psnr(stretched, target), values["val/psnr"])


def test_identical_images_get_the_best_value(metrics: MetricSet, pair: tuple[Tensor, Tensor]) -> None:
    _, target = pair
    best = {"val/psnr": MAX_PSNR, "val/psnr_y": MAX_PSNR, "val/ssim": 1.0, "val/ssim_y": 1.0, "val/st_lpips": 0.0}
    for name, value in metrics(target, target.clone()).items():
        torch.testing.assert_close(value, torch.full((3,), best[name]), rtol=1e-6, atol=1e-9)


def test_direction_matches_a_worse_restoration(metrics: MetricSet, pair: tuple[Tensor, Tensor]) -> None:
    restored, target = pair
    worse = restored + 0.1 * torch.randn(restored.shape, generator=torch.Generator().manual_seed(0))
    near, far = metrics(restored, target), metrics(worse, target)
    for name in metrics.names:
        change = far[name] - near[name]
        assert (change < 0 if METRICS[name].direction == "max" else change > 0).all(), name


def test_only_the_image_with_nan_gets_nan(metrics: MetricSet, pair: tuple[Tensor, Tensor]) -> None:
    restored, target = pair
    broken = restored.clone()
    broken[1, :, 20, 20] = torch.nan
    clean = metrics(restored, target)
    for name, value in metrics(broken, target).items():
        assert value.isnan().tolist() == [False, True, False], name
        torch.testing.assert_close(value[::2], clean[name][::2], rtol=1e-5, atol=0)


def test_autocast_does_not_change_values(metrics: MetricSet, pair: tuple[Tensor, Tensor]) -> None:
    outside = metrics(*pair)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = metrics(*pair)
    assert all(torch.equal(inside[name], outside[name]) for name in outside)


def test_invalid_input_is_named(metrics: MetricSet, pair: tuple[Tensor, Tensor]) -> None:
    restored, target = pair
    with pytest.raises(ValueError, match="H, W >= 21"):
        metrics(restored[..., :20], target[..., :20])
    with pytest.raises(ValueError, match=r"\(3, 3, 48, 39\)"):
        metrics(restored[..., 1:], target)
    with pytest.raises(ValueError, match=r"target spans \[-1"):
        metrics(restored, target * 2 - 1)
    with pytest.raises(InputError, match=r"val/pnsr.*val/psnr, "):
        MetricSet(["val/pnsr"])
    with pytest.raises(InputError, match="each name once"):
        MetricSet(["val/psnr", "val/psnr"])


def test_absent_lpips_is_reported_and_not_replaced(empty_hub: Path) -> None:
    for build in (LPIPS, partial(MetricSet, ["val/lpips"]), partial(ensure_backbone, allow_download=False)):
        with pytest.raises(MetricUnavailableError, match=str(empty_hub)):
            build()
    with pytest.raises(MetricUnavailableError, match=str(empty_hub)):
        resolve_perceptual("lpips", allow_download=False)
    choice = resolve_perceptual("auto", allow_download=False)
    assert choice.names == ("val/st_lpips",)
    (note,) = choice.notes
    assert note.startswith("val/lpips is absent") and str(empty_hub) in note and "\n" not in note


def test_choices_that_need_no_backbone(empty_hub: Path) -> None:
    assert resolve_perceptual("none").names == ()
    assert resolve_perceptual("st_lpips").names == ("val/st_lpips",)
    assert resolve_perceptual("st_lpips").notes == ()
    with pytest.raises(InputError, match="auto, lpips, lpips_vgg, st_lpips, none"):
        resolve_perceptual("vgg")  # type: ignore[arg-type]


def random_hub(home: Path, build: Callable[[], nn.Module], name: str) -> Path:
    """Makes `home` a torch hub cache whose file `name` has a network's random weights; returns `home`."""
    checkpoints = home / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(build().state_dict(), checkpoints / name)
    return home


@pytest.fixture(scope="module")
def random_alexnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A torch hub cache with a file like AlexNet's, but with random weights."""
    from torchvision.models import alexnet

    return random_hub(tmp_path_factory.mktemp("torch"), alexnet, backbone_path().name)


@pytest.fixture(scope="module")
def random_vgg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A torch hub cache with a file like VGG-16's, but with random weights."""
    from torchvision.models import vgg16

    return random_hub(tmp_path_factory.mktemp("torch"), vgg16, backbone_path("vgg").name)


@pytest.mark.parametrize("name", ["lpips", "lpips_vgg"])
@pytest.mark.parametrize("weights", ["random", "trained"])
def test_lpips_equals_the_package_loading_the_same_file(
    name: Literal["lpips", "lpips_vgg"],
    weights: str,
    pair: tuple[Tensor, Tensor],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the metric, and as the term of a loss, whose images are in [-1, 1]."""
    net: Literal["alex", "vgg"] = "alex" if name == "lpips" else "vgg"
    if weights == "random":
        fixture = "random_alexnet" if net == "alex" else "random_vgg"
        monkeypatch.setenv("TORCH_HOME", str(request.getfixturevalue(fixture)))
    elif not backbone_path(net).is_file():
        pytest.skip(f"its weights are not at {backbone_path(net)}")
    import lpips

    metric, state = f"val/{name}", torch.get_rng_state()
    ours = build_metrics([metric])
    term = PerceptualLoss(PerceptualSettings(weight=2.0, network=name), torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), state)
    if net == "alex":
        assert resolve_perceptual("auto", allow_download=False).names == (metric,)
    assert resolve_perceptual(name, allow_download=False).names == (metric,)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package = lpips.LPIPS(net=net, verbose=False)
    restored, target = pair
    expected = package(restored.clamp(0, 1), target, normalize=True).detach().flatten()
    assert (expected > 0).all()
    torch.testing.assert_close(ours(restored, target)[metric], expected, rtol=1e-5, atol=0)
    loss = term(restored.clamp(0, 1) * 2 - 1, target * 2 - 1)
    assert loss.weight == 2.0
    torch.testing.assert_close(loss.value, expected.mean(), rtol=1e-5, atol=0)


def test_lpips_min_side_is_as_documented(random_alexnet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(random_alexnet))
    network, side = LPIPS(), METRICS["val/lpips"].min_side
    a, b = torch.rand(2, 1, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert network(a, b).item() > 0
    with pytest.raises(RuntimeError):
        network(a[..., 1:], b[..., 1:])


def test_damaged_backbone_is_named(empty_hub: Path) -> None:
    empty_hub.parent.mkdir(parents=True)
    empty_hub.write_bytes(b"half a file")
    with pytest.raises(MetricUnavailableError, match=f"{empty_hub} cannot be read"):
        LPIPS()


def dists_of_the_paper(restored: Tensor, target: Tensor, home: Path) -> Tensor:
    """DISTS written from the paper's equations 2, 6, 7 and 8, in float64, with the learned weights alpha and beta."""
    import torchmetrics.functional.image.dists as package

    state = torch.load(home / "hub" / "checkpoints" / backbone_path("vgg").name, weights_only=True)
    learned = torch.load(package._PATH_WEIGHT_DISTS, weights_only=True)
    window = torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64)  # Hanning, of 5 taps without the zeros at its ends
    blur = torch.outer(window, window)[None, None]

    def features(image: Tensor) -> list[Tensor]:
        mean, deviation = (
            torch.tensor(v).double().view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        )
        x, found, index = (image.double() - mean) / deviation, [image.double()], 0
        for stage, depth in enumerate((2, 2, 3, 3, 3)):
            if stage:  # the square root of blurred squares, in place of the largest value
                x = F.conv2d(x.square(), blur.repeat(x.shape[1], 1, 1, 1), stride=2, padding=1, groups=x.shape[1])
                x, index = (x + 1e-12).sqrt(), index + 1
            for _ in range(depth):
                weight, bias = (state[f"features.{index}.{kind}"].double() for kind in ("weight", "bias"))
                x, index = F.conv2d(x, weight, bias, padding=1).relu(), index + 2
            found.append(x)
        return found

    texture, structure = [], []
    for a, b in zip(features(restored), features(target), strict=True):
        mean_a, mean_b = a.mean((2, 3)), b.mean((2, 3))
        covariance = (a * b).mean((2, 3)) - mean_a * mean_b
        texture.append((2 * mean_a * mean_b + 1e-6) / (mean_a**2 + mean_b**2 + 1e-6))
        variances = a.var((2, 3), correction=0) + b.var((2, 3), correction=0)
        structure.append((2 * covariance + 1e-6) / (variances + 1e-6))
    alpha, beta = (learned[name].double().flatten() for name in ("alpha", "beta"))
    total = alpha.sum() + beta.sum()
    return 1 - (torch.cat(texture, 1) @ alpha + torch.cat(structure, 1) @ beta) / total


def test_dists_equals_the_equations_of_the_paper(
    pair: tuple[Tensor, Tensor], random_vgg: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To 1e-4: a covariance in float32 is the difference of two nearly equal numbers."""
    monkeypatch.setenv("TORCH_HOME", str(random_vgg))
    restored, target = pair
    state = torch.get_rng_state()
    metrics = build_metrics(["val/dists"])
    assert torch.equal(torch.get_rng_state(), state)
    values = metrics(restored, target)["val/dists"]
    expected = dists_of_the_paper(restored.clamp(0, 1), target, random_vgg)
    torch.testing.assert_close(values, expected.float(), rtol=0, atol=1e-4)
    assert metrics(restored[:1], target[:1])["val/dists"].shape == (1,)
    assert metrics(target, target)["val/dists"].abs().max() < 1e-5 < values.min()


def test_absent_dists_names_the_file_of_its_backbone(empty_hub: Path) -> None:
    file = empty_hub.with_name(backbone_path("vgg").name)
    for build in (
        DISTS,
        partial(MetricSet, ["val/dists"]),
        partial(ensure_available, ["val/dists"], allow_download=False),
    ):
        with pytest.raises(
            MetricUnavailableError, match=f"^val/dists is absent.* VGG-16 .*download https.* to {file}$"
        ):
            build()
    file.parent.mkdir(parents=True)
    file.write_bytes(b"half a file")
    with pytest.raises(MetricUnavailableError, match=f"^val/dists: {file} cannot be read"):
        DISTS()


class _Files(SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/slow":
            time.sleep(5)
        super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A local web server for files of `tmp_path`; /slow answers after 5 s."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Files, directory=str(tmp_path))) as http:
        http.daemon_threads, http.block_on_close = True, False
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def test_download_keeps_only_a_file_with_the_right_checksum(server: str, tmp_path: Path) -> None:
    content = b"weights" * 300_000
    (tmp_path / "served").write_bytes(content)
    right = tmp_path / "hub" / f"net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    wrong = tmp_path / "hub" / "net-01234567.pth"
    _download(f"{server}/served", right, connect_seconds=4, download_seconds=10)
    assert right.read_bytes() == content
    with pytest.raises(OSError, match="not 01234567"):
        _download(f"{server}/served", wrong, connect_seconds=4, download_seconds=10)
    with pytest.raises(TimeoutError, match="not complete"):
        _download(f"{server}/served", wrong, connect_seconds=4, download_seconds=0)
    with pytest.raises(OSError, match="404"):
        _download(f"{server}/absent", wrong, connect_seconds=4, download_seconds=10)
    assert list(right.parent.iterdir()) == [right]


def test_download_gives_up_on_a_server_that_does_not_answer(server: str, tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        _download(f"{server}/slow", tmp_path / "net-01234567.pth", connect_seconds=0.3, download_seconds=9)
    assert time.monotonic() - start < 2
