"""Rows of a report, each a name and a text, and their layout as lines or HTML."""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Sequence

from ..stages.rates import FEW_SAMPLES, percent, rate
from .metrics import METRICS
from .report_content import ReportContent
from .report_parts import Exactness, LayerReport

__all__ = ["Row", "caution_rows", "compared_loss", "held_out", "render", "render_html", "row_lines", "shown_metrics", "text_rows"]

Row = tuple[str, str]  # two empty texts are a rule

_WIDTH = 100  # characters of a line
_LEAST = 40  # of a row's text, beside names of any length
_UNEVEN = 2.0  # ratio of class sizes above which the balanced accuracy is shown
_LOST = 0.03  # accuracy that the network loses against the linear score before a warning
_BELOW = {
    "majorised": "{:.0f} points below the linear score: the mean over time loses less than the maximum, return mem.mean(0)",
    "surrogate": "{:.0f} points below the linear score: membranes of an output neuron without a reset lose nothing",
}
_TRAINED = 0.75  # held-out accuracy before a start from which the net may well have been trained before
_NOTE = "if the net was trained before on these samples, its accuracy before is too high to compare; your test decides"
_TRIED = "all rows are of the weights that were tried"
_KEPT = (
    "the network has its old weights, since the held-out {} would not fall: {:.4g} -> {:.4g} at the best scales "
    "on the same {} samples"
)
_UNDONE = "the write was undone, and the network went back to its earlier weights"


def held_out(report: ReportContent) -> str:
    """Return the held-out accuracy before and after, with 95 % intervals."""
    return f"{rate(report.accuracy_before, report.before.samples)}  ->  {rate(report.accuracy_after, report.after.samples)}"


def shown_metrics(report: ReportContent) -> list[Row]:
    """Return metrics before and after; the balanced accuracy only if the classes are uneven."""
    rows = []
    for name, value in report.after.metrics.items():
        metric, before = METRICS[name], report.before.metrics.get(name, math.nan)
        shown = f"{metric.show(before, report.before.samples)}  ->  {metric.show(value, report.after.samples)}"
        if name != "balanced_accuracy":
            rows.append((metric.title, shown))
        elif report.imbalance > _UNEVEN:
            rows.append((metric.title, f"{shown}   (the largest class is {report.imbalance:.1f} times the smallest)"))
    return rows


def caution_rows(report: ReportContent) -> list[Row]:
    """Return the reasons for which the figures may mislead."""
    below = 0.0 if report.exactness.label == "exact" else report.after.linear_accuracy - report.accuracy_after
    few = f"only {report.after.samples} held-out samples, fewer than {FEW_SAMPLES}: pass more samples, or a larger holdout="
    return [
        *([("warning", few)] if report.after.samples < FEW_SAMPLES else []),
        *([("warning", _BELOW[report.exactness.label].format(100 * below))] if below > _LOST else []),
        *[("warning", str(other)) for other in report.readout.others if other.notable and not report.readout.named],
        *[("hint", str(hint)) for hint in report.hints],
        *([("note", _NOTE)] if report.accuracy_before >= _TRAINED else []),
    ]


def text_rows(report: ReportContent) -> list[Row]:
    """Return all rows."""
    exact, certificate, program = report.exactness, report.certificate, report.program
    shortest = f"{report.least_steps} to " if report.least_steps else ""
    linear = "" if exact.label == "exact" else f"   (the linear score: {rate(report.after.linear_accuracy, report.after.samples)})"
    values = math.isnan(report.accuracy_written)  # regression: nothing is decided
    counts = f"{report.before.samples} before, {report.after.samples} after"
    reason = f" ({program.solver_reason})" if program.solver_reason else ""
    written = f"{percent(report.accuracy_written)} on {exact.samples} samples it was fitted on"
    rows = [
        *([("NOT kept", reason)] if (reason := explain_not_kept(report)) else []),
        *([] if values else [("held-out accuracy", held_out(report) + linear)]),
        *shown_metrics(report),
        ("held-out loss", f"{report.before.loss:.4g}  ->  {report.after.loss:.4g}"),
        ("held-out samples", counts if values else f"{counts}; ± are 95 % intervals"),
        *([] if values else [("written network", written)]),
        *caution_rows(report),
        ("", ""),
        ("network", f"{report.network}, {shortest}{report.num_steps} steps"),
        ("readout", f"{report.readout.name!r} as {report.readout.kind}"),
        ("values by" if values else "classes by", report.readout.decided_by),
        *_exactness_rows(exact, report.factor),
        *([("written", _written_row(report))] if report.factor < 1 else []),
        ("", ""),
        ("training loss", report.loss),
        ("program", f"{program.loss} + {program.strength:.3g} * {program.penalty}, {program.samples} samples"),
        ("objective", f"{certificate.primal:.6f}, at least {certificate.dual:.6f} for any weights"),
        (
            "duality gap",
            f"{certificate.gap:.1e}, relative {certificate.relative_gap:.1e} (asked {certificate.tol:g}, "
            f"{'reached' if certificate.reached else 'NOT reached'})",
        ),
        *([] if exact.label == "exact" else [("certified", "the linear score, before scale, shift and refinement")]),
        ("solver", f"{program.solver}{reason}: {program.outcome}"),
        ("active neurons", f"{program.active_neurons} of {program.hidden_neurons}"),
        ("", ""),
    ]
    rows += [(f"layer {layer.name!r}", _layer_row(layer)) for layer in report.layers]
    rows += [("", "")] if report.layers else []
    rows.append(("seconds", ", ".join(f"{name} {value:.1f}" for name, value in report.seconds.items())))
    return rows


def render(rows: Sequence[Row]) -> str:
    """Return rows as a table with rules."""
    blocks = row_lines(rows)
    rule = "-" * max(len(line) for block in blocks for line in block)
    return "\n".join([rule, *(line for block in blocks for line in block or [rule]), rule])


def row_lines(rows: Sequence[Row]) -> list[list[str]]:
    """Return the lines of each row, its text wrapped beside the longest name; none for a rule."""
    width = max(len(name) for name, _ in rows)
    found = []
    for name, text in rows:
        parts = textwrap.wrap(text, max(_LEAST, _WIDTH - width - 2), break_long_words=False, break_on_hyphens=False)
        found.append([f"{name if number == 0 else '':<{width}}  {part}" for number, part in enumerate(parts)])
    return found


def render_html(rows: Sequence[Row]) -> str:
    """Return rows as an HTML table, without colours, which suits light and dark pages."""
    style = 'style="text-align: left; vertical-align: top"'
    cells = [f"<tr><th {style}>{html.escape(name)}</th><td {style}>{html.escape(text)}</td></tr>" for name, text in rows if name]
    return f"<table>{''.join(cells)}</table>"


def compared_loss(report: ReportContent) -> str:
    """Return the loss by which old and new weights are compared, in words."""
    return f"{report.compared_by.replace('_', '-')}, not the training loss," if report.compared_by else "loss"


def explain_not_kept(report: ReportContent) -> str:
    """Return why the network has its old weights; empty if it has the written ones."""
    if report.kept_old:
        found = _KEPT.format(compared_loss(report), report.before.compared, report.solved.compared, report.before.samples)
        return f'{found}; {_TRIED}; pass write="always" to write them in any case'
    return f"{_UNDONE}; {_TRIED}" if report.undone else ""


def _exactness_rows(exact: Exactness, factor: float) -> list[tuple[str, str]]:
    """Return the rows on exactness and scaling."""
    if exact.label == "exact":
        text = f"exact: scores differ by at most {exact.max_difference:.1e} (largest score {exact.scale:.3g})"
        scale = exact.weight_scale / factor
        scaled = f"scale {scale:.3g}, fitted on held-out samples"
        return [("exactness", text), *([("scores", scaled)] if scale != 1.0 else [])]
    refined = ", then refined on the true objective" if exact.refined else ""
    return [
        (
            "exactness",
            f"{exact.title}: decides like the linear score for {percent(exact.agreement)} of {exact.samples} samples",
        ),
        ("written as", f"the solution times {exact.weight_scale:.3g}, every bias shifted by {exact.bias_shift:.3g}{refined}"),
    ]


def _written_row(report: ReportContent) -> str:
    solved, count = report.solved, report.after.samples
    found = f"{rate(solved.accuracy, count)}, loss {solved.loss:.4g} on {count} samples"
    return f"1/{1 / report.factor:.0f} of the solved readout, to train on from; the solved one: {found}"


def _layer_row(layer: LayerReport) -> str:
    before, after = layer.before, layer.stats
    rates = f"firing rate {before.firing_rate:.3f} -> {after.firing_rate:.3f}"
    dead = f"{percent(before.silent)} -> {percent(after.silent)} dead"
    on = f", {percent(after.always_on)} always on" if after.always_on else ""
    return f"{layer.neuron}, {_change(layer)}, {rates}, {dead}{on}"


def _change(layer: LayerReport) -> str:
    """Return the change of a layer's weights."""
    if layer.witnesses is not None:
        found = layer.witnesses
        own = f", {found.width - found.selected} rows kept" if found.selected < found.width else ""
        leaks = f" with leaks from {min(found.leaks):.2g} to {max(found.leaks):.2g}" if found.leaks else ""
        note = f" ({found.note})" if found.note else ""
        kinds = ", ".join(f"{number} {kind}" for kind, number in found.kinds.items())
        return f"{found.selected} selected from {found.simulated} candidates ({kinds}){leaks}{own}{note}"
    if layer.draw:
        return layer.reason
    if layer.gain != 1.0:
        return f"gain {layer.gain:.3g}" + (f" ({layer.reason})" if layer.reason else "")
    return f"kept ({layer.reason})" if layer.reason else "kept"
