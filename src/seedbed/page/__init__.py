"""Self-contained HTML pages with tables and SVG charts: `page.py` the page and its line charts, `dots.py` dots and scatters."""

from __future__ import annotations

from seedbed.page.dots import Dot, Spot, dot_chart, scatter
from seedbed.page.page import Chart, Page, Reference, Series, format_number, standalone, svg, ticks

__all__ = [
    "Chart",
    "Dot",
    "Page",
    "Reference",
    "Series",
    "Spot",
    "dot_chart",
    "format_number",
    "scatter",
    "standalone",
    "svg",
    "ticks",
]
