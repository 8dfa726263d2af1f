"""Report of an initialisation: its values, the table of them, and what a training that follows needs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn

from ..convex import Certificate
from ..errors import OptionError, missing_attribute
from ..options import check_names
from ..stages.scores import HeldOut
from ..text_table import FEW_SAMPLES, beside_names, html_table, percent, rate, ruled
from ..training.guard import Guard
from .figures import plot_layers, plot_report
from .hints import Hint
from .rows import BRIEF, DETAILS, METRICS, Exactness, LayerReport, Live, ProgramReport, ReadoutReport, Row, plain_value

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LINES = 10  # of the printed report: it fits on a screen beside the training that follows
_STAGES = 2  # slowest stages that are named
_ROUNDING = 1e-6  # of a number of samples: decisions at every step are no such number
_UNEVEN = 2.0  # ratio of class sizes above which the balanced accuracy is shown
_LOST = 0.03  # accuracy that the network loses against the linear score before a warning
_BELOW = {
    "majorised": "{:.0f} points below the linear score: the mean over time loses less than the maximum, return mem.mean(0)",
    "surrogate": "{:.0f} points below the linear score: membranes of an output neuron without a reset lose nothing",
}
_SEEN = "accuracies are of samples that the net was trained on, and too high: pass val_loader= over other samples"


@dataclass(frozen=True, eq=False, repr=False)
class Report:
    """Result of ``ConvexInitializer.initialize``.

    Held-out samples took no part in the fit.  Results "after" are of a readout fitted without them at the chosen strength.  If it
    is not exact, each half of them is judged with scale and shift chosen on the other half.  The written readout was then fitted
    on all samples.

    Example:
        >>> from snn_recon_plugin import convex_init_
        >>> from snn_recon_plugin.demo import build_network, load_digits_data
        >>> data, net = load_digits_data(), build_network(inputs=64, hidden=32, outputs=10, steps=8)
        >>> loader = [(data.train_inputs, data.train_labels)]
        >>> before = net.fc2.weight.detach().clone()
        >>> report = convex_init_(net, loader, progress=False)
        >>> report.exactness.label, report.readout.kind, report.program.hidden_neurons
        ('exact', 'membrane_mean', 32)
        >>> report.undo()
        >>> bool((net.fc2.weight == before).all())
        True
    """

    network: str
    """Class of the network, and its library."""
    readout: ReadoutReport
    """Readout layer, and the values that decide."""
    loss: str
    """Name of the training loss."""
    before: HeldOut
    """Results of the network as it was, on the held-out samples that it was run on; NaN without any."""
    after: HeldOut
    """Results on held-out samples, by the network's own scores."""
    solved: HeldOut
    """The same of the solved readout, if ``factor`` is below 1."""
    accuracy_written: float
    """Accuracy of the written network, on samples it was fitted on.  If forward draws random numbers, such as spikes from rates,
    the mean over draws that it was not fitted on."""
    kept_old: bool
    """True if ``solved.compared`` is not below ``before.compared``.  With ``write="if_better"`` nothing is written then, and all
    results "after" are of weights that were tried."""
    judged_on: str
    """"validation samples", of which none has chosen what it judges, or "held-out samples" of the loader."""
    fit_val: bool
    """True if the readout was solved on the validation samples too, after they had judged it."""
    trained_on: bool
    """True if the samples that judge are ones that the network was plainly trained on before: all accuracies are too high."""
    compared_by: str
    """"cross_entropy" if the losses compared are not the training loss: for class indices with a loss of margins or values.  Empty
    otherwise."""
    exactness: Exactness
    """Agreement with the linear score, measured on the written network."""
    factor: float
    """Size of the written readout, relative to the solved one: 1, 1/2 or 1/4.  A smaller readout decides alike, and training goes
    on from it better.  ``write_solved()`` writes the solved one."""
    program: ProgramReport
    """Convex program that was solved."""
    certificate: Certificate
    """Certificate of the written readout, rounded to the network's precision, on all samples.  If it is not exact, of the linear
    score: with scale and shift taken back, and before a refinement."""
    layers: tuple[LayerReport, ...]
    """Hidden layers in order of execution; their firing on the first 10,000 samples."""
    hints: tuple[Hint, ...]
    """Options and changes of the data that often help on networks and data like these."""
    num_steps: int
    """Time steps of a forward pass, of the longest batch if they differ."""
    least_steps: int
    """Time steps of the shortest batch; 0 if all have the same."""
    imbalance: float
    """Samples of the largest class, relative to those of the smallest that occurs; NaN without classes."""
    seconds: dict[str, float]
    """Wall-clock seconds of each stage: "inspect", "rescale" or "reconstruct", "capture", "solve", "calibrate", and "write and
    verify"."""
    seed: int
    """Seed of the split and of everything random."""
    _live: Live | None = None  # None if the values alone came back from a pickle
    _undone: bool = False  # of such values

    @property
    def accuracy_before(self) -> float:
        """Accuracy of the network as it was, on held-out samples, 0 to 1; NaN for regression."""
        return self.before.accuracy

    @property
    def accuracy_after(self) -> float:
        """Accuracy on held-out samples, by the network's own scores."""
        return self.after.accuracy

    # -- the network of the call -----------------------------------------------------------------------------------------

    @property
    def live(self) -> Live:
        """Write, network, options and first samples of the call.

        Raises:
            OptionError: the report came back from a pickle.
        """
        if self._live is None:
            found = "a report from a pickle, which has its values alone"
            fix = "call convex_init_(net, loader) again; undo before you save a report, and save weights by net.state_dict()"
            raise OptionError(found, "the report of a call in this process, for the network, its old weights and its data", fix)
        return self._live

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Written Parameter objects, e.g. to clear their optimizer state; none after ``undo``, or if nothing was written."""
        return self.live.parameters

    @property
    def replaced(self) -> list[tuple[nn.Parameter, Tensor]]:
        """Written Parameter objects, each with its value before."""
        return self.live.transaction.replaced

    @property
    def solved_weights(self) -> dict[str, Tensor]:
        """Solved readout by parameter names of the network; the written one is smaller if ``factor`` is below 1."""
        layer = self.readout.name
        return {f"{layer}.{name}" if layer else name: value.clone() for name, value in self.live.solved.items()}

    def write_solved(self) -> None:
        """Write the solved readout in place of the smaller one, for a network that is not trained on.

        Probabilities are then as well calibrated as temperature scaling makes them.  ``undo`` still restores the old weights.

        Raises:
            WriteError: the report was undone, nothing was written, or a module has replaced a written parameter.
        """
        self.live.write(self.live.solved)

    def write_smaller(self) -> None:
        """Write the readout that the call wrote again, from which training goes on better; errors as ``write_solved``."""
        self.live.write(self.live.smaller)

    @property
    def undone(self) -> bool:
        """Return whether the old weights were brought back, as the callback does if a solve is not kept."""
        return self._undone if self._live is None else self._live.transaction.undone

    def undo(self) -> None:
        """Restore every written parameter bit for bit; a second call does nothing.

        Reports of later calls that wrote the same parameters are undone too.

        Raises:
            OptionError: the report came back from a pickle.
            WriteError: it was forgotten, or a module has replaced a written parameter, as pruning does; nothing changes then.
        """
        self.live.transaction.undo()

    def forget(self) -> None:
        """Drop the values from before: nothing can be undone after that."""
        self.live.transaction.forget()

    def protect(
        self,
        optimizer: torch.optim.Optimizer,
        validation: Iterable[Any] | None = None,
        *,
        damping: float | None = None,
        fast: bool = False,
        **unknown: NoReturn,
    ) -> Guard:
        """Watch over a plain training loop, and choose what is evaluated; in Lightning the callback does the same.

        The solved readout is evaluated, and training goes on from the smaller one that the call wrote.
        The loss on the first 64 samples is measured after 1, 2, 4, ... 256 steps.  If nearly all that was solved is lost,
        all parameters go back to the weights of the measurement before.  Each update is then scaled down; learning rate and
        scheduler stay.

        Args:
            optimizer: over the network's parameters.  Its state for written parameters is cleared.
            validation: (input, target) batches on which weights are compared: now, at ``evaluated()`` and at ``close()``; default
                the first 256 samples, which were fitted.
            damping: factor of the gradient that passes through recurrent weights to earlier spikes, above 0 to 1.  Scores do not
                change.  None (default) measures how much gradients grow, and takes 1, 1/2 or 1/4.
            fast: take faster steps until the guard is closed, see ``fast_steps``; default False.
            **unknown: none; other names are refused, with the closest argument.

        Returns:
            The guard.  Within ``guard.evaluated()`` the network has the best of the written and the trained weights, for a test.
            ``guard.close()``, or the end of a ``with`` block around training, leaves them there.  After an error, or without
            ``close()``, the trained weights stay.

        Raises:
            OptionError: a report that was undone or comes from a refit, an optimizer without the written parameters, or an unknown
                argument.
            DataError: validation batches that can be read only once.
        """
        check_names(unknown, ("optimizer", "validation", "damping", "fast"), "protect")
        return Guard(self.live, optimizer, validation, damping, fast)

    if not TYPE_CHECKING:  # with this method type checkers would accept every name

        def __getattr__(self, name: str) -> Any:
            raise missing_attribute("report", name)

    # -- values ----------------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the old weights as plain values for ``json.dumps``; NaN becomes None."""
        return {**plain_value(self), "undone": self.undone}

    def to_json(self) -> str:
        """Return ``to_dict()`` as json text."""
        return json.dumps(self.to_dict(), allow_nan=False)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a pickle holds: the values alone."""
        return {**vars(self), "_live": None, "_undone": self.undone}

    # -- figures and tables ----------------------------------------------------------------------------------------------

    def plot(self, path: str | FilePath | None = None) -> Figure:
        """Draw the gap over time, the strength path and the weights per neuron.

        Args:
            path: file to save the figure to, e.g. "report.png".

        Returns:
            matplotlib's figure.

        Raises:
            OptionError: matplotlib is not installed.
        """
        results = (self.accuracy_before, self.before.samples), (self.accuracy_after, self.after.samples)
        known = [rate(*result) for result in results if not math.isnan(result[0])]
        shown = "" if math.isnan(self.accuracy_after) else f": held-out accuracy {' -> '.join(known)}"
        return plot_report(self.program, self.certificate, self.network + shown, path)

    def plot_layers(self, path: str | FilePath | None = None) -> Figure:
        """Draw the firing of each hidden layer before and after: rate, and neurons that never or always spike.

        Args:
            path: file to save the figure to, e.g. "layers.png".

        Returns:
            matplotlib's figure.

        Raises:
            OptionError: matplotlib is not installed, or there is no hidden layer.
        """
        return plot_layers(self.layers, path)

    def details(self) -> str:
        """Return all that is known as a table; ``print(report)`` shows ten lines of it."""
        blocks = self._blocks(DETAILS)
        lines = iter(beside_names([row[:2] for block in blocks for row in block]))
        return ruled(*([line for _ in block for line in next(lines)] for block in blocks))

    def __str__(self) -> str:
        *rows, last = beside_names([row[:2] for block in self._blocks(BRIEF) for row in block])
        lines: list[str] = []
        for row in rows:  # those that don't fit are left to the details
            if len(lines) + len(row) + len(last) <= _LINES:
                lines += row
        return "\n".join([*lines, *last])

    def _repr_html_(self) -> str:
        """Return the ten lines and, to be opened, the details as tables for a notebook."""
        brief, details = (html_table([row[:2] for block in self._blocks(which) for row in block]) for which in (BRIEF, DETAILS))
        return f"<div>{brief}<details><summary>details</summary>{details}</details></div>"

    def __repr__(self) -> str:
        if math.isnan(self.accuracy_written):  # regression
            found = f"loss {self.before.loss:.4g} -> {self.after.loss:.4g}"
        else:
            found = f"accuracy {self._accuracies} on {self.after.samples} samples"
        kept = ", NOT kept" if self.kept_old else ""
        return f"<Report of {self.network}: {self.judged_on.split()[0]} {found}{kept}, {self.certificate}>"

    @property
    def _accuracies(self) -> str:
        return f"{rate(self.accuracy_before, self.before.samples)}  ->  {rate(self.accuracy_after, self.after.samples)}"

    def _blocks(self, which: str) -> list[list[Row]]:
        """Return the rows of the ten lines, or of the details, in order of use; the details have a rule between blocks."""
        exact, program = self.exactness.label == "exact", self.program
        steps = f"{self.least_steps} to {self.num_steps}" if self.least_steps else f"{self.num_steps}"
        blocks = [
            [*([Row("note", _SEEN)] if self.trained_on else []), *self._not_kept(), *self._results(), *self._cautions()],
            [
                Row("network", f"{self.network}, {steps} steps", DETAILS),
                Row("readout", f"{self.readout.name!r} as {self.readout.kind}", DETAILS),
                *self.exactness.rows(self.factor),
            ],
            [Row("training loss", self.loss, DETAILS), *program.rows(self.certificate, exact)],
            self._writes(),
            self._ending(),
        ]
        return [[row for row in block if row.only in ("", which)] for block in blocks]

    def _not_kept(self) -> list[Row]:
        """Return why the network has its old weights; no row if it has the written ones."""
        if self.kept_old:
            loss = f"{self.compared_by.replace('_', '-')}, not the training loss," if self.compared_by else "loss"
            losses = f"{self.before.compared:.4g} -> {self.solved.compared:.4g}"
            where = f"at the best scales on the same {self.before.samples} {self.judged_on} (write='always')"
            return [
                Row(
                    "NOT kept",
                    f"old weights stay: {self.judged_on.split()[0]} {loss} {losses} {where}; rows are of the weights tried",
                )
            ]
        undone = "the write was undone: the network has its earlier weights; rows are of those tried"
        return [Row("NOT kept", undone)] if self.undone else []

    def _results(self) -> list[Row]:
        """Return results on held-out samples: accuracy, else the metrics of such targets, and loss."""
        before, after = self.before, self.after
        rows = self._metrics()
        if not math.isnan(self.accuracy_written):
            right = after.accuracy * after.samples
            whole = not math.isnan(right) and abs(right - round(right)) < _ROUNDING
            count = f"{right:.0f} of {after.samples}" if whole else f"{after.samples}"
            when = ", before these were fitted too" if self.fit_val else ""
            rows.insert(0, Row("accuracy", f"{self._accuracies}  ({count} {self.judged_on}{when}; ± is a 95 % interval)"))
        elif rows:
            texts = [rows[0].text, *(f"{row.name} {row.text}" for row in rows[1:])]
            rows = [Row(rows[0].name, f"{'; '.join(texts)}  ({after.samples} {self.judged_on})")]
        rows.append(Row(f"{self.judged_on.split()[0]} loss", f"{before.loss:.4g}  ->  {after.loss:.4g}"))
        rows.insert(1, Row("test it", f"with your own function, which should read the {self.readout.decided_by}"))
        rows.append(Row(self.judged_on, f"{before.samples} before, {after.samples} after", DETAILS))
        if math.isnan(self.accuracy_written):
            return rows
        linear = Row("linear score", f"{rate(after.linear_accuracy, after.samples)} of the {self.judged_on}", DETAILS)
        others = self.readout.others
        beside = [f"{rate(each.accuracy, each.samples)} right, what was solved {percent(each.own_accuracy)}" for each in others]
        also = [Row("also decides", f"{each.source}: {text}", DETAILS) for each, text in zip(others, beside, strict=True)]
        written = f"{percent(self.accuracy_written)} on {self.exactness.samples} samples it was fitted on"
        linears = [] if self.exactness.label == "exact" else [linear]
        return [*rows, *linears, *also, Row("written network", written, DETAILS)]

    def _metrics(self) -> list[Row]:
        """Return metrics before and after; the balanced accuracy only if the classes are uneven."""
        rows = []
        for name, value in self.after.metrics.items():
            (title, show), before = METRICS[name], self.before.metrics.get(name, math.nan)
            text = f"{show(before, self.before.samples)}  ->  {show(value, self.after.samples)}"
            if name == "balanced_accuracy":
                text += f"   (of classes held out; largest {self.imbalance:.1f} times the smallest)"
            if name != "balanced_accuracy" or self.imbalance > _UNEVEN:
                rows.append(Row(title, text))
        return rows

    def _cautions(self) -> list[Row]:
        """Return the reasons for which the figures may mislead."""
        label, after = self.exactness.label, self.after
        below = 0.0 if label == "exact" else after.linear_accuracy - after.accuracy
        few = f"only {after.samples} {self.judged_on}, fewer than {FEW_SAMPLES}: pass more samples, or a larger holdout="
        return [
            *([Row("warning", few)] if after.samples < FEW_SAMPLES else []),
            *([Row("warning", _BELOW[label].format(100 * below))] if below > _LOST else []),
            *[Row("warning", str(other)) for other in self.readout.others if other.notable and not self.readout.named],
            *[Row("hint", str(hint)) for hint in self.hints],
        ]

    def _writes(self) -> list[Row]:
        """Return what was written: a part of the solved readout, and the hidden layers."""
        rows, count = [layer.row for layer in self.layers], self.after.samples
        if self.layers:
            rows.insert(0, Row("hidden", "; ".join(layer.brief for layer in self.layers), BRIEF))
        if self.factor == 1:
            return rows
        part = f"1/{1 / self.factor:.0f} of the solved readout, to train on from; report.write_solved() if you don't"
        solved = f"{rate(self.solved.accuracy, count)}, loss {self.solved.loss:.4g} on {count} samples"
        return [Row("written", part), Row("solved readout", solved, DETAILS), *rows]

    def _ending(self) -> list[Row]:
        stages = {name: f"{name} {seconds:.1f}" for name, seconds in self.seconds.items()}
        slowest = ", ".join(stages[name] for name in sorted(stages, key=lambda name: -self.seconds[name])[:_STAGES])
        return [
            Row("seconds", f"{sum(self.seconds.values()):.1f}" + (f" ({slowest})" if slowest else ""), BRIEF),
            Row("seconds", ", ".join(stages.values()), DETAILS),
            Row("more", "print(report.details()); report.undo() restores the old weights", BRIEF),
        ]
