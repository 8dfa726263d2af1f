"""Tutorials run from top to bottom, each draws something in every figure, and is committed with its outputs."""

import base64
import io
import re
from pathlib import Path

import matplotlib.image
import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

TUTORIALS = sorted((Path(__file__).parents[2] / "tutorials").glob("*.ipynb"))
DRAWS = re.compile(r"plt\.show\(\)|^report\.plot", re.MULTILINE)


def figures(cell):
    """The images that a cell has put out, (height, width, channels), 0 to 1."""
    parts = [output.get("data", {}).get("image/png") for output in cell.get("outputs", [])]
    return [matplotlib.image.imread(io.BytesIO(base64.b64decode(part))) for part in parts if part]


def check(notebook):
    """No error, and in every cell that draws a figure with something in it."""
    drawn = 0
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        assert not [output for output in cell.outputs if output.output_type == "error"]
        images = figures(cell)
        assert bool(images) == bool(DRAWS.search(cell.source)), cell.source
        for image in images:
            inked = (image[..., :3].min(-1) < 0.9).mean()
            assert inked > 0.005, f"an empty figure: {cell.source}"
            drawn += 1
    return drawn


def test_there_are_nine():
    assert [path.name[:2] for path in TUTORIALS] == [f"{number:02d}" for number in range(1, 10)]


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_committed_with_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    assert check(notebook) >= 1
    assert "%pip install" in notebook.cells[1].source  # so that it runs on Colab as it stands
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"(/home|/root|/work|/tmp|/usr)/|site-packages|Warning", text), "a path or a warning in the outputs"


@pytest.mark.parametrize("blank", [False, True])
def test_a_figure_that_is_missing_or_empty_is_found(blank):
    notebook = nbformat.read(TUTORIALS[0], as_version=4)
    cell = next(cell for cell in notebook.cells if cell.cell_type == "code" and DRAWS.search(cell.source))
    cell.outputs = []
    if blank:
        white = io.BytesIO()
        matplotlib.image.imsave(white, np.ones((30, 40, 3)))
        cell.outputs = [nbformat.v4.new_output("display_data", data={"image/png": base64.b64encode(white.getvalue()).decode()})]
    with pytest.raises(AssertionError, match="an empty figure" if blank else "plt"):
        check(notebook)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*unclosed:ResourceWarning", "ignore:Proactor")
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_runs(path):
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.update({"outputs": [], "execution_count": None} if cell.cell_type == "code" else {})
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}})
    client.execute()
    assert check(notebook) >= 1
