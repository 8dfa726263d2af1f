"""Figures of a report and of a diagnosis.  matplotlib is imported on first use."""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

from ..convex import LOSSES, Certificate
from ..errors import OptionError, installed
from .rows import LayerReport, ProgramReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette: distinct for colour-blind readers, and dark enough on white.
BLUE = "#0072B2"
ORANGE = "#D55E00"
GREEN = "#009E73"
GREY = "#777777"


def plot_report(program: ProgramReport, certificate: Certificate, title: str, path: str | FilePath | None = None) -> Figure:
    """Draw the gap over time, the strength path and the weights per neuron of a program; save the figure to a path."""
    figure = _figure(12)
    left, middle, right = figure.subplots(1, 3)
    _gap(left, program, certificate.tol)
    _strengths(middle, program)
    _weights(right, program)
    figure.suptitle(title, fontsize=11)
    return _save(figure, path)


def plot_layers(layers: Sequence[LayerReport], path: str | FilePath | None = None) -> Figure:
    """Draw the firing rate of each hidden layer before and after, and the shares of its neurons that never or always spike."""
    if not layers:
        raise OptionError("a network without hidden layers", "at least one", "use report.plot()")
    figure = _figure(7.5)
    left, right = figure.subplots(1, 2)
    names = [layer.name for layer in layers]
    moments = (("before", -0.2, GREY, [layer.before for layer in layers]), ("after", 0.2, BLUE, [layer.stats for layer in layers]))
    for axes, parts in ((left, {"firing_rate": ""}), (right, {"silent": ", never", "always_on": ", always"})):
        for moment, offset, colour, stats in moments:
            places, bottom = [number + offset for number in range(len(names))], [0.0] * len(names)
            for (part, label), alpha in zip(parts.items(), (1.0, 0.45), strict=False):
                values = [float(getattr(each, part)) for each in stats]
                axes.bar(places, values, 0.36, bottom=bottom, color=colour, alpha=alpha, label=moment + label)
                bottom = values
        axes.set_xlim(-1, len(names))
        axes.set_xticks(range(len(names)), names, rotation=30 if len(names) > 4 else 0)
        axes.legend(frameon=False, fontsize=8)
    _finish(left, "Firing rate", "hidden layer", "spikes a neuron and step")
    _finish(right, "Neurons that never or always spike", "hidden layer", "share of the layer")
    right.set_ylim(0, 1)
    if all(part.silent == part.always_on == 0 for layer in layers for part in (layer.before, layer.stats)):
        right.text(0.5, 0.5, "none, before or after", ha="center", va="center", color=GREY, transform=right.transAxes)
    return _save(figure, path)


def plot_diagnosis(layers: Sequence[Any], vanishing: float, title: str, path: str | FilePath | None = None) -> Figure:
    """Draw firing rates, silent and saturated neurons, and gradients, with ``vanishing`` ones marked, of layers of a diagnosis."""
    if not layers:
        raise OptionError("a network without spiking layers", "at least one", "print the diagnosis: its findings give the reason")
    figure = _figure(11, max(2.8, 1.4 + 0.6 * len(layers)))
    left, middle, right = figure.subplots(1, 3, sharey=True)
    names, places = [layer.name + ("\n(output)" if layer.output else "") for layer in layers], range(len(layers))
    rates = [layer.firing_rate for layer in layers]
    _bars(left, rates, lambda value: f"{value:.3f}", BLUE)
    left.set_xlim(0, 1.3 * max([0.01, *(rate for rate in rates if rate > 0)]))
    left.locator_params(axis="x", nbins=4)
    left.set_yticks(places, names)
    left.invert_yaxis()
    _bars(middle, [layer.silent for layer in layers], lambda value: f"{100 * value:.0f} % never", GREY, -0.2)
    _bars(middle, [layer.always_on for layer in layers], lambda value: f"{100 * value:.0f} % always", ORANGE, 0.2)
    middle.set_xlim(0, 1.4)  # room for the words behind a full bar
    middle.set_xticks([0, 0.5, 1])
    _gradients(right, [layer.gradient for layer in layers], vanishing)
    _finish(left, "Firing rate", "spikes a neuron and step", "")
    _finish(middle, "Neurons that never or always spike", "share of the layer", "")
    _finish(right, "Gradient passed down", "relative to the layer above", "")
    figure.suptitle(title, fontsize=11)
    return _save(figure, path)


def _bars(axes: Any, values: list[float], show: Callable[[float], str], colour: str, offset: float = 0.0) -> None:
    """Draw a horizontal bar a layer, labelled with its value; no bar for NaN."""
    known = [0.0 if math.isnan(value) else value for value in values]
    bars = axes.barh([place + offset for place in range(len(values))], known, 0.36 if offset else 0.6, color=colour)
    labels = ["n/a" if math.isnan(value) else show(value) for value in values]
    axes.bar_label(bars, labels, padding=3, fontsize=8, color=colour)


def _gradients(axes: Any, values: list[float], vanishing: float) -> None:
    """Draw a labelled point a layer on a logarithmic axis, and shade where gradients vanish."""
    known = [value for value in values if value > 0]
    lowest = min([vanishing, *known]) / 5
    axes.set_xscale("log")
    axes.set_xlim(lowest, 5 * max([1.0, *known]))
    axes.axvspan(lowest, vanishing, color=ORANGE, alpha=0.12, linewidth=0)
    axes.text(vanishing, 0.02, "vanishing ", color=ORANGE, fontsize=8, ha="right", transform=axes.get_xaxis_transform())
    for place, value in enumerate(values):
        at = max(value, lowest) if value >= 0 else lowest
        axes.plot([at], [place], "o", color=GREEN, markersize=7, clip_on=False, fillstyle="full" if value > 0 else "none")
        label = "n/a" if math.isnan(value) else f"{value:.2g}"
        axes.annotate(label, (at, place), xytext=(7, 0), textcoords="offset points", va="center", color=GREEN, fontsize=8)


def _figure(width: float, height: float = 3.6) -> Figure:
    with installed("matplotlib", "figures"):
        from matplotlib.figure import Figure
    figure = Figure(figsize=(width, height), layout="constrained")
    # A notebook then shows the figure even if pyplot, which registers figures with Jupyter, was never imported.
    figure._repr_png_ = functools.partial(_png, figure)  # type: ignore[attr-defined]
    return figure


def _save(figure: Figure, path: str | FilePath | None) -> Figure:
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _finish(axes: Any, title: str, x_label: str, y_label: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.spines[["top", "right"]].set_visible(False)


def _gap(axes: Any, program: ProgramReport, tol: float) -> None:
    points = [point for point in program.trace if point.relative_gap > 0]
    axes.semilogy([p.seconds for p in points], [p.relative_gap for p in points], "o-", color=BLUE, markersize=4)
    axes.axhline(tol, color=GREY, linestyle="--", linewidth=1)
    axes.annotate("tolerance", (0, tol), xytext=(2, 3), textcoords="offset points", color=GREY, fontsize=8)
    _finish(axes, "Certified duality gap", "seconds of the last solve", "relative gap")


def _strengths(axes: Any, program: ProgramReport) -> None:
    """Draw the held-out loss over the strength, and mark the chosen one."""
    if program.path is None:
        axes.text(0.5, 0.5, f"strength {program.strength:.3g} was given", ha="center", va="center", color=GREY)
        axes.set_xticks([])
        axes.set_yticks([])
        _finish(axes, "Strength path", "", "")
        return
    points = program.path
    axes.semilogx([p.strength for p in points], [p.heldout_loss for p in points], "o-", color=BLUE, markersize=4)
    chosen = next(point for point in points if point.chosen)
    label = f"chosen, {chosen.active} neurons in use"
    axes.plot(
        [chosen.strength], [chosen.heldout_loss], "o", color=ORANGE, markersize=9, fillstyle="none", markeredgewidth=2, label=label
    )
    axes.legend(frameon=False, fontsize=8)
    loss = LOSSES.get(program.loss)
    unit = " (nats)" if loss is not None and loss.has_temperature else ""
    _finish(axes, "Strength path", f"strength of {program.penalty}", f"held-out {program.loss}{unit}")


def _weights(axes: Any, program: ProgramReport) -> None:
    sizes = sorted(program.neuron_sizes, reverse=True)
    axes.fill_between(range(len(sizes)), sizes, step="mid", color=GREEN, alpha=0.35, linewidth=0)
    axes.step(range(len(sizes)), sizes, where="mid", color=GREEN)
    axes.set_ylim(bottom=0)
    _finish(
        axes,
        f"{program.active_neurons} of {program.hidden_neurons} neurons in use",
        "last hidden neurons, sorted",
        "norm of outgoing weights",
    )
