"""Result of a quantisation: the whole numbers, their scales, and the cost of the grid."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..report.report import Report
from ..stages.rates import rate


@dataclass(frozen=True, eq=False, repr=False)
class QuantizedReadout:
    """Readout that :func:`quantize_readout_` wrote: ``weight == scale[:, None] * integers``, in the weight's precision.

    Args:
        bits: of a whole number, with its sign.
        integers: (C, P) int8.
        scale: (C,), or (1,) for one scale of the whole weight; positive, in the weight's precision.
        bias_step: the bias is a whole number of these; None if it is in float.
        method: "columns" for the optimum rounded column by column, "descent" if it descended on the grid then, by held-out loss.
        accumulator_bits: fewest bits, with the sign, that hold any sum of one time step's spikes, 0 or 1, and of the bias.
        accuracy_float: of the optimum in float on held-out samples, 0 to 1; NaN for regression.
        loss_float: its mean held-out loss.
        report: of the written readout; before and after on held-out samples, the certificate, and the undo.

    Example:
        >>> from snn_recon_plugin import quantize_readout_
        >>> from snn_recon_plugin.demo import build_network, load_digits_data
        >>> data, net = load_digits_data(), build_network(inputs=64, hidden=32, outputs=10, steps=8)
        >>> quantized = quantize_readout_(net, [(data.train_inputs, data.train_labels)], bits=2, progress=False)
        >>> quantized.objective > quantized.lower_bound
        True
        >>> quantized.undo()
    """

    bits: int
    integers: Tensor
    scale: Tensor
    bias_step: float | None
    method: str
    accumulator_bits: int
    accuracy_float: float
    loss_float: float
    report: Report

    @property
    def accuracy(self) -> float:
        """Held-out accuracy of the quantised readout, fitted without these samples; 0 to 1, NaN for regression."""
        return self.report.accuracy_after

    @property
    def accuracy_before(self) -> float:
        """Accuracy of the network as it was, on the same samples."""
        return self.report.accuracy_before

    @property
    def objective(self) -> float:
        """Objective of the program at the written readout."""
        return self.report.certificate.primal

    @property
    def lower_bound(self) -> float:
        """Certified bound from below on the objective of any readout, on a grid or in float."""
        return self.report.certificate.dual

    def undo(self) -> None:
        """Put the old weight and bias back, bit for bit; errors as ``Report.undo``."""
        self.report.undo()

    def __str__(self) -> str:
        held, report = self.report.after.samples, self.report
        scales = "one scale" if len(self.scale) == 1 else f"{len(self.scale)} scales"
        bias = "bias in float" if self.bias_step is None else f"bias in steps of {self.bias_step:.3g}"
        gap = 100 * (self.objective / self.lower_bound - 1) if self.lower_bound > 0 else 0.0
        lines = [
            f"readout        {report.readout.name!r}: whole numbers of {self.bits} bits, {scales}, {bias}",
            f"accuracy       {rate(self.accuracy_before, held)} before, {rate(self.accuracy_float, held)} in float, "
            f"{rate(self.accuracy, held)} on the grid ({held} held-out samples)",
            "note           before is too high to compare if the network was trained on these samples",
            f"held-out loss  {report.before.loss:.4g} before, {self.loss_float:.4g} in float, {report.after.loss:.4g} on the grid",
            f"objective      {self.objective:.4g}, {gap:.1f} % above the bound for any weights, {self.lower_bound:.4g}",
            f"accumulator    {self.accumulator_bits} bits hold the sum of any spikes of a time step",
            "more           print(quantized.report); quantized.undo() restores the old weights",
        ]
        return "\n".join(lines)

    __repr__ = __str__
