"""Check the built site: python docs/assets/check_site.py build/site.

It fails on a link inside the site that leads nowhere, also to a heading; on a figure without alternative text; and on a page that
names a version of the package, or of its documentation, that is not built.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).parents[2]
BUILT = {"latest", "stable"}  # Read the Docs builds the main branch, and the last release
_LINK = re.compile(r'(?:href|src)="([^"]+)"')
_TARGET = re.compile(r'\b(?:id|name)="([^"]+)"')
_FIGURE = re.compile(r"<img\b[^>]*>")
_ALT = re.compile(r'\balt="\s*[^"\s]')
_PACKAGE = re.compile(r"snn[-_]recon[-_]plugin(?:\[[\w,]*\])?(?:==|>=| and | )v?(\d+(?:\.\d+)+)")
_SITE = re.compile(r"readthedocs\.io/en/([^/\"]+)")


def package_version() -> str:
    """Return the version of the package whose documentation is built."""
    text = (ROOT / "snn_recon_plugin" / "__init__.py").read_text(encoding="utf-8")
    return str(re.findall(r'^__version__ = "(.+)"$', text, re.MULTILINE)[0])


def problems(site: Path, version: str) -> Iterator[str]:
    """Return each page's problems, a line each; ``version`` is the newest that a page may name."""
    pages = {page: page.read_text(encoding="utf-8") for page in sorted(site.rglob("*.html")) if page.name != "404.html"}
    targets = {page: set(_TARGET.findall(text)) for page, text in pages.items()}
    for page, text in pages.items():
        found = [f"link to nowhere: {link}" for link in _LINK.findall(text) if not _leads(page, link, targets)]
        found += [f"figure without alternative text: {figure[:100]}" for figure in _FIGURE.findall(text) if not _ALT.search(figure)]
        found += [f"version that is not built: {name}" for name in _PACKAGE.findall(text) if _parts(name) > _parts(version)]
        found += [f"documentation that is not built: {name}" for name in _SITE.findall(text) if name not in BUILT]
        yield from (f"{page.relative_to(site)}: {problem}" for problem in found)


def _leads(page: Path, link: str, targets: dict[Path, set[str]]) -> bool:
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return True
    target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    target = target / "index.html" if target.is_dir() else target
    heading = unquote(parts.fragment)
    return target.is_file() and (not heading or target not in targets or heading in targets[target])


def _parts(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3])


if __name__ == "__main__":
    lines = list(problems(Path(sys.argv[1]).resolve(), package_version()))
    print("\n".join(lines) or "every link leads somewhere, every figure has alternative text, every version is built")
    sys.exit(bool(lines))
