"""Readouts on a grid of few bits, chosen by the convex program: its optimum, rounded column by column.

The optimum in float bounds every readout on the grid from below, so the report has the cost of the grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..convex import Problem, Solution
from ..convex.grid import Grid, GridPoint, round_columns
from ..errors import DataError, OptionError, UnsupportedModuleError
from ..networks.private.quiet import run_quietly
from ..networks.private.workbench import Workbench
from ..networks.structure.layers import as_typed
from ..networks.write import Transaction, commit
from ..options import ALWAYS, Options, check_bool, check_names, check_whole
from ..report.content import Report
from ..stages.calibrate import CalibratedReadout, calibrate_readout, move_to
from ..stages.fit import Fit, score_heldout
from ..stages.initialize import place_stages, prepare_network, solve_stages
from ..stages.place import SolvedStages
from ..stages.run import DIAGNOSE
from ..text_table import rate

_LEFT_OUT = ("hidden", "witnesses", "n_candidates", "heterogeneous", "penalty", "write")  # options that have one value here
_NAMES = [field.name for field in fields(Options) if field.name not in _LEFT_OUT]
_LEAST_BITS, _MOST_BITS, _MOST_BIAS_BITS = 2, 8, 24


@dataclass(frozen=True, eq=False, repr=False)
class QuantizedReadout:
    """Readout that :func:`quantize_readout_` wrote: ``weight == scale[:, None] * integers``, in the weight's precision.

    Args:
        bits: of a whole number, with its sign.
        integers: (C, P) int8.
        scale: (C,), or (1,) for one scale of the whole weight; positive, in the weight's precision.
        bias_step: the bias is a whole number of these; None if it is in float.
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


def quantize_readout_(
    net: nn.Module,
    loader: Iterable[Any],
    *,
    bits: int = 4,
    per_channel: bool = True,
    bias_bits: int | None = None,
    accumulator_bits: int | None = None,
    **options: Any,
) -> QuantizedReadout:
    """Solve the readout of a trained network and write it in place as whole numbers of few bits times a scale.

    The convex program is solved in float.  Its weights are rounded column by column, by its second derivatives, while the other
    columns make up for the error.  Hidden layers stay as they are, quantised or not.  A spiking output is scaled and shifted by
    numbers that become part of scale and bias.

    Args:
        net: a network of snnTorch, Norse or SpikingJelly; weight and bias of its readout are overwritten in place.
        loader: (input, target) batches of training data, as for ``convex_init_``.
        bits: of a whole number with its sign, 2 to 8: from ``-(2^(bits-1) - 1)`` to ``2^(bits-1) - 1``.
        per_channel: True for a scale for each output, False for one scale.
        bias_bits: of the bias, ``bits`` to 24, in steps of a separate size; None (default) leaves it in float.
        accumulator_bits: width of the chip's accumulator, with the sign; refuse a grid with a sum that could overflow it, over the
            spikes of one time step, 0 or 1 each, and the bias.  None (default) refuses none.
        **options: as for ``ConvexInitializer``, without those of hidden layers, ``penalty`` and ``write``.

    Returns:
        The whole numbers, their scales, the cost of the grid, and the report; ``undo()`` puts the old readout back.

    Raises:
        OptionError: bits out of range, a loss with kinks, several outputs a class, a sum that could overflow the accumulator.
        DataError: an output class without samples.
        ReconstructionError: as ``ConvexInitializer.initialize``; the network is then bit for bit as before.

    Example:
        >>> from snn_recon_plugin import convex_init_, quantize_readout_
        >>> from snn_recon_plugin.demo import build_network, load_digits_data
        >>> data, net = load_digits_data(), build_network(inputs=64, hidden=32, outputs=10, steps=8)
        >>> loader = [(data.train_inputs, data.train_labels)]
        >>> report = convex_init_(net, loader, progress=False)
        >>> quantized = quantize_readout_(net, loader, bits=3, progress=False)
        >>> quantized.integers.unique().tolist()
        [-3, -2, -1, 0, 1, 2, 3]
        >>> bool((net.fc2.weight == quantized.scale[:, None] * quantized.integers).all())
        True
    """
    check_whole("bits", bits, _LEAST_BITS, _MOST_BITS)
    check_bool("per_channel", per_channel, default=True)
    if bias_bits is not None:
        check_whole("bias_bits", bias_bits, bits, _MOST_BIAS_BITS)
    if accumulator_bits is not None:
        check_whole("accumulator_bits", accumulator_bits, bits)
    check_names(options, _NAMES)
    net, settings = prepare_network(net, Options(hidden="keep", penalty="ridge", write=ALWAYS, **options))
    if not settings.criterion.loss_for_steps(1).smooth:
        found = f"loss={settings.criterion.name!r}, which has kinks"
        raise OptionError(found, "a loss with second derivatives, which weigh the errors of rounding", "pass loss='squared_hinge'")
    bench = Workbench.of(net)

    def work() -> Callable[[Transaction], QuantizedReadout]:
        solved = solve_stages(bench, loader, settings, DIAGNOSE)
        _check_readout(solved)
        run, task, data, fit = solved.run, solved.task, solved.data, solved.fit
        floating = calibrate_readout(run, task, data, fit).heldout
        with run.timer.stage("round"):
            point, rounded = _round(solved, _make_grid(solved, bits, per_channel))
        calibrated = calibrate_readout(run, task, data, rounded, refines=False)
        written = _as_written(replace(solved, fit=rounded), point, calibrated, bias_bits)
        needed = written.accumulator_bits
        if accumulator_bits is not None and needed > accumulator_bits:
            raise _overflow(bits, accumulator_bits, needed, written.integers.shape[1])
        place = place_stages(bench, replace(solved, fit=rounded), written.readout)
        scale = written.scale if per_channel else written.scale[:1]
        cost = needed, floating.accuracy, floating.loss
        return lambda transaction: QuantizedReadout(bits, written.integers, scale, written.bias_step, *cost, place(transaction))

    write = run_quietly(bench.net, work, seed=settings.seed, loader=loader)
    return commit(Transaction(net, allow_tied=settings.allow_tied), write)


def _check_readout(solved: SolvedStages) -> None:
    """Refuse classes without samples, several outputs a class, and a weight that is computed."""
    task, targets = solved.task, solved.data.captured.targets
    layer = task.net_map.readout
    if task.readout.per_class > 1:
        found = f"{task.readout.per_class} outputs for each of {task.classes} classes"
        needed = "one output a class, as several on a coarse grid would spike alike"
        raise OptionError(found, needed, "build the readout with one output a class")
    if parametrize.is_parametrized(layer.module, layer.weight_name):
        found = f"a readout {layer.name!r} whose {layer.weight_name} is computed by a parametrization"
        fix = f"torch.nn.utils.parametrize.remove_parametrizations({as_typed(layer.name)}, {layer.weight_name!r}) first"
        raise UnsupportedModuleError(found, "a plain parameter, which holds the grid exactly", fix)
    if targets.is_floating_point() or targets.dim() > 2 or not solved.fit.problem.classifies or task.classes == 1:
        return
    missing = sorted(set(range(task.classes)) - set(torch.unique(targets).tolist()))
    if missing:
        found = f"no samples of {len(missing)} of {task.classes} classes: {', '.join(map(str, missing[:10]))}"
        fix = "pass a loader over all classes, or a readout without these outputs"
        raise DataError(found, "samples of every class that the readout decides", fix)


def _make_grid(solved: SolvedStages, bits: int, per_channel: bool) -> Grid:
    """Return the grid of the program's weights, which a scale behind the layer multiplies."""
    scale = solved.task.net_map.readout.scale
    if per_channel:
        return Grid(bits)
    factor = torch.ones(1, dtype=torch.float64) if scale is None else scale.factor.abs()
    return Grid(bits, factor.to(solved.fit.solution.weight).expand(solved.task.classes))


def _round(solved: SolvedStages, grid: Grid) -> tuple[GridPoint, Fit]:
    """Return the optimum on the grid, and the fit with it in place of the optimum, also of that without held-out samples."""
    task, data, fit = solved.task, solved.data, solved.fit
    samples, problem, chosen = data.samples(task), fit.problem, fit.path.chosen
    part = samples.without(data.split.heldout).problem(problem.loss, "ridge").with_strength(problem.strength)
    trial = round_columns(part, chosen.solution.weight, chosen.solution.bias, grid)
    unseen = _solution(part, trial, chosen.solution)
    scores = score_heldout(data, samples, problem, unseen)
    point = round_columns(problem, fit.solution.weight, fit.solution.bias, grid)
    points = tuple(replace(each, solution=unseen) if each is chosen else each for each in fit.path.points)
    return point, replace(
        fit,
        path=replace(fit.path, points=points),
        solution=_solution(problem, point, fit.solution),
        scale=1.0 if type(problem.loss) is type(task.loss) else fit.judge.best_scale(scores),
        heldout_scores=scores,
    )


def _solution(problem: Problem, point: GridPoint, optimum: Solution) -> Solution:
    """Return a point on the grid in place of the optimum, whose lower bound stays."""
    dual, tol = optimum.certificate.dual, optimum.certificate.tol
    certificate = problem.certificate(problem.objective(point.weight, point.bias), dual, tol)
    return replace(optimum, weight=point.weight, bias=point.bias, certificate=certificate)


@dataclass(frozen=True)
class _Written:
    readout: CalibratedReadout  # that the layer amounts to
    integers: Tensor  # (C, P) int8
    scale: Tensor  # (C,)
    bias: Tensor | None  # (C,)
    bias_step: float | None

    @property
    def accumulator_bits(self) -> int:
        """Fewest bits, with the sign, that hold any sum of an output's whole numbers, and of its bias over the scale."""
        whole = self.integers.long()
        largest = torch.maximum(whole.clamp_min(0).sum(1), (-whole).clamp_min(0).sum(1))
        if self.bias is not None:
            largest = largest + (self.bias.double() / self.scale.double()).abs().ceil().long()
        return int(largest.max()).bit_length() + 1


def _as_written(solved: SolvedStages, point: GridPoint, calibrated: CalibratedReadout, bias_bits: int | None) -> _Written:
    """Return what the layer is to hold, so that its weight is whole numbers times scales after rounding to its precision."""
    layer = solved.task.net_map.readout
    dtype = cast(Tensor, getattr(layer.module, layer.weight_name)).dtype
    factor = torch.ones_like(point.scale) if layer.scale is None else layer.scale.factor.to(point.scale).expand_as(point.scale)
    integers = (point.integers * factor.sign()[:, None]).to(torch.int8)
    scale = (calibrated.scale * point.scale / factor.abs()).to(dtype)
    weight = (scale[:, None] * integers.to(dtype)).double()
    bias = None if layer.bias_name is None else layer.parameters(calibrated.weight, calibrated.bias).get(layer.bias_name)
    bias_step = None
    if bias is not None and bias_bits is not None:
        bias_step = float(bias.abs().max()) / (2 ** (bias_bits - 1) - 1) or 1.0
        bias = (bias / bias_step).round() * bias_step
    in_net = weight, bias
    if layer.scale is not None:
        in_net = layer.scale.weight(weight), None if bias is None else layer.scale.bias(bias.double())
    readout = move_to(solved.task, solved.data, solved.fit, calibrated, in_net)
    return _Written(readout, integers, scale, bias, bias_step)


def _overflow(bits: int, accumulator_bits: int, needed: int, width: int) -> OptionError:
    """Build the error for sums that could overflow, with bits and widths whose weights fit whatever they are."""
    most = 2 ** (accumulator_bits - 1) - 1
    fitting = [fewer for fewer in range(_LEAST_BITS, bits) if width * Grid(fewer).largest <= most]
    fewer = f"bits={fitting[-1]}, or " if fitting else ""
    return OptionError(
        f"a readout of {width} inputs at bits={bits} whose sums take up to {needed} bits, for accumulator_bits={accumulator_bits}",
        "an accumulator that holds the sum of any spikes of a time step, and the bias",
        f"pass {fewer}a readout of at most {most // Grid(bits).largest} inputs; or accumulator_bits={needed}, if the chip has them",
    )
