"""A report in one HTML file: a table, notes and pictures, with nothing to load from elsewhere."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 72rem; margin: 2rem auto;
       padding: 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 2px solid #222; }
tbody tr:first-child { font-weight: 600; }
.warning { background: #fff3cd; border-left: 4px solid #e0a800; padding: .4rem .8rem; }
figure { margin: 1.5rem 0; }
figcaption, .legend, .facts { color: #555; font-size: .9em; }
.facts td { text-align: left; padding: .1rem .8rem .1rem 0; border: 0; font-weight: 400; }
img { max-width: 100%; height: auto; }
"""


class Table(NamedTuple):
    """A table as it is shown.

    Attributes:
        columns: headings; the first is of the row names.
        rows: cells, the first of each is its name.
        legend: what the figures mean, a sentence each.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    legend: Sequence[str] = ()


def encode_png(picture: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """Return an RGB picture as a PNG file."""
    done, data = cv2.imencode(".png", np.ascontiguousarray(picture[..., ::-1]))
    if not done:
        raise ValueError(f"no PNG can be made of a picture of shape {picture.shape}")
    return data.tobytes()


def html_report(
    title: str,
    table: Table,
    pictures: Mapping[str, bytes],
    facts: Mapping[str, str],
    warnings: Sequence[str] = (),
) -> str:
    """Return the report as one HTML document.

    Args:
        title: heading, plain text like all others.
        table: the figures.
        pictures: PNG files by caption.
        facts: where the figures come from: checkpoint, data, versions and so on.
        warnings: shown above the table.
    """
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        *(f'<p class="warning">{escape(warning)}</p>' for warning in warnings),
        _html_table(table),
        *(f'<p class="legend">{escape(sentence)}</p>' for sentence in table.legend),
        *(_html_figure(caption, data) for caption, data in pictures.items()),
        '<table class="facts"><tbody>',
        *(f"<tr><td>{escape(k)}</td><td>{escape(v)}</td></tr>" for k, v in facts.items()),
        "</tbody></table>",
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _html_table(table: Table) -> str:
    """Return a table with a head."""
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    rows = "\n".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows
    )
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table>"


def _html_figure(caption: str, data: bytes) -> str:
    """Return an embedded picture with its caption."""
    source = "data:image/png;base64," + base64.b64encode(data).decode()
    text = escape(caption)
    return f'<figure><img src="{source}" alt="{text}"><figcaption>{text}</figcaption></figure>'
