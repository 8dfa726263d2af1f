"""Structure of the package, read from its files: no circles of imports, unique names, short files and signatures."""

import ast
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

import snn_recon_plugin

ROOT = Path(snn_recon_plugin.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
MODULES = {".".join((ROOT.name, *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path for path in FILES}
LONGEST = 450  # lines of a file
MOST_ARGUMENTS = 8

# Entry points whose arguments are what their users choose.
PUBLIC = {"convex_init_", "diagnose", "extend_", "ReconstructionCallback.__init__", "_Readout.__init__", "solve", "solve_path"}


def imported(module):
    """Modules of the package that a module imports: at its top, for types alone, or within a function."""
    path = MODULES[module]
    package = module if path.stem == "__init__" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1])
            source = f"{base}.{node.module}" if node.module else base
            found |= {f"{source}.{alias.name}" if f"{source}.{alias.name}" in MODULES else source for alias in node.names}
    return found


def test_the_reader_finds_imports():
    found = imported("snn_recon_plugin.initializer")
    assert {"snn_recon_plugin.stages.initialize", "snn_recon_plugin.errors"} <= found <= MODULES.keys()


def test_imports_have_no_circles():
    """Those for types and within functions count: a lower room knows nothing of a higher one."""
    TopologicalSorter({module: imported(module) for module in MODULES}).prepare()


def test_internal_rooms_have_no_lists_of_names():
    """A name is imported from the file that defines it; what users import stands in the package and in convex."""
    rooms = [path for path in FILES if path.stem == "__init__" and path.parent not in (ROOT, ROOT / "convex")]
    lists = [
        path.parent.name for path in rooms if any(isinstance(node, ast.ImportFrom) and node.level for node in TREES[path].body)
    ]
    assert set(lists) <= {"libraries", "solvers"}  # tables of what these rooms hold


def test_no_name_of_a_file_a_class_or_a_public_function_is_there_twice():
    owners = defaultdict(set)
    for path, tree in TREES.items():
        if not path.stem.startswith("__"):
            owners[path.name].add(path.parent.name)
        for node in tree.body:
            if isinstance(node, ast.ClassDef) or (isinstance(node, ast.FunctionDef) and not node.name.startswith("_")):
                owners[node.name].add(path.name)
    assert {name: places for name, places in owners.items() if len(places) > 1} == {}


def test_no_file_is_long():
    long = {path.name: count for path in FILES if (count := len(path.read_text(encoding="utf-8").splitlines())) > LONGEST}
    assert long == {}


def functions_in(tree):
    for node in ast.walk(tree):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef):
                yield child, f"{node.name}.{child.name}" if isinstance(node, ast.ClassDef) else child.name


def test_no_function_takes_many_arguments():
    many = {}
    for path, tree in TREES.items():
        for function, name in functions_in(tree):
            given = [each.arg for each in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
            count = len([each for each in given if each not in ("self", "cls")])
            if count > MOST_ARGUMENTS and name not in PUBLIC:
                many[f"{path.name}: {name}"] = count
    assert many == {}
