"""Parts of a report, each with the rows that show it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..convex import Certificate, TracePoint
from ..distributed import SingleProcess
from ..errors import WriteError
from ..hidden.hidden_task import LayerWitnesses
from ..networks.calls.calls import LayerStats
from ..networks.write import Transaction
from ..options import Options
from ..text_table import percent, rate

_SAME = 0.02  # share of decisions that may differ between two readouts without a warning
BRIEF, DETAILS = "brief", "details"


class Row(NamedTuple):
    """Row of a report: a name and a text."""

    name: str
    text: str
    only: str = ""  # BRIEF or DETAILS; empty for a row of both


def _number(value: float, samples: int) -> str:
    return "n/a" if math.isnan(value) else f"{value:.4g}"


# Title of each metric, and the text of its value on so many samples.
METRICS: dict[str, tuple[str, Callable[[float, int], str]]] = {
    "balanced_accuracy": ("balanced accuracy", lambda value, samples: percent(value)),
    "macro_f1": ("macro F1", _number),
    "subset_accuracy": ("subset accuracy", rate),
    "r2": ("R²", _number),
    "rmse": ("RMSE", _number),
    "mae": ("MAE", _number),
}


@dataclass(frozen=True)
class Exactness:
    """Agreement of the written network's scores with the linear score of the program, for the same weight and bias.

    Example:
        >>> Exactness("exact", 2e-6, 12.5, 1e-4, samples=1347, agreement=1.0, linear_accuracy=0.98).weight_scale
        1.0
    """

    label: str
    """"exact" if they agree; "majorised" if the network takes the maximum over time of linear scores; "surrogate" if a spiking or
    resetting output neuron decides, for which the linear score is a substitute."""
    max_difference: float
    """Largest absolute difference of a score on the written network.  A spike count or rate is compared with a membrane."""
    scale: float
    """Largest absolute linear score."""
    tolerance: float
    """Largest difference that rounding explains."""
    samples: int
    """Number of samples measured."""
    agreement: float
    """Share of samples with the same decision, 0 to 1; NaN for regression."""
    linear_accuracy: float
    """Accuracy of the linear score, to compare with ``Report.accuracy_written``."""
    weight_scale: float = 1.0
    """Factor of the program's weight and bias in the written ones."""
    bias_shift: float = 0.0
    """Number added to every bias afterwards."""
    refined: bool = False
    """True if a maximum over time was refined on its true objective, beyond the program's solution."""

    def rows(self, factor: float) -> list[Row]:
        """Return the agreement, and the scaling of a readout that is written at a factor."""
        if self.label == "exact":
            scale, scores = self.weight_scale / factor, f"differ by at most {self.max_difference:.1e}, largest {self.scale:.3g}"
            scores += f"; scale {scale:.3g}, fitted on held-out samples" if scale != 1.0 else ""
            changed = ", which changed spikes of a few samples" if self.max_difference > self.tolerance else ""
            text = f"exact: the network's scores are those of the solved program, up to rounding{changed}"
            return [Row("exactness", text), Row("scores", scores, DETAILS)]
        title = "surrogate" if self.label != "majorised" else "mean over time" + (", then refined" if self.refined else "")
        refined = ", then refined on the true objective" if self.refined else ""
        shifted = f"the solution times {self.weight_scale:.3g}, every bias shifted by {self.bias_shift:.3g}{refined}"
        return [
            Row("exactness", f"{title}: decides like the linear score for {percent(self.agreement)} of {self.samples} samples"),
            Row("written as", shifted, DETAILS),
        ]


@dataclass(frozen=True)
class LayerReport:
    """One hidden layer."""

    name: str
    """Name of its synapse in the network."""
    neuron: str
    """Class of its neurons."""
    gain: float
    """Factor of its weight and bias; 1 if they were kept."""
    before: LayerStats
    """Firing in the network as it was, on the first samples, 10,000 at most."""
    stats: LayerStats
    """Firing in the written network, on the first 10,000 samples."""
    reason: str = ""
    """Reason why its weights were kept against the option."""
    witnesses: LayerWitnesses | None = None
    """Selection of its rows if it was rebuilt, else None."""

    @property
    def change(self) -> str:
        """Change of its weights."""
        found = self.witnesses
        if found is not None:
            own = f", {found.width - found.selected} rows kept" if found.selected < found.width else ""
            leaks = f" with leaks from {min(found.leaks):.2g} to {max(found.leaks):.2g}" if found.leaks else ""
            note = f" ({found.note})" if found.note else ""
            kinds = ", ".join(f"{number} {kind}" for kind, number in found.kinds.items())
            return f"{found.selected} selected from {found.simulated} candidates ({kinds}){leaks}{own}{note}"
        return ("kept" if self.gain == 1.0 else f"gain {self.gain:.3g}") + (f" ({self.reason})" if self.reason else "")

    @property
    def brief(self) -> str:
        """Change of its weights and its firing rate, in a few words."""
        change = "kept" if self.gain == 1.0 else f"gain {self.gain:.3g}"
        if self.witnesses is not None:
            change = f"rebuilt from {self.witnesses.simulated} candidates"
        return f"{self.name!r} {change}, firing rate {self.before.firing_rate:.3f} -> {self.stats.firing_rate:.3f}"

    @property
    def row(self) -> Row:
        """Row of the details."""
        before, after = self.before, self.stats
        rates = f"firing rate {before.firing_rate:.3f} -> {after.firing_rate:.3f}"
        dead = f"{percent(before.silent)} -> {percent(after.silent)} dead"
        on = f", {percent(after.always_on)} always on" if after.always_on else ""
        return Row(f"layer {self.name!r}", f"{self.neuron}, {self.change}, {rates}, {dead}{on}", DETAILS)


@dataclass(frozen=True)
class OtherReadout:
    """Another item of the network's output, and the decisions that it would make, measured on the written network."""

    source: str
    """The item and its decoding, e.g. "membrane mean of output[1]"."""
    option: str
    """The ``readout=`` that selects it."""
    differing: float
    """Share of held-out samples with another decision, 0 to 1."""
    accuracy: float
    """Accuracy of its decisions on them."""
    own_accuracy: float
    """Accuracy of the report's decisions, on the same samples."""
    samples: int
    """Number of these samples."""

    @property
    def notable(self) -> bool:
        """True if it decides more than 2 % of the samples differently."""
        return self.differing > _SAME

    def __str__(self) -> str:
        share = rate(self.differing, self.samples)
        return f"{self.source} decides {share} differently: readout={self.option!r} if your test reads it"


@dataclass(frozen=True)
class ReadoutReport:
    """Readout layer, and the values that decide."""

    name: str
    """Name of the layer in the network."""
    kind: str
    """Decoding of scores, e.g. "membrane_mean"."""
    decided_by: str
    """Returned value that decides, and how, e.g. "spike count of output[0]"."""
    named: bool
    """True if an option or the loss names that value."""
    others: tuple[OtherReadout, ...]
    """Other items of the output that could decide."""


@dataclass(frozen=True)
class StrengthPoint:
    """One strength of the path, solved without the held-out samples."""

    strength: float
    """Factor of the penalty."""
    heldout_loss: float
    """Mean held-out loss of the program."""
    heldout_error: float
    """Standard error of that mean; NaN for a single sample."""
    heldout_accuracy: float
    """Accuracy of the linear score on held-out samples, 0 to 1; NaN for regression."""
    relative_gap: float
    """Gap certified on the fitted samples."""
    active: int
    """Hidden neurons in use."""
    chosen: bool
    """True for the strength that was used."""


@dataclass(frozen=True)
class ProgramReport:
    """Convex program that was solved, its solution and its solver."""

    loss: str
    """Name of the loss that was solved, to which objective and certificate belong."""
    penalty: str
    """Name of the penalty."""
    strength: float
    """Factor of the penalty."""
    samples: int
    """Samples fitted in the end."""
    solver: str
    """Solver that found the weights."""
    solver_reason: str
    """Reason for this solver, and what it did besides; empty if it was asked for."""
    outcome: str
    """Reason why it stopped, as a sentence."""
    active_neurons: int
    """Last hidden neurons with a non-zero outgoing weight."""
    hidden_neurons: int
    """Last hidden neurons."""
    neuron_sizes: tuple[float, ...]
    """Norm of each last hidden neuron's outgoing weights."""
    path: tuple[StrengthPoint, ...] | None
    """Strengths tried, in falling order; None for a given strength."""
    trace: tuple[TracePoint, ...]
    """Certified points of the last solve."""

    def rows(self, certificate: Certificate, exact: bool) -> list[Row]:
        """Return the program, its certificate and its solver."""
        whose = "" if exact else " of the linear score"
        verdict = "reached" if certificate.reached else "NOT reached"
        within = f"{certificate.relative_gap:.1e} of the optimum (relative; asked {certificate.tol:g}, {verdict})"
        bound = f"{certificate.primal:.6f}, at least {certificate.dual:.6f} for any weights; gap {certificate.gap:.1e}"
        reason = f" ({self.solver_reason})" if self.solver_reason else ""
        return [
            Row("program", f"{self.loss} + {self.strength:.3g} * {self.penalty}, {self.samples} samples", DETAILS),
            Row("objective", bound if exact else f"{bound}; of the linear score, before scale, shift and refinement", DETAILS),
            Row("certificate", f"objective{whose} within {within}"),
            Row("solver", f"{self.solver}{reason}: {self.outcome}", DETAILS),
            Row("active neurons", f"{self.active_neurons} of {self.hidden_neurons}", DETAILS),
        ]


@dataclass(frozen=True, eq=False)
class Live:
    """Write of one call and all else that only its process has: neither json nor pickle carry it."""

    transaction: Transaction  # with the values from before
    net: nn.Module
    options: Options
    # (input, target) pairs of the first 256 samples, by which later training is watched; fewer if they take over 64 MiB, none for a
    # refit.
    batches: Sequence[tuple[Any, Tensor]]
    processes: SingleProcess  # that shared the samples of the call
    kept_old: bool  # nothing was written, since the loss did not fall
    readout: str  # name of the layer
    solved: dict[str, Tensor]  # solved readout by names of the layer's parameters
    smaller: dict[str, Tensor]  # written readout by the same names

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Written parameters; none after an undo, or if nothing was written."""
        return [parameter for parameter, _ in self.transaction.replaced]

    @property
    def is_present(self) -> bool:
        """True if the network has the readout that the call wrote or solved; training and checkpoints give it another one."""
        module = self.net.get_submodule(self.readout)

        def has(values: dict[str, Tensor]) -> bool:
            return all(torch.equal(now := getattr(module, name), value.to(now)) for name, value in values.items())

        return has(self.smaller) or has(self.solved)

    def write(self, values: dict[str, Tensor]) -> None:
        """Write a readout in place of the one in the network; errors as ``Report.write_solved``."""
        if not self.parameters:
            found = "undone or forgotten" if not self.kept_old else "not written, as its held-out loss was no lower"
            raise WriteError(f"a report that was {found}", "one whose weights are in the network", "initialise with write='always'")
        if self.transaction.later:
            found, fix = "a report of weights that a later call replaced", "undo the later report first, or take that one"
            raise WriteError(found, "the latest report of the network", fix)
        self.transaction.check_present()
        module = self.net.get_submodule(self.readout)
        for name, value in values.items():
            self.transaction.write(module, name, value)


def plain_value(value: Any) -> Any:
    """Return a value as json types, without private and uncompared fields; floats that are not finite become None."""
    if is_dataclass(value):
        shown = [field.name for field in fields(value) if field.compare and not field.name.startswith("_")]
        return {name: plain_value(getattr(value, name)) for name in shown}
    if isinstance(value, list | tuple):
        return [plain_value(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain_value(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
