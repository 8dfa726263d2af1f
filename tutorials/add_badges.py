"""Put a badge that opens a notebook in Colab below the title of each tutorial; `.ci/address` passes the address.

python tutorials/add_badges.py ACCOUNT/snn_recon_plugin
"""

import re
import sys
from pathlib import Path

import nbformat

HERE = Path(__file__).parent
_BADGE = re.compile(r"\[!\[Open in Colab\].*\n\n")


def with_badge(notebook: nbformat.NotebookNode, address: str, name: str) -> nbformat.NotebookNode:
    """Return the notebook with one badge, for the address."""
    first = notebook.cells[0]
    title, text = _BADGE.sub("", first.source).split("\n\n", 1)
    image = "https://colab.research.google.com/assets/colab-badge.svg"
    place = f"https://colab.research.google.com/github/{address}/blob/main/tutorials/{name}"
    first.source = f"{title}\n\n[![Open in Colab]({image})]({place})\n\n{text}"
    return notebook


if __name__ == "__main__":
    for path in sorted(HERE.glob("*.ipynb")):
        nbformat.write(with_badge(nbformat.read(path, as_version=4), sys.argv[1], path.name), path)
