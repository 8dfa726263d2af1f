"""Pages are written for a checkout; this hook turns their links, tabs and linked scripts into those of the site."""

import html
import json
import re
from pathlib import Path
from typing import Any

_PAGE = re.compile(r'href="(?:\.\./docs/)?([\w./-]+?)\.(?:md|ipynb)(#[\w-]*)?"')
_TABS = re.compile(r"<!-- tabs -->\n(.*?)<!-- end of tabs -->", re.DOTALL)
_TAB = re.compile(r"^### ([^\n]+)\n(.*?)(?=^### |\Z)", re.MULTILINE | re.DOTALL)
_NO_ALT = 'alt="No description has been provided for this image"'
_SCRIPT = re.compile(r"^\[[\w.]+\]\(([\w./]+\.py)\)$", re.MULTILINE)


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Show tabs, and scripts in the place of their links; notebooks are among the pages of the site."""
    folder = Path(config["docs_dir"]) / Path(page.file.src_path).parent

    def script(link: "re.Match[str]") -> str:
        return f"```python\n{(folder / link.group(1)).read_text(encoding='utf-8')}```"

    def tabs(block: "re.Match[str]") -> str:
        return _TAB.sub(lambda tab: f"/// tab | {tab.group(1)}\n{tab.group(2)}\n///\n\n", block.group(1))

    return _TABS.sub(tabs, _SCRIPT.sub(script, markdown)).replace("](../tutorials/", "](tutorials/")


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Rewrites a notebook's links, two folders below the site's root, and gives its figures their descriptions."""
    if not page.file.src_path.endswith(".ipynb"):
        return output
    for text in descriptions(Path(page.file.abs_src_path)):
        output = output.replace(_NO_ALT, f'alt="{html.escape(text)}"', 1)

    def site(match: "re.Match[str]") -> str:
        name, anchor = match.group(1), match.group(2) or ""
        folder = "../../" if "../docs/" in match.group(0) else "../"
        return f'href="{folder}{name}/{anchor}"'

    return _PAGE.sub(site, output)


def descriptions(notebook: Path) -> list[str]:
    """Return the descriptions of a notebook's figures, in order."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    figures = [output for cell in cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
    return [figure["metadata"]["image/png"]["alt"] for figure in figures]
