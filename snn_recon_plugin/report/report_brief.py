"""Ten lines of a report, the most useful first."""

from __future__ import annotations

import math

from ..stages.rates import percent
from .report_content import ReportContent
from .report_parts import LayerReport
from .report_table import Row, caution_rows, compared_loss, held_out, row_lines, shown_metrics

__all__ = ["brief_rows", "render_brief"]

_LINES = 10  # of the printed report: it fits on a screen beside the training that follows
_STAGES = 2  # slowest stages that are named
_ROUNDING = 1e-6  # of a number of samples: decisions at every step are no such number


def render_brief(report: ReportContent) -> str:
    """Return the report in ten lines; rows that don't fit are left to ``details()``."""
    *blocks, last = row_lines(brief_rows(report))
    lines: list[str] = []
    for block in blocks:
        if len(lines) + len(block) + len(last) <= _LINES:
            lines += block
    return "\n".join([*lines, *last])


def brief_rows(report: ReportContent) -> list[Row]:
    """Return the rows in order of use; the last one is where to find the others."""
    slowest = sorted(report.seconds.items(), key=lambda stage: -stage[1])[:_STAGES]
    stages = ", ".join(f"{name} {value:.1f}" for name, value in slowest)
    first, *others = _result_rows(report)
    return [
        *([("NOT kept", reason)] if (reason := _not_kept(report)) else []),
        first,
        ("test it", f"with your own function, which should read the {report.readout.decided_by}"),
        *others,
        *caution_rows(report),
        ("exactness", _exactness(report)),
        ("certificate", _certificate(report)),
        *([("written", _written(report))] if report.factor < 1 else []),
        *([("hidden", "; ".join(map(_layer, report.layers)))] if report.layers else []),
        ("seconds", f"{sum(report.seconds.values()):.1f}" + (f" ({stages})" if stages else "")),
        ("more", "print(report.details()); report.undo() restores the old weights"),
    ]


def _not_kept(report: ReportContent) -> str:
    """Return why the network has its earlier weights; empty if it has the written ones."""
    if report.kept_old:
        losses = f"{compared_loss(report)} {report.before.compared:.4g} -> {report.solved.compared:.4g}"
        return f"old weights stay: held-out {losses} (write='always')"
    return "the write was undone: the network has its earlier weights" if report.undone else ""


def _result_rows(report: ReportContent) -> list[Row]:
    """Return results on held-out samples: accuracy, else the metrics of such targets, and loss."""
    metrics, loss = shown_metrics(report), ("held-out loss", f"{report.before.loss:.4g}  ->  {report.after.loss:.4g}")
    if not math.isnan(report.accuracy_written):
        right = report.accuracy_after * report.after.samples
        count = f"{right:.0f} of {report.after.samples}" if abs(right - round(right)) < _ROUNDING else f"{report.after.samples}"
        return [("accuracy", f"{held_out(report)}  ({count} held-out samples; ± is a 95 % interval)"), *metrics, loss]
    if not metrics:
        return [loss]
    (first, value), *others = metrics
    texts = [value, *(f"{name} {text}" for name, text in others)]
    return [(first, f"{'; '.join(texts)}  ({report.after.samples} held-out samples)"), loss]


def _exactness(report: ReportContent) -> str:
    exact = report.exactness
    if exact.label == "exact":
        return "exact: the network's scores are those of the solved program, up to rounding"
    return f"{exact.title}: decides like the linear score for {percent(exact.agreement)} of {exact.samples} samples"


def _certificate(report: ReportContent) -> str:
    certificate = report.certificate
    whose = "" if report.exactness.label == "exact" else " of the linear score"
    verdict = "reached" if certificate.reached else "NOT reached"
    return f"objective{whose} within {certificate.relative_gap:.1e} of the optimum (relative; asked {certificate.tol:g}, {verdict})"


def _written(report: ReportContent) -> str:
    return f"1/{1 / report.factor:.0f} of the solved readout, to train on from; report.write_solved() if you don't"


def _layer(layer: LayerReport) -> str:
    """Return what became of a layer's weights."""
    if layer.witnesses is not None:
        change = f"rebuilt from {layer.witnesses.simulated} candidates"
    elif layer.draw:
        change = f"replaced by draw {layer.draw}"
    else:
        change = "kept" if layer.gain == 1.0 else f"gain {layer.gain:.3g}"
    return f"{layer.name!r} {change}, firing rate {layer.before.firing_rate:.3f} -> {layer.stats.firing_rate:.3f}"
