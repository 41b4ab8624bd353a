from __future__ import annotations

import itertools
import math
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest

from seedbed.page import Chart, Page, Reference, Series, format_number, svg, ticks

EVIL = "<script>alert('x')</script>\"&</text>"


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.data = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.data += data


def _parse(page: Page) -> _Tags:
    parser = _Tags()
    parser.feed(page.html())
    return parser


def _chart(**changes: object) -> Chart:
    fields: dict[str, object] = {
        "title": "Loss",
        "x_label": "steps",
        "y_label": "nats",
        "series": [Series("train", [(1, 9.0), (2, 5.0), (3, 4.0)])],
    }
    return Chart(**{**fields, **changes})  # type: ignore[arg-type]


def _svg(chart: Chart) -> ElementTree.Element:
    page = Page("t")
    page.line_chart(chart)
    found = re.search(r'<svg viewBox="0 0 760.*?</svg>', page.html(), re.DOTALL)
    assert found is not None
    return ElementTree.fromstring(found.group())  # well-formed, or this raises


def _path(svg: ElementTree.Element) -> str:
    return next(p.get("d", "") for p in svg.iter("path") if "series" in p.get("class", ""))


def test_every_text_is_escaped() -> None:
    page = Page(EVIL, EVIL, lead=EVIL)
    page.section(EVIL)
    page.text(EVIL)
    page.tiles([(EVIL, EVIL)])
    page.table([EVIL], [[EVIL]], caption=EVIL)
    page.code(EVIL)
    series = [Series(EVIL, [(1, 1.0), (2, 2.0)], has_markers=True), Series(EVIL, [(1, 2.0)])]
    page.line_chart(
        Chart(title=EVIL, x_label=EVIL, y_label=EVIL, series=series, references=[Reference(EVIL, 1.5)])
    )
    parsed = _parse(page)
    assert "script" not in parsed.tags
    assert parsed.data.count("alert('x')") >= 12  # and it is shown as the text it is
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]


def test_a_page_reaches_for_nothing_outside_itself() -> None:
    page = Page("Report", "zh", lead="训练报告")
    page.line_chart(_chart())
    html = page.html()
    parsed = _parse(page)
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(parsed.tags)
    assert not {"src", "href", "xlink:href", "action"} & {name for name, _ in parsed.attributes}
    assert "http://" not in html
    assert "https://" not in html
    assert "url(" not in html
    assert "@import" not in html
    assert "default-src 'none'" in html
    assert '<html lang="zh">' in html
    assert "训练报告" in html


def test_table_cells_are_all_there() -> None:
    page = Page("t")
    page.table(["name", "value", "note"], [["loss", "4.07", "nats"], ["acc", "0.31", ""]], align="lr")
    html = page.html()
    assert html.count("<tr>") == 3
    assert html.count('class="r"') == 3


def test_points_stand_where_their_values_are() -> None:
    svg = _svg(_chart(series=[Series("a", [(0, 0.0), (50, 5.0), (100, 10.0)])]))
    pairs = [tuple(map(float, p.split())) for p in re.split("[ML]", _path(svg))[1:]]
    (x0, y0), (x1, y1), (x2, y2) = pairs
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    assert y0 > y2  # up is more


def test_a_log_axis_spaces_ratios_evenly() -> None:
    svg = _svg(
        _chart(series=[Series("a", [(1, 1.0), (10, 10.0), (100, 100.0)])], is_log_x=True, is_log_y=True)
    )
    pairs = [tuple(map(float, p.split())) for p in re.split("[ML]", _path(svg))[1:]]
    assert pairs[1][0] - pairs[0][0] == pytest.approx(pairs[2][0] - pairs[1][0], abs=0.2)
    assert pairs[1][1] - pairs[0][1] == pytest.approx(pairs[2][1] - pairs[1][1], abs=0.2)


def test_points_that_are_not_finite_interrupt_the_line() -> None:
    svg = _svg(_chart(series=[Series("a", [(1, 1.0), (2, math.nan), (3, 2.0), (4, math.inf), (5, 3.0)])]))
    assert _path(svg).count("M") == 3
    assert "nan" not in ElementTree.tostring(svg, encoding="unicode")


def test_everything_drawn_stays_inside_the_picture() -> None:
    references = [Reference("uniform", 9.01), Reference("unigram", 6.28), Reference("bigram", 6.25)]
    references.append(Reference("二元 bigram", 6.22))
    svg = _svg(_chart(references=references))
    for element in svg.iter():
        for name in ("x", "x1", "x2", "cx"):
            assert 0 <= float(element.get(name, 0)) <= 760
        for name in ("y", "y1", "y2", "cy"):
            assert 0 <= float(element.get(name, 0)) <= 330


@pytest.mark.parametrize("values", [[6.0, 6.01, 6.02, 6.03], [4.0, 4.0], [9.0, 6.28, 5.2], [1.0] * 8])
def test_labels_of_reference_lines_do_not_overlap(values: list[float]) -> None:
    svg = _svg(_chart(references=[Reference(f"r{i}", v) for i, v in enumerate(values)]))
    places = sorted(float(t.get("y", 0)) for t in svg.iter("text") if t.get("class") == "ref")
    assert len(places) == len(values)
    assert all(b - a >= 12 for a, b in itertools.pairwise(places))


def test_a_long_line_is_thinned_but_keeps_its_spikes() -> None:
    points = [(float(i), 1.0) for i in range(100_000)]
    points[51_234] = (51_234.0, 50.0)
    svg = _svg(_chart(series=[Series("a", points)]))
    drawn = re.split("[ML]", _path(svg))[1:]
    assert len(drawn) <= 1200
    assert min(float(p.split()[1]) for p in drawn) < 50  # near the upper edge


@pytest.mark.parametrize("series", [[], [Series("a", [])], [Series("a", [(1, math.nan)])]])
def test_a_chart_without_points_says_so(series: list[Series]) -> None:
    page = Page("t")
    page.line_chart(_chart(series=series))
    assert "no points" in page.html()


def test_a_single_point_and_a_flat_line_are_drawn() -> None:
    assert _path(_svg(_chart(series=[Series("a", [(3, 4.0)])])))
    assert _path(_svg(_chart(series=[Series("a", [(1, 0.0), (2, 0.0)])], from_zero=True)))


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0.0, 10.0, count=5) == [0, 2, 4, 6, 8, 10]
    assert ticks(3.9, 9.2, count=6) == [4, 5, 6, 7, 8, 9]
    assert ticks(1.0, 1000.0, is_log=True) == [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
    for low, high in ((0.0, 1e-3), (-5.0, 5.0), (1e6, 3e6), (0.1, 0.1001)):
        found = ticks(low, high)
        assert 2 <= len(found) <= 12
        assert low - 1e-9 <= found[0] < found[-1] <= high * (1 + 1e-9)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (4.0667, "4.07"),
        (0.3127, "0.313"),
        (21345.6, "21,346"),
        (4_194_304, "4.19M"),
        (12_300_000, "12.3M"),
        (0, "0"),
        (9, "9"),
        (1e-5, "1.00e-05"),
        (math.nan, "-"),
    ],
)
def test_numbers_read_well(value: float, text: str) -> None:
    assert format_number(value) == text


def test_a_chart_of_its_own_is_xml_with_its_legend_and_colours():
    series = [Series(f"line & {i}", [(0, i), (1, i + 1)]) for i in range(12)]
    text = svg(Chart("title", "x", "y", series))
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    shown = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {f"line & {i}" for i in range(12)} <= set(shown)
    left, top, width, _height = map(float, root.attrib["viewBox"].split())
    assert (left, width) == (0, 760)
    assert top < 0  # the legend stands above the chart
    assert "prefers-color-scheme:dark" in text
    assert ".s0{stroke:var(--s0)}" in text


@pytest.mark.parametrize("count", [6, 7, 15])
def test_as_many_lines_as_a_page_has_look_different(count: int) -> None:
    lines = [Series(f"arm {n}", [(1, float(n)), (2, float(n))]) for n in range(count)]
    classes = [
        p.get("class") for p in _svg(_chart(series=lines)).iter("path") if "series" in p.get("class", "")
    ]
    assert len(classes) == len(set(classes)) == count
    drawn = ElementTree.fromstring(svg(_chart(series=lines)))
    keys = [p.get("class") for p in drawn.iter() if "series" in p.get("class", "")]
    assert sorted(keys) == sorted([*classes, *classes])  # the line, and its key in the legend


def test_small_charts_stand_in_a_grid_and_keep_their_text_readable() -> None:
    page = Page("t")
    page.small_charts([_chart(title="one"), _chart(title="two", references=[Reference("unigram", 7.0)])])
    html = page.html()
    grid = html[html.index('<div class="small">') :]
    drawn = [
        ElementTree.fromstring(found) for found in re.findall(r"<svg viewBox=.*?</svg>", grid, re.DOTALL)
    ]
    assert [drawing.get("aria-label") for drawing in drawn] == ["one", "two"]
    for drawing in drawn:
        _, _, width, height = map(float, drawing.get("viewBox", "").split())
        assert width < 420, "drawn at half the width of a text, a letter keeps its size"
        for text in drawing.iter("text"):
            assert 0 <= float(text.get("x", "")) < width
            assert 0 <= float(text.get("y", "")) < height
        heights = [float(line.get("y1", "")) for line in drawing.iter("line") if line.get("class") == "grid"]
        assert len(heights) >= 3
        assert max(heights) <= height - 42
