"""Tables of text: aligned columns, names with wrapped texts, and rules."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Sequence

WIDTH = 100  # characters of a line
_LEAST = 40  # of a text, beside names of any length


def align(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Return the lines of a table of cells: the first ``left`` columns begin in line, the others end in line."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    forms = [f"{{:{'<' if place < left else '>'}{width}}}" for place, width in enumerate(widths)]
    return ["  ".join(form.format(cell) for form, cell in zip(forms, row, strict=True)).rstrip() for row in rows]


def wrap(text: str, first: str = "", others: str = "", width: int = WIDTH) -> list[str]:
    """Return the lines of a text; the first one begins with ``first``, the others with ``others``."""
    return textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=others, break_long_words=False, break_on_hyphens=False
    )


def beside_names(rows: Sequence[tuple[str, str]]) -> list[list[str]]:
    """Return the lines of each row, a name and a text that is wrapped beside the longest name."""
    indent = max(len(name) for name, _ in rows) + 2
    return [wrap(text, f"{name:<{indent}}", " " * indent, max(WIDTH, indent + _LEAST)) for name, text in rows]


def ruled(*blocks: Sequence[str]) -> str:
    """Return blocks of lines with a rule before, between and after them; empty blocks are left out."""
    rule = "-" * max(len(line) for block in blocks for line in block)
    return "\n".join([rule, *(line for block in blocks if block for line in (*block, rule))])


def html_table(rows: Sequence[tuple[str, str]]) -> str:
    """Return names and texts as an HTML table, without colours, which suits light and dark pages."""
    style = 'style="text-align: left; vertical-align: top"'
    cells = [f"<tr><th {style}>{html.escape(name)}</th><td {style}>{html.escape(text)}</td></tr>" for name, text in rows]
    return f"<table>{''.join(cells)}</table>"
