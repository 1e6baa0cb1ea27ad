"""Settings of the simulated photograph of a print. Nothing here imports torch, so the command line checks them at once.

The defaults describe an offset print on coated paper, photographed indoors with a phone and rectified to 512 px. If a
number is from a standard or a law of physics, its field names the source. `docs/print_to_camera.md` explains the model
of every stage.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from trainables.settings.degradation import Range, _checked_range, range_text

# Accepted limits of every (low, high) field, both ends included.
_LIMITS: dict[str, Range] = {
    "ink_gamut": (0.0, 1.0),
    "black_point": (0.0, 0.5),
    "dot_gain": (0.0, 0.25),  # beyond 0.25 at half coverage the curve would rise above full coverage
    "halftone": (0.0, 1.0),
    "halftone_period": (1.5, 32.0),  # finer dots would need more than 4 x 4 places a pixel
    "paper_absorption": (0.0, 0.9),
    "paper_tint": (0.0, 0.9),
    "paper_texture": (0.0, 0.3),
    "fibre_length": (0.5, 32.0),
    "misregistration": (0.0, 16.0),
    "lens_distortion": (-0.1, 0.1),
    "uneven_light": (0.0, 1.0),
    "mixed_light": (0.0, 200.0),
    "vignette": (0.0, 0.9),
    "defocus": (0.0, 8.0),
    "motion_blur": (0.0, 32.0),
    "exposure": (-3.0, 3.0),
    "shot_noise": (0.0, 0.5),
    "read_noise": (0.0, 0.5),
    "white_balance": (-200.0, 200.0),
    "sharpening": (0.0, 4.0),
    "jpeg_quality": (1.0, 100.0),
}


def accepted_text(field: str) -> str:
    """What a field of `PrintSettings` accepts, for lists of settings."""
    return f"{range_text(_LIMITS[field])}{', or none' if field == 'jpeg_quality' else ''}"


@dataclass(frozen=True)
class PrintSettings:
    """Ranges of the simulated print and photograph, each (low, high). Values are drawn uniformly, once per image.

    Lists from YAML are accepted for tuples. (0, 0) disables a stage and `None` disables JPEG; `halftone_period` and
    `fibre_length` are shapes, not strengths. Reflectance and light are linear; 1 is the white of the target.

    Attributes:
        ink_gamut: mix of inks in linear light: 0 for ideal inks, which reach every sRGB colour, 1 for offset inks on
            coated paper (FOGRA39, ISO 12647-2).
        black_point: reflectance of solid black relative to the paper; 0.024 for the L* 16 on L* 95 of ISO 12647-2.
        dot_gain: tone value increase at 50 % coverage without compensation, a share of area, drawn for each ink
            separately; ISO 12647-2 tolerates 0.04 to 0.05 around its aim, uncompensated newsprint has 0.26.
        halftone: contrast of the clustered dots; 0 is continuous tone, 1 solid ink on bare paper.
        halftone_period: distance between neighbouring dots, pixels, at least 1.5. 2 to 4 is 150 lines per inch at 300
            to 600 pixels per inch; below 2 the sensor cannot resolve the screen and shows moire.
        paper_absorption: share of light that bare paper absorbs; 0.12 for L* 95.
        paper_tint: additional share of blue light that yellowish paper absorbs; half of it for green light.
        paper_texture: standard deviation of the reflectance along the fibres, relative to its mean.
        fibre_length: correlation length of the fibre noise (standard deviation of a Gaussian), pixels.
        misregistration: remaining displacement of each corner after rectification, in a random direction, pixels.
        lens_distortion: remaining radial distortion after rectification: k1 of r (1 + k1 r^2), r = 1 in the corners.
        uneven_light: difference between the brightest and the darkest place, relative to the mean illumination.
        mixed_light: difference in colour temperature across the image, mired (1e6 / K).
        vignette: share of light that the lens loses in the corners.
        defocus: standard deviation of the Gaussian point spread, pixels.
        motion_blur: length of the motion during the exposure, in a random direction, pixels.
        exposure: exposure error, stops.
        shot_noise: standard deviation of the photon noise at white; 0.02 is a full well of 2,500 electrons.
        read_noise: standard deviation of the signal-independent noise, relative to white.
        white_balance: remaining error of the colour temperature, mired; positive is too warm.
        sharpening: amount of the camera's unsharp mask (Gaussian of 1 pixel, on encoded values).
        jpeg_quality: JPEG quality of libjpeg, 1 to 100, with 4:2:0 subsampling; `None` for no JPEG.

    Raises:
        InputError: a value outside its range; the message names the field, the value and the accepted values.
    """

    ink_gamut: Range = (0.6, 1.0)
    black_point: Range = (0.015, 0.04)
    dot_gain: Range = (0.0, 0.12)
    halftone: Range = (0.3, 1.0)
    halftone_period: Range = (2.0, 4.0)
    paper_absorption: Range = (0.08, 0.16)
    paper_tint: Range = (0.0, 0.06)
    paper_texture: Range = (0.01, 0.03)
    fibre_length: Range = (1.5, 5.0)

    misregistration: Range = (0.0, 1.0)
    lens_distortion: Range = (-0.002, 0.002)
    uneven_light: Range = (0.0, 0.3)
    mixed_light: Range = (0.0, 30.0)
    vignette: Range = (0.0, 0.25)
    defocus: Range = (0.4, 1.2)
    motion_blur: Range = (0.0, 2.0)
    exposure: Range = (-0.3, 0.3)
    shot_noise: Range = (0.01, 0.03)
    read_noise: Range = (0.001, 0.005)
    white_balance: Range = (-20.0, 20.0)
    sharpening: Range = (0.0, 0.5)
    jpeg_quality: Range | None = (70.0, 95.0)

    def __post_init__(self) -> None:
        for spec in fields(self):
            value = getattr(self, spec.name)
            if value is not None or spec.name != "jpeg_quality":
                checked = _checked_range(f"pairs.print.{spec.name}", value, _LIMITS[spec.name], around_one=False)
                object.__setattr__(self, spec.name, checked)


_OFF: Range = (0.0, 0.0)

# All stages disabled: the output equals the input. Tests and tools enable single stages from here.
NO_PRINT = PrintSettings(
    ink_gamut=_OFF,
    black_point=_OFF,
    dot_gain=_OFF,
    halftone=_OFF,
    paper_absorption=_OFF,
    paper_tint=_OFF,
    paper_texture=_OFF,
    misregistration=_OFF,
    lens_distortion=_OFF,
    uneven_light=_OFF,
    mixed_light=_OFF,
    vignette=_OFF,
    defocus=_OFF,
    motion_blur=_OFF,
    exposure=_OFF,
    shot_noise=_OFF,
    read_noise=_OFF,
    white_balance=_OFF,
    sharpening=_OFF,
    jpeg_quality=None,
)

# For the 64 px crops of the laptop sample. The ranges are narrower, so that a tiny network learns the colour shift, the
# blur and the texture within a minute.
MILD_PRINT = PrintSettings(
    ink_gamut=(0.7, 0.9),
    black_point=(0.02, 0.03),
    dot_gain=(0.03, 0.07),
    halftone=(0.3, 0.5),
    halftone_period=(2.5, 3.0),
    paper_absorption=(0.1, 0.14),
    paper_tint=(0.02, 0.05),
    paper_texture=(0.01, 0.02),
    fibre_length=(1.5, 3.0),
    misregistration=(0.0, 0.3),
    lens_distortion=(-0.001, 0.001),
    uneven_light=(0.0, 0.1),
    mixed_light=(0.0, 10.0),
    vignette=(0.0, 0.05),
    defocus=(0.6, 1.0),
    motion_blur=(0.0, 0.5),
    exposure=(-0.1, 0.1),
    shot_noise=(0.005, 0.015),
    read_noise=(0.001, 0.002),
    white_balance=(5.0, 15.0),
    sharpening=(0.0, 0.2),
    jpeg_quality=(85.0, 95.0),
)
