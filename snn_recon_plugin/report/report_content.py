"""Content of a report: measurements as plain values, and in the process of the call the undo."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from torch import Tensor, nn

from ..convex import Certificate
from ..errors import REMOVED, OptionError, WriteError
from ..stages.scores import HeldOut
from .hints import Hint
from .report_parts import Exactness, LayerReport, Live, ProgramReport, ReadoutReport, Sample
from .report_values import plain_value


@dataclass(frozen=True, eq=False, repr=False)
class ReportContent:
    """Result of an initialisation; ``Report`` adds what users call.

    Held-out samples took no part in the fit.  Results "after" are of a readout fitted without them at the chosen strength.  If it
    is not exact, each half of them is judged with scale and shift chosen on the other half.  The written readout was then fitted
    on all samples.

    Example:
        >>> from snn_recon_plugin import convex_init_
        >>> from snn_recon_plugin.demo import build_network, load_digits_data
        >>> data, net = load_digits_data(), build_network(inputs=64, hidden=32, outputs=10, steps=8)
        >>> content = convex_init_(net, [(data.train_inputs, data.train_labels)], progress=False)
        >>> content.num_steps, content.program.hidden_neurons
        (8, 32)
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
    _live: Live | None = None  # None if the values alone came back, from json or pickle
    _undone: bool = False  # of such values

    @property
    def accuracy_before(self) -> float:
        """Accuracy of the network as it was, on held-out samples, 0 to 1; NaN for regression."""
        return self.before.accuracy

    @property
    def accuracy_after(self) -> float:
        """Accuracy on held-out samples, by the network's own scores."""
        return self.after.accuracy

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            """Name what to type in place of a field of earlier versions."""
            fix = REMOVED.get(f"Report.{name}")
            raise AttributeError(f"a report has no {name!r}" + (f": type {fix}" if fix else ""))

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
        module = self.sample.net.get_submodule(self.readout.name)
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
        return hash((self.network, self.program.strength, None if self._live is None else id(self._live.transaction)))
