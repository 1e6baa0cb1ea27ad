"""The degradation against the reference's numbers and against definitions; it depends only on its seed."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.helpers.degradations import ONLY_RESIZED
from tests.helpers.paths import EXPECTED
from trainables.common.errors import InputError
from trainables.images.degradations import degradation, kernels
from trainables.images.sources.photographs import load_photographs
from trainables.settings.degradation import KERNEL_KINDS, MILD, DegradationSettings
from trainables.settings.pairs import PairSettings
from trainables.settings.presets import preset

# Kernels from the functions of basicsr/data/degradations.py, and size, sigma_x, sigma_y, theta, beta, cutoff.
PARITY = np.load(EXPECTED / "parity_kernels.npz")
PUBLISHED = DegradationSettings()


@pytest.fixture(scope="module")
def cat() -> np.ndarray:
    return load_photographs("sample", "validation")[0].pixels[96:224, 160:288]


@pytest.mark.parametrize("name", [name for name in PARITY.files if not name.endswith("_parameters")])
def test_kernel_agrees_with_the_reference(name: str) -> None:
    size, sigma_x, sigma_y, theta, beta, cutoff = PARITY[f"{name}_parameters"]
    if name.startswith("sinc"):
        kernel = kernels.sinc_kernel(int(size), cutoff)
    elif name.startswith("plateau"):
        kernel = kernels.plateau_kernel(int(size), sigma_x, sigma_y, theta, beta)
    elif name.startswith("generalized"):
        kernel = kernels.generalized_gaussian_kernel(int(size), sigma_x, sigma_y, theta, beta)
    else:
        kernel = kernels.gaussian_kernel(int(size), sigma_x, sigma_y, theta)
    np.testing.assert_allclose(kernel, PARITY[name], rtol=1e-6, atol=1e-15)


@pytest.mark.parametrize(("name", "smallest", "largest"), [("resshift", 3, 19), ("stablesr", 7, 21)])
def test_random_kernels_keep_the_published_ranges(
    monkeypatch: pytest.MonkeyPatch, name: str, smallest: int, largest: int
) -> None:
    """2,000 draws: every kind about as often as published, all sizes, parameters inside their ranges."""
    drawn: list[tuple[str, tuple[float, ...]]] = []

    def spy(kind: str) -> None:
        original = getattr(kernels, kind)

        def record(*args: Any, **kwargs: Any) -> np.ndarray:
            drawn.append((kind, args))
            return original(*args, **kwargs)

        monkeypatch.setattr(kernels, kind, record)

    for kind in ("generalized_gaussian_kernel", "plateau_kernel", "sinc_kernel"):
        spy(kind)
    s, rng, count = preset(name).trial.pairs.degradation, np.random.default_rng(0), 2000
    sizes = set()
    for _ in range(count):
        kernel = degradation.blur_kernel(rng, s)
        assert kernel.sum() == pytest.approx(1)
        sizes.add(kernel.shape[0])
    assert sizes == set(range(smallest, largest + 1, 2))

    def share(kind: str) -> float:
        return sum(name == kind for name, _ in drawn) / count

    assert share("sinc_kernel") == pytest.approx(0.1, abs=0.025)
    assert share("plateau_kernel") == pytest.approx(0.9 * 0.15, abs=0.03)
    for name, args in drawn:
        if name == "sinc_kernel":
            assert (math.pi / 3 if args[0] < 13 else math.pi / 5) <= args[1] <= math.pi
        else:
            assert all(s.blur_sigma[0] <= sigma <= s.blur_sigma[1] for sigma in args[1:3])
            assert len(args) < 5 or s.betag_range[0] <= args[4] <= s.betag_range[1]


def test_blur_is_the_mirrored_correlation(cat: np.ndarray) -> None:
    image = cat[:37, :50].astype(np.float32) / 255
    for size in (3, 13, 21):
        kernel = np.random.default_rng(size).random((size, size))
        kernel /= kernel.sum()
        batch = torch.from_numpy(image).permute(2, 0, 1)[:, None].double()
        padded = functional.pad(batch, (size // 2,) * 4, mode="reflect")
        expected = functional.conv2d(padded, torch.from_numpy(kernel)[None, None])[:, 0].permute(1, 2, 0).numpy()
        np.testing.assert_allclose(degradation.blur(image, kernel), expected, atol=2e-6)


def test_blur_works_on_images_smaller_than_the_kernel() -> None:
    image = np.full((3, 5, 3), 0.25, np.float32)
    np.testing.assert_allclose(degradation.blur(image, np.full((13, 13), 1 / 169)), image, atol=1e-6)


@pytest.mark.parametrize("gray", [False, True])
def test_gaussian_noise_has_the_stated_deviation(gray: bool) -> None:
    noise = degradation.gaussian_noise((200, 200), np.random.default_rng(0), 12.0, gray)
    assert noise.shape == (200, 200, 1 if gray else 3)
    assert noise.std() * 255 == pytest.approx(12.0, rel=0.02)
    assert abs(noise.mean()) * 255 < 0.3


@pytest.mark.parametrize(("levels", "photons"), [(2, 2), (3, 4), (64, 64), (65, 128), (256, 256)])
def test_poisson_noise_follows_the_number_of_levels(levels: int, photons: int) -> None:
    """Variance scale^2 * x / photons, where `photons` is the level count rounded up to a power of two."""
    steps = np.round(np.linspace(51, 255, levels)).astype(np.uint8) if levels < 200 else np.arange(256)
    assert len(np.unique(steps)) == levels
    image = np.resize(steps, (256, 256)).astype(np.float32)[:, :, None].repeat(3, axis=2) / 255
    noise = degradation.poisson_noise(image, np.random.default_rng(0), scale=0.5, gray=False)
    assert noise.var() == pytest.approx(0.25 * image.mean() / photons, rel=0.03)


def test_grey_poisson_noise_has_one_channel(cat: np.ndarray) -> None:
    noise = degradation.poisson_noise(cat / np.float32(255), np.random.default_rng(0), 1.0, gray=True)
    assert noise.shape == (*cat.shape[:2], 1)
    assert noise.std() > 0


def test_jpeg_quality_orders_the_error(cat: np.ndarray) -> None:
    image = cat.astype(np.float32) / 255
    error = [np.abs(degradation.jpeg(image, quality) - image).mean() for quality in (10, 40, 70, 95)]
    assert error == sorted(error, reverse=True)
    assert error[-1] < 0.02


@pytest.mark.parametrize("settings", [PUBLISHED, MILD], ids=["published", "mild"])
@pytest.mark.parametrize(("height", "width", "scale"), [(64, 64, 4), (128, 96, 4), (16, 16, 4), (30, 18, 2)])
def test_degrade_is_a_function_of_pixels_and_generator(
    cat: np.ndarray, settings: DegradationSettings, height: int, width: int, scale: int
) -> None:
    target = cat[:height, :width]
    before = target.copy()
    for seed in range(12):
        torch.manual_seed(seed)  # the global generator has no influence
        one = degradation.degrade(target, settings, np.random.default_rng(seed), scale)
        torch.manual_seed(seed + 1)
        two = degradation.degrade(target, settings, np.random.default_rng(seed), scale)
        assert one.shape == (height // scale, width // scale, 3) and one.dtype == np.uint8
        assert np.array_equal(one, two)
    assert np.array_equal(target, before)
    other = degradation.degrade(target, settings, np.random.default_rng(99), scale)
    assert not np.array_equal(other, one)


def test_without_blur_and_noise_it_is_resize_and_two_jpegs(cat: np.ndarray) -> None:
    """With everything but the resizing turned down, the result stays close to the area average."""
    average = cat.reshape(32, 4, 32, 4, 3).mean(axis=(1, 3))
    error = [
        np.abs(degradation.degrade(cat, ONLY_RESIZED, np.random.default_rng(seed)) - average).mean()
        for seed in range(9)
    ]
    assert min(error) < 3  # area
    assert max(error) < 12  # bilinear and bicubic alias


def test_mild_settings_degrade_less(cat: np.ndarray) -> None:
    average = cat.reshape(32, 4, 32, 4, 3).mean(axis=(1, 3))

    def error(settings: DegradationSettings) -> float:
        results = [degradation.degrade(cat, settings, np.random.default_rng(seed)) for seed in range(40)]
        return float(np.mean([np.abs(result - average).mean() for result in results]))

    assert error(MILD) < 0.7 * error(PUBLISHED)


@pytest.mark.parametrize("shape", [(64, 62, 3), (64, 64), (2, 64, 3), (64, 64, 4)])
def test_degrade_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="give"):
        degradation.degrade(np.zeros(shape, np.uint8), MILD, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise_range": (5, 1)}, r"degradation\.noise_range=\(5, 1\) .* low <= high"),
        ({"jpeg_range": (0, 95)}, r"degradation\.jpeg_range=.* give \(low, high\) with 1 <= low"),
        ({"resize_range": (1.2, 1.5)}, r"degradation\.resize_range=.*low <= 1 <= high"),
        ({"sinc_prob": 1.5}, r"degradation\.sinc_prob=1\.5 .* a probability from 0 to 1"),
        ({"second_order_prob": True}, r"degradation\.second_order_prob=True"),
        ({"kernel_prob": (1, 2)}, r"degradation\.kernel_prob=.* for iso, aniso"),
        ({"resize_prob2": (0, 0, 0)}, r"degradation\.resize_prob2=.* for up, down, keep"),
        ({"blur_kernel_size": 20}, r"degradation\.blur_kernel_size=20 .* an odd number"),
        ({"smallest_blur_kernel": 4}, r"degradation\.smallest_blur_kernel=4 .* an odd number"),
        ({"smallest_blur_kernel2": 15}, r"degradation\.smallest_blur_kernel2=15 .* below .*blur_kernel_size2=15"),
        ({"blur_sigma2": ("a", 1)}, r"degradation\.blur_sigma2="),
        ({"poisson_scale_range": (0, math.nan)}, r"degradation\.poisson_scale_range="),
    ],
)
def test_settings_name_field_value_and_accepted(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        dataclasses.replace(PUBLISHED, **change)


@pytest.mark.parametrize("change", [{"image_size": 62}, {"scale": 0}, {"train_pairs": 0}, {"validation_size": 8}])
def test_pair_settings_are_checked(change: dict[str, Any]) -> None:
    name = next(iter(change))
    with pytest.raises(InputError, match=f"pairs.{name}={change[name]}: expected"):
        PairSettings(**change)


def test_settings_import_without_torch() -> None:
    code = "import sys; import trainables.settings.pairs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_kernel_kind_has_a_probability() -> None:
    assert len(KERNEL_KINDS) == len(PUBLISHED.kernel_prob) == len(PUBLISHED.kernel_prob2)
    assert sum(PUBLISHED.kernel_prob) == pytest.approx(1)
