"""Bad options are refused by name, with the values that are allowed."""

import json
import pickle

import numpy as np
import pytest
import snntorch.functional as SF
import torch

from snn_recon_plugin import ConvexInitializer, ReconstructionCallback, convex_init_, over_time
from snn_recon_plugin.convex import CrossEntropy, GroupL1
from snn_recon_plugin.errors import DataError, OptionError, ReconstructionError

from ..helpers import batches, loop_net, refused, train_data

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
        ("allow_tied", "no"),
        ("allow_tied", None),
        ("heterogeneous", 1),
        ("progress", "x"),
        ("forward", 25),
        ("forward", "over_time"),
        ("readout_layer", 2),
    ],
)
def test_other_options_out_of_range(option, value):
    shown = "forward=" if option == "forward" else f"{option}={value!r}"
    refused(loop_net(), batches(20), ReconstructionError, shown, f"{option}=", hidden="keep", **{option: value})


@pytest.mark.parametrize(("option", "value"), [("penalty", GroupL1()), ("loss", CrossEntropy(smoothing=0.1))])
def test_an_object_for_a_name_is_not_reduced_to_its_name(option, value):
    """A cross-entropy with label smoothing must not silently become one without."""
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


@pytest.mark.parametrize(
    ("option", "typed", "meant"),
    [("readout", "mem_last", "membrane_last"), ("loss", "crossentropy", "cross_entropy"), ("penalty", "groupl1", "group_l1")],
)
def test_a_misspelled_name_is_answered_by_the_nearest(option, typed, meant):
    with pytest.raises(OptionError, match=f"{option}='{typed}'") as caught:
        ConvexInitializer(**{option: typed})
    assert caught.value.fix == f"pass {option}='{meant}'"


def test_a_misspelled_option_is_answered_by_the_nearest():
    with pytest.raises(OptionError, match="an option redout") as caught:
        convex_init_(loop_net(), batches(20), redout="membrane_last")
    assert caught.value.fix == "pass readout=..."
    with pytest.raises(OptionError, match="an option xyz"):
        convex_init_(loop_net(), batches(20), xyz=1)


def test_tensors_for_a_loader():
    inputs, labels = train_data(20)
    for arguments in ((inputs, labels), (inputs,)):
        with pytest.raises(DataError, match="ensor") as caught:
            convex_init_(loop_net(), *arguments)
        assert "DataLoader(TensorDataset(inputs, targets)" in caught.value.fix


INTEGERS = {"classes": 10, "seed": 3, "max_samples": 200, "n_candidates": 60, "max_memory": 2**30}


@pytest.mark.parametrize("number", [np.int64, np.uint32, torch.tensor], ids=["int64", "uint32", "tensor"])
def test_numbers_of_other_libraries(number):
    options = ConvexInitializer(**{name: number(value) for name, value in INTEGERS.items()}, holdout=np.float32(0.25))
    assert {name: getattr(options, name) for name in INTEGERS} == INTEGERS
    assert all(type(getattr(options, name)) is int for name in INTEGERS)
    assert type(options.holdout) is float
    assert over_time(number(5)) == over_time(5)
    ReconstructionCallback(average=np.float64(0.5))


def test_a_report_of_numpy_numbers_is_saved_as_json():
    report = convex_init_(loop_net(), batches(200), hidden="keep", seed=np.int64(3), max_samples=np.int64(150))
    assert json.loads(json.dumps(report.to_dict()))["seed"] == 3


def test_options_go_to_spawned_processes():
    for loss in ("cross_entropy", torch.nn.NLLLoss(), SF.mse_count_loss(0.8, 0.2)):
        options = ConvexInitializer(hidden="keep", loss=loss, forward=over_time(5))
        copy = pickle.loads(pickle.dumps(options))
        assert (repr(copy), copy.forward) == (repr(options), options.forward)
        assert copy.criterion.content == options.criterion.content
    pickle.loads(pickle.dumps(ReconstructionCallback(ConvexInitializer(hidden="keep"))))
