"""Bad options are refused by name, with the values that are allowed."""

import json
import pickle

import numpy as np
import pytest
import snntorch.functional as SF
import torch
from torch import nn

from snn_recon_plugin import ConvexInitializer, ReconstructionCallback, convex_init_, over_time
from snn_recon_plugin.convex import GroupL1
from snn_recon_plugin.errors import DataError, OptionError, ReconstructionError

from .helpers import batches, loop_net, refused, train_data

NAN, INF = float("nan"), float("inf")
NEEDED = {
    "hidden": ("auto", "rescale", "keep", "reconstruct"),
    "loss": ("cross_entropy", "logistic", "squared"),
    "penalty": ("ridge", "group_l1", "l1"),
    "readout": ("auto", "membrane_mean", "membrane_sum", "membrane_last"),
    "solver": ("auto", "newton", "clarabel", "scs"),
    "strength": ("a positive number",),
    "tol": ("a positive number",),
}
BAD = {
    **dict.fromkeys(("hidden", "penalty", "readout", "solver"), ("nonsense", "", None, 3)),
    "loss": ("nonsense", "", 3),
    **dict.fromkeys(("strength", "tol"), (0, -1, -1e-9, NAN, INF, "one_se", None, True)),
    "max_cost": (0, -1.0, NAN, "1", True),
    "holdout": (0, -0.1, 0.51, NAN, "some", None),
    "max_samples": (9, -100, 100.0, True, "all"),
    "max_memory": ("4 GB",),
    "seed": (-1, 0.5, None, 2**70),
    "allow_tied": ("no", None),
    "heterogeneous": (1,),
    "progress": ("x",),
    "n_candidates": (0, 0.5, -1.0, True, NAN, "many"),
    "forward": (25, "over_time"),
}


@pytest.mark.parametrize(("option", "value"), [(option, value) for option, values in BAD.items() for value in values])
def test_values_out_of_range(option, value):
    with pytest.raises(OptionError) as caught:
        ConvexInitializer(**{option: value})
    assert f"{option}={value!r}" in str(caught.value)
    assert all(word in caught.value.needed for word in NEEDED.get(option, ()))
    assert f"pass {option}=" in caught.value.fix


@pytest.mark.parametrize(
    ("options", "found", "fix"),
    [
        ({"readout": "mem_last"}, "readout='mem_last'", "pass readout='membrane_last'"),
        ({"loss": "crossentropy"}, "loss='crossentropy'", "pass loss='cross_entropy'"),
        ({"penalty": "groupl1"}, "penalty='groupl1'", "pass penalty='group_l1'"),
        ({"penalty": GroupL1()}, "penalty=", "pass penalty='group_l1'"),  # whose own settings its name would lose
        ({"fit_loss": "hinge"}, "one of ['auto', 'same', 'squared_hinge']", "pass fit_loss="),
        ({"fit_loss": "squared_hinge", "loss": "squared"}, "loss='squared'", "pass loss='squared_hinge'"),
        ({"fit_loss": "squared_hinge", "loss": nn.MSELoss()}, "loss='MSELoss'", "pass loss='squared_hinge'"),
    ],
)
def test_what_to_type_instead(options, found, fix):
    with pytest.raises(OptionError) as caught:
        ConvexInitializer(**options)
    assert found in str(caught.value)
    assert caught.value.fix.startswith(fix)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"readout_layer": 2}, ["readout_layer=2", "readout_layer="]),
        ({"readout": "linear_mean"}, ["readout='linear_mean'", "with an output neuron", "readout='auto'"]),
        ({"xyz": 1}, ["an option xyz"]),
    ],
)
def test_a_call_with_a_bad_option_leaves_the_net(options, words):
    refused(loop_net(), batches(20), ReconstructionError, *words, **options)


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
    ReconstructionCallback(damping=np.float64(0.5))


def test_a_report_of_numpy_numbers_is_saved_as_json():
    report = convex_init_(loop_net(), batches(200), hidden="keep", seed=np.int64(3), max_samples=np.int64(150))
    assert json.loads(json.dumps(report.to_dict()))["seed"] == 3


def test_options_go_to_spawned_processes():
    for loss in ("cross_entropy", nn.NLLLoss(), SF.mse_count_loss(0.8, 0.2)):
        options = ConvexInitializer(hidden="keep", loss=loss, forward=over_time(5))
        copy = pickle.loads(pickle.dumps(options))
        assert (repr(copy), copy.forward) == (repr(options), options.forward)
        assert copy.criterion.content == options.criterion.content
    pickle.loads(pickle.dumps(ReconstructionCallback(ConvexInitializer(hidden="keep"))))
