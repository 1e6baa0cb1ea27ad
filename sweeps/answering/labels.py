"""Places for labels in a chart: beside what they name, on no point and on no other label if there is room."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

CHARACTER, HEIGHT = 7.4, 14.0  # size of a letter on a narrow page, where the font is larger
_DOT = 7.0  # half a side of the square that a point takes
_ROWS = (1, -1, 2, -2, 3, -3, 4, -4)
_OUTSIDE = 10.0  # how much worse it is to leave the frame than to cover something

Anchor = Literal["start", "middle", "end"]


class Box(NamedTuple):
    """A rectangle in pixels; y grows downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def shared(self, other: Box) -> float:
        """The area that two boxes share."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, width) * max(0.0, height)

    @property
    def area(self) -> float:
        return (self.right - self.left) * (self.bottom - self.top)


class Place(NamedTuple):
    """Where a text stands: SVG's x, baseline y and `text-anchor`; `far`: whether a line must join it to its point."""

    x: float
    y: float
    anchor: Anchor
    far: bool = False

    def box(self, text: str) -> Box:
        width = CHARACTER * len(text)
        left = self.x - {"start": 0.0, "middle": width / 2, "end": width}[self.anchor]
        return Box(left, self.y - 0.8 * HEIGHT, left + width, self.y + 0.2 * HEIGHT)


class Labels:
    """Finds a place for one label after the other.

    Args:
        frame: labels stay in it.
        points: centres of points.
        lines: corners of lines.
    """

    def __init__(
        self,
        frame: Box,
        points: Iterable[tuple[float, float]],
        lines: Iterable[Sequence[tuple[float, float]]] = (),
    ) -> None:
        self._frame = frame
        self._taken = [Box(x - _DOT, y - _DOT, x + _DOT, y + _DOT) for x, y in points]
        self._taken += [Box(x - 1, y - 1, x + 1, y + 1) for line in lines for x, y in _along(line)]

    def beside(self, x: float, y: float, text: str) -> Place:
        """The place of a point's label."""
        near = [Place(x + 9, y + 4, "start"), Place(x - 9, y + 4, "end")]
        near += [Place(x, y - 10, "middle"), Place(x, y + 20, "middle")]
        far = [
            Place(x + side * 14, y + 4 + row * HEIGHT, "start" if side > 0 else "end", abs(row) > 1)
            for row in _ROWS
            for side in (1, -1)
        ]
        return self._taking(text, [*near, *far])

    def on(self, y: float, text: str) -> Place:
        """The place of the name of a horizontal line."""
        left, right = self._frame.left + 4, self._frame.right - 4
        places: list[tuple[float, Anchor]] = [(left, "start"), (right, "end"), ((left + right) / 2, "middle")]
        return self._taking(text, [Place(x, y + shift, anchor) for x, anchor in places for shift in (-4, 12)])

    def _taking(self, text: str, candidates: Sequence[Place]) -> Place:
        """The first of the best candidates."""
        best = min(candidates, key=lambda place: self._cost(place.box(text)))
        self._taken.append(best.box(text))
        return best

    def _cost(self, box: Box) -> float:
        outside = box.area - box.shared(self._frame)
        return round(sum(box.shared(other) for other in self._taken) + _OUTSIDE * outside, 3)


def _along(corners: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points on a line, a few pixels from each other."""
    found = []
    for (a, b), (c, d) in itertools.pairwise(corners):
        count = max(1, round(max(abs(c - a), abs(d - b)) / 4))
        found += [(a + (c - a) * k / count, b + (d - b) * k / count) for k in range(count + 1)]
    return found


def shortened(text: str, size: int) -> str:
    """A text of at most `size` characters: its beginning and its end, because lists often begin alike.

    >>> shortened("to_q,to_k,to_v,to_out.0", 12)
    'to_q,t…out.0'
    """
    return text if len(text) <= size else f"{text[: size // 2]}…{text[len(text) - (size - 1) // 2 :]}"
