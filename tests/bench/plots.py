"""Plots as SVG, which diffs and scales and needs no library: lines over an axis, and bars with their goals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 44, 50
COLOURS = ("#1f6f8b", "#d1495b", "#edae49", "#66a182")
INK, FAINT = "#333333", "#dddddd"

Point = tuple[float, float]


@dataclass(frozen=True)
class Bar:
    """A ratio with the range of its rounds, and its goal where it has one."""

    label: str
    value: float
    low: float
    high: float
    goal: float | None


def lines(title: str, x_label: str, y_label: str, series: Mapping[str, Sequence[Point]], *, log: bool = False) -> str:
    """One line per series, with a legend. With `log` the vertical axis is logarithmic."""
    points = [point for line in series.values() for point in line if math.isfinite(point[1])]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    to_x = scale(min(0, *xs), max(xs), LEFT, WIDTH - RIGHT)
    bottom, top = (min(ys) / 1.2, max(ys) * 1.2) if log else (0, max(ys) * 1.1)
    to_y = scale(bottom, top, HEIGHT - BOTTOM, TOP, log=log)
    parts = [text(LEFT, 20, title, size=15), text(WIDTH / 2, HEIGHT - 10, x_label, "middle"), text(8, TOP - 8, y_label)]
    for y in decades(bottom, top) if log else steps(top):
        parts += [rule(LEFT, to_y(y), WIDTH - RIGHT, to_y(y)), text(LEFT - 6, to_y(y) + 4, f"{y:g}", "end")]
    for x in steps(max(xs)):
        parts.append(text(to_x(x), HEIGHT - BOTTOM + 18, f"{x:g}", "middle"))
    for number, (name, line) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{to_x(x):.1f},{to_y(y):.1f}" for x, y in line if math.isfinite(y))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(text(LEFT + 10, TOP + 14 + 16 * number, name, fill=colour))
    return document(HEIGHT, parts)


def bars(title: str, found: Sequence[Bar]) -> str:
    """Horizontal bars from 0, a whisker for the range, a tick for the goal."""
    step, left = 30, 380
    to_x = scale(0, max(1.0, *(bar.high for bar in found)) * 1.05, left, WIDTH - RIGHT)
    parts = [text(10, 20, title, size=15)]
    for number, bar in enumerate(found):
        y = TOP + step * number
        colour = COLOURS[0] if bar.goal is None or bar.value >= bar.goal else COLOURS[1]
        parts.append(text(left - 8, y + 13, bar.label, "end", size=11))
        parts.append(f'<rect x="{left}" y="{y}" width="{to_x(bar.value) - left:.1f}" height="18" fill="{colour}"/>')
        parts.append(rule(to_x(bar.low), y + 9, to_x(bar.high), y + 9, INK))
        parts.append(text(left + 6, y + 13, f"{bar.value:.3f}", fill="#ffffff"))
        if bar.goal is not None:
            parts.append(rule(to_x(bar.goal), y - 4, to_x(bar.goal), y + 22, INK))
    return document(TOP + step * len(found) + 10, parts)


def scale(low: float, high: float, begin: float, end: float, *, log: bool = False) -> Callable[[float], float]:
    """Maps low..high to begin..end."""
    form = math.log10 if log else float
    span = form(high) - form(low) or 1
    return lambda value: begin + (form(value) - form(low)) / span * (end - begin)


def steps(top: float) -> list[float]:
    """Round numbers from 0 to `top`, four to ten of them."""
    size = 10 ** math.floor(math.log10(top)) if top > 0 else 1
    size = size / 5 if top / size < 2 else size / 2 if top / size < 5 else size
    return [round(size * n, 10) for n in range(int(top / size) + 1)]


def decades(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between two values."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [m * 10.0**power for power in powers for m in (1, 2, 5) if low <= m * 10.0**power <= high]


def text(x: float, y: float, words: str, anchor: str = "start", *, size: int = 12, fill: str = INK) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{fill}">{escape(words)}</text>'
    )


def rule(x1: float, y1: float, x2: float, y2: float, colour: str = FAINT) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def document(height: float, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" font-family="sans-serif">'
    return "\n".join([head, f'<rect width="{WIDTH}" height="{height:g}" fill="#ffffff"/>', *parts, "</svg>"]) + "\n"
