"""Text of a report: rows of name and value, sections divided by rules."""

from __future__ import annotations

import math
import textwrap

from .stages.criterion import OwnLoss
from .stages.report_content import ReportContent
from .stages.report_parts import Exactness, LayerReport

__all__ = ["percent", "render"]

_WIDTH = 100  # characters of a line
_LEAST = 40  # of a row's text, beside names of any length
_TRAINED = 0.75  # held-out accuracy before a start from which the net may well have been trained before
_NOTE = "if the net was trained before on these samples, its accuracy before is too high to compare; your test decides"
_UNDONE = "the write was undone, and the network went back to its earlier weights; all rows are of the weights that were tried"


def percent(value: float) -> str:
    """Return a share as a percentage, "n/a" for NaN."""
    return "n/a" if math.isnan(value) else f"{100 * value:.1f} %"


def render(report: ReportContent) -> str:
    """Return the report as a table."""
    exact, certificate = report.exactness, report.certificate
    shortest = f"{report.least_steps} to " if report.least_steps else ""
    linear = "" if exact.label == "exact" else f"   (the linear score: {percent(report.linear_accuracy)})"
    values = math.isnan(report.accuracy_written)  # regression: nothing is decided
    held_out = f"{percent(report.accuracy_before)}  ->  {percent(report.accuracy_after)}{linear}"
    written = f"{percent(report.accuracy_written)} on {exact.samples} samples it was fitted on"
    rows = [
        *([("NOT kept", _UNDONE)] if report.undone else []),
        *([] if values else [("held-out accuracy", held_out)]),
        ("held-out loss", f"{report.loss_before:.4g}  ->  {report.loss_after:.4g}"),
        ("held-out samples", f"{report.heldout_before} before, {report.heldout} after"),
        *([] if values else [("written network", written)]),
        *([("note", _NOTE)] if report.accuracy_before >= _TRAINED else []),
        ("", ""),
        ("network", f"{report.network}, {shortest}{report.num_steps} steps"),
        ("readout", f"{report.readout!r} as {report.readout_kind}"),
        ("values by" if values else "classes by", report.decided_by),
        *[("warning", str(other)) for other in report.others if other.notable and not report.sample.options.names_readout],
        *_exactness_rows(exact, report.factor),
        *([("written", _written_row(report))] if report.factor < 1 else []),
        ("", ""),
        *([("training loss", report.loss)] if isinstance(report.sample.options.loss, OwnLoss) else []),
        ("program", f"{report.fit_loss} + {report.strength:.3g} * {report.penalty}, {report.samples} samples"),
        ("objective", f"{certificate.primal:.6f}, at least {certificate.dual:.6f} for any weights"),
        (
            "duality gap",
            f"{certificate.gap:.1e}, relative {certificate.relative_gap:.1e} (asked {certificate.tol:g}, "
            f"{'reached' if certificate.reached else 'NOT reached'})",
        ),
        *([] if exact.label == "exact" else [("certified", "the linear score, before scale, shift and refinement")]),
        ("solver", f"{report.solver}{f' ({report.solver_reason})' if report.solver_reason else ''}: {report.outcome}"),
        ("active neurons", f"{report.active_neurons} of {report.hidden_neurons}"),
        ("", ""),
    ]
    rows += [(f"layer {layer.name!r}", _layer_row(layer)) for layer in report.layers]
    rows += [("", "")] if report.layers else []
    rows.append(("seconds", ", ".join(f"{name} {value:.1f}" for name, value in report.seconds.items())))
    width = max(len(name) for name, _ in rows)
    blocks = [_lines(name, text, width) for name, text in rows]
    rule = "-" * max(len(line) for block in blocks for line in block)
    return "\n".join([rule, *(line for block in blocks for line in block or [rule]), rule])


def _lines(name: str, text: str, width: int) -> list[str]:
    """Return the lines of a row, wrapped beside a name of so many characters; none for a rule."""
    parts = textwrap.wrap(text, max(_LEAST, _WIDTH - width - 2), break_long_words=False, break_on_hyphens=False)
    return [f"{name if number == 0 else '':<{width}}  {part}" for number, part in enumerate(parts)]


def _exactness_rows(exact: Exactness, factor: float) -> list[tuple[str, str]]:
    """Return the rows on exactness and scaling."""
    if exact.label == "exact":
        text = f"exact: scores differ by at most {exact.max_difference:.1e} (largest score {exact.scale:.3g})"
        temperature = exact.weight_scale / factor
        scaled = f"temperature {temperature:.3g}, fitted on held-out samples"
        return [("exactness", text), *([("scores", scaled)] if temperature != 1.0 else [])]
    refined = ", then refined on the true objective" if exact.refined else ""
    return [
        (
            "exactness",
            f"{exact.label}: decides like the linear score for {percent(exact.agreement)} of {exact.samples} samples",
        ),
        ("written as", f"the solution times {exact.weight_scale:.3g}, every bias shifted by {exact.bias_shift:.3g}{refined}"),
    ]


def _written_row(report: ReportContent) -> str:
    solved = f"{percent(report.solved_accuracy)}, loss {report.solved_loss:.4g}"
    return f"1/{1 / report.factor:.0f} of the solved readout, which training improves better; the solved one: {solved} held out"


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
