"""Bad options are refused by name, with the values that are allowed."""

import pytest

from snn_recon_plugin import ConvexInitializer
from snn_recon_plugin.convex import CrossEntropy, Elastic, GroupL1
from snn_recon_plugin.errors import OptionError, ReconstructionError

from ..helpers import batches, loop_net, refused

NAMES = {
    "hidden": ("auto", "rescale", "keep", "reconstruct"),
    "loss": ("cross_entropy", "logistic", "squared"),
    "penalty": ("ridge", "group_l1", "l1"),
    "readout": ("auto", "membrane_mean", "membrane_sum", "membrane_last"),
    "solver": ("auto", "newton", "fista", "clarabel", "scs"),
}


@pytest.mark.parametrize("value", ["nonsense", "", None, 3])
@pytest.mark.parametrize("option", NAMES)
def test_unknown_names(option, value):
    error = refused(loop_net(), batches(20), OptionError, f"{option}={value!r}", **{option: value})
    assert all(name in error.needed for name in NAMES[option])
    assert f"{option}=" in error.fix


@pytest.mark.parametrize("option", ["strength", "tol"])
@pytest.mark.parametrize("value", [0, -1, -1e-9, float("nan"), float("inf"), "much", None, True])
def test_numbers_that_must_be_positive(option, value):
    refused(loop_net(), batches(20), OptionError, f"{option}={value!r}", "a positive number", f"pass {option}=", **{option: value})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("holdout", 0),
        ("holdout", -0.1),
        ("holdout", 0.51),
        ("holdout", float("nan")),
        ("holdout", "some"),
        ("holdout", None),
        ("max_samples", 9),
        ("max_samples", -100),
        ("max_samples", 100.0),
        ("max_samples", True),
        ("max_samples", "all"),
        ("seed", -1),
        ("seed", 0.5),
        ("seed", None),
        ("seed", 2**70),
        ("forward", 25),
        ("forward", "over_time"),
        ("readout_layer", 2),
    ],
)
def test_other_options_out_of_range(option, value):
    shown = "forward=" if option == "forward" else f"{option}={value!r}"
    refused(loop_net(), batches(20), ReconstructionError, shown, f"{option}=", hidden="keep", **{option: value})


@pytest.mark.parametrize(("option", "value"), [("penalty", Elastic(GroupL1(), share=5.0)), ("loss", CrossEntropy())])
def test_an_object_for_a_name_is_not_reduced_to_its_name(option, value):
    """An Elastic of share 5 must not silently become one of share 1."""
    with pytest.raises(OptionError, match=f"{option}="):
        ConvexInitializer(**{option: value})


def test_options_are_refused_before_there_is_a_network():
    with pytest.raises(OptionError, match="strength=-1"):
        ConvexInitializer(strength=-1)


def test_positional_options_are_refused():
    with pytest.raises(TypeError):
        ConvexInitializer("keep")


def test_a_readout_for_nets_without_an_output_neuron():
    words = ("readout='linear_mean'", "with an output neuron", "readout='auto'")
    refused(loop_net(), batches(200), OptionError, *words, readout="linear_mean")
