"""Structure of the package, read from its files: imports without circles, and files that can be found and read."""

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import snn_recon_plugin
from snn_recon_plugin import convex_init_
from snn_recon_plugin.demo import build_network, load_digits_data

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
    found = imported("snn_recon_plugin.report.content", MODULES["snn_recon_plugin.report.content"])
    assert {"snn_recon_plugin.report.rows", "snn_recon_plugin.training.guard"} <= found
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


# Entry points whose arguments are what their users choose.
PUBLIC = {"convex_init_", "diagnose", "extend_", "ReconstructionCallback.__init__", "_Readout.__init__", "solve", "solve_path"}
MOST_ARGUMENTS = 6


def functions_in(tree):
    """Yield each function of a module, and its name behind that of its class."""
    for node in ast.walk(tree):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef):
                yield child, f"{node.name}.{child.name}" if isinstance(node, ast.ClassDef) else child.name


def test_no_function_takes_many_arguments():
    many = {}
    for path in FILES:
        for function, name in functions_in(ast.parse(path.read_text(encoding="utf-8"))):
            given = [each.arg for each in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
            count = len([each for each in given if each not in ("self", "cls")])
            if count > MOST_ARGUMENTS and name not in PUBLIC:
                many[f"{path.name}: {name}"] = count
    assert many == {}


# What a first default call of a process takes to hold in mind; lower the limits with the code.
CLASSES, FUNCTIONS, DEPTH = 109, 990, 31


def test_a_default_call_needs_no_more_than_before():
    data = load_digits_data()
    net = build_network(inputs=64, hidden=64, outputs=10, steps=8)
    classes, functions, deepest = set(), set(), 0

    def watch(frame, event, _):
        nonlocal deepest
        if event != "call":
            return
        owner = frame.f_locals.get("self")
        made = frame.f_code.co_name in ("__init__", "__new__")  # those of dataclasses have no file
        if made and type(owner).__module__.startswith(ROOT.name):
            classes.add(type(owner))
        if not frame.f_code.co_filename.startswith(str(ROOT)):
            return
        functions.add(frame.f_code)
        depth, each = 0, frame
        while each is not None:
            depth += each.f_code.co_filename.startswith(str(ROOT))
            each = each.f_back
        deepest = max(deepest, depth)

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        convex_init_(net, [(data.train_inputs, data.train_labels)], progress=False)
    finally:
        sys.setprofile(before)
    assert len(classes) <= CLASSES
    assert len(functions) <= FUNCTIONS
    assert deepest <= DEPTH
