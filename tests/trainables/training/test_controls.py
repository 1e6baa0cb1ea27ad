"""Controls: each row is compared with an independent computation."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trainables.common.errors import InputError
from trainables.data.prepare import prepare
from trainables.data.prepared import Prepared
from trainables.methods.sinsr import SinSR
from trainables.metrics import MetricSet
from trainables.networks.autoencoder import decode
from trainables.pretrained.autoencoders import load_autoencoder
from trainables.pretrained.base_model import load_vae
from trainables.pretrained.identity import resshift_identity
from trainables.pretrained.resshift import build_network
from trainables.pretrained.weights_file import save_weights
from trainables.settings import TrialSettings, override
from trainables.training.controls import measure_controls
from trainables.training.measurements import Validation
from trainables.training.validation import validate

CPU = torch.device("cpu")
METRICS = ("val/psnr", "val/ssim")
NAMES = ("bicubic", "input_latent", "autoencoder", "teacher_1", "teacher_15")


@pytest.fixture(scope="module")
def measured(tiny: TrialSettings, prepared: Prepared) -> dict[str, Validation]:
    rows = measure_controls(NAMES, tiny, prepared, METRICS)
    assert list(rows) == list(NAMES) and all(row.test is None for row in rows.values())
    return {name: row.validation for name, row in rows.items()}


def psnr(restored: np.ndarray, target: np.ndarray) -> float:
    """dB, images in [0, 1]."""
    return float(-10 * np.log10(np.mean((restored.astype(np.float64) - target) ** 2)))


def test_every_control_is_measured_on_every_image(measured: dict[str, Validation], prepared: Prepared) -> None:
    for validation in measured.values():
        assert validation.images == prepared.validation_names
        assert set(validation.per_image) == set(METRICS)
        assert all(v.shape == (3,) and np.isfinite(v).all() for v in validation.per_image.values())
        assert validation.means["val/psnr"] == pytest.approx(validation.per_image["val/psnr"].mean())
    assert len({validation.means["val/psnr"] for validation in measured.values()}) == len(NAMES)


def test_bicubic_control_is_bicubic_interpolation(measured: dict[str, Validation], prepared: Prepared) -> None:
    """Against the same convolution as matrices, and PSNR by its formula, in float64."""
    size, scale, a = 16, 4, -0.75
    matrix = np.zeros((size * scale, size))
    for row in range(size * scale):
        centre = (row + 0.5) / scale - 0.5
        for near in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            d = abs(centre - near)
            weight = (a + 2) * d**3 - (a + 3) * d**2 + 1 if d <= 1 else a * (d**3 - 5 * d**2 + 8 * d - 4)
            matrix[row, min(max(near, 0), size - 1)] += weight
    degraded, target = (prepared.validation(name)[name] for name in ("degraded", "target"))
    expected = [
        psnr(np.clip(matrix @ (image / 255) @ matrix.T, 0, 1), wanted / 255)
        for image, wanted in zip(degraded, target, strict=True)
    ]
    np.testing.assert_allclose(measured["bicubic"].per_image["val/psnr"], expected, rtol=1e-4)


@pytest.mark.parametrize(("name", "column"), [("autoencoder", "latent"), ("input_latent", "latent_degraded")])
def test_control_decodes_the_latent_of_target_or_input(
    name: str, column: str, measured: dict[str, Validation], tiny: TrialSettings, prepared: Prepared
) -> None:
    """Decoded from the prepared latents in the store."""
    autoencoder = load_autoencoder(tiny.autoencoder.weights)
    target = prepared.validation("target")["target"] / 255
    with torch.no_grad():
        latent = torch.from_numpy(prepared.validation(column)[column].astype(np.float32))
        restored = (decode(autoencoder, latent) * 0.5 + 0.5).clamp(0, 1).numpy()
    expected = [psnr(image, wanted) for image, wanted in zip(restored, target, strict=True)]
    np.testing.assert_allclose(measured[name].per_image["val/psnr"], expected, rtol=1e-3)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def test_teacher_1_equals_the_initial_student(
    measured: dict[str, Validation], tiny: TrialSettings, prepared: Prepared
) -> None:
    """From the same noise; other noise changes a fifth of the pixels. Equal weights at other addresses may be rounded
    otherwise, and become another code at a pixel in a thousand."""
    student = validate(SinSR(tiny, CPU).restore, prepared, MetricSet(METRICS), tiny.training.validation_batch, CPU)
    for name in METRICS:
        np.testing.assert_allclose(student.per_image[name], measured["teacher_1"].per_image[name], rtol=1e-3)
    ours, theirs = (pixels(of.grid).astype(int) for of in (student, measured["teacher_1"]))
    assert np.mean(np.abs(ours - theirs) > 1) < 0.005


def test_grid_shows_input_output_and_target(measured: dict[str, Validation], prepared: Prepared) -> None:
    grid = pixels(measured["bicubic"].grid)
    assert grid.shape == (3 * 64, 3 * 64, 3) and grid.dtype == np.uint8
    target = prepared.validation("target")["target"]
    degraded = prepared.validation("degraded")["degraded"]
    for row in range(3):
        tile = grid[row * 64 : (row + 1) * 64]
        np.testing.assert_array_equal(tile[:, 128:], target[row].transpose(1, 2, 0))
        np.testing.assert_array_equal(tile[::4, :64:4], degraded[row].transpose(1, 2, 0))


def test_degraded_image_of_full_size_is_the_bicubic_control(tiny: TrialSettings, tmp_path: Path) -> None:
    """Also the autoencoder's row, for which no latents are prepared."""
    settings = override(tiny, {"method": "pix2pix", "pairs.scale": 1})
    prepared = prepare(settings, tmp_path, {"target", "degraded"})
    rows = measure_controls(["bicubic", "autoencoder"], settings, prepared, METRICS)
    degraded, target = (prepared.validation(name)[name] / 255 for name in ("degraded", "target"))
    expected = [psnr(image, wanted) for image, wanted in zip(degraded, target, strict=True)]
    np.testing.assert_allclose(rows["bicubic"].validation.per_image["val/psnr"], expected, rtol=1e-5)


def test_autoencoder_control_uses_the_methods_autoencoder(
    trial_of: Callable[[str], TrialSettings], prepared_for: Callable[[TrialSettings], Prepared], base: Path
) -> None:
    settings = trial_of("latent_diffusion")
    prepared = prepared_for(settings)
    rows = measure_controls(["autoencoder"], settings, prepared, METRICS)
    vae = load_vae(base)
    with torch.no_grad():
        latent = torch.from_numpy(prepared.validation("latent")["latent"].astype(np.float32))
        restored = (vae.decode(latent / vae.config.scaling_factor).sample * 0.5 + 0.5).clamp(0, 1).numpy()
    target = prepared.validation("target")["target"] / 255
    expected = [psnr(image, wanted) for image, wanted in zip(restored, target, strict=True)]
    np.testing.assert_allclose(rows["autoencoder"].validation.per_image["val/psnr"], expected, rtol=1e-3)


@pytest.mark.parametrize("name", ["tricubic", "teacher_7", "teacher_", ""])
def test_unknown_control_is_refused(name: str, tiny: TrialSettings, prepared: Prepared) -> None:
    with pytest.raises(
        InputError, match=f"control '{name}': expected bicubic, input_latent, autoencoder, teacher_1 or teacher_15"
    ):
        measure_controls([name], tiny, prepared, METRICS)


def test_teacher_control_runs_the_whole_schedule(small: TrialSettings, prepared: Prepared, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher.safetensors"
    shorter = override(small, {"resshift.steps": 3, "teacher.weights": str(teacher)})
    save_weights(teacher, build_network(shorter.network).state_dict(), "resshift", resshift_identity(shorter))
    with pytest.raises(InputError, match="teacher_1 or teacher_3"):
        measure_controls(["teacher_15"], shorter, prepared, METRICS)
    assert list(measure_controls(["teacher_3"], shorter, prepared, METRICS)) == ["teacher_3"]
