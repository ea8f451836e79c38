"""A report as one HTML file that needs nothing else: pictures inside, light and dark, for narrow screens and for paper."""

from __future__ import annotations

import re
from html import escape
from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from quiesce.proofs.document import Block, Bullets, Folded, Picture, Report, Table, Text
from quiesce.statemachine.graphviz import ToolMissing, svg

TEMPLATE: Final = "report.html.jinja"
WIDEST: Final = 1000
"""Points; a wider picture is printed on a larger sheet."""
CODE: Final = re.compile(r"`([^`]+)`")
BOLD: Final = re.compile(r"\*\*([^*]+)\*\*")
BREAKS: Final = re.compile(r"(?<=[.(\[_])(?=\w)")
"""Where code may go on in the next line, so that a table is not as wide as its longest word."""


def to_html(report: Report) -> str:
    """The report as HTML; pictures are drawn if Graphviz is installed, and are Mermaid text in any case."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"block": _block, "inline": inline}
    return environment.get_template(TEMPLATE).render(report=report) + "\n"


def inline(text: str) -> Markup:
    """`code`, **bold** and <br>; everything else is shown as it is written."""
    shown = CODE.sub(lambda found: f"<code>{BREAKS.sub('<wbr>', found[1])}</code>", escape(text, quote=False))
    return Markup(BOLD.sub(r"<strong>\1</strong>", shown).replace("&lt;br&gt;", "<br>"))


def _block(block: Block) -> Markup:
    return Markup(_drawn(block))


def _drawn(block: Block) -> str:
    match block:
        case Text(text):
            return "\n".join(f"<p>{inline(part)}</p>" for part in text.split("\n\n"))
        case Bullets(items):
            return f"<ul>{''.join(_item(item, below) for item, below in items)}</ul>"
        case Table(columns, rows):
            return _table(columns, rows)
        case Picture(name, mermaid, dot):
            return _picture(name, mermaid, dot)
        case Folded(summary, blocks):
            return f"<details><summary>{inline(summary)}</summary>{''.join(map(_drawn, blocks))}</details>"


def _item(item: str, below: tuple[str, ...]) -> str:
    lines = f"<ul>{''.join(f'<li>{inline(line)}</li>' for line in below)}</ul>" if below else ""
    return f"<li>{inline(item)}{lines}</li>"


def _table(columns: tuple[str, ...], rows: tuple[tuple[str, ...], ...]) -> str:
    """On a narrow screen a row becomes a block, and each cell says its column."""
    head = "".join(f"<th>{inline(column)}</th>" for column in columns)
    body = "".join(
        "<tr>"
        + "".join(f'<td data-label="{escape(column)}">{inline(cell)}</td>' for column, cell in zip(columns, row, strict=True))
        + "</tr>"
        for row in rows
    )
    return f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _picture(name: str, mermaid: str, dot: str) -> str:
    text = f'<details class="screen"><summary>Mermaid text</summary><pre>{escape(mermaid, quote=False)}</pre></details>'
    try:
        drawn = svg(dot)
    except ToolMissing as missing:
        return f"<p>Not drawn: {escape(str(missing))}</p>{text}"
    own = re.sub(r'\bid="', f'id="{name}-', drawn)
    width = int(re.findall(r'<svg width="(\d+)pt"', own)[0])
    sized = re.sub(r'<svg width="\d+pt" height="\d+pt"', f'<svg style="width: {width}pt" role="img"', own, count=1)
    paper = ' class="poster"' if width > WIDEST else ""
    caption = f'<figcaption class="screen">{escape(name)}: a row says why when it is pointed at</figcaption>'
    return f"<figure{paper}>{sized}{caption}</figure>{text}"
