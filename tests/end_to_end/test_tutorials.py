"""Tutorials run from top to bottom, each draws something in every figure, and is committed with its outputs."""

import base64
import io
import re
from pathlib import Path

import matplotlib.image
import nbformat
import pytest
from nbclient import NotebookClient

from snn_recon_plugin import __version__
from tutorials.add_badges import with_badge

ROOT = Path(__file__).parents[2]
TUTORIALS = sorted((ROOT / "tutorials").glob("*.ipynb"))
PROPOSED = sorted((ROOT / "contrib" / "snntorch").glob("*.ipynb"))
LONG = ("01", "02", "03")  # from 1,500 to 3,000 words
WIDEST = 720  # pixels: letters of 11 points are then readable at 350
DRAWS = re.compile(r"^ *(show\(|plt\.show\(\))", re.MULTILINE)
# Names that the data cell of each proposed notebook defines, from scikit-learn's digits in place of a download.
DIGITS = """
import torch
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
images, targets = nn.functional.interpolate(images, size=(28, 28)), torch.tensor(digits.target)
mnist_train, mnist_test = TensorDataset(images[:1400], targets[:1400]), TensorDataset(images[1400:], targets[1400:])
"""


def figures(cell):
    """The images that a cell has put out, (height, width, channels), 0 to 1, each with its alternative text."""
    parts = [(output.get("data", {}).get("image/png"), output.get("metadata", {})) for output in cell.get("outputs", [])]
    return [
        (matplotlib.image.imread(io.BytesIO(base64.b64decode(part))), meta.get("image/png", {}).get("alt"))
        for part, meta in parts
        if part
    ]


def check(notebook):
    """No error, and in every cell that draws a figure with something in it."""
    drawn = 0
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        assert not [output for output in cell.outputs if output.output_type == "error"]
        images = figures(cell)
        assert bool(images) == bool(DRAWS.search(cell.source)), cell.source
        for image, _ in images:
            inked = (image[..., :3].min(-1) < 0.9).mean()
            assert inked > 0.005, f"an empty figure: {cell.source}"
            drawn += 1
    return drawn


def execute(path, **sources):
    """Run a notebook without its outputs; ``sources`` replaces cells by their tag."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.update({"outputs": [], "execution_count": None} if cell.cell_type == "code" else {})
        for tag in cell.metadata.get("tags", []):
            cell.source = sources.get(tag, cell.source)
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}})
    client.execute()
    return notebook


def test_each_has_a_number_and_a_place_in_the_site():
    numbers = [int(path.name[:2]) for path in TUTORIALS]
    assert numbers == sorted(set(numbers))
    assert all(nbformat.read(path, as_version=4).cells[0].source.startswith(f"# {int(path.name[:2])} · ") for path in TUTORIALS)
    listed = re.findall(r"tutorials/(.*\.ipynb)", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert listed == [path.name for path in TUTORIALS]


@pytest.mark.parametrize("path", [*TUTORIALS, *PROPOSED], ids=lambda path: path.stem)
def test_stored_outputs_are_of_this_version(path):
    stored = nbformat.read(path, as_version=4).metadata.get("snn_recon_plugin")
    assert stored == __version__, "type: make tutorials"


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_teaches_and_is_committed_with_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert check(notebook) >= 2
    assert all(cell.execution_count for cell in code)
    found = re.search(r"(/home|/root|/work|/tmp|/usr)/|site-packages|Warning", path.read_text(encoding="utf-8"))
    assert not found, "a path or a warning in the outputs"

    first, install = notebook.cells[:2]
    assert re.search(r"[Yy]ou will\n\n1\. ", first.source), "say what it will show"
    assert "OWNER" not in first.source  # a badge that leads nowhere
    assert 'find_spec("snn_recon_plugin") is None' in install.source  # nothing is installed where the package is
    assert "%pip install" in install.source

    text = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert len(re.findall(r"^\d\. ", text.split("## Exercises")[1], re.MULTILINE)) >= 3
    assert not re.search(r"\d\.\d+ ?(%|seconds?\b|s\b)", text), "a measured number in the prose: print it in a cell"
    assert path.name[:2] not in LONG or 1500 <= len(text.split()) <= 3000
    assert not any("legend(" in cell.source for cell in code), "label the lines"
    for image, alt in (each for cell in code for each in figures(cell)):
        assert alt, "no description of a figure"
        assert image.shape[1] <= WIDEST


def test_a_set_address_gives_each_tutorial_one_badge():
    notebook = nbformat.read(TUTORIALS[0], as_version=4)
    for address in ("one/snn_recon_plugin", "other/snn_recon_plugin"):
        first = with_badge(notebook, address, TUTORIALS[0].name).cells[0].source
    assert first.count("Open in Colab") == 1
    assert f"](https://colab.research.google.com/github/{address}/blob/main/tutorials/{TUTORIALS[0].name})" in first


def test_entry_for_open_neuromorphic():
    head = (ROOT / "contrib" / "open_neuromorphic.md").read_text(encoding="utf-8").split("---")[1]
    fields = dict(re.findall(r"^(\w+): *(.*)$", head, re.MULTILINE))
    assert fields["type"] == '"neuromorphic-software"'
    assert fields["license"] == '"BSD-3-Clause"'
    assert fields["pypi_id"] == '"snn-recon-plugin"'
    assert 50 <= len(fields["title"].strip('"')) <= 60  # the lengths that their guide asks for
    assert 120 <= len(fields["description"].strip('"')) <= 160


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*unclosed:ResourceWarning", "ignore:Proactor")
@pytest.mark.parametrize("path", [*TUTORIALS, *PROPOSED], ids=lambda path: path.stem)
def test_runs(path):
    assert check(execute(path, **({"data": DIGITS, "install": ""} if path in PROPOSED else {}))) >= 2
