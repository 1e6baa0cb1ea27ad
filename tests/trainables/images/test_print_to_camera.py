"""Every stage of print-to-camera, measured in the result, against its setting."""

from __future__ import annotations

import dataclasses
import io
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from skimage.registration import phase_cross_correlation

from trainables.common.errors import InputError
from trainables.images.degradations.print_to_camera import (
    expose,
    illumination,
    paper,
    print_inks,
    print_to_camera,
    sensor_places,
)
from trainables.images.sources.photographs import load_photographs
from trainables.settings.print_to_camera import MILD_PRINT, NO_PRINT, PrintSettings

LEVELS = np.arange(256) / 255
LINEAR = np.where(LEVELS <= 0.04045, LEVELS / 12.92, ((LEVELS + 0.055) / 1.055) ** 2.4)


def only(**strengths: float | tuple[float, float]) -> PrintSettings:
    """`NO_PRINT` with the given fields; a number means a range of that one number."""
    ranges = {name: value if isinstance(value, tuple) else (value, value) for name, value in strengths.items()}
    return dataclasses.replace(NO_PRINT, **ranges)


def photographed(image: np.ndarray, settings: PrintSettings, seed: int = 0) -> np.ndarray:
    return print_to_camera(image, settings, np.random.default_rng(seed))


def flat(*colour: int, side: int = 128) -> np.ndarray:
    return np.full((side, side, 3), colour, dtype=np.uint8)


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    return 10 * math.log10(255**2 / np.mean((first.astype(float) - second) ** 2))


@pytest.fixture(scope="module")
def cat() -> np.ndarray:
    return load_photographs("sample", "validation")[0].pixels


def test_all_stages_off_return_the_image(cat: np.ndarray) -> None:
    every_level = np.stack([np.arange(256), np.arange(256)[::-1], np.roll(np.arange(256), 77)], axis=-1)
    image = np.concatenate([np.tile(every_level.astype(np.uint8), (16, 1, 1)), cat[:40, :256]])
    for seed in range(3):
        assert np.array_equal(photographed(image, NO_PRINT, seed), image)


def test_result_depends_on_arguments_only(cat: np.ndarray) -> None:
    image, settings, rng = cat[100:180, 100:200].copy(), PrintSettings(), np.random.default_rng(5)
    first = print_to_camera(image, settings, rng)
    assert np.array_equal(image, cat[100:180, 100:200])
    assert np.array_equal(first, photographed(image, settings, 5))
    assert not np.array_equal(first, print_to_camera(image, settings, rng)), "the generator is moved on"


def test_stages_have_independent_random_streams(cat: np.ndarray) -> None:
    image, dots = cat[100:164, 100:164], only(halftone=1.0, paper_texture=0.1, misregistration=2.0)
    both = dataclasses.replace(dots, read_noise=(0.001, 0.001), exposure=(0.001, 0.001))
    assert psnr(photographed(image, dots), photographed(image, both)) > 35
    assert psnr(photographed(image, dots), photographed(image, dots, seed=1)) < 20


@pytest.mark.parametrize(
    "settings", [PrintSettings(), MILD_PRINT, only(defocus=8.0, motion_blur=32.0, fibre_length=32.0)]
)
@pytest.mark.parametrize("shape", [(16, 16), (17, 64), (76, 71), (200, 16)])
def test_any_shape_is_accepted(shape: tuple[int, int], settings: PrintSettings, cat: np.ndarray) -> None:
    image = cat[:200][: shape[0], : shape[1]]
    out = photographed(image, settings)
    assert out.shape == image.shape
    assert out.dtype == np.uint8


@pytest.mark.parametrize(
    "image", [np.zeros((32, 32, 3), np.float32), np.zeros((32, 32), np.uint8), np.zeros((15, 32, 3), np.uint8)]
)
def test_other_arrays_are_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="give uint8"):
        photographed(image, NO_PRINT)


STRENGTHS: dict[str, tuple[float, float, float]] = {
    "ink_gamut": (0.2, 0.5, 1.0),
    "black_point": (0.01, 0.03, 0.1),
    "dot_gain": (0.02, 0.06, 0.2),
    "halftone": (0.2, 0.5, 1.0),
    "paper_absorption": (0.05, 0.1, 0.3),
    "paper_tint": (0.02, 0.1, 0.3),
    "paper_texture": (0.01, 0.03, 0.1),
    "misregistration": (0.2, 0.6, 2.0),
    "lens_distortion": (0.005, 0.02, 0.06),
    "uneven_light": (0.1, 0.3, 0.8),
    "mixed_light": (10.0, 30.0, 90.0),
    "vignette": (0.1, 0.3, 0.6),
    "defocus": (0.4, 0.8, 1.6),
    "motion_blur": (1.0, 2.0, 5.0),
    "exposure": (0.1, 0.3, 0.9),
    "shot_noise": (0.01, 0.03, 0.1),
    "read_noise": (0.002, 0.01, 0.03),
    "white_balance": (-10.0, -30.0, -60.0),
    "sharpening": (0.2, 0.5, 1.5),
    "jpeg_quality": (95.0, 70.0, 20.0),
}


def test_every_strength_is_tested() -> None:
    shapes = {"halftone_period", "fibre_length"}
    assert set(STRENGTHS) | shapes == {spec.name for spec in dataclasses.fields(PrintSettings)}


@pytest.mark.parametrize("name", STRENGTHS)
def test_stronger_settings_degrade_more(name: str, cat: np.ndarray) -> None:
    image = cat[100:196, 150:246]
    errors = [
        np.mean([np.mean((photographed(image, only(**{name: x}), s).astype(float) - image) ** 2) for s in range(4)])
        for x in STRENGTHS[name]
    ]
    assert 0 < errors[0] < errors[1] < errors[2]


def test_white_is_paper_and_black_is_ink() -> None:
    settings = only(ink_gamut=1.0, black_point=0.03, paper_absorption=0.12, paper_tint=0.05)
    white, black = (LINEAR[photographed(flat(*3 * [level], side=16), settings)[3, 3]] for level in (255, 0))
    reflectance = 0.88 * np.array([1, 0.975, 0.95])
    np.testing.assert_allclose(white, reflectance, atol=0.005)
    np.testing.assert_allclose(black, 0.03 * reflectance, atol=0.001)


@pytest.mark.parametrize(
    ("asked", "printed"), [((0, 255, 255), (0, 159, 227)), ((255, 0, 0), (227, 6, 19)), ((0, 0, 255), (49, 39, 131))]
)
def test_solid_colours_become_ink_colours(asked: tuple[int, ...], printed: tuple[int, ...]) -> None:
    assert np.abs(photographed(flat(*asked, side=16), only(ink_gamut=1.0))[5, 5].astype(int) - printed).max() <= 1


def test_inks_desaturate_saturated_colours() -> None:
    """Linear light, the six full hues: none gains, and on average they lose a third."""
    hues = np.array([[(255, 0, 0), (255, 255, 0), (0, 255, 0), (0, 255, 255), (0, 0, 255), (255, 0, 255)]], np.uint8)
    image = np.repeat(np.repeat(hues, 16, axis=0), 16, axis=1)
    chroma = np.ptp(LINEAR[photographed(image, only(ink_gamut=1.0))], axis=-1)[0, ::16]
    assert chroma.max() <= 1
    assert chroma.mean() < 0.7


def test_dot_gain_is_the_tone_value_increase_at_half_coverage() -> None:
    half = np.ones((16, 16, 3), dtype=np.float32) * np.array([0.5, 1, 1], dtype=np.float32)  # half cyan
    printed = print_inks(half, None, only(dot_gain=0.15), np.random.default_rng(0))
    np.testing.assert_allclose(printed[0, 0, 0, 0], [1 - 0.65, 1, 1], atol=1e-6)


def spectrum(pattern: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Amplitude of every frequency (y, x in cycles per pixel) of a square pattern, by a windowed, padded FFT."""
    side, padded = pattern.shape[0], 1024
    window = np.outer(np.hanning(side), np.hanning(side))
    amplitude = np.abs(np.fft.rfft2((pattern - pattern.mean()) * window, s=(padded, padded))) / window.sum()
    y, x = np.meshgrid(np.fft.fftfreq(padded), np.fft.rfftfreq(padded), indexing="ij")
    return amplitude, y, x


@pytest.mark.parametrize(("colour", "channel", "angle"), [((160, 255, 255), 0, 15), ((255, 160, 255), 1, 75),
                                                          ((255, 255, 160), 2, 0), ((70, 70, 70), 0, 45)])  # fmt: skip
def test_screen_has_the_set_period_and_angle(colour: tuple[int, ...], channel: int, angle: float) -> None:
    for period in (3.0, 5.7):
        image = flat(*colour, side=192)
        out = LINEAR[photographed(image, only(halftone=1.0, halftone_period=period))][..., channel]
        amplitude, y, x = spectrum(out)
        peak = np.unravel_index(amplitude.argmax(), amplitude.shape)
        assert np.hypot(y[peak], x[peak]) == pytest.approx(1 / period, rel=0.01)
        across = math.degrees(math.atan2(y[peak], x[peak])) % 90
        assert min(abs(across - angle), 90 - abs(across - angle)) < 1
        assert out.mean() == pytest.approx(LINEAR[colour[channel]], abs=0.02), "dots cover the area the tone asks for"


def test_moire_is_at_the_aliased_frequency_after_defocus() -> None:
    """Yellow dots every 1.6 pixels: 0.625 cycles per pixel alias to 0.375, but the lens blurs them at 0.625."""
    yellow, frequency = flat(255, 255, 160, side=192), 1 / 1.6
    screen = only(halftone=1.0, halftone_period=1.6)
    sharp, y, x = spectrum(LINEAR[photographed(yellow, screen)][..., 2])
    peak = np.unravel_index(sharp.argmax(), sharp.shape)
    assert np.hypot(y[peak], x[peak]) == pytest.approx(1 - frequency, abs=0.002)
    assert sharp[peak] > 0.05

    soft = spectrum(LINEAR[photographed(yellow, dataclasses.replace(screen, defocus=(0.4, 0.4)))][..., 2])[0]
    assert soft[peak] / sharp[peak] == pytest.approx(math.exp(-2 * (math.pi * 0.4 * frequency) ** 2), rel=0.15)


@pytest.mark.parametrize("length", [1.5, 4.0])
def test_paper_texture_has_the_set_deviation_and_length(length: float) -> None:
    settings = only(paper_absorption=0.2, paper_texture=0.05, fibre_length=length)
    sheets = np.stack([paper((256, 200), settings, np.random.default_rng(seed))[..., 0] for seed in range(3)])
    assert sheets.mean() == pytest.approx(0.8, abs=0.005)
    noise = sheets / sheets.mean() - 1
    assert noise.std() == pytest.approx(0.05, rel=0.05)
    # Half the fibres are along x: their correlation at `lag` is exp(-lag^2 / 4 length^2); across it is almost zero.
    lag = round(2 * length)
    correlation = np.mean(noise[:, :, lag:] * noise[:, :, :-lag]) / noise.var()
    assert correlation == pytest.approx(0.5 * math.exp(-(lag**2) / (4 * length**2)), abs=0.05)


def test_misregistration_and_lens_displace_corners() -> None:
    shape = (120, 200)
    corners = np.array([[0, 0], [0, 199], [119, 0], [119, 199]], dtype=float)

    def displacement(settings: PrintSettings) -> np.ndarray:
        places = sensor_places(shape, settings, np.random.default_rng(1))
        assert places is not None
        return np.stack([places[:, 0, 0], places[:, 0, -1], places[:, -1, 0], places[:, -1, -1]]) - corners

    np.testing.assert_allclose(np.linalg.norm(displacement(only(misregistration=1.5)), axis=1), 1.5, rtol=1e-6)
    half_diagonal = math.hypot(119, 199) / 2
    moved = displacement(only(lens_distortion=0.01))
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), 0.01 * half_diagonal, rtol=1e-6)
    assert (np.sign(moved) == np.sign(corners - [59.5, 99.5])).all(), "k1 > 0 looks further out"


def test_phase_correlation_measures_misregistration() -> None:
    """Corner patches of a quarter of the side see 0.766 of their own corner's shift and a little of the others'."""
    noise = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((256, 256)), 1.5)
    image = np.clip(128 + 40 * noise / noise.std(), 0, 255).astype(np.uint8)[..., None].repeat(3, axis=-1)
    corners = [(slice(*y), slice(*x)) for y in ((0, 64), (192, 256)) for x in ((0, 64), (192, 256))]
    window = np.outer(np.hanning(64), np.hanning(64))
    for asked in (1.0, 3.0):
        squares = []
        for seed in range(6):
            out = photographed(image, only(misregistration=asked), seed)
            for patch in corners:
                here, there = ((pixels[patch][..., 0] - 128.0) * window for pixels in (image, out))
                shift, *_ = phase_cross_correlation(here, there, upsample_factor=50)
                squares.append(float((shift**2).sum()))
        assert math.sqrt(np.mean(squares)) == pytest.approx(0.78 * asked, rel=0.1)


def test_illumination_has_the_set_strengths() -> None:
    def light(**strengths: float) -> np.ndarray:
        return illumination((101, 151), only(**strengths), np.random.default_rng(4))

    uneven = light(uneven_light=0.3)[..., 1]
    assert np.ptp(uneven) == pytest.approx(0.3, rel=1e-4)
    assert uneven.mean() == pytest.approx(1, abs=1e-4)
    vignette = light(vignette=0.4)[..., 1]
    assert vignette[50, 75] == pytest.approx(1)
    np.testing.assert_allclose(vignette[[0, 0, -1, -1], [0, -1, 0, -1]], 0.6, rtol=1e-5)
    np.testing.assert_allclose(light(exposure=-1.0), 0.5, rtol=1e-6)
    mixed = light(mixed_light=40.0)
    assert np.ptp(np.log(mixed[..., 0] / mixed[..., 2])) == pytest.approx(40 * 0.00839, rel=0.01)


def test_white_balance_follows_wiens_law() -> None:
    out = LINEAR[photographed(flat(128, 128, 128, side=16), only(white_balance=30.0))[0, 0]]
    assert math.log(out[0] / out[2]) == pytest.approx(14388e-6 * (1 / 0.45 - 1 / 0.61) * 30, abs=0.03)


@pytest.mark.parametrize("n", [1, 2])
def test_blur_width_matches_defocus_and_motion(n: int) -> None:
    """Variances add up: sigma^2 in both directions, length^2 / 12 along the motion, the pixel's own area for n = 2."""
    point = np.zeros((65, n, 65, n, 3), dtype=np.float32)
    point[32, :, 32, :] = 1
    kernel = expose(point, only(defocus=1.3, motion_blur=4.0), np.random.default_rng(0))[..., 1].astype(float)
    y, x = np.indices(kernel.shape) - 32
    assert kernel.sum() == pytest.approx(1, rel=1e-3)
    covariance = [[(kernel * a * b).sum() for a in (y, x)] for b in (y, x)]
    own = 0 if n == 1 else 2 * (1 - 1 / n**2) / 12
    expected = [1.3**2 + own, 1.3**2 + own + 4**2 / 12]
    np.testing.assert_allclose(np.linalg.eigvalsh(covariance), expected, rtol=0.03)


@pytest.mark.parametrize("level", [30, 100, 180])
def test_noise_variance_matches_photons_and_readout(level: int) -> None:
    shot, read = 0.04, 0.01
    out = photographed(flat(level, level, level, side=200), only(shot_noise=shot, read_noise=read)).astype(float)
    slope = (LINEAR[level + 1] - LINEAR[level - 1]) / 2  # linear light per level
    expected = (shot**2 * LINEAR[level] + read**2) / slope**2 + 1 / 12
    assert out.var() == pytest.approx(expected, rel=0.1)


def test_sharpening_amplifies_the_high_frequencies() -> None:
    """A wave of 0.25 cycles per pixel passes the Gaussian with exp(-2 pi^2 / 16) and gains `amount` of the rest."""
    wave = np.rint(128 + 40 * np.cos(math.pi / 2 * np.arange(64))).astype(np.uint8)
    image = np.broadcast_to(wave[None, :, None], (32, 64, 3))
    out = photographed(image, only(sharpening=0.8))[16, 8:-8, 0].astype(float)
    assert np.ptp(out) / 2 == pytest.approx(40 * (1 + 0.8 * (1 - math.exp(-2 * math.pi**2 / 16))), abs=1)


def test_jpeg_equals_pillows(cat: np.ndarray) -> None:
    buffer = io.BytesIO()
    Image.fromarray(cat).save(buffer, format="JPEG", quality=60)
    assert np.array_equal(photographed(cat, only(jpeg_quality=60.0)), np.asarray(Image.open(buffer)))


def test_presets_have_the_documented_psnr() -> None:
    rng = np.random.default_rng(0)
    photographs = [*load_photographs("sample", "train"), *load_photographs("sample", "validation")]
    mild = []
    for photograph in photographs:
        for seed in range(4):
            top, left = (int(rng.integers(side - 76)) for side in photograph.pixels.shape[:2])
            crop = photograph.pixels[top : top + 76, left : left + 76]
            mild.append(psnr(crop[6:-6, 6:-6], photographed(crop, MILD_PRINT, seed)[6:-6, 6:-6]))
    assert 17 < np.mean(mild) < 21
    default = [
        psnr(p.pixels[:512, :512], photographed(p.pixels[:512, :512], PrintSettings())) for p in photographs[::5]
    ]
    assert 15 < np.mean(default) < 20


@pytest.mark.parametrize(
    ("values", "accepted"),
    [
        ({"halftone": (0.5, 1.5)}, r"print\.halftone=\(0\.5, 1\.5\).*0 <= low <= high <= 1"),
        ({"defocus": (1.0, 0.5)}, r"print\.defocus.*low <= high"),
        ({"dot_gain": 0.1}, r"print\.dot_gain=0\.1.*\(low, high\)"),
        ({"shot_noise": (0.0, math.nan)}, r"print\.shot_noise"),
        ({"halftone_period": (0.0, 0.0)}, r"print\.halftone_period.*1\.5 <= low"),
        ({"exposure": None}, r"print\.exposure=None"),
        ({"jpeg_quality": (0, 100)}, r"print\.jpeg_quality.*1 <= low <= high <= 100"),
    ],
)
def test_invalid_settings_are_refused(values: dict[str, Any], accepted: str) -> None:
    with pytest.raises(InputError, match=accepted):
        PrintSettings(**values)


def test_settings_accept_yaml_values() -> None:
    settings = PrintSettings(defocus=[0, 1], jpeg_quality=None)  # type: ignore[arg-type]
    assert settings.defocus == (0.0, 1.0)
    assert settings.jpeg_quality is None
    assert PrintSettings(**dataclasses.asdict(settings)) == settings


def test_import_needs_no_torch() -> None:
    code = "import sys, trainables.images.degradations.print_to_camera; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
