"""The HTML report: well-formed, escaped, and complete in one file."""

import base64
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from handrec.viz.report import Table, encode_png, html_report

VOID = {"meta", "img"}


class Outline(HTMLParser):
    """Checks that tags are balanced; collects cells, texts and sources."""

    def __init__(self, html):
        super().__init__()
        self.open, self.rows, self.sources, self.texts = [], [], [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.sources += [value for name, value in attrs if name in {"src", "href"}]
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in {"td", "th"}:
            self.rows[-1][-1] += data
        self.texts.append(data)


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (12, 17, 3), dtype=np.uint8)


def test_png_keeps_colours(picture):
    decoded = cv2.imdecode(np.frombuffer(encode_png(picture), np.uint8), cv2.IMREAD_COLOR_RGB)
    np.testing.assert_array_equal(decoded, picture)


def test_the_report_holds_everything_and_refers_to_nothing(picture):
    table = Table(
        ["", "n", "<mm>"], [["method & co", "12", "3.40"], ["mean hand", "12", "9.00"]], ["<b>"]
    )
    png = encode_png(picture)
    html = html_report("A <title>", table, {'a "plot"': png}, {"data": "x<y"}, ["mirrored?"])
    outline = Outline(html)
    assert outline.rows == [*map(list, [table.columns, *table.rows]), ["data", "x<y"]]
    (source,) = outline.sources
    assert base64.b64decode(source.removeprefix("data:image/png;base64,")) == png
    for text in ("A <title>", "<b>", "mirrored?", 'a "plot"'):
        assert text in outline.texts
    assert "http" not in html


def test_no_warnings_leave_no_box():
    html = html_report("title", Table(["a"], [["b"]]), {}, {})
    assert 'class="warning"' not in html
