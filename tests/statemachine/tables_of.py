"""Reads back the Markdown tables that are generated."""

from __future__ import annotations


def table_rows(text: str, heading: str) -> list[list[str]]:
    """The cells of the table under a heading, its head excluded."""
    block = text.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in block.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]
