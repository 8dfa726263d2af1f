"""Content of a report: measurements as plain values, and in the process of the call the undo."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..convex import Certificate, TracePoint
from ..errors import OptionError, WriteError
from .hints import Hint
from .report_parts import Exactness, LayerReport, Live, OtherReadout, Sample, StrengthPoint
from .report_values import plain_value


@dataclass(frozen=True, eq=False, repr=False)
class ReportContent:
    """Result of an initialisation; ``Report`` adds what users call.

    Held-out samples took no part in the fit.  Results "after" are of a readout fitted without them at the chosen strength.  If it
    is not exact, each half of them is judged with scale and shift chosen on the other half.  The written readout was then fitted
    on all samples.

    Args:
        network: class of the net, and its library.
        readout: name of the readout layer.
        readout_kind: decoding of scores, e.g. "membrane_mean".
        decided_by: the returned value that decides, and how, e.g. "spike count of output[0]".
        others: other items of the output that could decide.
        exactness: measured on the written network.
        loss: name of the training loss.
        fit_loss: name of the loss that was solved, to which objective and certificate belong.
        penalty: name of the penalty.
        strength: factor of the penalty.
        solver: solver that found the weights.
        solver_reason: why it was chosen, and what it did besides; empty if it was asked for.
        outcome: reason why it stopped, as a sentence.
        certificate: of the written readout, rounded to the network's precision, on all samples.  If it is not exact, of the linear
            score: with scale and shift taken back, and before a refinement.
        accuracy_before: of the network as it was, on held-out samples, 0 to 1; NaN for regression.
        accuracy_after: on held-out samples, by the network's own scores.
        linear_accuracy: on the same samples, by the linear score.
        accuracy_written: of the written network, on samples it was fitted on.  If forward draws random numbers, such as spikes from
            rates, the mean over draws that it was not fitted on.
        loss_before: mean held-out loss of the network as it was, weighted by class if the loss is.  If batches differ in time
            steps, targets that grow with the steps are those of the first batch.
        loss_after: mean held-out loss after, computed in the same way.
        factor: of the written readout, relative to the solved one: 1, 1/2 or 1/4.  A smaller readout decides alike, and
            training goes on from it better.  ``write_solved()`` writes the solved one.
        solved_accuracy: on held-out samples, by the scores of the solved readout.
        solved_loss: mean held-out loss of the solved readout.
        compared_before: mean held-out loss of the network as it was, its scores of classes times the best factor; by
            ``compared_by``.
        compared_after: the same of the solved readout, on the same samples.
        kept_old: True if it is not below ``compared_before``.  With ``write="if_better"`` nothing is written then, and all
            results "after" are of weights that were tried.
        samples: samples fitted in the end.
        heldout: samples held out.
        heldout_before: held-out samples that the network was run on before.
        hints: options and changes of the data that often help on nets and data like these.
        num_steps: time steps of a forward pass, of the longest batch if they differ.
        active_neurons: last hidden neurons with a non-zero outgoing weight.
        hidden_neurons: last hidden neurons.
        layers: hidden layers in order of execution; their firing on the first 10,000 samples.
        path: strengths tried, in falling order; None for a given strength.
        trace: certified points of the last solve.
        neuron_sizes: norm of each last hidden neuron's outgoing weights.
        seconds: wall-clock seconds of each stage: "inspect", "rescale" or "reconstruct", "capture", "solve", "calibrate", and
            "write and verify".
        seed: of the split and of everything random.
        least_steps: time steps of the shortest batch; 0 if all have the same.
        metrics_before: of the network as it was, on held-out samples, by name: "balanced_accuracy" for classes, "macro_f1" and
            "subset_accuracy" for several labels, "r2", "rmse" and "mae" for regression (means over outputs, as in scikit-learn).
        metrics_after: the same by the network's own scores after.
        imbalance: samples of the largest class, relative to those of the smallest that occurs; NaN without classes.
        readout_named: True if an option or the loss names the values that decide.
        compared_by: "cross_entropy" if the losses compared are not the training loss: for class indices with a loss of margins or
            values.  Empty otherwise.

    Example:
        >>> from snn_recon_plugin import convex_init_
        >>> from snn_recon_plugin.demo import build_network, load_digits_data
        >>> data, net = load_digits_data(), build_network(inputs=64, hidden=32, outputs=10, steps=8)
        >>> content = convex_init_(net, [(data.train_inputs, data.train_labels)], progress=False)
        >>> content.num_steps, content.hidden_neurons
        (8, 32)
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
    solver_reason: str
    outcome: str
    certificate: Certificate
    accuracy_before: float
    accuracy_after: float
    linear_accuracy: float
    accuracy_written: float
    loss_before: float
    loss_after: float
    factor: float
    solved_accuracy: float
    solved_loss: float
    compared_before: float
    compared_after: float
    kept_old: bool
    samples: int
    heldout: int
    heldout_before: int
    hints: tuple[Hint, ...]
    num_steps: int
    active_neurons: int
    hidden_neurons: int
    layers: tuple[LayerReport, ...]
    path: tuple[StrengthPoint, ...] | None
    trace: tuple[TracePoint, ...]
    neuron_sizes: tuple[float, ...]
    seconds: dict[str, float]
    seed: int
    least_steps: int = 0
    metrics_before: dict[str, float] = field(default_factory=dict)
    metrics_after: dict[str, float] = field(default_factory=dict)
    imbalance: float = math.nan
    readout_named: bool = False
    compared_by: str = ""
    _live: Live | None = None  # None if the values alone came back, from json or pickle
    _undone: bool = False  # of such values

    @property
    def live(self) -> Live:
        """Objects of the process of the call.

        Raises:
            OptionError: the report came back from json or pickle.
        """
        if self._live is None:
            raise OptionError(
                "a report from json or pickle, which has its values alone",
                "the report of a call in this process, for the network, its old weights and its data",
                "call convex_init_(net, loader) again; undo before you save a report, and save weights by net.state_dict()",
            )
        return self._live

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Written Parameter objects, e.g. to clear their optimizer state; none after ``undo``, or if nothing was written."""
        return [parameter for parameter, _ in self.replaced]

    @property
    def undone(self) -> bool:
        """Return whether the old weights were brought back, as the callback does if a solve is not kept."""
        return self._undone if self._live is None else self._live.transaction.undone

    @property
    def replaced(self) -> list[tuple[nn.Parameter, Tensor]]:
        """Written Parameter objects, each with its value before."""
        return self.live.transaction.replaced

    @property
    def sample(self) -> Sample:
        """Network, options and first samples of the call."""
        return self.live.sample

    @property
    def solved(self) -> dict[str, Tensor]:
        """Solved readout by parameter names of the network; the written one is smaller if ``factor`` is below 1."""
        return {f"{self.readout}.{name}" if self.readout else name: value.clone() for name, value in self.live.solved.items()}

    def write_solved(self) -> None:
        """Write the solved readout in place of the smaller one, for a network that is not trained on.

        Probabilities are then as well calibrated as temperature scaling makes them.  ``undo`` still restores the old weights.

        Raises:
            WriteError: the report was undone, nothing was written, or a module has replaced a written parameter.
        """
        self._write(self.live.solved)

    def write_smaller(self) -> None:
        """Write the readout that the call wrote again, from which training goes on better; errors as ``write_solved``."""
        self._write(self.live.smaller)

    def _write(self, values: dict[str, Tensor]) -> None:
        if not self.parameters:
            found = "undone or forgotten" if not self.kept_old else "not written, as its held-out loss was no lower"
            raise WriteError(f"a report that was {found}", "one whose weights are in the network", "initialise with write='always'")
        if self.live.transaction.later:
            found, fix = "a report of weights that a later call replaced", "undo the later report first, or take that one"
            raise WriteError(found, "the latest report of the network", fix)
        self.live.transaction.check_present()
        module = self.sample.net.get_submodule(self.readout)
        for name, value in values.items():
            self.live.transaction.write(module, name, value)

    @property
    def hardness(self) -> tuple[Tensor, Tensor] | None:
        """Label and hardness, 1 - p(label), of each sample in the order read, (n,) each; None without one class a sample."""
        return self.live.hardness

    def undo(self) -> None:
        """Restore every written parameter bit for bit; a second call does nothing.

        Reports of later calls that wrote the same parameters are undone too.

        Raises:
            OptionError: the report came back from json or pickle.
            WriteError: it was forgotten, or a module has replaced a written parameter, as pruning does; nothing changes then.
        """
        self.live.transaction.undo()

    def forget(self) -> None:
        """Drop the values from before: nothing can be undone after that."""
        self.live.transaction.forget()

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the old weights as plain values for ``json.dumps``; NaN becomes None."""
        result = {name: plain_value(getattr(self, name)) for name in self.__dataclass_fields__ if not name.startswith("_")}
        return {**result, "undone": self.undone}

    def to_json(self) -> str:
        """Return ``to_dict()`` as json text, which ``Report.from_json`` reads."""
        return json.dumps(self.to_dict(), allow_nan=False)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a pickle holds: the values alone."""
        return {**vars(self), "_live": None, "_undone": self.undone}

    def __eq__(self, other: object) -> bool:
        """Return True for reports of one write; those from json or pickle are equal if their values are."""
        if not isinstance(other, ReportContent) or self._live is None or other._live is None:
            return isinstance(other, ReportContent) and self._live is other._live and self.to_dict() == other.to_dict()
        return other._live.transaction is self._live.transaction

    def __hash__(self) -> int:
        return hash((self.network, self.strength, None if self._live is None else id(self._live.transaction)))
