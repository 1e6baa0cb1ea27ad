"""Parts of the report's page as HTML: sections, tables, legends, bars. All text is escaped here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from sweeps.answering.intervals import Verdict

UPPER_BOUND: Literal["upper bound"] = "upper bound"
Colour = Verdict | Literal["upper bound"]

Cells = Sequence[tuple[str, bool] | tuple[str, bool, str]]
"""(text, is a number) of each cell, and a tooltip; numbers are aligned right."""
GROUP = "group"
"""CSS class of a line whose one cell is the title of the lines under it."""


def section(title: str, content: str, anchor: str) -> str:
    """A titled section, or nothing if there is nothing to show."""
    return f'<section id="{anchor}"><h2>{escape(title)}</h2>{content}</section>' if content else ""


def note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def bullets(lines: Sequence[str], css: str = "") -> str:
    """A list, or nothing without lines."""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    named = f' class="{escape(css)}"' if css else ""
    return f"<ul{named}>{items}</ul>" if items else ""


def details(summary: str, content: str) -> str:
    """Content that opens with a click; nothing if there is none."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>" if content else ""


def table(header: Cells, body: Sequence[tuple[str, str, Cells]]) -> str:
    """A table. `body` has the CSS class, the tooltip and the cells of every line."""

    def cells(tag: str, line: Cells, more: str = "") -> str:
        css = {True: ' class="number"', False: ""}
        return "".join(
            f"<{tag}{css[number]}{more}{_hint(*hint)}>{escape(text)}</{tag}>" for text, number, *hint in line
        )

    def row(css: str, hint: str, line: Cells) -> str:
        wide = f' colspan="{len(header)}"' if css == GROUP else ""
        return f'<tr class="{escape(css)}"{_hint(hint)}>{cells("td", line, wide)}</tr>'

    lines = "".join(row(*line) for line in body)
    head = f"<thead><tr>{cells('th', header)}</tr></thead>"
    return f'<div class="wide" tabindex="0"><table>{head}<tbody>{lines}</tbody></table></div>'


def charts(drawn: Sequence[str], legend: Mapping[str, str]) -> str:
    """Charts side by side under their legend. `legend`: CSS class -> text."""
    if not drawn:
        return ""
    shapes = {True: '<rect class="dot {}" x="1.5" y="1.5" width="9" height="9"/>'}
    shapes[False] = '<circle class="dot {}" cx="6" cy="6" r="4.5"/>'
    swatches = (
        f'<span><svg viewBox="0 0 12 12" aria-hidden="true">{shapes["control" in css].format(css)}</svg>'
        f"{escape(text)}</span>"
        for css, text in legend.items()
    )
    figures = "".join(f"<figure>{chart}</figure>" for chart in drawn)
    return f'<p class="legend">{"".join(swatches)}</p><div class="charts">{figures}</div>'


def bars(values: Mapping[str, float], label: str) -> str:
    """Horizontal bars of shares in [0, 1]. `label`: what they are, for readers who do not see them."""
    lines = "".join(
        f'<div class="bar"><span class="name">{escape(name)}</span>'
        f'<span class="track"><i style="width:{100 * value:.1f}%"></i></span>'
        f'<span class="value">{100 * value:.0f} %</span></div>'
        for name, value in values.items()
    )
    return f'<div class="bars" role="group" aria-label="{escape(label)}">{lines}</div>'


@dataclass(frozen=True)
class Span:
    """An interval to draw: an estimate with its ends, positive where it is better, and what it says.

    `verdict` gives its colour; an upper bound, whose lead is no news, has none.
    """

    name: str
    mean: float
    low: float
    high: float
    verdict: Colour
    text: str


def intervals(spans: Sequence[Span]) -> str:
    """Intervals under each other on one scale, with the line of no difference."""
    if not spans:
        return ""
    low, high = min(0.0, *(span.low for span in spans)), max(0.0, *(span.high for span in spans))
    margin = 0.04 * (high - low) or 1.0
    low, high = low - margin, high + margin

    def at(value: float) -> str:
        return f"{100 * (value - low) / (high - low):.2f}%"

    lines = []
    for span in spans:
        css = span.verdict.split()[0]
        width = f"{100 * (span.high - span.low) / (high - low):.2f}%"
        drawn = (
            f'<i class="zero" style="left:{at(0)}"></i>'
            f'<i class="range" style="left:{at(span.low)};width:{width}"></i>'
            f'<i class="mean" style="left:{at(span.mean)}"></i>'
        )
        lines.append(
            f'<div class="interval {css}"><span class="name">{escape(span.name)}</span>'
            f'<span class="track" role="img" aria-label="{escape(f"{span.name}: {span.text}")}">{drawn}</span>'
            f'<span class="value">{escape(span.text)}</span></div>'
        )
    ticks = "".join(f'<i style="left:{at(tick)}">{_signed(tick)}</i>' for tick in _ticks(low, high))
    ends = "<span>← worse</span><span>better →</span>"
    return (
        f'<div class="intervals">{"".join(lines)}'
        f'<div class="interval ends" aria-hidden="true"><span></span><span class="track">{ticks}</span></div>'
        f'<div class="interval ends"><span></span><span class="track">{ends}</span></div></div>'
    )


def _ticks(low: float, high: float) -> list[float]:
    """Round values from `low` to `high`, about four, among them 0 if it is between them."""
    size = 10.0 ** math.floor(math.log10((high - low) / 3))
    step = size * next(factor for factor in (1, 2, 5, 10) if (high - low) / (factor * size) <= 5)
    edge = 0.03 * (high - low)  # a number there would not fit
    return [k * step for k in range(math.ceil((low + edge) / step), math.floor((high - edge) / step) + 1)]


def _signed(value: float) -> str:
    return f"{value:+.4g}".replace("-", "−") if value else "0"


def _hint(text: str = "") -> str:
    return f' title="{escape(text)}"' if text else ""
