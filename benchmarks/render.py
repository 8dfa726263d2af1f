"""Write what the studies found into docs/, so that no figure there is typed by hand.

``python -m benchmarks.render`` writes all studies, ``python -m benchmarks.render temporal`` one of them.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from benchmarks.store import Store
from benchmarks.study import PASSED, Study, all_studies, load_study

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "benchmarks" / "README.md"
DPI = 130  # at least; a figure may ask for more
_MARGIN = 0.06  # inches around a panel


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows])


def machines_line(cells: Iterable[Mapping[str, Any]]) -> str:
    """Return processors with their numbers of results, versions and dates of several results."""
    machines = [cell["machine"] for cell in cells]
    versions: dict[str, dict[str, None]] = {}
    for machine in machines:
        for name, version in machine["versions"].items():
            versions.setdefault(name, {})[version] = None
    packages = ", ".join(f"{name} {' and '.join(sorted(found))}" for name, found in versions.items())
    dates = sorted({machine["date"] for machine in machines})
    threads = ", ".join(map(str, sorted({machine["threads"] for machine in machines})))
    processors = Counter(machine["processor"] for machine in machines).most_common()
    places = ", ".join(f"{processor} ({count} results)" for processor, count in processors)
    place = f"{places}; {machines[0]['cores']} cores, threads: {threads}, Python {machines[0]['python']}"
    return f"{place}, {packages}; {' to '.join(dict.fromkeys((dates[0], dates[-1])))}."


def replace(path: Path, section: str, text: str, source: str) -> None:
    """Replace what stands between the two marks of a section, and name the file that it comes from."""
    whole = path.read_text(encoding="utf-8")
    begin, end = rf"<!-- {re.escape(section)}: written by [^ ]+ -->", f"<!-- end of {section} -->"
    found = re.search(rf"{begin}\n.*?{re.escape(end)}", whole, re.DOTALL)
    if found is None:
        raise SystemExit(f"{path} has no section {section!r}: put '<!-- {section}: written by {source} -->' and '{end}' there")
    written = f"<!-- {section}: written by {source} -->\n{text}\n{end}"
    path.write_text(whole[: found.start()] + written + whole[found.end() :], encoding="utf-8")


def render_study(name: str, study: Study, store: Store) -> None:
    """Write the pages and figures of one study."""
    for page, sections in study.pages(store).items():
        path = ROOT / "docs" / page
        for section, text in sections.items():
            if section:
                replace(path, section, text, f"benchmarks/studies/{name}.py")
            else:
                path.write_text(text, encoding="utf-8")
    for place, figure in study.figures(store).items():
        save_panels(ROOT / "docs" / place, figure)


WHOLE = "whole"  # label of a figure whose panels stay in one file, as in the README


def panel_places(place: Path, figure: Figure) -> list[Path]:
    """Return the files of a figure's panels, numbered from 1 if there are several."""
    count = 1 if figure.get_label() == WHOLE else len(figure.axes)
    return [place.with_stem(f"{place.stem}_{number}") for number in range(1, count + 1)] if count > 1 else [place]


def save_panels(place: Path, figure: Figure) -> None:
    """Save each panel of a figure as a file: pages show panels side by side, phones one below the other."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    panels = panel_places(place, figure)
    if len(panels) == 1:
        figure.savefig(place, dpi=max(DPI, figure.dpi), metadata={"Software": None})
        return
    boxes = [axes.get_tightbbox().transformed(figure.dpi_scale_trans.inverted()).padded(_MARGIN) for axes in figure.axes]
    width, whole = max(box.width for box in boxes), Bbox.union(boxes)
    for axes, box, file in zip(figure.axes, boxes, panels, strict=True):
        for other in figure.axes:
            other.set_visible(other is axes)
        part = Bbox.from_extents(box.x0, whole.y0, box.x0 + width, whole.y1)  # all of one size: a row of them is level
        figure.savefig(file, dpi=max(DPI, figure.dpi), metadata={"Software": None}, bbox_inches=part)


def catalogue() -> str:
    """Return the table of all studies: command, what they measure, pages and minutes."""
    rows = []
    for name in all_studies():
        study, store = load_study(name)
        command = " ".join(["python -m benchmarks.run", name, *(PASSED[need] for need in study.needs)])
        pages = ", ".join(f"[{page}](../docs/{page})" for page in study.pages(store))
        rows.append((f"`{command}`", study.title, pages, str(study.minutes)))
    return markdown_table(("command", "measures", "pages", "minutes"), rows)


def render(names: Sequence[str] = ()) -> None:
    """Write the pages of some studies; of all by default, with the table of studies."""
    for name in names or all_studies():
        render_study(name, *load_study(name))
    if not names:  # the table loads every study, and some environments lack what others need
        replace(README, "studies", catalogue(), "benchmarks/render.py")


if __name__ == "__main__":
    render(sys.argv[1:])
