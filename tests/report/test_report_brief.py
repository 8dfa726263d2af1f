"""The ten lines that a printed report shows, and the tables of a notebook."""

import html
import math
import re
from dataclasses import replace

import pytest

from snn_recon_plugin import convex_init_
from snn_recon_plugin.report.report_parts import OtherReadout
from snn_recon_plugin.stages.scores import HeldOut

from ..helpers import batches, loop_net


@pytest.fixture(scope="module")
def report():
    return convex_init_(loop_net(hidden=200), batches(200), hidden="reconstruct", progress=False)


def names_of(report):
    return re.findall(r"^(\S.*?)  ", str(report), re.MULTILINE)


def test_the_most_useful_lines_come_first(report):
    even = replace(report, imbalance=1.0, after=replace(report.after, samples=400, accuracy=0.9), factor=0.25)
    lines = str(even).splitlines()
    names = ["accuracy", "test it", "held-out loss", "exactness", "certificate", "written", "hidden", "seconds", "more"]
    assert names_of(even) == names
    assert "->  90.0 ± " in lines[0]
    assert "(360 of 400 held-out samples; ± is a 95 % interval)" in lines[0]
    assert "the membrane mean of the output" in lines[1]
    assert re.search(r"objective within \d\.\de-\d\d of the optimum \(relative; asked 1e-06, reached\)", lines[4])
    assert "1/4 of the solved readout" in lines[5]
    assert f"'fc1' rebuilt from {report.layers[0].witnesses.simulated} candidates" in lines[6]
    assert "report.details()" in lines[-1]


def test_ten_lines_whatever_happens(report):
    others = tuple(OtherReadout(f"spike count of output[{number}]", "spike_count", 0.3, 0.6, 0.7, 40) for number in range(4))
    layers = report.layers * 9
    readout = replace(report.readout, others=others, decided_by="sum of it all " * 20)
    full = replace(report, readout=readout, layers=layers, before=replace(report.before, accuracy=0.9), imbalance=9.0)
    for each in (report, replace(report, layers=layers), full):
        lines = str(each).splitlines()
        assert len(lines) <= 10
        assert max(map(len, lines)) <= 100
        assert lines[-1].startswith("more ")
    assert names_of(full)[:2] == ["accuracy", "test it"]
    assert "only 40 held-out samples, fewer than 200: pass more samples, or a larger holdout=" in str(report)
    assert "NOT reached" in str(replace(report, certificate=replace(report.certificate, reached=False)))


def test_decisions_at_every_step_are_no_number_of_samples(report):
    assert "(40 held-out samples;" in str(replace(report, after=replace(report.after, accuracy=0.5123)))


def test_targets_without_metrics_have_their_loss_first(report):
    values = replace(report, before=HeldOut(), after=HeldOut(), accuracy_written=math.nan)
    assert names_of(values)[0] == "held-out loss"


def test_a_notebook_shows_escaped_tables_without_colours(report):
    found = replace(report, network="<b>Net</b> & more", readout=replace(report.readout, decided_by="a < b"))._repr_html_()
    assert "<b>" not in found
    assert "color" not in found
    assert html.escape("which should read the a < b") in found
    assert html.escape("<b>Net</b> & more, 8 steps") in found
    assert (found.count("<table>"), found.count("<details>")) == (2, 1)
    assert found.count("<tr>") == found.count("</tr>") == found.count("</td>")
