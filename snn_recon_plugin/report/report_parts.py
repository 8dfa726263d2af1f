"""Parts of a report: agreement of the scores, hidden layers, other readouts, strengths, and what only its process has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..convex import TracePoint
from ..distributed import SingleProcess
from ..hidden.hidden_task import LayerWitnesses
from ..networks.calls.spikes import LayerStats
from ..networks.write import Transaction
from ..options import Options
from ..stages.rates import rate

__all__ = ["Exactness", "LayerReport", "Live", "OtherReadout", "ProgramReport", "ReadoutReport", "Sample", "StrengthPoint"]

_SAME = 0.02  # share of decisions that may differ between two readouts without a warning


@dataclass(frozen=True)
class Exactness:
    """Agreement of the written network's scores with the linear score of the program, for the same weight and bias.

    Args:
        label: "exact" if they agree; "majorised" if the network takes the maximum over time of linear scores; "surrogate" if a
            spiking or resetting output neuron decides, for which the linear score is a substitute.
        max_difference: largest absolute difference of a score, measured on the written network.  A spike count or rate is compared
            with a membrane.
        scale: largest absolute linear score.
        tolerance: largest difference that rounding explains.
        samples: number of samples measured.
        agreement: share of samples with the same decision, 0 to 1; NaN for regression.
        linear_accuracy: accuracy of the linear score, to compare with ``Report.accuracy_written``.
        weight_scale: factor of the program's weight and bias in the written ones.
        bias_shift: added to every bias afterwards.
        refined: True if a maximum over time was refined on its true objective, beyond the program's solution.
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

    @property
    def title(self) -> str:
        """The label as reports print it."""
        return self.label if self.label != "majorised" else "mean over time, then refined" if self.refined else "mean over time"


@dataclass(frozen=True)
class LayerReport:
    """One hidden layer.

    Args:
        name: name of its synapse in the net.
        neuron: class of its neurons.
        gain: factor of its weight and bias; 1 if they were kept.
        before: firing in the net as it was, on the first samples, 10,000 at most.
        stats: firing in the written net, on the first 10,000 samples.
        reason: reason why its weights were kept against the option, or why a whole-layer draw was better.
        witnesses: selection of its rows if it was rebuilt, else None.
        draw: number of the whole-layer draw that replaced its weights, from 1; 0 for none.
    """

    name: str
    neuron: str
    gain: float
    before: LayerStats
    stats: LayerStats
    reason: str = ""
    witnesses: LayerWitnesses | None = None
    draw: int = 0


@dataclass(frozen=True)
class OtherReadout:
    """Another item of the network's output, and the decisions that it would make, measured on the written network.

    Args:
        source: the item and its decoding, e.g. "membrane mean of output[1]".
        option: the ``readout=`` that selects it.
        differing: share of held-out samples with another decision, 0 to 1.
        accuracy: accuracy of its decisions on them.
        own_accuracy: accuracy of the report's decisions, on the same samples.
        samples: number of these samples.
    """

    source: str
    option: str
    differing: float
    accuracy: float
    own_accuracy: float
    samples: int

    @property
    def notable(self) -> bool:
        """True if it decides more than 2 % of the samples differently."""
        return self.differing > _SAME

    def __str__(self) -> str:
        """Return the share of differing decisions, and the option that selects it."""
        share = rate(self.differing, self.samples)
        return f"{self.source} decides {share} differently: readout={self.option!r} if your test reads it"


@dataclass(frozen=True)
class StrengthPoint:
    """One strength of the path, solved without the held-out samples.

    Args:
        strength: factor of the penalty.
        heldout_loss: mean held-out loss of the program.
        heldout_error: standard error of that mean; NaN for a single sample.
        heldout_accuracy: of the linear score, 0 to 1; NaN for regression.
        relative_gap: certified on the fitted samples.
        active: hidden neurons in use.
        chosen: True for the strength that was used.
    """

    strength: float
    heldout_loss: float
    heldout_error: float
    heldout_accuracy: float
    relative_gap: float
    active: int
    chosen: bool


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


@dataclass(frozen=True)
class Sample:
    """First samples of a call, by which later training is watched.

    Args:
        net: the network.
        options: of the call.
        batches: (input, target) pairs of the first 256 samples, fewer if they take over 64 MiB; none for a refit.
        processes: processes that shared the samples of the call.
    """

    net: nn.Module
    options: Options
    batches: list[tuple[Any, Tensor]]
    processes: SingleProcess


@dataclass(frozen=True, eq=False)
class Live:
    """Objects behind a report that only the process of the call has: neither json nor pickle carry them.

    Args:
        transaction: the write, with the values from before.
        sample: network, options and first samples.
        hardness: label and hardness of each sample, None without one class a sample.
        solved: solved readout by names of the layer's parameters.
        smaller: written readout by the same names.
    """

    transaction: Transaction
    sample: Sample
    hardness: tuple[Tensor, Tensor] | None
    solved: dict[str, Tensor]
    smaller: dict[str, Tensor]
