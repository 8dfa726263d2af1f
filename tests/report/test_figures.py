"""Figures of a report: their axes hold what the report holds."""

import math
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib import pyplot

from snn_recon_plugin import convex_init_
from snn_recon_plugin.errors import OptionError
from snn_recon_plugin.networks.calls.calls import LayerStats

from ..helpers import batches, chosen, divided, without
from ..nets import HIDDEN, loop_net


@pytest.fixture(scope="module")
def report():
    """Report of a net that was silent, the strength chosen."""
    return convex_init_(divided(loop_net()), batches(200), hidden="rescale", fit_loss="same", penalty="group_l1")


def labelled(axes):
    return all((axes.get_title(), axes.get_xlabel(), axes.get_ylabel()))


def test_three_axes_with_what_the_report_holds(report):
    figure = report.plot()
    assert pyplot.get_fignums() == []  # a figure of its own
    gap, path, weights = figure.axes
    assert gap.get_lines()[0].get_ydata().tolist() == [p.relative_gap for p in report.program.trace if p.relative_gap > 0] != []
    assert gap.get_yscale() == "log"
    assert list(gap.get_lines()[1].get_ydata()) == [1e-6, 1e-6]
    assert path.get_lines()[0].get_ydata().tolist() == [p.heldout_loss for p in report.program.path]
    assert path.get_xscale() == "log"
    assert path.get_lines()[1].get_xdata()[0] == report.program.strength
    assert f"{chosen(report).active} neurons" in path.get_legend().get_texts()[0].get_text()
    assert "(nats)" in path.get_ylabel()
    assert "(nats)" not in replace(report, program=replace(report.program, loss="squared")).plot().axes[1].get_ylabel()
    sizes = weights.get_lines()[0].get_ydata().tolist()
    assert sizes == sorted(report.program.neuron_sizes, reverse=True)
    assert len(sizes) == HIDDEN
    assert f"{report.program.active_neurons} of {HIDDEN}" in weights.get_title()
    assert all(map(labelled, figure.axes))
    assert f"-> {100 * report.accuracy_after:.0f} ± " in figure.get_suptitle()


def test_a_strength_that_was_given(report):
    _, path, _ = replace(report, program=replace(report.program, path=None, strength=0.01)).plot().axes
    assert [text.get_text() for text in path.texts] == ["strength 0.01 was given"]
    assert path.get_title()


@pytest.mark.parametrize("before", [math.nan, 0.1])
def test_no_accuracy_no_percent(report, before):
    begun = replace(report, before=replace(report.before, accuracy=before))
    title = replace(begun, after=replace(report.after, accuracy=math.nan)).plot().get_suptitle()
    assert title == report.network
    title = replace(begun, after=replace(report.after, accuracy=0.9)).plot().get_suptitle()
    assert "90 ± 13 %" in title
    assert "nan" not in title


def test_gaps_of_zero_and_no_neurons_in_use(report):
    point = replace(report.program.trace[-1], relative_gap=0.0)
    program = replace(report.program, trace=(point,), neuron_sizes=(0.0,) * 4, active_neurons=0, hidden_neurons=4)
    exact = replace(report, program=program)
    assert "0 of 4" in exact.plot().axes[2].get_title()


def test_how_the_layers_fire_before_and_after(report):
    rates, shares = report.plot_layers().axes
    (layer,) = report.layers
    before, after = (bars[0].get_height() for bars in rates.containers)
    assert (before, after) == (layer.before.firing_rate, layer.stats.firing_rate) == (0.0, layer.stats.firing_rate)
    never, always, never_after, always_after = (bars[0].get_height() for bars in shares.containers)
    assert (never, always) == (1.0, 0.0)
    assert (never_after, always_after) == (layer.stats.silent, layer.stats.always_on)
    assert [text.get_text() for text in rates.get_xticklabels()] == ["fc1"]
    assert labelled(rates)
    assert labelled(shares)
    fine = LayerStats(0.1, 0.0, 0.0, 4)
    healthy = replace(report, layers=(replace(layer, before=fine, stats=fine),))
    assert "none" in healthy.plot_layers().axes[1].texts[0].get_text()
    with pytest.raises(OptionError, match="hidden layers"):
        replace(report, layers=()).plot_layers()


@pytest.mark.parametrize("draw", ["plot", "plot_layers"])
@pytest.mark.parametrize(("name", "kind"), [("report.png", Path), ("report.pdf", str)])
def test_a_saved_figure(report, tmp_path, draw, name, kind):
    getattr(report, draw)(kind(tmp_path / name))
    assert (tmp_path / name).stat().st_size > 5000


def test_a_notebook_shows_it_without_pyplot(report):
    figure = report.plot_layers()
    for each in (figure, pickle.loads(pickle.dumps(figure))):
        assert each._repr_png_()[:8] == b"\x89PNG\r\n\x1a\n"
        assert len(each._repr_png_()) > 5000


def test_without_matplotlib(report, monkeypatch):
    without(monkeypatch, "matplotlib")
    with pytest.raises(OptionError, match="pip install matplotlib"):
        report.plot()
