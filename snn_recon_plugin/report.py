"""What an initialisation did, measured: printed as a table, as plain values, as a figure, and undone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from .alternatives import OtherReadout
from .convex import Certificate, Path, TracePoint
from .networks import LayerStats, Transaction
from .witnesses import LayerWitnesses

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Exactness", "LayerReport", "Report"]


@dataclass(frozen=True)
class Exactness:
    """How the written network's own scores compare with the program's linear score of the same weight and bias.

    Args:
        label: "exact" where they agree; "majorised" where the network takes the maximum over time of scores that are linear;
            "surrogate" where the linear score stands in for what a spiking or resetting output neuron does.
        max_difference: largest absolute difference of a score, measured on the written network.  Of spikes, a count or rate is
            compared with a membrane.
        scale: largest absolute linear score, for comparison.
        tolerance: difference up to which scores are the same but for rounding.
        samples: on how many samples it was measured.
        agreement: share of them that both decide alike, 0 to 1; NaN for regression.
        linear_accuracy: accuracy of the linear score on them, to compare with ``Report.accuracy_written``.
        weight_scale: factor by which the program's weight and bias were written; 1 where scores are exact and the loss that was
            solved is the one that you train with.
        bias_shift: what was then added to every bias.
        refined: whether a maximum over time was lowered further on its true objective, beyond the program's solution.
    """

    label: str
    max_difference: float
    scale: float
    tolerance: float
    samples: int
    agreement: float
    linear_accuracy: float
    weight_scale: float = 1.0
    bias_shift: float = 0.0
    refined: bool = False


@dataclass(frozen=True)
class LayerReport:
    """One hidden layer.

    Args:
        name: the synapse's name in the net.
        neuron: the neuron's class.
        gain: factor that its weight and bias were written with; 1 where they were kept.
        before: how it fired in the net as it was, on the first samples; a layer above one that was changed as it fired then.
        stats: how it fires in the written net, on all samples.
        reason: why its own weights were kept, where a rescaling was asked for, or how a draw of the whole layer was better.
        witnesses: how its rows were selected, where it was rebuilt; else None.
        draw: which draw of the whole layer replaced its weights, from 1, as for recurrent layers; 0 for none.
    """

    name: str
    neuron: str
    gain: float
    before: LayerStats
    stats: LayerStats
    reason: str = ""
    witnesses: LayerWitnesses | None = None
    draw: int = 0


@dataclass(frozen=True, eq=False, repr=False)
class Report:
    """The outcome of ``ConvexInitializer.initialize``.

    Accuracies and losses "held out" are of samples that took no part in the fit: for "after", of the readout fitted without
    them at the chosen strength.  Where that is not exact, each half of them is judged with the scale and shift that the other half
    chose.  The readout that is written was fitted afterwards on all samples.

    Args:
        network: the net's class, and its library.
        readout: name of the readout layer.
        readout_kind: how membranes become scores, e.g. "membrane_mean".
        decided_by: the returned value that decides, and how, e.g. "spike count of output[0]".
        others: the same of the other items of the output that could decide.
        exactness: measured on the written network.
        loss: name of the loss that you train with.
        fit_loss: name of the loss that was solved, of which objective and certificate are.
        penalty: name of the penalty.
        strength: the penalty's factor.
        solver: which solver found the weights.
        outcome: why it stopped, as a sentence.
        certificate: of exactly the readout that is written (rounded to the network's precision), on all samples.  Where it is not
            exact, of the linear score's program: with scale and shift taken back, and before a refinement.
        accuracy_before: of the network as it was, on held-out samples, 0 to 1; NaN for regression.
        accuracy_after: on held-out samples, by the network's own scores.
        linear_accuracy: on the same samples, by the program's linear score.
        accuracy_written: of the written network itself, on stored samples of the data it was fitted on; where forward draws
            random numbers, such as spikes from rates, the mean over draws that it was not fitted on.  Where samples are spread
            over processes, this, exactness and how layers fire are of the process's own.
        loss_before: mean held-out loss of the network as it was, weighted by class where the loss is.  Where batches differ in
            time steps, targets that grow with the steps are those of the first batch.
        loss_after: mean held-out loss after, in the same way.
        samples: samples fitted in the end.
        heldout: samples held out for the choice.
        heldout_before: of them, how many the network was run on before.
        num_steps: time steps of a forward pass, of the longest batch where these differ.
        active_neurons: last hidden neurons with a non-zero outgoing weight.
        hidden_neurons: last hidden neurons.
        layers: hidden layers in order of execution, and how they fire: of many samples, the first 10,000.
        path: the strength path, or None where a strength was given.
        trace: certified points of the last solve.
        neuron_sizes: size of each last hidden neuron's outgoing weights.
        seconds: wall-clock of each stage.
        seed: of the split and of everything random.
        least_steps: time steps of the shortest batch; 0 where all have the same.

    Example:
        >>> from snn_recon_plugin import convex_init_
        >>> from snn_recon_plugin.demo import build_network, load_digits_data
        >>> data, net = load_digits_data(), build_network(inputs=64, hidden=32, outputs=10, steps=8)
        >>> loader = [(data.train_inputs, data.train_labels)]
        >>> before = net.fc2.weight.detach().clone()
        >>> report = convex_init_(net, loader, progress=False)
        >>> report.exactness.label, report.readout_kind
        ('exact', 'membrane_mean')
        >>> report.undo()
        >>> bool((net.fc2.weight == before).all())
        True
    """

    network: str
    readout: str
    readout_kind: str
    decided_by: str
    others: tuple[OtherReadout, ...]
    exactness: Exactness
    loss: str
    fit_loss: str
    penalty: str
    strength: float
    solver: str
    outcome: str
    certificate: Certificate
    accuracy_before: float
    accuracy_after: float
    linear_accuracy: float
    accuracy_written: float
    loss_before: float
    loss_after: float
    samples: int
    heldout: int
    heldout_before: int
    num_steps: int
    active_neurons: int
    hidden_neurons: int
    layers: tuple[LayerReport, ...]
    path: Path | None
    trace: tuple[TracePoint, ...]
    neuron_sizes: tuple[float, ...]
    seconds: dict[str, float]
    seed: int
    _transaction: Transaction
    least_steps: int = 0

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The Parameter objects that were written, e.g. to clear what an optimizer remembers of them; none after ``undo``."""
        return [parameter for parameter, _ in self.replaced]

    @property
    def replaced(self) -> list[tuple[nn.Parameter, Tensor]]:
        """The same, each with what it held before."""
        return self._transaction.replaced

    def undo(self) -> None:
        """Puts every written parameter back bit for bit; once.

        Raises:
            WriteError: it was undone before; or a written parameter is not its module's any more, as after pruning.  Nothing is
                undone then.
        """
        self._transaction.undo()

    def plot(self, path: str | FilePath | None = None) -> Figure:
        """Draws the gap over time, the strength path and the weights per neuron.

        Args:
            path: where to save the figure too, e.g. "report.png".

        Raises:
            OptionError: matplotlib is not installed.
        """
        from .plots import plot_report

        return plot_report(self, path)

    def plot_layers(self, path: str | FilePath | None = None) -> Figure:
        """Draws how each hidden layer fires before and after: its rate, and the neurons that never spike or always do.

        Args:
            path: where to save the figure too, e.g. "layers.png".

        Raises:
            OptionError: matplotlib is not installed, or there is no hidden layer.
        """
        from .plots import plot_layers

        return plot_layers(self, path)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the undo as plain values that ``json.dumps`` takes (NaN becomes None)."""
        result: dict[str, Any] = {}
        for name in self.__dataclass_fields__:
            if not name.startswith("_"):
                result[name] = _plain(getattr(self, name))
        if self.path is not None:
            result["path"] = [
                {
                    "strength": point.strength,
                    "heldout_loss": _plain(point.heldout_loss),
                    "heldout_error": _plain(point.heldout_error),
                    "heldout_accuracy": _plain(point.heldout_accuracy),
                    "relative_gap": point.solution.certificate.relative_gap,
                    "active": point.active,
                    "chosen": point is self.path.chosen,
                }
                for point in self.path.points
            ]
        return result

    def __str__(self) -> str:
        return _table(self)

    def __repr__(self) -> str:
        accuracy = f"{_percent(self.accuracy_before)} -> {_percent(self.accuracy_after)}"
        return f"<Report of {self.network}: held-out accuracy {accuracy}, {self.certificate}>"


def _plain(value: Any) -> Any:
    """Dataclasses, tuples and NaN as what json knows."""
    if hasattr(value, "__dataclass_fields__"):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _percent(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{100 * value:.1f} %"


def _table(report: Report) -> str:
    """The report as rows of name and value, sections divided by rules."""
    exact, certificate = report.exactness, report.certificate
    shortest = f"{report.least_steps} to " if report.least_steps else ""
    rows = [
        ("network", f"{report.network}, {shortest}{report.num_steps} steps"),
        ("readout", f"{report.readout!r} as {report.readout_kind}"),
        ("values by" if math.isnan(report.accuracy_written) else "classes by", report.decided_by),
        *[("warning", str(other)) for other in report.others if other.notable],
        *_exactness_rows(exact),
        ("", ""),
        ("held-out accuracy", f"{_percent(report.accuracy_before)}  ->  {_percent(report.accuracy_after)}{_beside(report)}"),
        ("held-out loss", f"{report.loss_before:.4g}  ->  {report.loss_after:.4g}"),
        ("held-out samples", f"{report.heldout_before} before, {report.heldout} after"),
        ("written network", f"{_percent(report.accuracy_written)} on {exact.samples} samples it was fitted on"),
        ("", ""),
        ("program", f"{report.fit_loss} + {report.strength:.3g} * {report.penalty}, {report.samples} samples"),
        ("objective", f"{certificate.primal:.6f}, at least {certificate.dual:.6f} for any weights"),
        (
            "duality gap",
            f"{certificate.gap:.1e}, relative {certificate.relative_gap:.1e} (asked {certificate.tol:g}, "
            f"{'reached' if certificate.reached else 'NOT reached'})",
        ),
        *([] if exact.label == "exact" else [("certified", "the linear score, before scale, shift and refinement")]),
        ("solver", f"{report.solver}: {report.outcome}"),
        ("active neurons", f"{report.active_neurons} of {report.hidden_neurons}"),
        ("", ""),
    ]
    rows += [(f"layer {layer.name!r}", _layer_row(layer)) for layer in report.layers]
    rows += [("", "")] if report.layers else []
    rows.append(("seconds", ", ".join(f"{name} {value:.1f}" for name, value in report.seconds.items())))
    width = max(len(name) for name, _ in rows)
    length = max(width + 2 + len(text) for _, text in rows)
    rule = "-" * length
    lines = [rule if not name else f"{name:<{width}}  {text}" for name, text in rows]
    return "\n".join([rule, *lines, rule])


def _exactness_rows(exact: Exactness) -> list[tuple[str, str]]:
    """How near the network's scores are to the program's, and what was done to bring them there."""
    if exact.label == "exact":
        text = f"exact: scores differ by at most {exact.max_difference:.1e} (largest score {exact.scale:.3g})"
        scaled = f"{exact.weight_scale:.3g} times the solution, as held-out samples have it"
        return [("exactness", text), *([("written as", scaled)] if exact.weight_scale != 1.0 else [])]
    refined = ", then refined on the true objective" if exact.refined else ""
    return [
        ("exactness", f"{exact.label}: decides as the linear score for {_percent(exact.agreement)} of {exact.samples} samples"),
        ("written as", f"{exact.weight_scale:.3g} times the solution, every bias shifted by {exact.bias_shift:.3g}{refined}"),
    ]


def _beside(report: Report) -> str:
    """The linear score's accuracy beside that of a network that only follows it."""
    return "" if report.exactness.label == "exact" else f"   (the linear score: {_percent(report.linear_accuracy)})"


def _layer_row(layer: LayerReport) -> str:
    before, after = layer.before, layer.stats
    rates = f"firing rate {before.firing_rate:.3f} -> {after.firing_rate:.3f}"
    dead = f"{_percent(before.silent)} -> {_percent(after.silent)} dead"
    on = f", {_percent(after.always_on)} always on" if after.always_on else ""
    return f"{layer.neuron}, {_change(layer)}, {rates}, {dead}{on}"


def _change(layer: LayerReport) -> str:
    """What was done to a layer's weights."""
    if layer.witnesses is not None:
        found = layer.witnesses
        fresh = f", {found.violating} of {found.priced} fresh ones would improve it" if found.priced else ""
        own = f", {found.width - found.selected} rows kept" if found.selected < found.width else ""
        return f"{found.selected} selected from {found.simulated} candidates{own}{fresh}"
    if layer.draw:
        return layer.reason
    if layer.gain != 1.0:
        return f"gain {layer.gain:.3g}" + (f" ({layer.reason})" if layer.reason else "")
    return f"kept ({layer.reason})" if layer.reason else "kept"
