"""Result of an extension by new classes."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..networks.write import Transaction
from ..stages.rates import percent, rate
from ..text_table import align
from .statistics import Statistics

__all__ = ["Extension"]


@dataclass(frozen=True, eq=False)
class Extension:
    """Result of ``extend_``; ``print`` shows it.

    Args:
        old_classes: number of classes before.
        new_classes: number of new ones.
        strength: factor of the ridge.
        accuracy_before: of the old readout on kept samples of the old classes, 0 to 1, among these classes; NaN without any.
            It was probably trained on these samples.
        accuracy_old: of all outputs on kept samples of the old classes, which took no part in the fit; NaN without any.
        accuracy_new: the same on kept samples of the new classes.
        kept_old: number of kept samples of the old classes.
        kept_new: number of kept samples of the new classes.
        footprint: bytes of parameters and saved buffers, before and after.
        operations: synaptic operations of the readout for a sample, before and after: spikes that enter it times outputs.
        statistics: of the old and the new samples, for the next extension.

    Example:
        >>> from snn_recon_plugin import extend_, statistics_of
        >>> from snn_recon_plugin.demo import build_network, load_digits_data
        >>> data, net = load_digits_data(), build_network(inputs=64, hidden=32, outputs=5, steps=8)
        >>> old = data.train_labels < 5
        >>> sums = statistics_of(net, [(data.train_inputs[old], data.train_labels[old])])
        >>> result = extend_(net, [(data.train_inputs[~old], data.train_labels[~old])], statistics=sums)
        >>> result.old_classes, result.new_classes
        (5, 5)
    """

    old_classes: int
    new_classes: int
    strength: float
    accuracy_before: float
    accuracy_old: float
    accuracy_new: float
    kept_old: int
    kept_new: int
    footprint: tuple[int, int]
    operations: tuple[float, float]
    statistics: Statistics
    _transaction: Transaction = field(repr=False)

    def undo(self) -> None:
        """Take the new outputs away again, and bring the old readout back bit for bit; a second call does nothing.

        Raises:
            WriteError: a module has replaced a written parameter; nothing changes then.
        """
        self._transaction.undo()

    def __str__(self) -> str:
        rows = [
            ("", "before", "after"),
            ("classes", str(self.old_classes), str(self.old_classes + self.new_classes)),
            ("accuracy, old classes", percent(self.accuracy_before), rate(self.accuracy_old, self.kept_old)),
            ("accuracy, new classes", "", rate(self.accuracy_new, self.kept_new)),
            ("bytes of the network", *(f"{value:,}" for value in self.footprint)),
            ("readout operations a sample", *(f"{value:,.0f}" for value in self.operations)),
        ]
        return "\n".join(align(rows, left=1))
