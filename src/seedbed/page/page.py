"""Write self-contained HTML pages with tables and SVG charts: no scripts, no fonts, no network, light and dark.

A page is one string that opens from a disk, a mail or a locked-down machine for as long as browsers read HTML. Every
text is escaped, and a content security policy forbids scripts and connections besides. What a report says is decided
by its caller, for example `evaluation/report.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape

__all__ = [
    "WIDTH",
    "Chart",
    "Page",
    "Reference",
    "Series",
    "axis_over",
    "format_number",
    "standalone",
    "svg",
    "text_width",
    "ticks",
]

WIDTH, _HEIGHT = 760, 330
_SMALL_WIDTH, _SMALL_HEIGHT = 400, 220
_TOP, _LEFT, _BOTTOM, _RIGHT = 26, 52, 42, 24
_FONT = 12
_HUES = 6
_MAX_POINTS = 1200  # of one line; more cannot be told apart at this width
_WIDE_COLUMNS = 8  # more of them do not fit beside one another in the width of a text

_COLORS = """
:root{--page:#fff;--ink:#1c2024;--soft:#5a636d;--line:#d9dee3;--grid:#e9ecef;--tint:#f5f7f9;
--s0:#0072b2;--s1:#d55e00;--s2:#009e73;--s3:#cc79a7;--s4:#b8860b;--s5:#56b4e9}
@media (prefers-color-scheme:dark){:root{--page:#14171a;--ink:#e6e9ec;--soft:#9aa4ae;--line:#394048;--grid:#262b31;
--tint:#1d2125;--s0:#56b4e9;--s1:#e8833a;--s2:#2fbf95;--s3:#dd9cc0;--s4:#e6b93f;--s5:#4f8fd0}}
"""

_CHART_STYLE = """
svg text{font-size:12px;fill:var(--soft);font-family:inherit}svg .ref{fill:var(--ink)}
.grid{stroke:var(--grid);stroke-width:1}.axis{stroke:var(--line);stroke-width:1}
.reference{stroke:var(--soft);stroke-width:1.2;stroke-dasharray:5 4}.leader{stroke:var(--soft);stroke-width:.7;fill:none}
.series{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}.faint{stroke-width:1;opacity:.4}
.mark{stroke:var(--page);stroke-width:1.2}.whisker{stroke:var(--soft);stroke-width:1.6}.raw{fill:var(--soft);opacity:.55}
.name{fill:var(--ink);paint-order:stroke;stroke:var(--page);stroke-width:3px}
.front{fill:none;stroke:var(--s2);stroke-width:1.4;stroke-dasharray:6 3}.dashed{stroke-dasharray:8 4}.dotted{stroke-dasharray:1 5}
""" + "".join(f".s{i}{{stroke:var(--s{i})}}.m{i}{{fill:var(--s{i})}}" for i in range(6))

_STYLE = (
    _COLORS
    + """
@media print{:root{--page:#fff;--ink:#000;--soft:#444;--line:#bbb;--grid:#e4e4e4;--tint:#fff;--s0:#0072b2;--s1:#d55e00;
--s2:#009e73;--s3:#cc79a7;--s4:#b8860b;--s5:#56b4e9}section{break-inside:auto}figure,table,.tiles{break-inside:avoid}
h2{break-after:avoid}body{font-size:10.5pt}main{padding:0}}
*{box-sizing:border-box}html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue","Noto Sans","PingFang SC","Hiragino Sans GB","Microsoft YaHei","Noto Sans CJK SC","Noto Sans SC",sans-serif}
main{max-width:860px;margin:0 auto;padding:40px 20px 64px}
h1{font-size:1.85rem;line-height:1.2;margin:0 0 6px;letter-spacing:-.01em}
h2{font-size:1.22rem;line-height:1.3;margin:44px 0 10px;padding-top:16px;border-top:1px solid var(--line)}
p{margin:0 0 12px;max-width:44em}.soft,.lead{color:var(--soft)}.soft{font-size:.88rem}
p+.soft{margin-top:-6px}.lead{margin-bottom:22px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(118px,1fr));gap:10px;margin:18px 0}
.tile{background:var(--tint);border-radius:8px;padding:12px 14px}
.tile b{display:block;font-size:1.4rem;line-height:1.25;font-weight:600;font-variant-numeric:tabular-nums}
.tile span{display:block;font-size:.86rem;color:var(--soft)}
.scroll{overflow-x:auto;margin:14px 0 18px}
@media(min-width:1000px){.wide{width:min(100vw - 60px,1460px);position:relative;left:50%;transform:translateX(-50%)}
.wide table{width:auto;min-width:820px;margin:0 auto}}
table{border-collapse:collapse;width:100%;font-size:.92rem}
caption{text-align:left;color:var(--soft);font-size:.88rem;padding-bottom:6px}
th,td{text-align:left;padding:6px 14px 6px 0;border-bottom:1px solid var(--line);vertical-align:top;overflow-wrap:break-word}
.facts{width:auto}.facts td:first-child{color:var(--soft);padding-right:36px}
th{font-weight:600;border-bottom-width:2px}.r{text-align:right;font-variant-numeric:tabular-nums}td.r{white-space:nowrap}
.scroll table:not(.facts){min-width:520px}
figure{margin:18px 0 22px}figcaption{font-weight:600;margin-bottom:2px}
.legend{display:flex;flex-wrap:wrap;gap:2px 18px;font-size:.86rem;color:var(--soft);margin:2px 0 4px}
.legend svg{width:24px;height:10px;margin-right:6px;vertical-align:middle}
.small{display:grid;grid-template-columns:repeat(auto-fit,minmax(330px,1fr));gap:0 20px}.small figure{margin:8px 0 12px}
.chart{overflow-x:auto}.chart>svg{display:block;width:100%;min-width:520px;height:auto}.small .chart>svg{min-width:0}
pre{background:var(--tint);border-radius:8px;padding:12px 14px;overflow-x:auto;font:.86rem/1.5 ui-monospace,SFMono-Regular,
Menlo,Consolas,"Noto Sans Mono CJK SC",monospace}
"""
    + _CHART_STYLE
)


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart. Points that are not finite interrupt it.

    Attributes:
        name: in the legend.
        points: (x, y) in ascending x.
        has_markers: also draw each point; its values show when pointed at.
        is_faint: thin and pale, for the raw values behind a smoothed line.
        color: index of the colour, 0 to 5; None takes the next free one, dashed and then dotted once all six are in use.
    """

    name: str
    points: Sequence[tuple[float, float]]
    has_markers: bool = False
    is_faint: bool = False
    color: int | None = None


@dataclass(frozen=True, slots=True)
class Reference:
    """A labelled horizontal line, for example a baseline."""

    label: str
    value: float


@dataclass(frozen=True, slots=True)
class Chart:
    """A line chart; axis labels carry the unit, as in "loss (nats per target)"; width and height are in pixels."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    references: Sequence[Reference] = ()
    is_log_x: bool = False
    is_log_y: bool = False
    from_zero: bool = False
    width: int = WIDTH
    height: int = _HEIGHT


class Page:
    """Collect parts of a page in reading order; every text given is escaped.

    Args:
        title: of the page, also shown as its heading.
        language: BCP 47 tag such as "en" or "zh", which browsers choose fonts by.
        lead: a line under the heading.
    """

    def __init__(self, title: str, language: str = "en", *, lead: str = "") -> None:
        self.title = title
        self.language = language
        self._parts: list[str] = [f"<h1>{escape(title)}</h1>"]
        if lead:
            self._parts.append(f'<p class="lead">{escape(lead)}</p>')

    def section(self, title: str) -> None:
        """Begin a section."""
        self._parts.append(f"<h2>{escape(title)}</h2>")

    def text(self, *paragraphs: str, is_soft: bool = False) -> None:
        """Add paragraphs; soft ones are small and grey."""
        kind = ' class="soft"' if is_soft else ""
        self._parts += [f"<p{kind}>{escape(paragraph)}</p>" for paragraph in paragraphs]

    def tiles(self, figures: Sequence[tuple[str, str]]) -> None:
        """Add large figures, each a (value, what it is)."""
        inner = "".join(
            f'<div class="tile"><b>{escape(value)}</b><span>{escape(label)}</span></div>'
            for value, label in figures
        )
        self._parts.append(f'<div class="tiles">{inner}</div>')

    def table(
        self, header: Sequence[str], rows: Sequence[Sequence[str]], *, align: str = "", caption: str = ""
    ) -> None:
        """Add a table.

        Args:
            header: column titles; without them it is a narrow list of facts.
            rows: cells, as text.
            align: one letter a column, "l" or "r"; missing ones are "l".
            caption: above the table.

        A table of more than eight columns takes the room beside the text where the window has any.
        """
        facts = ' class="facts"'
        kinds = [' class="r"' if letter == "r" else "" for letter in align.ljust(200, "l")]
        room = "scroll wide" if len(header) > _WIDE_COLUMNS else "scroll"
        lines = [f'<div class="{room}"><table{"" if header else facts}>']
        if caption:
            lines.append(f"<caption>{escape(caption)}</caption>")
        if header:
            cells = "".join(f"<th{kind}>{escape(c)}</th>" for c, kind in zip(header, kinds, strict=False))
            lines.append(f"<thead><tr>{cells}</tr></thead>")
        lines.append("<tbody>")
        for row in rows:
            cells = "".join(f"<td{kind}>{escape(c)}</td>" for c, kind in zip(row, kinds, strict=False))
            lines.append(f"<tr>{cells}</tr>")
        self._parts.append("\n".join([*lines, "</tbody></table></div>"]))

    def code(self, text: str) -> None:
        """Add preformatted text, such as a command."""
        self._parts.append(f"<pre>{escape(text)}</pre>")

    def small_charts(self, charts: Sequence[Chart]) -> None:
        """Add line charts two beside one another, where there are many of a kind."""
        begin = len(self._parts)
        for chart in charts:
            self.line_chart(replace(chart, width=_SMALL_WIDTH, height=_SMALL_HEIGHT))
        self._parts[begin:] = ['<div class="small">', *self._parts[begin:], "</div>"]

    def line_chart(self, chart: Chart) -> None:
        """Add a line chart."""
        colors = _colors(chart.series)
        legend = ""
        if len(chart.series) > 1:
            keys = "".join(
                f"<span>{_key(series, color)}{escape(series.name)}</span>"
                for series, color in zip(chart.series, colors, strict=True)
            )
            legend = f'<div class="legend">{keys}</div>'
        self._parts.append(
            f"<figure><figcaption>{escape(chart.title)}</figcaption>{legend}"
            f'<div class="chart">{_draw(chart, colors)}</div></figure>'
        )

    def figure(self, title: str, drawing: str) -> None:
        """Add a drawing: SVG of `dots.py`, whose texts are escaped there."""
        self._parts.append(
            f'<figure><figcaption>{escape(title)}</figcaption><div class="chart">{drawing}</div></figure>'
        )

    def html(self) -> str:
        """Return the whole page."""
        body = "\n".join(self._parts)
        return (
            f'<!doctype html>\n<html lang="{escape(self.language)}">\n<head>\n<meta charset="utf-8">\n'
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta name="color-scheme" content="light dark">\n'
            f"<title>{escape(self.title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
            f"<body><main>\n{body}\n</main></body>\n</html>\n"
        )


def svg(chart: Chart) -> str:
    """Return a line chart as an SVG file of its own, with a legend in it, for pages that are not ours."""
    colors = _colors(chart.series)
    rows: list[list[str]] = [[]]
    x = float(_LEFT)
    for series, color in zip(chart.series, colors, strict=True):
        width = 24 + 6 + text_width(series.name) + 18
        if rows[-1] and x + width > chart.width - _RIGHT:
            rows.append([])
            x = float(_LEFT)
        y = 18 * (len(rows) - 1)
        rows[-1].append(
            f'<path class="{_stroke(series, color)}" d="M{x:.1f} {y}h24"/>'
            f'<text x="{x + 30:.1f}" y="{y + 4}">{escape(series.name)}</text>'
        )
        x += width
    height = 18 * len(rows)
    head, _, rest = _draw(chart, colors).partition("\n")
    head = head.replace(
        f'"0 0 {chart.width} {chart.height}"', f'"0 {-height} {chart.width} {chart.height + height}"'
    )
    names = "".join(line for row in rows for line in row)
    legend = f'<g transform="translate(0 {6 - height})">{names}</g>'
    return standalone("\n".join([head, legend, rest]))


def standalone(drawing: str) -> str:
    """Return a drawing of a page as an SVG file of its own, with its colours in it."""
    head, end, rest = drawing.partition(">")
    head = head.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    style = f"{_COLORS}svg{{background:var(--page);font-family:system-ui,sans-serif}}{_CHART_STYLE}"
    return f"{head}{end}\n<style>{style}</style>{rest}\n"


def format_number(value: float, *, digits: int = 3) -> str:
    """Write a number for a reader: 4.07, 21,300, 3.2M, 1.0e-05; about `digits` significant digits."""
    size = abs(value)
    if not math.isfinite(value):
        return "-"
    if size >= 1e6:
        for unit, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
            if size >= scale:
                return f"{value / scale:.{max(0, digits - 1 - int(math.log10(size / scale)))}f}{unit}"
    if size >= 1000 or value == int(value):
        return f"{value:,.0f}"
    if size < 1e-3:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(size)))}f}"


def ticks(low: float, high: float, *, is_log: bool = False, count: int = 6) -> list[float]:
    """Return round values inside [low, high]: steps of 1, 2 or 5 times a power of ten, or decades when `is_log`."""
    if is_log:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        mantissas = (1, 2, 5) if last - first <= 3 else (1,)
        values = [m * 10.0**p for p in range(first, last + 1) for m in mantissas]
        return [v for v in values if low * 0.999 <= v <= high * 1.001]
    rough = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough * 0.999)
    start, stop = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(start, stop + 1)]


@dataclass(frozen=True, slots=True)
class _Axis:
    """Map values to pixels."""

    low: float
    high: float
    start: float
    stop: float
    is_log: bool

    def __call__(self, value: float) -> float:
        low, high, at = self.low, self.high, value
        if self.is_log:
            low, high, at = math.log(low), math.log(high), math.log(value)
        return self.start + (at - low) / (high - low) * (self.stop - self.start)

    def labels(self, count: int) -> list[tuple[float, str]]:
        """Return ticks and their texts, all with the same number of decimals."""
        values = ticks(self.low, self.high, is_log=self.is_log, count=count)
        step = values[1] - values[0] if len(values) > 1 else (values[0] if values else 1.0)
        largest = max((abs(v) for v in values), default=0.0)
        if self.is_log or largest >= 1e5 or (0 < largest < 1e-2):
            return [(v, _short(v)) for v in values]
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        return [(v, f"{v + 0.0:,.{decimals}f}") for v in values]


def _short(value: float) -> str:
    """Write a tick briefly: 200k, 1.5M, 2e-4."""
    size = abs(value)
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if size >= scale:
            return f"{value / scale:.4g}{unit}"
    if 0 < size < 1e-2:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.4g}"


def _draw(chart: Chart, colors: Sequence[int]) -> str:
    """Return the SVG of a chart, or a note when there is nothing to draw."""
    lines = [_thin(series.points) for series in chart.series]
    values = [
        (x, y) for line in lines for x, y in line if _fits(x, chart.is_log_x) and _fits(y, chart.is_log_y)
    ]
    if not values:
        return '<p class="soft">no points</p>'
    references = [r for r in chart.references if _fits(r.value, chart.is_log_y)]
    right = _RIGHT + max((10 + text_width(_reference_text(r)) for r in references), default=0.0)
    x_axis = axis_over([x for x, _ in values], _LEFT, chart.width - right, is_log=chart.is_log_x, pad=0.0)
    y_values = [y for _, y in values] + [r.value for r in references] + ([0.0] if chart.from_zero else [])
    y_axis = axis_over(
        y_values, chart.height - _BOTTOM, _TOP, is_log=chart.is_log_y, pad=0.05, at_zero=chart.from_zero
    )

    out = [f'<svg viewBox="0 0 {chart.width} {chart.height}" role="img" aria-label="{escape(chart.title)}">']
    end = chart.width - right
    for value, text in y_axis.labels(max(3, chart.height // 47)):
        y = y_axis(value)
        out.append(f'<line class="grid" x1="{_LEFT}" x2="{end:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    base = chart.height - _BOTTOM
    out.append(f'<line class="axis" x1="{_LEFT}" x2="{end:.1f}" y1="{base}" y2="{base}"/>')
    for value, text in x_axis.labels(max(3, chart.width // 105)):
        x = x_axis(value)
        out.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{base}" y2="{base + 5}"/>')
        out.append(f'<text x="{x:.1f}" y="{base + 19}" text-anchor="middle">{text}</text>')
    out.append(f'<text x="2" y="12">{escape(chart.y_label)}</text>')
    middle = (_LEFT + end) / 2
    out.append(
        f'<text x="{middle:.1f}" y="{chart.height - 6}" text-anchor="middle">{escape(chart.x_label)}</text>'
    )
    out += _references(references, y_axis, end, base)
    for series, points, color in zip(chart.series, lines, colors, strict=True):
        out += _line(series, points, color, chart, x_axis, y_axis)
    return "\n".join([*out, "</svg>"])


def _references(references: Sequence[Reference], axis: _Axis, end: float, base: float) -> Iterator[str]:
    """Draw reference lines; their labels stand at the right edge, pushed apart where they would overlap."""
    ordered = sorted(references, key=lambda r: axis(r.value))
    places: list[float] = []
    for reference in ordered:
        at = axis(reference.value)
        places.append(max(at, places[-1] + _FONT + 3) if places else at)
    overflow = max(0.0, places[-1] - base) if places else 0.0
    for index in range(len(places) - 1, -1, -1):  # push back up what ran over the lower edge
        limit = places[index] - overflow if index == len(places) - 1 else places[index + 1] - _FONT - 3
        places[index] = min(places[index], limit)
    for reference, place in zip(ordered, places, strict=True):
        y = axis(reference.value)
        yield f'<line class="reference" x1="{_LEFT}" x2="{end:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
        if abs(place - y) > 1:
            yield f'<path class="leader" d="M{end:.1f} {y:.1f}L{end + 7:.1f} {place:.1f}"/>'
        yield f'<text class="ref" x="{end + 9:.1f}" y="{place + 4:.1f}">{escape(_reference_text(reference))}</text>'


def _line(
    series: Series,
    points: Sequence[tuple[float, float]],
    color: int,
    chart: Chart,
    x_axis: _Axis,
    y_axis: _Axis,
) -> Iterator[str]:
    """Draw one series as a path, with markers where asked for."""
    path: list[str] = []
    is_down = False
    marks: list[str] = []
    for x, y in points:
        if not (_fits(x, chart.is_log_x) and _fits(y, chart.is_log_y)):
            is_down = False
            continue
        px, py = x_axis(x), y_axis(y)
        path.append(f"{'L' if is_down else 'M'}{px:.1f} {py:.1f}")
        is_down = True
        if series.has_markers:
            tip = f"{series.name}: {format_number(y, digits=4)} ({chart.x_label} {format_number(x)})"
            marks.append(
                f'<circle class="mark m{color % _HUES}" cx="{px:.1f}" cy="{py:.1f}" r="3.6"><title>{escape(tip)}</title></circle>'
            )
    yield f'<path class="{_stroke(series, color)}" d="{"".join(path)}"/>'
    yield from marks


def axis_over(
    values: Sequence[float], start: float, stop: float, *, is_log: bool, pad: float, at_zero: bool = False
) -> _Axis:
    """Return an axis over the values, with some air unless it begins at zero."""
    low, high = min(values), max(values)
    if low == high:
        low, high = (low / 2, high * 2) if is_log else (low - abs(low or 1) / 10, high + abs(high or 1) / 10)
    if is_log:
        ratio = (high / low) ** pad
        return _Axis(low / ratio, high * ratio, start, stop, True)
    air = (high - low) * pad
    return _Axis(low if at_zero and low == 0 else low - air, high + air, start, stop, False)


def _thin(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """Keep the lowest and the highest point of each of many stretches, so that spikes stay visible."""
    if len(points) <= _MAX_POINTS:
        return points
    stretches = _MAX_POINTS // 2
    kept: list[tuple[float, float]] = []
    for index in range(stretches):
        part = points[index * len(points) // stretches : (index + 1) * len(points) // stretches]
        finite = [p for p in part if math.isfinite(p[1])]
        if not finite:
            kept += part[:1]
            continue
        lowest, highest = min(finite, key=lambda p: p[1]), max(finite, key=lambda p: p[1])
        kept += [lowest] if lowest == highest else sorted([lowest, highest])
    return kept


def _fits(value: float, is_log: bool) -> bool:
    return math.isfinite(value) and (not is_log or value > 0)


def _colors(series: Sequence[Series]) -> list[int]:
    """Return the colour of each line, plus six for one that is dashed and twelve for one that is dotted."""
    taken = {s.color for s in series if s.color is not None}
    free = iter([i for i in range(_HUES) if i not in taken] + list(range(_HUES, _HUES + len(series))))
    return [s.color % _HUES if s.color is not None else next(free) for s in series]


def _stroke(series: Series, color: int) -> str:
    """Return the classes of a line."""
    dashes = ("", " dashed", " dotted")[min(color // _HUES, 2)]
    return f"series s{color % _HUES}{dashes}{' faint' if series.is_faint else ''}"


def _key(series: Series, color: int) -> str:
    mark = f'<circle class="mark m{color % _HUES}" cx="12" cy="5" r="3.6"/>' if series.has_markers else ""
    return f'<svg viewBox="0 0 24 10" aria-hidden="true"><path class="{_stroke(series, color)}" d="M1 5H23"/>{mark}</svg>'


def _reference_text(reference: Reference) -> str:
    return f"{reference.label} {reference.value:.2f}"


def text_width(text: str) -> float:
    """Estimate the width of a text in pixels; Han and other wide characters take a full square."""
    return sum(_FONT if ord(c) >= 0x1100 else 0.56 * _FONT for c in text)
