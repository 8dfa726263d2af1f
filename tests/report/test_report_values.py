"""A report as json and as a pickle: its values come back, its network does not."""

import json
import math
import pickle
from dataclasses import replace

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin import Report, convex_init_, refit_
from snn_recon_plugin.errors import OptionError

from ..helpers import CLASSES, batches, loop_net
from ..nets import shallow, spikes_and_membranes

VALUES = [(inputs, torch.stack([inputs[:, 0], labels.float()], 1)) for inputs, labels in batches(120)]
LABELS = [(inputs, nn.functional.one_hot(labels, CLASSES).float()) for inputs, labels in batches(120)]
STEPS = [(inputs, values[:, None].expand(-1, 8, -1)) for inputs, values in VALUES]
OWN_LEAKS = {"hidden_neuron": snn.Leaky(beta=torch.linspace(0.5, 0.95, 48))}


def maximum(spikes, membranes):
    return membranes.amax(0)


# name: (net, batches, options)
CASES = {
    "exact": (loop_net, batches(120), {"hidden": "rescale", "penalty": "group_l1"}),
    "a given strength": (loop_net, batches(120), {"hidden": "keep", "strength": 1e-2}),
    "rebuilt": (loop_net, batches(120), {"hidden": "reconstruct"}),
    "leaks": (lambda: loop_net(hidden=48, **OWN_LEAKS), batches(120), {"hidden": "reconstruct"}),
    "majorised": (lambda: shallow(maximum), batches(120), {"hidden": "keep", "strength": 1e-3}),
    "surrogate": (lambda: shallow(spikes_and_membranes, reset_mechanism="subtract"), batches(120), {"hidden": "keep"}),
    "labels": (loop_net, LABELS, {"hidden": "keep", "loss": nn.BCEWithLogitsLoss()}),
    "regression": (lambda: loop_net(outputs=2), VALUES, {"hidden": "keep", "loss": nn.MSELoss()}),
    "at every step": (
        lambda: loop_net(outputs=2),
        STEPS,
        {"hidden": "keep", "loss": nn.MSELoss(), "readout": "membrane_per_step"},
    ),
}


@pytest.mark.filterwarnings("ignore::snn_recon_plugin.ReadoutWarning")
@pytest.mark.parametrize("name", CASES)
def test_the_values_come_back(name, tmp_path):
    build, data, options = CASES[name]
    report = convex_init_(build(), data, progress=False, **options)
    for back in (Report.from_json(report.to_json()), pickle.loads(pickle.dumps(report))):
        assert back.to_dict() == report.to_dict()
        assert (str(back), back.details(), back._repr_html_()) == (str(report), report.details(), report._repr_html_())
        assert (repr(back), back.certificate) == (repr(report), report.certificate)
        back.plot(tmp_path / "again.png")
        assert back != report
    assert back == Report.from_json(report.to_json())
    assert len({back, Report.from_json(report.to_json())}) == 1


@pytest.fixture(scope="module")
def report():
    return convex_init_(loop_net(), batches(120), hidden="keep", strength=1e-2, progress=False)


NEEDS_NETWORK = {
    "undo": lambda back: back.undo(),
    "forget": lambda back: back.forget(),
    "write_solved": lambda back: back.write_solved(),
    "parameters": lambda back: back.parameters,
    "solved_weights": lambda back: back.solved_weights,
    "hardness": lambda back: back.hardness,
    "sampler": lambda back: back.sampler([]),
    "protect": lambda back: back.protect(torch.optim.SGD(loop_net().parameters(), 0.1)),
    "refit_": lambda back: refit_(loop_net(), batches(120), back),
}


@pytest.mark.parametrize("name", NEEDS_NETWORK)
def test_what_needs_the_network_is_refused(report, name):
    with pytest.raises(OptionError, match="a report from json or pickle") as caught:
        NEEDS_NETWORK[name](pickle.loads(pickle.dumps(report)))
    assert "call convex_init_(net, loader) again" in caught.value.fix


def test_the_undo_is_remembered():
    report = convex_init_(loop_net(), batches(120), hidden="keep", strength=1e-2, progress=False)
    report.undo()
    for back in (Report.from_json(report.to_json()), pickle.loads(pickle.dumps(report))):
        assert back.undone
        assert str(back).startswith("NOT kept")


def test_a_pickle_is_small(report):
    """Neither the network nor the data are in it."""
    assert len(pickle.dumps(report)) < 10_000


def test_numbers_that_are_not_finite_come_back_as_nan(report):
    back = Report.from_json(replace(report, before=replace(report.before, loss=math.inf, accuracy=math.nan)).to_json())
    assert math.isnan(back.before.loss)
    assert math.isnan(back.accuracy_before)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[:-1],
        lambda text: "[]",
        lambda text: "3",
        lambda text: "{}",
        lambda text: json.dumps({name: value for name, value in json.loads(text).items() if name != "program"}),
        lambda text: json.dumps({**json.loads(text), "layers": 3}),
        lambda text: json.dumps({**json.loads(text), "seed": "many"}),
        lambda text: json.dumps({**json.loads(text), "seconds": None}),
        lambda text: json.dumps({**json.loads(text), "seed": None}),
    ],
)
def test_other_texts_are_refused(report, spoil):
    with pytest.raises(OptionError, match="a text that is not a report's json"):
        Report.from_json(spoil(report.to_json()))


def test_unknown_and_private_names_are_left_out(report):
    back = Report.from_json(json.dumps({**report.to_dict(), "later": 1, "_live": {}}))
    assert back.to_dict() == report.to_dict()
