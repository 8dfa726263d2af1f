"""Structure of the package, read from its files: imports without circles, and files that can be found and read."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import snn_recon_plugin

ROOT = Path(snn_recon_plugin.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
MODULES = {".".join((ROOT.name, *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path for path in FILES}
LONGEST = 300  # lines of a file


def imported(module, path):
    """Modules of the package that a module imports: at its top, for types alone, or within a function."""
    package = module if path.stem == "__init__" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1])
            source = f"{base}.{node.module}" if node.module else base
            found |= {f"{source}.{alias.name}" if f"{source}.{alias.name}" in MODULES else source for alias in node.names}
    return found


def test_the_reader_finds_imports():
    found = imported("snn_recon_plugin.report", MODULES["snn_recon_plugin.report"])
    assert {"snn_recon_plugin.stages.report_content", "snn_recon_plugin.training.plain_loop"} <= found
    assert found <= MODULES.keys()


def test_imports_have_no_circles():
    """Those for types and within functions count: a lower room knows nothing of a higher one."""
    TopologicalSorter({module: imported(module, path) for module, path in MODULES.items()}).prepare()


def test_no_file_has_the_name_of_another_one():
    names = [path.name for path in FILES if not path.stem.startswith("__")]
    assert sorted(names) == sorted(set(names))


def test_no_file_is_long():
    long = {path.name: count for path in FILES if (count := len(path.read_text(encoding="utf-8").splitlines())) > LONGEST}
    assert long == {}
