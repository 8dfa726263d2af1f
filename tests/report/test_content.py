"""A report: its values as plain types and in a pickle, its undo, and the readouts that it writes."""

import copy
import json
import math
import pickle
from dataclasses import replace

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin import convex_init_
from snn_recon_plugin.errors import OptionError, WriteError
from snn_recon_plugin.options import Options
from snn_recon_plugin.stages.initialize import initialize_network
from snn_recon_plugin.stages.run import START
from snn_recon_plugin.stages.stream import split_samples

from ..helpers import batches, divided, lived_in, untouched, values
from ..nets import HIDDEN, loop_net, shallow


def test_plain_values_for_json(auto, given):
    for report in (auto, given):
        told = json.loads(json.dumps(report.to_dict(), allow_nan=False))
        public = {name for name in report.__dataclass_fields__ if not name.startswith("_")}
        assert set(told) == public | {"undone"}
        assert told["certificate"]["relative_gap"] == report.certificate.relative_gap
        assert told["exactness"]["label"] == "exact"
        assert told["layers"][0]["stats"]["neurons"] == HIDDEN
        assert told["program"]["trace"][-1]["relative_gap"] <= told["certificate"]["tol"]
        assert len(told["program"]["neuron_sizes"]) == HIDDEN
    assert given.to_dict()["program"]["path"] is None
    assert given.to_dict()["layers"][0]["before"] == given.to_dict()["layers"][0]["stats"]
    path = auto.to_dict()["program"]["path"]
    assert [point["strength"] for point in path] == [point.strength for point in auto.program.path]
    assert [point["heldout_error"] for point in path] == [point.heldout_error for point in auto.program.path]
    assert set(path[0]) == {"strength", "heldout_loss", "heldout_error", "heldout_accuracy", "relative_gap", "active", "chosen"}
    (chosen,) = (point for point in path if point["chosen"])
    assert chosen["strength"] == auto.program.strength
    assert chosen["heldout_loss"] == min(point["heldout_loss"] for point in path) == pytest.approx(auto.after.loss, rel=1e-12)
    assert chosen["heldout_accuracy"] == auto.accuracy_after


def test_what_is_not_finite_becomes_none(given):
    before = replace(given.before, accuracy=math.nan, loss=math.inf)
    program = replace(given.program, neuron_sizes=(math.nan, 1.0))
    told = replace(given, seconds={"solve": -math.inf}, before=before, program=program).to_dict()
    assert (told["before"]["accuracy"], told["before"]["loss"]) == (None, None)
    assert (told["seconds"], told["program"]["neuron_sizes"]) == ({"solve": None}, [None, 1.0])


def test_reports_can_be_compared(auto, given):
    assert isinstance(given == replace(given), bool)
    assert given != auto
    assert len({given, auto}) == 2


def test_undo_bit_for_bit():
    with untouched(net := lived_in(divided(loop_net()))):
        report = convex_init_(net, batches(200), strength=1e-2)
        # Trained on since: what comes back is what was there before the call.
        with torch.no_grad():
            for parameter in (net.fc2.weight, net.fc2.bias, net.fc1.weight):
                parameter.add_(1.0)
        assert not report.undone
        assert "NOT kept" not in str(report) + report.details()
        assert report.to_dict()["undone"] is False
        report.undo()
        assert report.undone
        assert str(report).startswith("NOT kept")
        assert report.details().splitlines()[1].startswith("NOT kept")
        assert report.to_dict()["undone"] is True
        report.undo()  # again


@pytest.mark.parametrize("change", [None, torch.nn.utils.parametrizations.weight_norm], ids=["plain", "weight norm"])
def test_the_solved_and_the_smaller_readout_are_written_in_turn(change):
    net = loop_net(hidden=200)
    if change is not None:
        change(net.fc2)
    before = values(net)
    report = convex_init_(net, batches(250), hidden="keep")
    smaller, solved = values(net), report.solved_weights
    assert report.factor < 1
    assert set(solved) == {"fc2.weight", "fc2.bias"}
    for _ in range(2):
        torch.testing.assert_close(net.fc2.weight.detach(), report.factor * solved["fc2.weight"], rtol=1e-5, atol=1e-6)
        report.write_solved()
        torch.testing.assert_close(net.fc2.weight.detach(), solved["fc2.weight"], rtol=1e-5, atol=1e-6)
        assert torch.equal(net.fc2.bias, solved["fc2.bias"])
        report.write_smaller()
        assert values(net) == smaller
    solved["fc2.weight"].zero_()  # a copy
    assert report.solved_weights["fc2.weight"].any()
    report.write_solved()
    report.undo()
    assert values(net) == before


@pytest.mark.parametrize("end", ["undo", "forget"])
def test_a_report_that_has_ended_writes_nothing(end):
    net = loop_net()
    report = convex_init_(net, batches(100), hidden="keep", strength=1e-2)
    getattr(report, end)()
    now = values(net)
    for write in (report.write_solved, report.write_smaller):
        with pytest.raises(WriteError, match="undone or forgotten"):
            write()
    assert values(net) == now


def test_an_undo_takes_later_calls_along_and_only_the_last_writes_again():
    net = loop_net()
    before = values(net)
    options = {"hidden": "keep", "write": "always"}
    first, second, third = (convex_init_(net, batches(100), strength=strength, **options) for strength in (1e-2, 1e-1, 1e-3))
    now = values(net)
    with pytest.raises(WriteError, match="that a later call replaced"):
        second.write_solved()
    assert values(net) == now
    third.write_solved()
    first.undo()
    assert values(net) == before
    assert second.undone
    assert third.undone
    for report in (third, second):
        report.undo()
        assert values(net) == before


def test_calls_are_undone_one_by_one_and_what_was_not_written_stays():
    net = loop_net()
    states, reports = [values(net)], []
    for strength in (1e-2, 1e-1):
        reports.append(convex_init_(net, batches(100), hidden="keep", strength=strength))
        states.append(values(net))
    for report in reversed(reports):
        states.pop()
        report.undo()
        assert values(net) == states[-1]
    report = convex_init_(net, batches(100), hidden="keep", strength=1e-2)
    with torch.no_grad():
        net.fc1.weight.add_(1.0)
    trained = values(net)
    report.undo()
    assert {name for name, value in values(net).items() if value != trained[name]} == {"fc2.weight", "fc2.bias"}


def test_nothing_is_said_of_the_net_before_where_no_held_out_sample_was_kept():
    seed = next(seed for seed in range(20) if 0 not in split_samples(60, 0.2, seed).heldout)
    options = Options(strength=1e-2, seed=seed)
    report = initialize_network(divided(loop_net()), batches(60, 1), options, replace(START, verified_samples=1))
    assert (report.before.samples, report.after.samples) == (0, 12)
    assert math.isnan(report.accuracy_before)
    assert math.isnan(report.before.loss)
    assert not math.isnan(report.accuracy_after)


# -- a pickle ----------------------------------------------------------------------------------------------------------------
def maximum(spikes, membranes):
    return membranes.amax(0)


def regression(inputs, labels):
    return inputs, torch.stack([inputs[:, 0], labels.float()], 1)[:, None].expand(-1, 8, -1)


# name: (net, batches, options)
CASES = {
    "leaks": (lambda: loop_net(hidden_neuron=snn.Leaky(beta=torch.linspace(0.5, 0.95, HIDDEN))), {"hidden": "reconstruct"}),
    "majorised": (lambda: shallow(maximum), {"hidden": "keep", "strength": 1e-3}),
    "at every step": (
        lambda: loop_net(outputs=2),
        {"hidden": "keep", "loss": nn.MSELoss(), "readout": "membrane_per_step", "strength": 1e-2},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_values_come_back(name, tmp_path):
    build, options = CASES[name]
    data = [regression(*batch) for batch in batches(120)] if "loss" in options else batches(120)
    report = convex_init_(build(), data, progress=False, **options)
    back = pickle.loads(pickle.dumps(report))
    assert back.to_dict() == report.to_dict()
    assert (str(back), back.details(), back._repr_html_()) == (str(report), report.details(), report._repr_html_())
    assert (repr(back), back.certificate) == (repr(report), report.certificate)
    back.plot(tmp_path / "again.png")


NEEDS_NETWORK = {
    "undo": lambda back: back.undo(),
    "forget": lambda back: back.forget(),
    "write_solved": lambda back: back.write_solved(),
    "parameters": lambda back: back.parameters,
    "solved_weights": lambda back: back.solved_weights,
    "protect": lambda back: back.protect(torch.optim.SGD(loop_net().parameters(), 0.1)),
}


@pytest.mark.parametrize("name", NEEDS_NETWORK)
def test_what_needs_the_network_is_refused(given, name):
    with pytest.raises(OptionError, match="a report from a pickle") as caught:
        NEEDS_NETWORK[name](pickle.loads(pickle.dumps(given)))
    assert "call convex_init_(net, loader) again" in caught.value.fix


def test_removed_attributes_are_answered_with_what_to_type(given):
    for name in ("hardness", "sampler"):
        with pytest.raises(OptionError, match=f"Found: report.{name}\n.*\nTo fix: "):
            getattr(given, name)
        assert not hasattr(given, name)
    with pytest.raises(AttributeError, match="report has no attribute 'sample'"):
        _ = given.sample
    assert copy.copy(given).to_dict() == given.to_dict()


def test_a_pickle_is_small_and_remembers_the_undo():
    """Neither the network nor the data are in it."""
    report = convex_init_(loop_net(), batches(120), hidden="keep", strength=1e-2, progress=False)
    assert len(pickle.dumps(report)) < 10_000
    report.undo()
    back = pickle.loads(pickle.dumps(report))
    assert back.undone
    assert str(back).startswith("NOT kept")
