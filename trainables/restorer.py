"""A finished trial, ready to restore pictures of any size: whole, or in tiles that are blended.

Networks are imported where a function needs them, so that a command line checks its flags without them.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trainables.common.errors import InputError
from trainables.pretrained.finished_trial import check_asked, finished_settings
from trainables.settings import TrialSettings, flatten, override, reason_unread
from trainables.settings.methods import METHODS
from trainables.settings.presets import preset
from trainables.settings.roles import RESTORES, WHEN_RESTORING

if TYPE_CHECKING:
    import torch

TILE = 512
"""Side of the tiles of large pictures, restored pixels, unless the trial was trained on larger crops."""
WHOLE = 1.5
"""Pictures of at most so many tiles' sides are restored as a whole."""
OVERLAP = 32
_BAND = 64  # rows that become 8-bit at once


def restoration_settings(finished: Path, changes: Sequence[tuple[str, Any]] = ()) -> TrialSettings:
    """The settings of a finished trial of any method, for restoring.

    Args:
        changes: (name, value) of settings in `RESTORES`.

    Raises:
        InputError: not a finished trial, or a setting that cannot be changed for its method.
    """
    name = f"FINISHED {finished}"
    found = finished_settings(finished, "", name)
    trained = override(preset("sample").trial, {**found, **WHEN_RESTORING, "checkpoint": str(finished)})
    read = METHODS[trained.method].sections
    accepted = [
        setting for setting in RESTORES if setting.partition(".")[0] in read and not reason_unread(setting, trained)
    ]
    for setting, value in changes:
        if setting not in accepted:
            raise InputError(
                f"--set {setting}={value}: cannot be changed for a finished {trained.method}; expected one of "
                f"{', '.join(accepted)}"
            )
    settings = override(trained, dict(changes))
    check_asked(found, flatten(settings), name)
    return settings


def picture_key(seed: int, name: str, pixels: np.ndarray) -> tuple[int, ...]:
    """Seed, file name and size of a picture as numbers; its noise is a function of them.

    Args:
        name: file name without folders. pixels: (H, W, 3).
    """
    digest = hashlib.sha256(name.encode()).digest()
    return (seed, int.from_bytes(digest[:7]), *pixels.shape[:2])  # 7 bytes, because the method's key is int64


class NotFinite(ArithmeticError):
    """The network gave NaN or infinite values instead of a picture."""


class Restorer:
    """A finished trial, ready to restore pictures of any size.

    Args:
        settings: from `restoration_settings`.
        tile: largest side of the tiles for larger pictures, restored pixels; 0 restores every picture as a whole. None:
            `TILE` or the crops of training, for pictures with a side of more than `WHOLE` tiles.
        overlap: smallest overlap of neighbouring tiles, restored pixels. Its outer quarters are discarded; between them
            the tiles are blended linearly.

    Attributes:
        multiple: divisor of both sides of a restored tile, pixels.
        whole: largest side of a picture that is restored as a whole, restored pixels.

    Raises:
        InputError: weights that are missing or do not match, or a tile size that the method cannot restore.
    """

    def __init__(
        self, settings: TrialSettings, device: torch.device, tile: int | None = None, overlap: int = OVERLAP
    ) -> None:
        from trainables.methods.build import build_method, method_class
        from trainables.pretrained.autoencoders import latent_shape, load_latents

        method_class(settings.method).check(settings)
        self.settings, self.device = settings, device
        self.method = build_method(settings, device)
        self.method.networks.eval()
        self.latent = latent_shape(settings)
        self.encode = load_latents(settings, device).encode if METHODS[settings.method].latents else None
        self.multiple = math.lcm(self.method.size_multiple, settings.pairs.scale)
        self.overlap = _up(overlap, self.multiple)
        if tile and (tile % self.multiple or tile <= self.overlap):
            raise InputError(
                f"--tile {tile}: expected a multiple of {self.multiple} for {settings.method}, at least "
                f"{self.overlap + self.multiple} with --overlap {overlap}"
            )
        self.tile = _up(max(TILE, settings.pairs.image_size, 2 * self.overlap), self.multiple) if tile is None else tile
        self.whole = math.inf if tile == 0 else tile or WHOLE * self.tile

    def __call__(
        self, pixels: np.ndarray, key: Sequence[int], restored_tile: Callable[[int, int], None] = lambda done, of: None
    ) -> np.ndarray:
        """The restored picture, uint8 (H * scale, W * scale, 3).

        Args:
            pixels: uint8 (H, W, 3), RGB. Padded by reflection to a size that the method accepts.
            key: seed of the noise, see `picture_key`.
            restored_tile: called after each tile with the number of restored tiles, and of all of this picture.

        Raises:
            NotFinite: it is no picture.
        """
        scale, factor = self.settings.pairs.scale, self.latent.factor
        rows, columns = pixels.shape[:2]
        unit = self.multiple // scale
        padded = np.pad(pixels, ((0, -rows % unit), (0, -columns % unit), (0, 0)), mode="reflect")
        height, width = padded.shape[0] * scale, padded.shape[1] * scale
        shape = self.latent.channels, height // factor, width // factor
        noise = np.random.default_rng([*key, 0]).standard_normal(shape, np.float32)
        restored = np.zeros((3, height, width), np.float32)
        limit = self._limit(height, width)
        tiles = list(itertools.product(*(self._tiles(length, limit) for length in (height, width))))
        for done, ((y, down), (x, across)) in enumerate(tiles, 1):
            place = slice(y, y + len(down)), slice(x, x + len(across))
            piece = self.restore(
                padded[tuple(slice(s.start // scale, s.stop // scale) for s in place)],
                noise[:, *(slice(s.start // factor, s.stop // factor) for s in place)],
                (*key, y, x),
            )
            piece *= down[:, None] * across
            restored[:, *place] += piece
            restored_tile(done, len(tiles))
        picture = np.empty((rows * scale, columns * scale, 3), np.uint8)
        for top in range(0, len(picture), _BAND):  # whole copies would take twice the memory of `restored`
            band = restored[:, top : top + _BAND, : picture.shape[1]][:, : len(picture) - top]
            picture[top : top + _BAND] = np.rint(band * 255).transpose(1, 2, 0)
        return picture

    def bytes_for(self, pixels: np.ndarray) -> int:
        """Bytes that restoring a picture takes at least, besides the picture itself and what the network computes with.

        Args:
            pixels: uint8 (H, W, 3).
        """
        scale, multiple = self.settings.pairs.scale, self.multiple
        height, width = (_up(side * scale, multiple) for side in pixels.shape[:2])
        noise = self.latent.channels * (height // self.latent.factor) * (width // self.latent.factor)
        limit = self._limit(height, width)
        tile = min(height, limit) * min(width, limit)
        # Sums and noise in float32, 8-bit pixels; a tile and its weights in float32.
        return height * width * (3 * 4 + 3) + 4 * noise + tile * (3 + 1) * 4

    def _limit(self, height: int, width: int) -> int:
        """The largest side of a tile of a restored picture."""
        return self.tile if max(height, width) > self.whole else max(height, width)

    def restore(self, pixels: np.ndarray, noise: np.ndarray, key: Sequence[int]) -> np.ndarray:
        """float32 (3, H * scale, W * scale) in [0, 1], restored as in validation.

        Args:
            pixels: uint8 (H, W, 3); `multiple` divides the restored sides.
            noise: standard normal, (C, h, w) of the latent, or of the restored picture for methods without latents.
            key: seed of the noise that the sampler adds in its steps.

        Raises:
            NotFinite: it is no picture.
        """
        import torch

        from trainables.images.tensors import image_tensor, to_tensor, upsample
        from trainables.methods.shared.precision import AUTOCAST

        degraded = image_tensor(pixels, self.device)
        batch = {"degraded": degraded, "noise": to_tensor(noise[None].copy(), self.device)}
        batch["noise_key"] = torch.tensor([list(key)])
        dtype = AUTOCAST.get(self.settings.training.precision)
        with torch.no_grad():
            if self.encode:
                batch["latent_degraded"] = self.encode(upsample(degraded, self.settings.pairs.scale))
            with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
                restored = self.method.restore(batch)
        values = restored[0].float()
        if not values.isfinite().all():
            advice = "" if self.settings.training.precision == "fp32" else "; try --set training.precision=fp32"
            raise NotFinite(f"the network gave NaN or infinite values{advice}")
        return values.clamp(0, 1).cpu().numpy()

    def _tiles(self, length: int, limit: int) -> list[tuple[int, np.ndarray]]:
        """Start and pixel weights of each tile along one side. The weights add up to 1 at every pixel.

        The tiles are as few as possible, then as small as possible.

        Args:
            limit: the largest side of a tile.
        """
        if length <= limit:
            return [(0, np.ones(length, np.float32))]
        count = -((self.overlap - length) // (limit - self.overlap))
        step = _up(-((self.overlap - length) // count), self.multiple)
        tile, overlap = step + self.overlap, max(1, self.overlap)
        starts = [*range(0, length - tile, step), length - tile]
        rise = np.clip((np.arange(tile) + 0.5 - overlap / 4) / (overlap / 2), 0, 1).astype(np.float32)
        weights, total = [], np.zeros(length, np.float32)
        for start in starts:
            weight = np.ones_like(rise) if start == 0 else rise
            weights.append(weight if start == starts[-1] else np.minimum(weight, rise[::-1]))
            total[start : start + tile] += weights[-1]
        return [(start, weight / total[start : start + tile]) for start, weight in zip(starts, weights, strict=True)]


def _up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple
