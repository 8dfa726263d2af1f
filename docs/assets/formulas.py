"""Formulas as MathML, written when the site is built: a browser draws them without a script, and offline."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

_PAGE = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
_NOTEBOOK = re.compile(r"(\$\$?)([^$<>]+)\1")
_CODE = re.compile(r"(<(?:pre|script|style)\b.*?</(?:pre|script|style)>)", re.DOTALL)
_THEIR_SCRIPT = re.compile(r'<script[^>]*src="https?://[^"]*mathjax[^"]*"[^>]*>\s*</script>', re.IGNORECASE)


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Pages mark their formulas; in notebooks they stand between dollars, outside code."""
    if not page.file.src_path.endswith(".ipynb"):
        return _PAGE.sub(lambda found: _drawn(found.group(2), found.group(1) == "div"), output)
    parts = _CODE.split(_THEIR_SCRIPT.sub("", output))
    for number in range(0, len(parts), 2):
        parts[number] = _NOTEBOOK.sub(lambda found: _drawn(found.group(2), found.group(1) == "$$"), parts[number])
    return "".join(parts)


def _drawn(formula: str, is_block: bool) -> str:
    """One formula.  What LaTeX spells with an escape in HTML is unescaped first."""
    return str(convert(html.unescape(formula).strip(), display="block" if is_block else "inline"))
