"""Links of notebooks and to them, which are written for a checkout, as the site has them."""

import re
from typing import Any

_PAGE = re.compile(r'href="(?:\.\./docs/)?([\w./-]+?)\.(?:md|ipynb)(#[\w-]*)?"')


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Notebooks are among the pages of the site, and in a folder beside them in a checkout."""
    return markdown.replace("](../tutorials/", "](tutorials/")


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Rewrites links to pages and other notebooks; a notebook's page lies two folders below the site's root."""
    if not page.file.src_path.endswith(".ipynb"):
        return output

    def site(match: "re.Match[str]") -> str:
        name, anchor = match.group(1), match.group(2) or ""
        folder = "../../" if "../docs/" in match.group(0) else "../"
        return f'href="{folder}{name}/{anchor}"'

    return _PAGE.sub(site, output)
