"""The report of a finished initialisation, from what its stages found."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .alternatives import OtherReadout
from .convex import Certificate, Loss, accuracy_of
from .fit import Fit, Split
from .networks import Captured, LayerStats, NetworkMap, Readout, Transaction
from .networks.population import block_mean
from .placement import HeldOut, Placement, weighted_mean
from .report import Exactness, LayerReport, Report
from .rows import Rows
from .witnesses import LayerGain, LayerWitnesses

__all__ = ["Found", "LayerDecision", "make_report"]

LayerDecision = LayerGain | LayerWitnesses


@dataclass
class Found:
    """What the stages of one initialisation found, in the order in which they did.

    Args:
        net_map: the network's map.
        readout: how its scores come from the readout's currents.
        loss: that the user trains with, of the scores.
        programs: the losses to solve, in this order, until one does: the same, or one that stands in for it.
        rows: how targets belong to the program's rows.
        hidden: what was decided for each hidden layer.
        seen: the samples that decided what the hidden layers got.
        captured: features, spikes and the network's own scores.
        before: the network's scores as it was, of the first samples.
        layers_before: how its hidden layers fired on them.
        fit: the solved program.
        split: which samples were held out.
        placed: what was written.
        weights: of the samples by their class, or None.
    """

    net_map: NetworkMap
    readout: Readout
    loss: Loss
    programs: tuple[Loss, ...]
    rows: Rows
    hidden: list[LayerDecision] = field(default_factory=list)
    seen: Tensor | None = None
    captured: Captured = field(init=False)
    before: Tensor = field(init=False)
    layers_before: dict[str, LayerStats] = field(init=False)
    fit: Fit = field(init=False)
    split: Split = field(init=False)
    placed: Placement = field(init=False)
    weights: Tensor | None = None

    @property
    def classes(self) -> int:
        """How many scores a row of the program has: one for each class."""
        return self.readout.classes(self.net_map.readout.out_features)

    def prepared(self, samples: Tensor) -> Tensor:
        """Return the targets of all rows of some samples, prepared for the user's loss."""
        targets = self.captured.targets
        return self.loss.prepare(self.rows.targets(targets[samples.to(targets.device)]), self.classes)

    @property
    def bias_column(self) -> float | Tensor | None:
        """What one unit of bias adds to a score; None without a bias.

        A number, or (T,) where each step is a row of the program, or (n,) where samples differ in steps.  Where outputs have
        filters of their own, (1, C) or (T, C).
        """
        if self.net_map.readout.bias is None:
            return None
        filters, lengths = self.readout.filters, self.captured.lengths
        if filters is not None:
            return filters.step_gains if self.readout.per_step else filters.gains[None]
        if lengths is not None:
            gains = torch.zeros(len(lengths), dtype=torch.float64)
            for steps in torch.unique(lengths).tolist():
                gains[(lengths == steps).cpu()] = self.readout.at(steps).bias_gain
            return gains
        return self.readout.bias_gains if self.readout.per_step else self.readout.bias_gain


def make_report(
    found: Found,
    *,
    network: str,
    loss: str,
    penalty: str,
    seconds: dict[str, float],
    seed: int,
    transaction: Transaction,
    certificate: Certificate,
    exactness: Exactness,
    accuracy_written: float,
    others: tuple[OtherReadout, ...] = (),
) -> Report:
    """The report.

    Args:
        found: what the stages found.
        network: the net's class and library.
        loss: name of the loss.
        penalty: name of the penalty.
        seconds: of each stage.
        seed: of everything random.
        transaction: which undoes the write.
        certificate: of what was written.
        exactness: of what was written.
        accuracy_written: of the written network on the samples of ``exactness``.
        others: how other items of the output decide.
    """
    fit, net_map, captured = found.fit, found.net_map, found.captured
    problem = fit.problem
    held = found.split.heldout[found.split.heldout < len(found.before)].to(found.before.device)
    sizes = problem.penalty.neuron_sizes(block_mean(net_map.readout.weight.detach(), found.readout.per_class))
    before, after = _before(found, held), found.placed.heldout
    layers = tuple(
        LayerReport(
            name=layer.name,
            neuron=type(layer.neuron).__name__,
            gain=1.0 if isinstance(decision, LayerWitnesses) else decision.gain,
            before=found.layers_before[layer.name],
            stats=captured.layers[layer.name],
            reason="" if isinstance(decision, LayerWitnesses) else decision.reason,
            witnesses=decision if isinstance(decision, LayerWitnesses) else None,
            draw=0 if isinstance(decision, LayerWitnesses) else decision.draw,
        )
        for layer, decision in zip(net_map.hidden, found.hidden, strict=True)
    )
    return Report(
        network=network,
        readout=net_map.readout.name,
        readout_kind=found.readout.kind,
        decided_by=str(found.readout.source),
        others=others,
        exactness=exactness,
        loss=loss,
        fit_loss=problem.loss.name,
        penalty=penalty,
        strength=problem.strength,
        solver=fit.solution.solver,
        outcome=fit.solution.outcome.value,
        certificate=certificate,
        accuracy_before=before.accuracy,
        accuracy_after=after.accuracy,
        linear_accuracy=after.linear_accuracy,
        accuracy_written=accuracy_written,
        loss_before=before.loss,
        loss_after=after.loss,
        samples=_total(found, len(captured.targets)),
        heldout=after.samples,
        heldout_before=before.samples,
        num_steps=captured.num_steps,
        active_neurons=int((sizes > 0).sum()),
        hidden_neurons=problem.design.num_features,
        layers=layers,
        path=fit.path,
        trace=fit.solution.trace,
        neuron_sizes=tuple(sizes.tolist()),
        seconds=seconds,
        seed=seed,
        _transaction=transaction,
        least_steps=0 if captured.lengths is None else int(captured.lengths.min()),
    )


def _before(found: Found, held: Tensor) -> HeldOut:
    """The network as it was, on held-out samples that it was run on; NaN where it was run on none."""
    shards = found.fit.problem.design.shards
    count = _total(found, len(held))
    if count == 0:
        return HeldOut(math.nan, math.nan, math.nan, 0)
    scores, targets, rows = found.before[held].double(), found.prepared(held), found.rows
    values = found.loss.value(scores.flatten(0, -2), targets)
    loss = weighted_mean(values, None if found.weights is None else rows.weights(found.weights[held]), shards)
    decided = rows.decided(targets)
    accuracy = accuracy_of(found.loss, rows.decisions(scores), decided, shards) if found.fit.problem.classifies else math.nan
    return HeldOut(loss, accuracy, math.nan, count)


def _total(found: Found, count: int) -> int:
    """Samples of all processes."""
    design = found.fit.problem.design
    return int(design.shards.total(torch.tensor(count, device=design.device)))
