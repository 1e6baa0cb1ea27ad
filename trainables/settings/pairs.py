"""Settings of the training, validation and test pairs: number, size and degradation. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trainables.settings.checks import DECAY, require_all
from trainables.settings.degradation import DegradationSettings
from trainables.settings.print_to_camera import PrintSettings
from trainables.settings.setting import Limits, section, setting

PAIRS_VERSION = 3  # part of the key of prepared pairs: raise it when the same settings give other pixels

Split = Literal["train", "validation", "test"]
"""`train` trains, `validation` steers the search, `test` is measured by the confirmation and the controls alone."""

SMALLEST_PRINT = 16  # smallest side for the print simulator, pixels; its own constant is behind a slow import
LARGEST_SIDE = 16_384
MOST_PAIRS = 100_000_000
_SIDE = f"a multiple of pairs.scale, from 4 times it to {LARGEST_SIDE}"


def accepted_text(field: str) -> str:
    """What a size of `PairSettings` accepts, for lists of settings: it depends on the scale. Empty for other fields."""
    return {"image_size": _SIDE, "validation_size": _SIDE, "test_size": f"0, or {_SIDE}"}.get(field, "")


@dataclass(frozen=True)
class PairSettings:
    """Number, size and degradation of the pairs.

    Attributes:
        image_size: side of the square training targets, pixels; a multiple of `scale`.
        scale: target side / degraded side, 1 to 16.
        train_pairs, validation_pairs: number of training and of validation pairs.
        variants: prepared degradations of each training pair. An epoch uses one of them, the next epoch the next; all
            trials of a sweep see the same ones. Preparation and stores grow by this factor. The first one is prepared
            before the trials, the others while they train; a trial waits for the one that its epoch needs.
        degraded: when training targets are degraded. "prepared": once, before the trials, see `variants`. "online": in
            every epoch anew, while the step before runs; the store holds the targets alone. The degradation depends on
            the data's seed, the epoch and the pair, so all trials of a sweep see the same ones. Methods on latents
            encode in the step. Refused for methods that train on what a teacher or first stage made from prepared
            images. Validation and test pairs are always prepared.
        flips: orientations of the training pairs: "none" more than the prepared one, "mirrored" left and right, or
            "turned" into any of eight, at random in every epoch, in the same way for all trials of a sweep. With
            `variants` above 1, the variants of a pair are prepared in different orientations; methods that train on
            prepared latents need that, because an encoder's latent of a mirrored image is not the mirrored latent.
        undamaged: share of training pairs whose input is the target itself, drawn anew in every epoch, in the same way
            for all trials of a sweep; StableSR: 0.01. The input must be as large as the target: `scale` is 1, or the
            method trains on latents alone.
        validation_size: side of the square validation targets, pixels; a multiple of `scale`.
        test_pairs: number of test pairs, on which the confirmation is measured; 0 for none.
        test_size: side of the square test targets, pixels; a multiple of `scale`; 0 for `validation_size`.
        crop: part of a photograph that becomes a target. "detailed": a square of its pixels, shrunk by a factor from
            [0.5, 1] for training, where it has detail. "rescaled": a square as large as the photograph's short side,
            shrunk to the target's size, at random along the long side for training and at the centre otherwise, as in
            the training of ResShift and SinSR (`rescale_gt`); it gives one validation pair per photograph. "random": a
            square of its pixels anywhere, neither shrunk nor chosen, for training, as in that of StableSR, OSEDiff and
            PiSA-SR, and the crops of "detailed" for validation.
        sharpened: sharpen the training targets of photographs without a partner before they are degraded, by the
            unsharp mask of Real-ESRGAN, as StableSR does. Validation and test targets are the photographs.
        colour_swap_prob: share of training targets whose colour channels are permuted at random; 0 as published. Useful
            for a few photographs with few hues.
        simulator: degradation of photographs without a partner: "super_resolution" reads `degradation`,
            "print_to_camera" reads `print`.
    """

    image_size: int = 64
    scale: int = setting(4, within=Limits(1, 16, "a whole number, 1 to 16"))
    train_pairs: int = setting(512, within=(1, MOST_PAIRS), training_only=True)
    variants: int = setting(1, within=(1, 1000), training_only=True, simulated=True)
    degraded: Literal["prepared", "online"] = setting("prepared", training_only=True, simulated=True)
    flips: Literal["none", "mirrored", "turned"] = setting("none", training_only=True)
    undamaged: float = setting(0.0, within=DECAY, training_only=True)
    validation_pairs: int = setting(24, within=(1, MOST_PAIRS))
    validation_size: int = 128
    test_pairs: int = setting(24, within=(0, MOST_PAIRS))
    test_size: int = 0
    crop: Literal["detailed", "rescaled", "random"] = setting("detailed", simulated=True)
    sharpened: bool = setting(False, training_only=True, simulated=True)
    colour_swap_prob: float = setting(0.0, within=Limits(0, 1, "a share from 0 to 1"), training_only=True)
    simulator: Literal["super_resolution", "print_to_camera"] = setting("super_resolution", simulated=True)
    degradation: DegradationSettings = section(
        DegradationSettings, simulated=True, unless={"pairs.simulator": "print_to_camera"}
    )
    print: PrintSettings = section(PrintSettings, simulated=True, unless={"pairs.simulator": "super_resolution"})

    def __post_init__(self) -> None:
        printed = self.simulator == "print_to_camera"
        known_scale = type(self.scale) is int and 1 <= self.scale <= 16
        checks = [
            (known_scale, "pairs.scale", self.scale, "a whole number, 1 to 16"),
            (
                not printed or self.scale == 1,
                "pairs.scale",
                self.scale,
                "1: pairs.simulator=print_to_camera keeps the size",
            ),
            (0 <= self.colour_swap_prob <= 1, "pairs.colour_swap_prob", self.colour_swap_prob, "a share from 0 to 1"),
            (0 <= self.undamaged < 1, "pairs.undamaged", self.undamaged, str(DECAY)),
            (type(self.test_size) is int, "pairs.test_size", self.test_size, "a whole number"),
        ]
        if known_scale:
            least = max(4 * self.scale, SMALLEST_PRINT if printed else 0)
            accepted = f"a multiple of pairs.scale={self.scale}, {least} to {LARGEST_SIDE}"
            for name in ("image_size", "validation_size", *(["test_size"] if self.test_size else [])):
                value = getattr(self, name)
                fits = isinstance(value, int) and least <= value <= LARGEST_SIDE and value % self.scale == 0
                checks.append((fits, f"pairs.{name}", value, accepted))
        for name, fewest in (("train_pairs", 1), ("validation_pairs", 1), ("test_pairs", 0)):
            value = getattr(self, name)
            fits = isinstance(value, int) and fewest <= value <= MOST_PAIRS
            checks.append((fits, f"pairs.{name}", value, f"{fewest} to {MOST_PAIRS}"))
        whole = type(self.variants) is int and 1 <= self.variants <= 1000
        checks.append((whole, "pairs.variants", self.variants, "1 to 1000"))
        alone = self.degraded == "prepared" or self.variants == 1
        accepted = "1 with pairs.degraded=online, which has another degradation in every epoch"
        checks.append((alone, "pairs.variants", self.variants, accepted))
        require_all(*checks)

    def degrades_online(self, split: Split) -> bool:
        """Whether the pairs of a split are degraded when they are read, so that their store holds targets alone."""
        return split == "train" and self.degraded == "online"

    def size_of(self, split: Split) -> int:
        """Side of the square targets of a split, pixels."""
        return {
            "train": self.image_size,
            "validation": self.validation_size,
            "test": self.test_size or self.validation_size,
        }[split]

    def count_of(self, split: Split) -> int:
        """Number of prepared pairs of a split: in training, of each variant."""
        return {
            "train": self.train_pairs,
            "validation": self.validation_pairs,
            "test": self.test_pairs,
        }[split]
