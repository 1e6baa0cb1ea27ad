"""Print-to-camera degradation: a picture is printed and the print is photographed.

The stages follow the physical order. Printing: separation into four inks, dot gain, halftone screens, ink colours
(Neugebauer, 1937), paper. Camera: pose and lens, light, defocus and motion, sensor noise, white balance, encoding.
Quantities that add in light are added in linear light (sRGB transfer functions, IEC 61966-2-1).

The photograph is rectified: it has the size of the target and matches it to within `misregistration`. So pose and lens
decide which point of the print every sensor pixel sees, and the print is computed at those points: the picture is
resampled once, and the screens have exactly the pitch that the sensor sees. Model and sources: docs/print_to_camera.md.
"""

from __future__ import annotations

import functools
import io
import math

import numpy as np
from PIL import Image
from scipy import fft, ndimage

from trainables.settings.print_to_camera import PrintSettings

SCREEN_ANGLES = (15.0, 75.0, 0.0, 45.0)
"""Degrees, for cyan, magenta, yellow and black: 30 apart; yellow, the least visible ink, has 15."""

SMALLEST = 16  # smallest side of an image, pixels

_SUBPIXELS = 4  # dots are sampled at 4 x 4 points per pixel ...
_OVERSAMPLING = 2  # ... and blurred at 2 x 2, before the sensor samples them, so that the lens blur weakens moire
_DIRECTIONS = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=float)  # from the centre to the corners, (y, x)

# Colours of solid inks on paper, sRGB, media-relative, from colour management's FOGRA39 (ISO 12647-2, coated paper).
# Index: cyan + 2 magenta + 4 yellow; the last, three inks, has L* 23.
_OFFSET_INKS = np.array(
    [
        (255, 255, 255),
        (0, 159, 227),
        (230, 0, 126),
        (49, 39, 131),
        (255, 237, 0),
        (0, 150, 64),
        (227, 6, 19),
        (55, 55, 55),
    ],
    dtype=np.uint8,
)
_IDEAL_INKS = np.array([[1 - (index >> ink & 1) for ink in range(3)] for index in range(8)], dtype=np.float32)

# Light of a Planckian source after Wien: ln I changes by -c2 / wavelength per 1 / K. Here relative to green and per
# mired, with wavelengths of 610, 540 and 450 nm for the channels.
_LOG_GAIN_PER_MIRED = np.array([-14388e-6 * (1 / wavelength - 1 / 0.54) for wavelength in (0.61, 0.54, 0.45)])

_LEVELS = np.arange(256) / 255
_LINEAR = np.where(_LEVELS <= 0.04045, _LEVELS / 12.92, ((_LEVELS + 0.055) / 1.055) ** 2.4).astype(np.float32)


def print_to_camera(image: np.ndarray, settings: PrintSettings, rng: np.random.Generator) -> np.ndarray:
    """A simulated photograph of a print of `image`. It depends on the arguments alone.

    Every stage draws from its own random stream, so changing one stage does not change the random choices of others.

    Args:
        image: uint8 (H, W, 3), sRGB, sides of at least `SMALLEST`.
        settings: ranges to draw from.
        rng: source of all randomness; its state advances.

    Returns:
        uint8 (H, W, 3), sRGB, aligned with `image` except for `misregistration` and `lens_distortion`.

    Raises:
        ValueError: `image` has another type or shape.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or min(image.shape[:2]) < SMALLEST:
        raise ValueError(f"image is {image.dtype} {image.shape}: give uint8 (H, W, 3), sides of at least {SMALLEST}")
    shape = image.shape[0], image.shape[1]
    pose, press, stock, lamp, lens, sensor, encoder = map(np.random.default_rng, rng.integers(2**63, size=7))

    picture = _LINEAR[image]
    places = sensor_places(shape, settings, pose)
    if places is not None:
        picture = resample(picture, places)
    printed = print_inks(picture, places, settings, press)
    printed = printed * paper(shape, settings, stock)[:, None, :, None]
    light = expose(printed, settings, lens) * illumination(shape, settings, lamp)
    return develop(add_noise(light, settings, sensor), settings, encoder)


def sensor_places(shape: tuple[int, int], settings: PrintSettings, rng: np.random.Generator) -> np.ndarray | None:
    """The point of the print that each sensor pixel sees, (2, H, W) as (y, x) in pixels; None without displacement.

    Radial distortion around the centre, then the homography that moves the four corners.
    """
    jitter = rng.uniform(*settings.misregistration)
    k1 = rng.uniform(*settings.lens_distortion)
    angles = rng.uniform(0, 2 * math.pi, size=4)
    if jitter == 0 and k1 == 0:
        return None
    half = (np.array(shape) - 1) / 2
    moved = _DIRECTIONS + jitter * np.stack([np.sin(angles), np.cos(angles)], axis=1) / half
    y, x = np.meshgrid(np.linspace(-1, 1, shape[0]), np.linspace(-1, 1, shape[1]), indexing="ij")
    stretch = 1 + k1 * ((y * half[0]) ** 2 + (x * half[1]) ** 2) / (half**2).sum()
    y, x = y * stretch, x * stretch
    a, b, c, d, e, f, g, h = _homography(moved)
    depth = g * y + h * x + 1
    return np.stack([((a * y + b * x + c) / depth + 1) * half[0], ((d * y + e * x + f) / depth + 1) * half[1]])


def _homography(moved: np.ndarray) -> np.ndarray:
    """The eight coefficients that map the corners of [-1, 1] x [-1, 1] to `moved`, (4, 2)."""
    rows, values = [], []
    for (y, x), (to_y, to_x) in zip(_DIRECTIONS, moved, strict=True):
        rows.append([y, x, 1, 0, 0, 0, -y * to_y, -x * to_y])
        rows.append([0, 0, 0, y, x, 1, -y * to_x, -x * to_x])
        values.extend([to_y, to_x])
    return np.linalg.solve(np.array(rows), np.array(values))


def resample(picture: np.ndarray, places: np.ndarray) -> np.ndarray:
    """`picture`, float32 (H, W, 3), at `places` by cubic splines, mirrored at the borders, clipped to [0, 1]."""
    channels = [
        ndimage.map_coordinates(picture[..., channel], places, output=np.float32, order=3, mode="mirror")
        for channel in range(3)
    ]
    return np.clip(np.stack(channels, axis=-1), 0, 1)


def print_inks(
    picture: np.ndarray, places: np.ndarray | None, settings: PrintSettings, rng: np.random.Generator
) -> np.ndarray:
    """The inked print relative to bare paper, linear light: (H, n, W, n, 3), n = 2 with halftone, else 1.

    Args:
        picture: float32 (H, W, 3), linear, one value per sensor pixel.
        places: see `sensor_places`; they determine the phase of the screens.
    """
    gamut, black = rng.uniform(*settings.ink_gamut), rng.uniform(*settings.black_point)
    gain = rng.uniform(*settings.dot_gain, size=4)
    contrast, period = rng.uniform(*settings.halftone), rng.uniform(*settings.halftone_period)

    primaries = np.full((16, 3), black, dtype=np.float32)  # the last eight have black ink on top
    primaries[:8] = _IDEAL_INKS + gamut * (_LINEAR[_OFFSET_INKS] - _IDEAL_INKS)
    coverage = separate(picture)
    coverage += (4 * gain).astype(np.float32) * coverage * (1 - coverage)
    continuous = _mix(coverage, primaries)[:, None, :, None]
    if contrast == 0:
        return continuous
    dots = _halftone(coverage, primaries, places, period, phases=rng.uniform(0, 2 * math.pi, size=(4, 2)))
    return continuous + np.float32(contrast) * (dots - continuous)


def separate(picture: np.ndarray) -> np.ndarray:
    """The coverage of ideal inks for `picture`, linear (H, W, 3): (H, W, 4) as C, M, Y, K.

    Each ideal ink absorbs one channel. Black replaces the square of the common part of the three: little in the
    highlights, all of it in the shadows.
    """
    most = picture.max(axis=-1, keepdims=True)
    common = 1 - most
    colours = 1 - picture / np.maximum(most * (1 + common), np.float32(1e-6))  # = 1 - picture / (1 - black)
    return np.concatenate([colours, common**2], axis=-1)


def _mix(coverage: np.ndarray, primaries: np.ndarray) -> np.ndarray:
    """Neugebauer's equation: the mean of the primaries, weighted by area, for independently placed inks."""
    colours: list[np.ndarray] = list(primaries[:8])
    for ink in range(3):
        area = coverage[..., ink, None]
        colours = [bare + area * (inked - bare) for bare, inked in zip(colours[::2], colours[1::2], strict=True)]
    return colours[0] + coverage[..., 3:] * (primaries[8] - colours[0])


def _halftone(
    coverage: np.ndarray, primaries: np.ndarray, places: np.ndarray | None, period: float, phases: np.ndarray
) -> np.ndarray:
    """The print as round dots, (H, 2, W, 2, 3): at each of 4 x 4 points of a pixel, every ink is present or not.

    The spot function of a screen is cos u + cos v along its two axes. Ink is printed where it exceeds the threshold for
    the coverage. Within a pixel u and v grow linearly, so the addition theorem gives all 16 points from the cosines and
    sines of its centre.
    """
    height, width = coverage.shape[:2]
    y, x = np.indices((height, width)) if places is None else places
    threshold = _thresholds()[np.rint(coverage * (_thresholds().size - 1)).astype(np.int32)]
    # A rotated grid, no two points in one row or column: a straight grid would add moire of the dots' harmonics.
    row, column = np.divmod(np.arange(_SUBPIXELS**2), _SUBPIXELS)
    dy = (row + (_SUBPIXELS - column - 0.5) / _SUBPIXELS) / _SUBPIXELS - 0.5
    dx = (column + (row + 0.5) / _SUBPIXELS) / _SUBPIXELS - 0.5

    index = np.zeros((_SUBPIXELS**2, height * width), dtype=np.uint8)
    for ink, degrees in enumerate(SCREEN_ANGLES):
        cos, sin = (2 * math.pi / period * part for part in _cos_sin(math.radians(degrees)))
        u, v = cos * x + sin * y + phases[ink, 0], cos * y - sin * x + phases[ink, 1]
        du, dv = cos * dx + sin * dy, cos * dy - sin * dx
        centre = np.stack([part(axis.astype(np.float32)) for axis in (u, v) for part in (np.cos, np.sin)])
        step = np.stack([np.cos(du), -np.sin(du), np.cos(dv), -np.sin(dv)], axis=1).astype(np.float32)
        inked = step @ centre.reshape(4, -1) > threshold[..., ink].ravel()
        index |= inked.view(np.uint8) << np.uint8(ink)

    dots = np.zeros((_OVERSAMPLING, _OVERSAMPLING, height, width, 3), dtype=np.float32)
    each = _SUBPIXELS // _OVERSAMPLING
    for place, primary in enumerate(index.reshape(-1, height, width)):
        dots[row[place] // each, column[place] // each] += np.take(primaries / each**2, primary, axis=0)
    return dots.transpose(2, 0, 3, 1, 4)


def _cos_sin(angle: float) -> tuple[float, float]:
    return math.cos(angle), math.sin(angle)


@functools.cache
def _thresholds() -> np.ndarray:
    """The thresholds that cos u + cos v exceeds in 0, 1/1024, ... 1 of the area; the two ends are slightly outside
    its range.
    """
    wave = np.cos((np.arange(1024) + 0.5) * math.pi / 1024)
    spots = np.sort((wave[:, None] + wave).ravel())
    inner = spots[(np.linspace(1, 0, 1025)[1:-1] * spots.size).astype(int)]
    return np.concatenate([[2.001], inner, [-2.001]]).astype(np.float32)


def paper(shape: tuple[int, int], settings: PrintSettings, rng: np.random.Generator) -> np.ndarray:
    """Reflectance of the bare paper, (H, W, 3): absorption, tint, and fibre noise along both axes."""
    white = 1 - rng.uniform(*settings.paper_absorption)
    tint = rng.uniform(*settings.paper_tint)
    texture, length = rng.uniform(*settings.paper_texture), rng.uniform(*settings.fibre_length)
    colour = white * np.array([1, 1 - tint / 2, 1 - tint], dtype=np.float32)
    if texture == 0:
        return np.broadcast_to(colour, (*shape, 3))
    fibres = sum(_fibres(shape, axis, length, rng) for axis in (0, 1)) / np.float32(math.sqrt(2))
    return np.maximum(1 + np.float32(texture) * fibres, 0)[..., None] * colour


def _fibres(shape: tuple[int, int], axis: int, length: float, rng: np.random.Generator) -> np.ndarray:
    """Normal noise of unit variance, correlated over `length` pixels along `axis` and half a pixel across."""
    noise = rng.standard_normal(shape, dtype=np.float32)
    for along, sigma in ((axis, length), (1 - axis, 0.5)):
        reach = math.ceil(4 * sigma)
        weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
        # Mirroring would raise the variance at the borders; "wrap" keeps it.
        noise = ndimage.correlate1d(noise, weights / np.linalg.norm(weights), axis=along, mode="wrap")
    return noise


def illumination(shape: tuple[int, int], settings: PrintSettings, rng: np.random.Generator) -> np.ndarray:
    """Light on the print, including the lens's vignette, (H, W, 3); mean about 1 before vignette and exposure.

    A gradient bent by a quadratic term, a second gradient of colour temperature, the lens's vignette, exposure. All of
    them vary slowly, so they can be multiplied after the blur.
    """
    uneven, mixed = rng.uniform(*settings.uneven_light), rng.uniform(*settings.mixed_light)
    vignette, exposure = rng.uniform(*settings.vignette), rng.uniform(*settings.exposure)
    directions, bend = rng.uniform(0, 2 * math.pi, size=2), rng.uniform(-0.5, 0.5)

    y, x = np.meshgrid(np.linspace(-1, 1, shape[0]), np.linspace(-1, 1, shape[1]), indexing="ij")
    towards, warmer = (math.cos(angle) * x + math.sin(angle) * y for angle in directions)
    lamp = towards + bend * towards**2
    level = (1 + uneven * (lamp - lamp.mean()) / np.ptp(lamp)) * (1 - vignette * (y**2 + x**2) / 2) * 2**exposure
    gains = np.exp(mixed * (warmer / np.ptp(warmer))[..., None] * _LOG_GAIN_PER_MIRED)
    return (level[..., None] * gains).astype(np.float32)


def expose(printed: np.ndarray, settings: PrintSettings, rng: np.random.Generator) -> np.ndarray:
    """`printed`, (H, n, W, n, 3), through the lens and averaged over the area of each sensor pixel: (H, W, 3).

    Defocus and motion multiply the spectrum by their transfer functions, exp(-2 pi^2 sigma^2 f^2) and sinc(length f).
    """
    sigma, length = rng.uniform(*settings.defocus), rng.uniform(*settings.motion_blur)
    cos, sin = _cos_sin(rng.uniform(0, math.pi))
    height, n, width = printed.shape[:3]
    if sigma == 0 and length == 0:
        return _average(printed)

    margin = n * math.ceil(3 * sigma + length / 2 + 1)
    image = np.moveaxis(printed.reshape(height * n, width * n, 3), -1, 0)
    image = np.pad(image, ((0, 0), (margin, margin), (margin, margin)), mode="symmetric")
    size = tuple(fft.next_fast_len(side, real=True) for side in image.shape[1:])
    y, x = np.fft.fftfreq(size[0], 1 / n)[:, None], np.fft.rfftfreq(size[1], 1 / n)  # cycles per sensor pixel
    transfer = np.exp(-2 * (math.pi * sigma * y) ** 2) * np.exp(-2 * (math.pi * sigma * x) ** 2)
    if length:
        transfer *= np.sinc(length * (cos * x + sin * y))
    blurred = fft.irfft2(fft.rfft2(image, s=size) * transfer.astype(np.float32), s=size)
    blurred = np.moveaxis(blurred[:, margin : margin + height * n, margin : margin + width * n], 0, -1)
    return np.maximum(_average(blurred.reshape(height, n, width, n, 3)), 0)


def _average(printed: np.ndarray) -> np.ndarray:
    """(H, n, W, n, 3) to (H, W, 3), in a quarter of the time of `mean(axis=(1, 3))`."""
    height, n, width = printed.shape[:3]
    pixels = np.zeros((height, width, 3), dtype=np.float32)
    for row, column in np.ndindex(n, n):
        pixels += printed[:, row, :, column]
    return pixels / np.float32(n * n)


def add_noise(light: np.ndarray, settings: PrintSettings, rng: np.random.Generator) -> np.ndarray:
    """Photon noise, with variance proportional to `light`, and read noise; the sensor saturates at 1."""
    shot, read = rng.uniform(*settings.shot_noise), rng.uniform(*settings.read_noise)
    if shot or read:
        sigma = np.sqrt(np.float32(shot**2) * light + np.float32(read**2))
        light = light + sigma * rng.standard_normal(light.shape, dtype=np.float32)
    return np.clip(light, 0, 1)


def develop(light: np.ndarray, settings: PrintSettings, rng: np.random.Generator) -> np.ndarray:
    """The camera's processing of the sensor signal: white balance, sRGB, sharpening, 8 bits, JPEG."""
    mired, amount = rng.uniform(*settings.white_balance), rng.uniform(*settings.sharpening)
    light = np.clip(light * np.exp(mired * _LOG_GAIN_PER_MIRED).astype(np.float32), 0, 1)
    encoded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** np.float32(1 / 2.4) - 0.055)
    if amount:
        encoded += np.float32(amount) * (encoded - ndimage.gaussian_filter(encoded, sigma=1, axes=(0, 1)))
    pixels = np.clip(np.round(encoded * 255), 0, 255).astype(np.uint8)
    return (
        pixels if settings.jpeg_quality is None else jpeg_of_bytes(pixels, round(rng.uniform(*settings.jpeg_quality)))
    )


def jpeg_of_bytes(pixels: np.ndarray, quality: int) -> np.ndarray:
    """Encodes and decodes `pixels`, uint8 (H, W, 3), as JPEG of `quality` 1 to 100, 4:2:0."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=quality)
    with Image.open(buffer, formats=("JPEG",)) as decoded:
        return np.asarray(decoded)
