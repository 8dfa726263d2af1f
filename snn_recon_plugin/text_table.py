"""Text for people: tables with aligned columns, wrapped texts and rules, and shares of samples with their 95 % interval."""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Sequence

WIDTH = 100  # characters of a line
_LEAST = 40  # of a text, beside names of any length
_QUANTILE = 1.959964  # of the standard normal distribution, for a two-sided interval of 95 %
_COARSE = 0.1  # margin from which decimals of a percentage mean nothing
FEW_SAMPLES = 200  # held-out samples below which an accuracy near 90 % has a margin above 4 points


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


def percent(value: float) -> str:
    """Return a share as a percentage, "n/a" for NaN."""
    return "n/a" if math.isnan(value) else f"{100 * value:.1f} %"


def margin(share: float, samples: int) -> float:
    """Return the distance from a share to the farther end of its 95 % interval: Wilson's (1927), wide also at 0 and 1."""
    shrink = 1 / (1 + _QUANTILE**2 / samples)
    centre = shrink * (share + _QUANTILE**2 / (2 * samples))
    half = shrink * _QUANTILE * math.sqrt(share * (1 - share) / samples + (_QUANTILE / (2 * samples)) ** 2)
    return abs(share - centre) + half


def rate(share: float, samples: int) -> str:
    """Return a share of samples as a percentage with its margin, such as "98.1 ± 2.4 %"; "n/a" for NaN."""
    if math.isnan(share) or not samples:
        return percent(share)
    uncertain = margin(share, samples)
    digits = 0 if uncertain >= _COARSE else 1
    return f"{100 * share:.{digits}f} ± {100 * uncertain:.{digits}f} %"
