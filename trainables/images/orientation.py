"""The eight orientations of an image: mirrored, upside down, transposed, and their combinations.

An orientation is a number of three bits: 1 mirrors left and right, 2 top and bottom, then 4 exchanges rows and columns.
"""

from __future__ import annotations

import numpy as np

MIRROR, UPSIDE_DOWN, TRANSPOSE = 1, 2, 4
ORIENTATIONS = {"none": 1, "mirrored": 2, "turned": 8}
"""`pairs.flips` -> number of orientations, counted from 0, the image as it is."""

Margins = tuple[int, int, int, int]
"""Widths of the margins of an image: top, bottom, left, right."""


def oriented(image: np.ndarray, orientation: int, rows: int = 0) -> np.ndarray:
    """A view of `image` in an orientation.

    Args:
        rows: number of the axis of rows; that of columns follows.
    """
    if orientation & MIRROR:
        image = np.flip(image, rows + 1)
    if orientation & UPSIDE_DOWN:
        image = np.flip(image, rows)
    return image.swapaxes(rows, rows + 1) if orientation & TRANSPOSE else image


def oriented_margins(margins: Margins, orientation: int) -> Margins:
    """The margins of an image after `oriented`."""
    top, bottom, left, right = margins
    if orientation & MIRROR:
        left, right = right, left
    if orientation & UPSIDE_DOWN:
        top, bottom = bottom, top
    return (left, right, top, bottom) if orientation & TRANSPOSE else (top, bottom, left, right)


def orient(images: np.ndarray, orientations: np.ndarray) -> None:
    """Changes square images (N, C, S, S) in place, each to its own orientation."""
    for orientation in np.unique(orientations):
        if orientation:
            chosen = np.flatnonzero(orientations == orientation)
            images[chosen] = oriented(images[chosen], int(orientation), 2)
