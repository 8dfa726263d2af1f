"""Every study loads its results, has a work for each of them, and writes sections that its pages have."""

import re

import pytest

from benchmarks.render import ROOT, panel_places
from benchmarks.study import Bench, Places, all_studies, load_study
from snn_recon_plugin import __version__


@pytest.mark.parametrize("name", all_studies())
def test_a_study(name, tmp_path):
    study, store = load_study(name)
    places = Places(*(str(tmp_path) for _ in Places.__dataclass_fields__))
    cells = study.cells(Bench(places, store, study))
    assert set(store.named()) <= set(cells)
    for page, sections in study.pages(store).items():
        whole = (ROOT / "docs" / page).read_text(encoding="utf-8")
        for section, text in sections.items():
            assert "nan" not in text.split()
            if section:
                assert f"<!-- {section}: written by benchmarks/studies/{name}.py -->\n{text}\n<!-- end of {section} -->" in whole
            else:
                assert text == whole
    for place, figure in study.figures(store).items():
        assert [panel for panel in panel_places(ROOT / "docs" / place, figure) if not panel.exists()] == []


@pytest.mark.parametrize("name", all_studies())
def test_a_page_says_of_which_version_its_figures_are(name):
    study, store = load_study(name)
    versions = {content["machine"]["versions"]["snn-recon-plugin"] for content in store.cells()} - {__version__}
    pages = "".join((ROOT / "docs" / page).read_text(encoding="utf-8") for page in study.pages(store))
    assert [version for version in versions if not re.search(rf"snn-recon-plugin (\S+ and )*{re.escape(version)}", pages)] == []


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "evidence").glob("*.md")), ids=lambda page: page.stem)
def test_no_table_of_measurements_is_typed(page):
    """Those that a study wrote stand between two marks; others hold settings, formulas or links."""
    typed = re.sub(r"<!-- (.+?): written by .*?<!-- end of \1 -->", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert [line for line in typed.splitlines() if re.search(r"^\|.*\|\W*\d+(\.\d+| %)[^|]*\|", line)] == []
