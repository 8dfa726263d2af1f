import pickle

import pytest

import snn_recon_plugin
from snn_recon_plugin import errors

ERRORS = [name for name in errors.__all__ if name.endswith("Error")]


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_has_three_parts_and_keeps_them_in_a_pickle(name):
    kind = getattr(errors, name)
    error = kind("strength=-1", "a positive number", "pass strength='auto'")
    copies = [pickle.loads(pickle.dumps(error, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    for each in (error, *copies):
        assert type(each) is kind
        assert str(each) == "Found: strength=-1\nNeeded: a positive number\nTo fix: pass strength='auto'"
        assert (each.found, each.needed, each.fix) == ("strength=-1", "a positive number", "pass strength='auto'")
    with pytest.raises(TypeError):
        kind("only what was found")


def test_every_error_is_public_and_one_base_catches_all():
    defined = {name for name, thing in vars(errors).items() if isinstance(thing, type) and issubclass(thing, BaseException)}
    assert {*defined, "warn_user"} == set(errors.__all__)
    assert all(issubclass(getattr(errors, name), errors.ReconstructionError) for name in ERRORS)


def test_bad_values_are_value_errors_too():
    assert issubclass(errors.OptionError, ValueError)
    assert issubclass(errors.DataError, ValueError)
    for name in ("ReadoutNotFoundError", "AmbiguousReadoutError", "UnsupportedModuleError", "SilentLayerError", "CaptureError"):
        assert issubclass(getattr(errors, name), errors.NetworkError)


@pytest.mark.parametrize("name", [name for name in errors.REMOVED if name.isidentifier()])
def test_an_import_of_a_removed_name_shows_what_to_type(name):
    with pytest.raises(errors.RemovedNameError) as raised:
        exec(f"from snn_recon_plugin import {name}")
    assert isinstance(raised.value, ImportError)
    assert (raised.value.found, raised.value.fix) == (f"{name} of snn_recon_plugin", errors.REMOVED[name])
    assert name not in snn_recon_plugin.__all__


def test_a_warning_names_the_line_that_called_the_package():
    with pytest.warns(errors.ReadoutWarning, match="look") as caught:
        errors.warn_user("look here")
    assert caught[0].filename == __file__
