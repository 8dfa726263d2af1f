"""Functions that take all options spell them, with types and defaults: for help(), editors and type checkers."""

import inspect
from dataclasses import fields

import pytest

from snn_recon_plugin import ConvexInitializer, ReconstructionCallback, convex_init_, diagnose
from snn_recon_plugin.errors import OptionError

from .signatures import FILES, with_options

OWN_DEFAULTS = {"diagnose": {"max_samples": 1000}}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_source_has_the_options(path):
    source = path.read_text(encoding="utf-8")
    assert with_options(source) == source, "run python tests/signatures.py"
    assert "    readout: str = " in source


@pytest.mark.parametrize("function", [convex_init_, ConvexInitializer, ReconstructionCallback, diagnose])
def test_signatures_have_types_and_defaults(function):
    found = inspect.signature(function).parameters
    own = OWN_DEFAULTS.get(function.__name__, {})
    options = {field.name: field for field in fields(ConvexInitializer) if field.name in found}
    assert len(options) == len(fields(ConvexInitializer)) or function is diagnose
    for name, field in options.items():
        assert found[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert found[name].default == own.get(name, field.default)
        assert found[name].annotation == field.type or name in own


@pytest.mark.parametrize(
    "call",
    [
        lambda **options: convex_init_(None, None, **options),
        ConvexInitializer,
        ReconstructionCallback,
        lambda **options: diagnose(None, None, **options),
    ],
    ids=["convex_init_", "ConvexInitializer", "ReconstructionCallback", "diagnose"],
)
def test_a_wrong_name_is_answered_by_the_closest_one(call):
    with pytest.raises(OptionError, match="an option redout") as caught:
        call(redout="membrane_last")
    assert caught.value.fix == "pass readout=..."
