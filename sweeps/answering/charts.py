"""Small charts as inline SVG. Colours are CSS classes of the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from sweeps.answering.labels import CHARACTER, Box, Labels, Place, shortened

WIDTH, HEIGHT = 460, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 14, 12, 44


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        name: shown as a tooltip.
        points: (x, y); points that are not finite, or not positive on a logarithmic axis, are left out.
        css: CSS class, which sets colour and line width.
    """

    name: str
    points: Sequence[tuple[float, float]]
    css: str = "other"


@dataclass(frozen=True)
class Dot:
    """A point of a scatter chart. `css` as in `Line`; "hollow" draws a ring, "control" a square.

    `label` is written next to it.
    """

    name: str
    x: float
    y: float
    css: str = "other"
    label: str = ""


class _Axis:
    """Maps values to pixels and chooses ticks; logarithmic or linear."""

    def __init__(
        self, values: Iterable[float], pixels: tuple[float, float], log: bool, margin: float | None = None
    ) -> None:
        self.log = log
        scaled = [math.log10(value) if log else value for value in values] or [0.0, 1.0]
        low, high = min(scaled), max(scaled)
        if margin is None or low == high:
            margin = 0.06 * (high - low) or (0.5 if log else abs(low) * 0.1 or 1.0)
        self._low, self._high = low - margin, high + margin
        self._pixels = pixels

    def __call__(self, value: float) -> float:
        part = ((math.log10(value) if self.log else value) - self._low) / (self._high - self._low)
        return self._pixels[0] + part * (self._pixels[1] - self._pixels[0])

    def ticks(self) -> list[float]:
        """Round values inside the axis. Logarithmic: decades, with values between if few. Linear: about five."""
        if self.log:
            decades = range(math.floor(self._low), math.ceil(self._high) + 1)
            for digits in ((1,), (1, 3), (1, 2, 5)):
                found = [digit * 10.0**exponent for exponent in decades for digit in digits]
                found = [tick for tick in found if self._low <= math.log10(tick) <= self._high]
                if len(found) >= 3:
                    return found
        step = 10.0 ** math.floor(math.log10((self._high - self._low) / 4))
        step *= next(factor for factor in (1, 2, 5, 10) if (self._high - self._low) / (factor * step) <= 6)
        first, last = math.ceil(self._low / step), math.floor(self._high / step)
        linear = [index * step for index in range(first, last + 1)]
        return [10**tick for tick in linear] if self.log else linear


def usable_on_log_axis(values: Sequence[float]) -> bool:
    """Whether all values are positive and the largest is at least five times the smallest."""
    return bool(values) and min(values) > 0 and max(values) / min(values) >= 5


def line_chart(
    lines: Sequence[Line], x_label: str, y_label: str, log_y: bool = False, y_of: Sequence[Line] = (), alt: str = ""
) -> str:
    """Lines over a common linear x axis.

    Args:
        y_of: further lines to include in the range of the y axis, so that charts side by side share a scale.
        alt: as in `scatter`.
    """
    shown = [Line(line.name, _clean(line.points, log_y), line.css) for line in lines]
    room = [point for line in y_of for point in _clean(line.points, log_y)]
    x = _Axis([point[0] for line in shown for point in line.points], (_LEFT, WIDTH - _RIGHT), log=False)
    ys = [point[1] for line in shown for point in line.points] + [point[1] for point in room]
    y = _Axis(ys, (HEIGHT - _BOTTOM, _TOP), log_y)
    marks = []
    for line in shown:
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in line.points)
        css = escape(line.css)
        marks.append(f'<polyline class="line {css}" points="{path}"><title>{escape(line.name)}</title></polyline>')
        for a, b in line.points[-1:]:
            title = escape(f"{line.name}: {b:.4g} at {a:g}")
            marks.append(
                f'<circle class="dot {css}" cx="{x(a):.1f}" cy="{y(b):.1f}" r="3"><title>{title}</title></circle>'
            )
    return _svg(x, y, marks, x_label, y_label, alt=alt)


def scatter(
    dots: Sequence[Dot],
    x_label: str,
    y_label: str,
    guides: Sequence[tuple[str, float]] = (),
    categories: Sequence[str] = (),
    path: Sequence[tuple[float, float]] = (),
    alt: str = "",
) -> str:
    """Dots over an x axis, which is logarithmic if `usable_on_log_axis`.

    Args:
        guides: (name, y) of horizontal reference lines. A line far outside the dots is left out, because it would
            compress them.
        categories: names of x = 0, 1, ...; dots of one category are spread a little.
        path: corners of a line that is drawn behind the dots, on a linear x axis.
        alt: what the chart shows, for readers who do not see it; by default the names of the axes.
    """
    dots = [dot for dot in dots if math.isfinite(dot.x) and math.isfinite(dot.y)]
    xs, ys = [dot.x for dot in dots], [dot.y for dot in dots]
    spread = (max(ys) - min(ys)) if ys else 0.0
    near = [(n, v) for n, v in guides if ys and min(ys) - 0.5 * spread <= v <= max(ys) + 0.5 * spread]
    on_log = not categories and not path and usable_on_log_axis(xs)
    x = _Axis([*xs, -0.5, len(categories) - 0.5] if categories else xs, (_LEFT, WIDTH - _RIGHT), on_log)
    y = _Axis([*ys, *(value for _, value in near)], (HEIGHT - _BOTTOM, _TOP), log=False)
    places = _places(dots, x, y, bool(categories))
    levels = [[(_LEFT, y(value)), (WIDTH - _RIGHT, y(value))] for _, value in near]
    corners = [(x(a), y(b)) for a, b in path]
    labels = Labels(Box(_LEFT, _TOP, WIDTH - _RIGHT, HEIGHT - _BOTTOM), places, [*levels, corners])
    marks = [f'<line class="guide" x1="{a:.1f}" x2="{c:.1f}" y1="{b:.1f}" y2="{b:.1f}"/>' for (a, b), (c, _) in levels]
    if path:
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in corners)
        marks.append(f'<polyline class="front" points="{points}"/>')
    marks += [_mark(dot, *place, categories) for dot, place in zip(dots, places, strict=True)]
    for dot, (a, b) in zip(dots, places, strict=True):
        if dot.label:
            marks.append(_label(dot.label, labels.beside(a, b, dot.label), (a, b)))
    marks += [_label(name, labels.on(y(value), name)) for name, value in near]
    return _svg(x, y, marks, x_label, y_label, categories, alt)


def _places(dots: Sequence[Dot], x: _Axis, y: _Axis, spread: bool) -> list[tuple[float, float]]:
    """The centres of dots, in pixels. `spread`: whether dots of one x stand beside each other."""
    seen: dict[float, int] = {}
    places = []
    for dot in dots:
        seen[dot.x] = turn = seen.get(dot.x, -1) + 1
        aside = 7 * ((turn + 1) // 2) * (-1) ** turn if spread else 0
        places.append((x(dot.x) + max(-35, min(35, aside)), y(dot.y)))
    return places


def _mark(dot: Dot, x: float, y: float, categories: Sequence[str]) -> str:
    at = categories[int(dot.x)] if categories else f"{dot.x:.4g}"
    title, css = f"<title>{escape(f'{dot.name}: {dot.y:.4g} at {at}')}</title>", f'class="dot {escape(dot.css)}"'
    if "control" in dot.css.split():
        return f'<rect {css} x="{x - 4.5:.1f}" y="{y - 4.5:.1f}" width="9" height="9">{title}</rect>'
    return f'<circle {css} cx="{x:.1f}" cy="{y:.1f}" r="5">{title}</circle>'


def _label(text: str, place: Place, of: tuple[float, float] | None = None) -> str:
    """`of`: the point that it names, to which a line leads if the text is not next to it."""
    written = (
        f'<text class="note" text-anchor="{place.anchor}" x="{place.x:.1f}" y="{place.y:.1f}">{escape(text)}</text>'
    )
    if of is None or not place.far:
        return written
    line = f'x1="{of[0]:.1f}" y1="{of[1]:.1f}" x2="{place.x:.1f}" y2="{place.y - 4:.1f}"'
    return f'<line class="leader" {line}/>{written}'


def stacked_chart(parts: Sequence[Line], x_label: str, y_label: str, alt: str = "") -> str:
    """Parts of a whole as bands on top of each other, the first one at the bottom; y in percent of their sum.

    Args:
        parts: lines with the same x; values that are not finite count as 0.
        alt: as in `scatter`.
    """
    xs = [a for a, _ in parts[0].points] if parts else []
    values = [[b if math.isfinite(b) else 0.0 for _, b in part.points] for part in parts]
    totals = [sum(column) for column in zip(*values, strict=True)]
    x = _Axis(xs, (_LEFT, WIDTH - _RIGHT), log=False, margin=0.0)
    y = _Axis([0.0, 100.0], (HEIGHT - _BOTTOM, _TOP), log=False, margin=0.0)
    below, marks = [0.0] * len(xs), []
    for part, own in zip(parts, values, strict=True):
        shares = [100 * value / total if total > 0 else 0.0 for value, total in zip(own, totals, strict=True)]
        above = [low + share for low, share in zip(below, shares, strict=True)]
        edge = [*zip(xs, above, strict=True), *reversed(list(zip(xs, below, strict=True)))]
        corners = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in edge)
        title = escape(f"{part.name}: {shares[-1]:.1f} % at {x_label} {xs[-1]:g}")
        marks.append(f'<polygon class="band {escape(part.css)}" points="{corners}"><title>{title}</title></polygon>')
        below = above
    return _svg(x, y, marks, x_label, y_label, alt=alt)


def _clean(points: Sequence[tuple[float, float]], log_y: bool) -> list[tuple[float, float]]:
    return [(a, b) for a, b in points if math.isfinite(a) and math.isfinite(b) and (b > 0 or not log_y)]


def _svg(
    x: _Axis,
    y: _Axis,
    marks: Sequence[str],
    x_label: str,
    y_label: str,
    categories: Sequence[str] = (),
    alt: str = "",
) -> str:
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    parts = []
    for tick in y.ticks():
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text class="tick" text-anchor="end" x="{_LEFT - 6}" y="{y(tick) + 4:.1f}">{tick:.4g}</text>')
    ticks = [(float(k), name) for k, name in enumerate(categories)] or [(tick, f"{tick:.4g}") for tick in x.ticks()]
    room = max(5, int((right - _LEFT) / len(ticks) / CHARACTER) - 2) if categories else math.inf
    for tick, name in ticks:
        parts.append(f'<line class="axis" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
        short, whole = (
            (name, "") if len(name) <= room else (shortened(name, int(room)), f"<title>{escape(name)}</title>")
        )
        place = f'text-anchor="middle" x="{x(tick):.1f}" y="{bottom + 17}"'
        parts.append(f'<text class="tick" {place}>{whole}{escape(short)}</text>')
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    parts += marks
    middle = (_LEFT + right) / 2
    parts.append(f'<text class="label" text-anchor="middle" x="{middle}" y="{HEIGHT - 8}">{escape(x_label)}</text>')
    turned = f'transform="translate(12 {(bottom + _TOP) / 2}) rotate(-90)"'
    parts.append(f'<text class="label" text-anchor="middle" {turned}>{escape(y_label)}</text>')
    name = escape(alt or f"{y_label} over {x_label}")
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}">{"".join(parts)}</svg>'
