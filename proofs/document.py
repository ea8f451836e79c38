"""What a report is made of, before it is Markdown or HTML: both show the same."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from quiesce.statemachine import markdown


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph. In it, and everywhere below, `code`, **bold** and <br> mean what they mean in Markdown."""

    text: str


@dataclass(frozen=True, slots=True)
class Bullets:
    """Items, each with lines of its own below it; in Markdown they share one, so that the file stays short."""

    items: tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True, slots=True)
class Table:
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Picture:
    """Mermaid text in Markdown; drawn by Graphviz in HTML, where it is installed, with the text beside it."""

    name: str
    mermaid: str
    dot: str


@dataclass(frozen=True, slots=True)
class Folded:
    """Shown when its summary is clicked, and on paper."""

    summary: str
    blocks: tuple[Block, ...]


Block = Text | Bullets | Table | Picture | Folded


@dataclass(frozen=True, slots=True)
class Section:
    title: str
    blocks: tuple[Block, ...]
    sections: tuple[Section, ...] = ()

    @property
    def anchor(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True, slots=True)
class Report:
    """Sections under a title; the first is the first page."""

    title: str
    sections: tuple[Section, ...]


def to_markdown(report: Report) -> str:
    """The report as a Markdown file, pictures as Mermaid text."""
    blocks = [f"# {report.title}"]
    for section in report.sections:
        blocks += _section(section, 2)
    return "\n\n".join(blocks) + "\n"


def _section(section: Section, level: int) -> Iterator[str]:
    yield f"{'#' * level} {section.title}"
    yield from map(_block, section.blocks)
    for below in section.sections:
        yield from _section(below, level + 1)


def _block(block: Block) -> str:
    match block:
        case Text(text):
            return text
        case Bullets(items):
            return "\n".join(f"- {item}" + (f"\n  - {'<br>'.join(below)}" if below else "") for item, below in items)
        case Table(columns, rows):
            return markdown.table(columns, rows)
        case Picture(_, mermaid, _):
            return f"```mermaid\n{mermaid.rstrip()}\n```"
        case Folded(summary, blocks):
            return markdown.folded(summary, "\n\n".join(map(_block, blocks)))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    return Table(tuple(columns), tuple(tuple(row) for row in rows))
