"""Draw what has names instead of a course: dots with intervals in rows, and spots of cost and quality with their frontier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from seedbed.page.page import WIDTH, axis_over, format_number, text_width

__all__ = ["Dot", "Spot", "dot_chart", "scatter"]

_ROW, _TOP, _BOTTOM, _RIGHT = 26, 10, 44, 24
_HEIGHT, _LEFT = 360, 58
_FONT = 12


@dataclass(frozen=True, slots=True)
class Dot:
    """One row of a dot chart.

    Attributes:
        label: its name, at the left.
        value: where the dot is.
        low, high: ends of its whisker; None: none.
        points: single values behind it, drawn small.
        color: index of the colour, 0 to 5.
    """

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    points: Sequence[float] = ()
    color: int = 0


@dataclass(frozen=True, slots=True)
class Spot:
    """One named spot of a scatter."""

    name: str
    x: float
    y: float
    color: int = 0


def dot_chart(dots: Sequence[Dot], *, x_label: str, title: str) -> str:
    """Return an SVG drawing with one row a dot, from the top down.

    Args:
        dots: the rows.
        x_label: of the axis, with the unit.
        title: for readers of screens.
    """
    if not dots:
        return '<p class="soft">nothing to draw</p>'
    left = min(300.0, 16 + max(text_width(dot.label) for dot in dots))
    height = _TOP + _ROW * len(dots) + _BOTTOM
    values = [v for d in dots for v in (d.value, d.low, d.high, *d.points) if v is not None]
    axis = axis_over(values, left, WIDTH - _RIGHT, is_log=False, pad=0.05)
    out = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">']
    base = height - _BOTTOM
    for value, text in axis.labels(6):
        x = axis(value)
        out.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{base}"/>')
        out.append(f'<text x="{x:.1f}" y="{base + 17}" text-anchor="middle">{text}</text>')
    middle = (left + WIDTH - _RIGHT) / 2
    out.append(f'<text x="{middle:.1f}" y="{height - 6}" text-anchor="middle">{escape(x_label)}</text>')
    for number, dot in enumerate(dots):
        y = _TOP + _ROW * (number + 0.5)
        out.append(
            f'<text class="name" x="{left - 10:.1f}" y="{y + 4:.1f}" text-anchor="end">{escape(dot.label)}</text>'
        )
        if dot.low is not None and dot.high is not None:
            out.append(
                f'<line class="whisker" x1="{axis(dot.low):.1f}" x2="{axis(dot.high):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
            )
        out += [f'<circle class="raw" cx="{axis(v):.1f}" cy="{y:.1f}" r="2.4"/>' for v in dot.points]
        tip = f"{dot.label}: {format_number(dot.value, digits=4)}"
        at = f'cx="{axis(dot.value):.1f}" cy="{y:.1f}"'
        out.append(f'<circle class="mark m{dot.color}" {at} r="5"><title>{escape(tip)}</title></circle>')
    return "\n".join([*out, "</svg>"])


def scatter(
    spots: Sequence[Spot],
    *,
    x_label: str,
    y_label: str,
    title: str,
    frontier: Sequence[str] = (),
    is_log_x: bool = False,
) -> str:
    """Return an SVG drawing of named spots; those of the frontier are joined, in the order given."""
    if not spots:
        return '<p class="soft">nothing to draw</p>'
    x_axis = axis_over([s.x for s in spots], _LEFT, WIDTH - 130, is_log=is_log_x, pad=0.08)
    y_axis = axis_over([s.y for s in spots], _HEIGHT - _BOTTOM, 26, is_log=False, pad=0.08)
    out = [f'<svg viewBox="0 0 {WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">']
    end, base = WIDTH - 130, _HEIGHT - _BOTTOM
    for value, text in y_axis.labels(7):
        y = y_axis(value)
        out.append(f'<line class="grid" x1="{_LEFT}" x2="{end}" y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    out.append(f'<line class="axis" x1="{_LEFT}" x2="{end}" y1="{base}" y2="{base}"/>')
    for value, text in x_axis.labels(6):
        out.append(f'<text x="{x_axis(value):.1f}" y="{base + 17}" text-anchor="middle">{text}</text>')
    out.append(f'<text x="2" y="12">{escape(y_label)}</text>')
    out.append(
        f'<text x="{(_LEFT + end) / 2:.1f}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>'
    )
    by_name = {spot.name: spot for spot in spots}
    path = [f"{x_axis(by_name[n].x):.1f} {y_axis(by_name[n].y):.1f}" for n in frontier if n in by_name]
    if len(path) > 1:
        out.append(f'<path class="front" d="M{"L".join(path)}"/>')
    places: list[tuple[float, float]] = []
    for spot in sorted(spots, key=lambda s: y_axis(s.y)):
        x, y = x_axis(spot.x), y_axis(spot.y)
        tip = f"{spot.name}: {format_number(spot.y, digits=4)} at {format_number(spot.x)}"
        out.append(
            f'<circle class="mark m{spot.color}" cx="{x:.1f}" cy="{y:.1f}" r="5"><title>{escape(tip)}</title></circle>'
        )
        at = y + 4
        width = text_width(spot.name)
        while any(abs(at - b) < _FONT and x + 9 < a + 150 and a < x + 9 + width for a, b in places):
            at += _FONT + 1  # names stand apart, each below the last that would touch it
        places.append((x + 9, at))
        out.append(f'<text class="name" x="{x + 9:.1f}" y="{at:.1f}">{escape(spot.name)}</text>')
    return "\n".join([*out, "</svg>"])
