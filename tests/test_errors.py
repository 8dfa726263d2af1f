import pickle

import pytest

from snn_recon_plugin import errors

ERRORS = [name for name in errors.__all__ if name.endswith("Error")]
NAMES = [name for name in ERRORS if name != "ReconstructionError"]


@pytest.mark.parametrize("name", ERRORS)
def test_the_message_has_all_three_parts(name):
    error = getattr(errors, name)("strength=-1", "a positive number", "pass strength='auto'")
    assert str(error) == "Found: strength=-1\nNeeded: a positive number\nTo fix: pass strength='auto'"
    assert (error.found, error.needed, error.fix) == ("strength=-1", "a positive number", "pass strength='auto'")


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickling_keeps_the_three_fields(name, protocol):
    kind = getattr(errors, name)
    copy = pickle.loads(pickle.dumps(kind("a", "b", "c"), protocol))
    assert type(copy) is kind
    assert (copy.found, copy.needed, copy.fix) == ("a", "b", "c")
    assert str(copy) == str(kind("a", "b", "c"))


@pytest.mark.parametrize("name", NAMES)
def test_one_base_catches_all(name):
    with pytest.raises(errors.ReconstructionError):
        raise getattr(errors, name)("a", "b", "c")


def test_every_error_is_public_and_no_part_can_be_left_out():
    defined = {name for name, thing in vars(errors).items() if isinstance(thing, type) and issubclass(thing, BaseException)}
    assert {*defined, "warn_user"} == set(errors.__all__)
    with pytest.raises(TypeError):
        errors.DataError("only what was found")


def test_bad_values_are_value_errors_too():
    assert issubclass(errors.OptionError, ValueError)
    assert issubclass(errors.DataError, ValueError)
    for name in ("ReadoutNotFoundError", "AmbiguousReadoutError", "UnsupportedModuleError", "SilentLayerError", "CaptureError"):
        assert issubclass(getattr(errors, name), errors.NetworkError)


def test_a_warning_names_the_line_that_called_the_package():
    with pytest.warns(errors.ReadoutWarning, match="look") as caught:
        errors.warn_user("look here")
    assert caught[0].filename == __file__
