"""Line charts as SVG, written by hand: no dependency for some pictures."""

import dataclasses
import html
import math
from collections.abc import Sequence
from typing import Final

WIDTH: Final = 720
HEIGHT: Final = 420
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 50, 80
COLOURS: Final = (
    *("#0b6e99", "#d9822b", "#7a4f9a", "#3c8d40", "#b03a48", "#555555"),
    *("#4fb3d9", "#f2b134", "#c08bd9", "#8fc93a", "#e27d8a", "#000000"),
)
MANY: Final = 6
"""Lines beyond which points have no dots, and the legend twice as many columns."""


@dataclasses.dataclass(frozen=True)
class Line:
    """One series."""

    title: str
    points: Sequence[tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Marks:
    """Places on the horizontal axis at which something happened."""

    title: str = ""
    at: Sequence[float] = ()


class _Axis:
    def __init__(self, values: Sequence[float], *, logarithmic: bool, start: float, end: float) -> None:
        self._logarithmic = logarithmic
        self._start, self._end = start, end
        if logarithmic:
            self._low = 10 ** math.floor(math.log10(min(values)))
            self._high = 10 ** math.ceil(math.log10(max(*values, self._low * 1.01)))
        else:
            step = 10 ** math.floor(math.log10(max(values)))
            step = step / 2 if max(values) / step < 4 else step
            self._low, self._high = 0.0, math.ceil(max(values) / step) * step
            self._step = step

    def at(self, value: float) -> float:
        if self._logarithmic:
            share = math.log10(value / self._low) / math.log10(self._high / self._low)
        else:
            share = (value - self._low) / (self._high - self._low)
        return self._start + share * (self._end - self._start)

    def ticks(self) -> list[float]:
        if self._logarithmic:
            decades = round(math.log10(self._high / self._low))
            return [float(self._low * 10**power) for power in range(decades + 1)]
        return [index * self._step for index in range(round(self._high / self._step) + 1)]


def chart(
    title: str,
    lines: Sequence[Line],
    *,
    x: str,
    y: str,
    x_is_logarithmic: bool,
    y_is_logarithmic: bool,
    marks: Marks = Marks(),
) -> str:
    """The picture. Lines without points are named in the legend as missing."""
    drawn = [line for line in lines if line.points]
    horizontal = _Axis(
        [point[0] for line in drawn for point in line.points],
        logarithmic=x_is_logarithmic,
        start=LEFT,
        end=WIDTH - RIGHT,
    )
    vertical = _Axis(
        [point[1] for line in drawn for point in line.points],
        logarithmic=y_is_logarithmic,
        start=HEIGHT - BOTTOM,
        end=TOP,
    )
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}"'
    under = HEIGHT - BOTTOM
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text x="{LEFT}" y="22" font-size="14" font-weight="bold">{html.escape(title)}</text>',
        f'<text x="{LEFT}" y="40" fill="#555">{html.escape(y)}</text>',
        f'<text x="{WIDTH - RIGHT}" y="{under + 34}" fill="#555" text-anchor="end">{html.escape(x)}</text>',
    ]
    for tick in vertical.ticks():
        at = vertical.at(tick)
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="#ddd"/>')
        out.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{tick:,g}</text>')
    for tick in horizontal.ticks():
        at = horizontal.at(tick)
        out.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{tick:,.10g}</text>')
    if marks.at:
        dashed = 'stroke="#888" stroke-dasharray="3 3"'
        out.append(f'<line x1="{WIDTH - 150}" x2="{WIDTH - 150}" y1="28" y2="44" {dashed}/>')
        out.append(f'<text x="{WIDTH - 144}" y="40" fill="#555">{html.escape(marks.title)}</text>')
        out += [
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{under}" {dashed}/>'
            for at in map(horizontal.at, marks.at)
        ]
    many = len(lines) > MANY
    columns, width = (6, 108) if many else (3, 215)
    for index, line in enumerate(lines):
        colour = COLOURS[index % len(COLOURS)]
        places = [f"{horizontal.at(px):.1f},{vertical.at(py):.1f}" for px, py in line.points]
        if places:
            out.append(
                f'<polyline points="{" ".join(places)}" fill="none" stroke="{colour}" stroke-width="2"/>'
            )
        out += [
            f'<circle cx="{place.split(",")[0]}" cy="{place.split(",")[1]}" r="3.5" fill="{colour}"/>'
            for place in places
            if not many
        ]
        left, top = LEFT + (index % columns) * width, HEIGHT - 28 + (index // columns) * 18
        name = line.title if line.points else f"{line.title} (missing)"
        out.append(f'<rect x="{left}" y="{top - 9}" width="12" height="10" fill="{colour}"/>')
        out.append(f'<text x="{left + 18}" y="{top}">{html.escape(name)}</text>')
    out.append("</svg>")
    return "\n".join(out) + "\n"
