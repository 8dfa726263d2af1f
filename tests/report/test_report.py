import json
import math
from dataclasses import replace

import pytest
import snntorch.functional as SF
import torch

from snn_recon_plugin import convex_init_
from snn_recon_plugin.errors import WriteError
from snn_recon_plugin.networks.calls.spikes import LayerStats
from snn_recon_plugin.options import Options
from snn_recon_plugin.report.report_parts import LayerReport, OtherReadout
from snn_recon_plugin.stages.initialize import initialize_network
from snn_recon_plugin.stages.rates import rate
from snn_recon_plugin.stages.run import START
from snn_recon_plugin.stages.stream import split_samples

from ..helpers import batches, divided, lived_in, one_line, untouched, values
from ..nets import HIDDEN, STEPS, loop_net


@pytest.fixture(scope="module")
def auto():
    """Report of a silent net, rescaled, the strength chosen."""
    return convex_init_(divided(loop_net()), batches(200), hidden="rescale", fit_loss="same", penalty="group_l1", seed=2)


@pytest.fixture(scope="module")
def scaled():
    """Solved by the squared hinge, scaled for cross-entropy."""
    return convex_init_(loop_net(), batches(200), hidden="keep", fit_loss="squared_hinge")


@pytest.fixture(scope="module")
def given():
    return convex_init_(loop_net(), batches(200), hidden="keep", strength=1e-2)


def rows_of(report):
    """The table's rows by name, each of one line or more."""
    lines = [line for line in report.details().splitlines() if not set(line) <= {"-"}]
    width = next(line for line in lines if line.startswith("network")).index("Loop")
    rows, name = {}, ""
    for line in lines:
        name = line[:width].strip() or name
        rows[name] = [*rows.get(name, []), line[width:]]
    return {name: " ".join(parts) for name, parts in rows.items()}


NAMES = (
    *("held-out accuracy", "balanced accuracy", "held-out loss", "held-out samples", "written network", "warning"),
    *("network", "readout", "classes by", "exactness"),
    *("training loss", "program", "objective", "duality gap", "solver", "active neurons", "layer 'fc1'", "seconds"),
)


def test_the_table_says_what_the_fields_hold(auto, given):
    rows, (layer,), certificate = rows_of(auto), auto.layers, auto.certificate
    assert tuple(rows) == tuple(rows_of(given)) == NAMES
    words = {
        "warning": ("only 40 held-out samples, fewer than 200: pass more",),
        "network": ("Loop", "snntorch", f"{STEPS} steps"),
        "readout": ("'fc2'", "membrane_mean"),
        "classes by": ("membrane mean of the output",),
        "exactness": ("exact", f"{auto.exactness.max_difference:.1e}", f"{auto.exactness.scale:.3g}"),
        "held-out accuracy": (f"{rate(auto.accuracy_before, 40)}  ->  {rate(auto.accuracy_after, 40)}",),
        "held-out loss": (f"{auto.before.loss:.4g}  ->  {auto.after.loss:.4g}",),
        "held-out samples": ("40 before, 40 after; ± are 95 % intervals",),
        "written network": (f"{100 * auto.accuracy_written:.1f} % on 200 samples",),
        "program": ("cross_entropy", f"{auto.program.strength:.3g} * group_l1", "200 samples"),
        "objective": (f"{certificate.primal:.6f}", f"{certificate.dual:.6f}"),
        "duality gap": (f"relative {certificate.relative_gap:.1e}", "1e-06", "reached"),
        "solver": ("newton",),
        "active neurons": (f"{auto.program.active_neurons} of {HIDDEN}",),
        "layer 'fc1'": (
            f"gain {layer.gain:.3g}",
            f"0.000 -> {layer.stats.firing_rate:.3f}",
            f"-> {100 * layer.stats.silent:.1f} %",
        ),
        "seconds": tuple(
            f"{name} {auto.seconds[name]:.1f}" for name in ("inspect", "rescale", "capture", "solve", "write and verify")
        ),
    }
    assert [(name, word) for name, each in words.items() for word in each if word not in rows[name]] == []
    assert len(repr(auto)) < 5000


def test_the_table_tells_what_was_solved_in_place_of_the_loss(scaled):
    rows = rows_of(scaled)
    assert tuple(rows) == (*NAMES[:10], "scores", "written", *NAMES[10:])
    assert rows["scores"] == f"scale {scaled.exactness.weight_scale / scaled.factor:.3g}, fitted on held-out samples"
    assert rows["written"].startswith("1/4 of the solved readout")
    assert f"{rate(scaled.solved.accuracy, 40)}, loss {scaled.solved.loss:.4g}" in rows["written"]
    assert rows["program"] == f"squared_hinge + {scaled.program.strength:.3g} * ridge, 200 samples"
    told = scaled.to_dict()
    assert (told["loss"], told["program"]["loss"]) == ("cross_entropy", "squared_hinge")


def test_a_kept_layer_a_missed_tolerance_and_no_accuracy(given):
    assert rows_of(given)["layer 'fc1'"].startswith("Leaky, kept, firing rate 0.")
    fired, fires = LayerStats(0.5, 0.25, 0.0, 4), LayerStats(0.25, 0.0, 0.0, 4)
    kept = LayerReport("fc1", "Leaky", 1.0, fired, fires, reason="a normalisation after it")
    missed = replace(given.certificate, reached=False)
    before, after = (replace(each, accuracy=math.nan) for each in (given.before, given.after))
    other = replace(given, layers=(kept,), certificate=missed, before=before, after=after)
    rows = rows_of(other)
    assert rows["layer 'fc1'"] == "Leaky, kept (a normalisation after it), firing rate 0.500 -> 0.250, 25.0 % -> 0.0 % dead"
    assert "NOT reached" in rows["duality gap"]
    assert rows["held-out accuracy"] == "n/a  ->  n/a"
    regression = replace(other, accuracy_written=math.nan, after=replace(after, metrics={}))
    assert not [name for name in rows_of(regression) if "accuracy" in name or name == "written network"]
    assert {"held-out loss", "values by"} <= rows_of(regression).keys()
    assert f"held-out loss {given.before.loss:.4g} -> {given.after.loss:.4g}," in repr(regression)
    assert tuple(rows_of(replace(given, layers=()))) == tuple(name for name in NAMES if not name.startswith("layer"))


@pytest.mark.parametrize(("label", "fix"), [("majorised", "mem.mean(0)"), ("surrogate", "without a reset")])
def test_a_network_far_below_its_linear_score(label, fix, given):
    exactness = replace(given.exactness, label=label)
    after = given.after
    far = replace(given, exactness=exactness, after=replace(after, linear_accuracy=after.accuracy + 0.06))
    assert "6 points below the linear score" in str(far)
    assert fix in rows_of(far)["warning"]
    near = replace(far, after=replace(after, linear_accuracy=after.accuracy + 0.02))
    assert "points below" not in near.details()


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
    report = convex_init_(net, batches(200), hidden="keep")
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
    report = convex_init_(net, batches(100), hidden="keep")
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


def test_long_rows_are_wrapped(given):
    reason = "its neurons depend on more than their own row, as with a normalisation or quantised weights, " * 3
    (layer,) = given.layers
    report = replace(given, layers=(replace(layer, reason=reason.strip()),))
    assert max(map(len, report.details().splitlines())) <= 100
    assert reason.strip() in rows_of(report)["layer 'fc1'"]


def test_another_readout_is_mentioned_only_if_the_readout_was_chosen_automatically(given):
    other = OtherReadout("spike count of output[0]", "spike_count", 0.3, 0.6, 0.7, 40)
    automatic = replace(given, readout=replace(given.readout, others=(other,)), after=replace(given.after, samples=200))
    assert rows_of(automatic)["warning"] == str(other) in one_line(automatic)
    assert "warning" not in rows_of(replace(automatic, readout=replace(automatic.readout, named=True)))
    assert not given.readout.named
    for options in ({"readout": "membrane_mean"}, {"loss": SF.ce_max_membrane_loss()}):
        assert convex_init_(loop_net(), batches(60), hidden="keep", strength=1e-2, **options).readout.named


def test_the_figure_before_of_a_trained_net_has_a_note(given):
    assert "note" not in rows_of(given)
    assert "too high to compare" in rows_of(replace(given, before=replace(given.before, accuracy=0.97)))["note"]
