"""The examples in docstrings run, and every public name has one."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

API = Path(__file__).parents[2] / "docs" / "api"
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in sorted(API.glob("*.md")))
NAMES = re.findall(r"^::: (snn_recon_plugin\S+)$", TEXT, re.MULTILINE)


def documented(name):
    module, _, last = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), last)
    except AttributeError:
        return importlib.import_module(name)


@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning", "ignore:GPU available")
@pytest.mark.parametrize("name", NAMES)
def test_examples_run(name):
    found = documented(name)
    home = found if hasattr(found, "__path__") or not hasattr(found, "__module__") else importlib.import_module(found.__module__)
    examples = doctest.DocTestFinder(recurse=False).find(found, name, globs=dict(vars(home)))
    if found is home:  # a module: its classes
        examples = [test for test in doctest.DocTestFinder().find(found, name) if test.examples]
    assert any(test.examples for test in examples), f"{name} has no example"
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for test in examples:
        assert runner.run(test).failed == 0, f"{test.name}: see the output above"
