"""What the pages say can be typed: the quick start's scripts run, and every link between pages leads somewhere."""

import html
import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import snntorch as snn
import torch

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "tutorials").glob("*.ipynb"))
SCRIPTS = sorted((ROOT / "docs" / "quickstart").glob("*.py"))
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("**/*.md"))]


@pytest.mark.filterwarnings("ignore")  # Lightning's advice
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_the_quick_starts_scripts(script, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # Lightning's logs
    monkeypatch.setattr(snn.SpikingNeuron, "instances", [])  # snnTorch's reset is of all neurons of the process
    torch.manual_seed(0)
    numpy.random.seed(0)  # the split of scikit-learn
    # One epoch of three, and half of the time steps: the start alone is above the limit.
    text = re.sub(r"(range\(|max_epochs=)3\b", r"\g<1>1", script.read_text(encoding="utf-8"))
    text = re.sub(r"\b20\b", "10", text)
    exec(compile(text, script.name, "exec"), {"__name__": "__main__"})
    accuracies = [float(value) for value in re.findall(r"test accuracy ([\d.]+)%", capsys.readouterr().out)]
    assert accuracies
    assert min(accuracies) > 95


def test_the_site_shows_tabs_and_every_script():
    hook = runpy.run_path(str(ROOT / "docs" / "assets" / "links.py"))["on_page_markdown"]
    shown = ""
    for name in ("index.md", "quickstart.md"):
        page, text = SimpleNamespace(file=SimpleNamespace(src_path=name)), (ROOT / "docs" / name).read_text(encoding="utf-8")
        shown += hook(text, page=page, config={"docs_dir": str(ROOT / "docs")})
    titles = re.findall(r"^/// tab \| (.+)$", shown, re.MULTILINE)
    assert titles == ["snnTorch", "Norse", "SpikingJelly", "Lightning"] * 2 + ["Plain loop"]
    assert re.findall(r"^///$", shown, re.MULTILINE) == ["///"] * len(titles)
    assert [script.name for script in SCRIPTS if f"```python\n{script.read_text(encoding='utf-8')}```" not in shown] == []


def test_scripts_that_train_protect_the_start():
    texts = [script.read_text(encoding="utf-8") for script in SCRIPTS]
    trained = [text for text in texts if ".step()" in text or ".fit(" in text]
    assert len(trained) == 4
    assert all("report.protect(" in text or "ReconstructionCallback(" in text for text in trained)


@pytest.mark.parametrize(
    ("page", "found"),
    [
        ('<a href="other/">text</a> <img src="a.png" alt="a curve"> snn-recon-plugin 1.2', ""),
        ('<a href="missing/">text</a>', "link to nowhere: missing/"),
        ('<a href="other/#missing">text</a>', "link to nowhere: other/#missing"),
        ('<img src="a.png">', "figure without alternative text"),
        ('<img src="a.png" alt=" ">', "figure without alternative text"),
        ("snn-recon-plugin 1.3", "version that is not built: 1.3"),
        ("pip install 'snn-recon-plugin[norse]==2.0.1'", "version that is not built: 2.0.1"),
        ("https://snn-recon-plugin.readthedocs.io/en/v1.3/", "documentation that is not built: v1.3"),
    ],
)
def test_the_check_of_the_built_site(tmp_path, page, found):
    for name, text in (("index.html", page), ("other/index.html", '<h2 id="there">'), ("a.png", "")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    problems = list(runpy.run_path(str(ROOT / "docs" / "assets" / "check_site.py"))["problems"](tmp_path, "1.2.0"))
    assert len(problems) == bool(found)
    assert all(found in problem for problem in problems)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_site_describes_the_figures_of_notebooks(notebook):
    hooks = runpy.run_path(str(ROOT / "docs" / "assets" / "links.py"))
    texts = hooks["descriptions"](notebook)
    page = SimpleNamespace(file=SimpleNamespace(src_path=f"tutorials/{notebook.name}", abs_src_path=str(notebook)))
    shown = hooks["on_post_page"](f"<img {hooks['_NO_ALT']}>" * len(texts), page=page, config={})
    assert [html.unescape(text) for text in re.findall(r'<img alt="([^"]*)">', shown)] == texts


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_and_blocks_that_scripts_write(page):
    text = page.read_text(encoding="utf-8")
    inside = [link for link in re.findall(r"\]\(([^)#\s]+)(?:#[\w-]+)?\)", text) if "://" not in link]
    assert [link for link in inside if not (page.parent / link).exists()] == []
    for name, inner in re.findall(r"<!-- ([^\n]*?): written by [^\n]*-->\n(.*?)<!-- end of \1 -->", text, re.DOTALL):
        assert inner.strip(), name


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.stem)
def test_pages_of_the_guide_are_short(page):
    assert len(page.read_text(encoding="utf-8").splitlines()) <= 130


def test_each_kind_of_addition_names_at_most_three_files_that_exist():
    text = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| an? .*\|$", text, re.MULTILINE)
    assert len(rows) > 15
    for row in rows:
        paths = set(re.findall(r"`([\w<>/]*(?:\.py|/))`", row))
        assert 1 <= len(paths) <= 3, row
        for path in paths:  # <library> is any of them
            pattern = path.rstrip("/").replace("<library>", "*")
            assert [*ROOT.glob(pattern), *(ROOT / "snn_recon_plugin").glob(pattern)], f"{path} in {row}"


def test_the_house_names_every_file_of_its_rooms():
    house = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8").split("```text\n")[1].split("```")[0]
    words = set(re.findall(r"\w+", house))
    for room in ("stages", "training", "convex"):
        files = {path.stem for path in (ROOT / "snn_recon_plugin" / room).rglob("*.py")} - {"__init__"}
        assert files - words == set(), room
