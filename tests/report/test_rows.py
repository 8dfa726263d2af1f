"""Texts of a report: the ten lines, the details, and the tables of a notebook."""

import html
import math
import re
from dataclasses import replace

import pytest
import snntorch.functional as SF

from snn_recon_plugin import convex_init_
from snn_recon_plugin.networks.calls.calls import LayerStats
from snn_recon_plugin.report.rows import LayerReport, OtherReadout
from snn_recon_plugin.stages.scores import HeldOut
from snn_recon_plugin.text_table import rate

from ..helpers import batches, one_line
from ..nets import HIDDEN, STEPS, loop_net


def rows_of(report):
    """The details' rows by name, each of one line or more."""
    lines = [line for line in report.details().splitlines() if not set(line) <= {"-"}]
    width = next(line for line in lines if line.startswith("network")).index("Loop")
    rows, name = {}, ""
    for line in lines:
        name = line[:width].strip() or name
        rows[name] = [*rows.get(name, []), line[width:]]
    return {name: " ".join(parts) for name, parts in rows.items()}


def names_of(report):
    return re.findall(r"^(\S.*?)  ", str(report), re.MULTILINE)


NAMES = (
    *("accuracy", "test it", "balanced accuracy", "held-out loss", "held-out samples", "written network", "warning"),
    *("network", "readout", "exactness", "scores", "training loss"),
    *("program", "objective", "certificate", "solver", "active neurons"),
    *("layer 'fc1'", "seconds"),
)


def test_the_details_say_what_the_fields_hold(auto, given):
    rows, (layer,), certificate = rows_of(auto), auto.layers, auto.certificate
    assert tuple(rows) == tuple(rows_of(given)) == NAMES
    words = {
        "warning": ("only 40 held-out samples, fewer than 200: pass more",),
        "network": ("Loop", "snntorch", f"{STEPS} steps"),
        "readout": ("'fc2'", "membrane_mean"),
        "test it": ("the membrane mean of the output",),
        "exactness": ("exact: ",),
        "scores": (f"differ by at most {auto.exactness.max_difference:.1e}, largest {auto.exactness.scale:.3g}",),
        "accuracy": (f"{rate(auto.accuracy_before, 40)}  ->  {rate(auto.accuracy_after, 40)}", "± is a 95 % interval"),
        "held-out loss": (f"{auto.before.loss:.4g}  ->  {auto.after.loss:.4g}",),
        "held-out samples": ("40 before, 40 after",),
        "written network": (f"{100 * auto.accuracy_written:.1f} % on 200 samples",),
        "program": ("cross_entropy", f"{auto.program.strength:.3g} * group_l1", "200 samples"),
        "objective": (f"{certificate.primal:.6f}", f"{certificate.dual:.6f}", f"gap {certificate.gap:.1e}"),
        "certificate": (f"objective within {certificate.relative_gap:.1e} of the optimum (relative; asked 1e-06, reached)",),
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


def test_the_details_tell_what_was_solved_in_place_of_the_loss():
    scaled = convex_init_(loop_net(), batches(250), hidden="keep", fit_loss="squared_hinge")
    rows = rows_of(scaled)
    first = NAMES.index("layer 'fc1'")
    assert tuple(rows) == (*NAMES[:first], "written", "solved readout", *NAMES[first:])
    assert rows["scores"].endswith(f"; scale {scaled.exactness.weight_scale / scaled.factor:.3g}, fitted on held-out samples")
    assert rows["written"].startswith("1/4 of the solved readout")
    assert f"{rate(scaled.solved.accuracy, 50)}, loss {scaled.solved.loss:.4g}" in rows["solved readout"]
    assert rows["program"] == f"squared_hinge + {scaled.program.strength:.3g} * ridge, 250 samples"
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
    assert "NOT reached" in rows["certificate"]
    assert "NOT reached" in str(other)
    assert rows["accuracy"].startswith("n/a  ->  n/a")
    regression = replace(other, accuracy_written=math.nan, after=replace(after, metrics={}))
    assert not [name for name in rows_of(regression) if "accuracy" in name or name == "written network"]
    assert f"held-out loss {given.before.loss:.4g} -> {given.after.loss:.4g}," in repr(regression)
    assert tuple(rows_of(replace(given, layers=()))) == tuple(name for name in NAMES if not name.startswith("layer"))


@pytest.mark.parametrize(("label", "fix"), [("majorised", "mem.mean(0)"), ("surrogate", "without a reset")])
def test_a_network_far_below_its_linear_score(label, fix, given):
    exactness, after = replace(given.exactness, label=label), given.after
    far = replace(given, exactness=exactness, after=replace(after, linear_accuracy=after.accuracy + 0.06))
    assert "6 points below the linear score" in str(far)
    assert fix in rows_of(far)["warning"]
    assert rows_of(far)["linear score"].startswith(rate(after.accuracy + 0.06, 40))
    near = replace(far, after=replace(after, linear_accuracy=after.accuracy + 0.02))
    assert "points below" not in near.details()


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
    seen = replace(given, trained_on=True)
    assert "too high: pass val_loader=" in rows_of(seen)["note"]
    assert names_of(seen)[0] == "note"


# -- ten lines ---------------------------------------------------------------------------------------------------------------
def test_the_most_useful_lines_come_first(rebuilt):
    even = replace(rebuilt, imbalance=1.0, after=replace(rebuilt.after, samples=400, accuracy=0.9), factor=0.25)
    lines = str(even).splitlines()
    names = ["accuracy", "test it", "held-out loss", "exactness", "certificate", "written", "hidden", "seconds", "more"]
    assert names_of(even) == names
    assert "->  90.0 ± " in lines[0]
    assert "(360 of 400 held-out samples; ± is a 95 % interval)" in lines[0]
    assert "1/4 of the solved readout" in lines[5]
    assert f"'fc1' rebuilt from {rebuilt.layers[0].witnesses.simulated} candidates" in lines[6]
    assert "report.details()" in lines[-1]


def test_ten_lines_whatever_happens(rebuilt):
    others = tuple(OtherReadout(f"spike count of output[{number}]", "spike_count", 0.3, 0.6, 0.7, 40) for number in range(4))
    layers = rebuilt.layers * 9
    readout = replace(rebuilt.readout, others=others, decided_by="sum of it all " * 20)
    full = replace(rebuilt, readout=readout, layers=layers, before=replace(rebuilt.before, accuracy=0.9), imbalance=9.0)
    for each in (rebuilt, replace(rebuilt, layers=layers), full):
        lines = str(each).splitlines()
        assert len(lines) <= 10
        assert max(map(len, lines)) <= 100
        assert lines[-1].startswith("more ")
    assert names_of(full)[:2] == ["accuracy", "test it"]


def test_decisions_at_every_step_are_no_number_of_samples(rebuilt):
    assert "(40 held-out samples;" in str(replace(rebuilt, after=replace(rebuilt.after, accuracy=0.5123)))


def test_targets_without_metrics_have_their_loss_first(rebuilt):
    values = replace(rebuilt, before=HeldOut(), after=HeldOut(), accuracy_written=math.nan)
    assert names_of(values)[0] == "held-out loss"


def test_a_notebook_shows_escaped_tables_without_colours(rebuilt):
    found = replace(rebuilt, network="<b>Net</b> & more", readout=replace(rebuilt.readout, decided_by="a < b"))._repr_html_()
    assert "<b>" not in found
    assert "color" not in found
    assert html.escape("which should read the a < b") in found
    assert html.escape("<b>Net</b> & more, 8 steps") in found
    assert (found.count("<table>"), found.count("<details>")) == (2, 1)
    assert found.count("<tr>") == found.count("</tr>") == found.count("</td>")
