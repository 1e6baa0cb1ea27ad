"""Parts of the report's page as HTML: sections, tables, legends, bars. All text is escaped here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from sweeps.answering.intervals import Verdict

UPPER_BOUND: Literal["upper bound"] = "upper bound"
Colour = Verdict | Literal["upper bound"]

Cells = Sequence[tuple[str, bool]]
"""(text, is a number) of each cell; numbers are aligned right."""


def section(title: str, content: str, anchor: str) -> str:
    """A titled section, or nothing if there is nothing to show."""
    return f'<section id="{anchor}"><h2>{escape(title)}</h2>{content}</section>' if content else ""


def note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def details(summary: str, content: str) -> str:
    """Content that opens with a click; nothing if there is none."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>" if content else ""


def table(header: Cells, body: Sequence[tuple[str, str, Cells]]) -> str:
    """A table. `body` has the CSS class, the tooltip and the cells of every line."""

    def cells(tag: str, line: Cells) -> str:
        css = {True: ' class="number"', False: ""}
        return "".join(f"<{tag}{css[number]}>{escape(text)}</{tag}>" for text, number in line)

    lines = "".join(
        f'<tr class="{escape(css)}"{f" title={_quoted(hint)}" if hint else ""}>{cells("td", line)}</tr>'
        for css, hint, line in body
    )
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
    ends = "<span>← worse</span><span>better →</span>"
    return (
        f'<div class="intervals">{"".join(lines)}<div class="interval ends"><span class="name"></span>'
        f'<span class="track">{ends}</span></div></div>'
    )


def _quoted(text: str) -> str:
    return f'"{escape(text)}"'
