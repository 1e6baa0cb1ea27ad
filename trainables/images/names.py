"""Names of prepared images: the photograph's name, then the place of the crop in it."""

from __future__ import annotations


def image_name(photograph: str, place: str) -> str:
    """The name of a crop. `place` holds no "@"."""
    return f"{photograph}@{place}"


def photograph_of(image: str) -> str:
    """The photograph of a named image. Its own name may contain "@", as `icon@2x.png`."""
    return image.rpartition("@")[0]
