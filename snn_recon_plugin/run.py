"""One initialisation, stage by stage: inspect, rescale, capture, solve, write, verify."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .convex import Certificate, Loss, Problem, accuracy_of, make_loss
from .errors import NetworkError, SilentLayerError, UnsupportedModuleError, WriteError
from .fit import Fit, Split, fit_readout, split_samples
from .memory import check_memory
from .networks import (
    Captured,
    Forward,
    NetworkMap,
    Readout,
    StoredBatch,
    Transaction,
    capture,
    device_of,
    inspect_network,
    preserved,
    resolve_readout,
    run_batch,
    trial_parameters,
)
from .networks.structures import tensors_in
from .report import Exactness, LayerReport, Report
from .stages import Stages
from .stream import Stream
from .witnesses import LayerGain, choose_gains, scaled_values

__all__ = ["Options", "Run"]

_EXACT = 1e-4  # a score may differ by so much, relative to the largest, and still be called exact: float32 sums of many terms
_GAIN_SAMPLES = 1000
_STORED_SAMPLES = 2048
_STORED_BYTES = 256 * 2**20


class Options(Protocol):
    """What a run needs to know, checked before; documented at ``ConvexInitializer``."""

    hidden: str
    loss: str
    penalty: str
    strength: float | None
    readout: str
    readout_layer: str | None
    solver: str
    tol: float
    max_samples: int | None
    holdout: float
    seed: int
    forward: Forward
    progress: bool | None


class Run:
    """One initialisation: the options, the network, and the stages in order."""

    def __init__(self, options: Options, net: nn.Module) -> None:
        if not isinstance(net, nn.Module):
            raise NetworkError(f"a net of type {type(net).__name__}", "a torch.nn.Module", "pass the network, then the loader")
        self.options, self.net = options, net
        self.loss: Loss = make_loss(options.loss)
        self.stages = Stages(options.progress)

    def run(self, loader: Iterable[Any]) -> Report:
        """All stages, inside the guard that gives the network back as it was."""
        options, net = self.options, self.net
        with preserved(net, seed=options.seed, loader=loader):
            with self.stages.stage("inspect"):
                stream = Stream(loader)
                head, targets = stream.head(net, 1)
                net_map = inspect_network(net, head[0].inputs, options.forward, readout_layer=options.readout_layer)
                readout = resolve_readout(net, net_map, head[0].inputs, options.forward, options.readout)
                self._check_targets(targets, net_map)
                total = stream.total_samples
                samples = total if options.max_samples is None else min(total or options.max_samples, options.max_samples)
                check_memory(samples, net_map.readout.in_features, device_of(net))
            gains = self._gains(stream, net_map, readout)
            hidden = {
                key: value
                for layer, gain in zip(net_map.hidden, gains, strict=True)
                if gain.gain != 1.0
                for key, value in scaled_values(layer, gain.gain).items()
            }
            with self.stages.stage("capture", samples, "samples"), trial_parameters(hidden):
                captured = capture(
                    net,
                    stream,
                    net_map,
                    readout,
                    options.forward,
                    max_samples=options.max_samples,
                    store_samples=_storable(head[0]),
                    progress=self.stages.advance_to,
                )
            self._check_layers(captured)
            before = self._scores(captured.batches, readout) if hidden else captured.scores
            fit, split = self._fit(captured, net_map, readout)
            with self.stages.stage("write and verify"), Transaction(net) as transaction:
                # The report is made inside: an interrupt before the user holds it must leave nothing written.
                certificate, exactness, written = self._write(transaction, captured, net_map, readout, fit, hidden)
                report = self._report(
                    captured, net_map, readout, gains, before, fit, split, transaction, certificate, exactness, written
                )
        return report

    def _check_targets(self, targets: Tensor, net_map: NetworkMap) -> None:
        """The first batch's labels, so that wrong ones are refused before minutes of work."""
        self.loss.prepare(targets, net_map.readout.out_features)

    def _gains(self, stream: Stream, net_map: NetworkMap, readout: Readout) -> list[LayerGain]:
        """The hidden layers' gains: chosen where asked for, one otherwise."""
        if self.options.hidden == "keep":
            return [LayerGain(layer.name, 1.0, math.nan, math.nan, {}) for layer in net_map.hidden]
        with self.stages.stage("rescale"):
            limit = self.options.max_samples
            batches, targets = stream.head(self.net, min(_GAIN_SAMPLES, limit or _GAIN_SAMPLES), limit)
            split_samples(len(targets), self.options.holdout, self.options.seed)
            return choose_gains(
                self.net, batches, targets, net_map, readout, self.options.forward, loss=self.loss, seed=self.options.seed
            )

    def _check_layers(self, captured: Captured) -> None:
        """No hidden layer may be silent, or always on, in all its neurons."""
        keep = self.options.hidden == "keep"
        fix = "pass hidden='rescale'" if keep else "check the inputs' scale, the thresholds and the weights of this layer"
        for name, stats in captured.layers.items():
            if stats.silent == 1.0:
                found = f"hidden layer {name!r} is silent: none of its {stats.neurons} neurons spikes for any sample"
                raise SilentLayerError(found, "spikes that differ between samples", fix)
            if stats.always_on == 1.0:
                found = f"hidden layer {name!r} always spikes: all {stats.neurons} neurons at every step of every sample"
                raise SilentLayerError(found, "spikes that differ between samples", fix)

    def _scores(self, batches: list[StoredBatch], readout: Readout) -> Tensor:
        """The network's own scores on stored batches, (m, C) float64."""
        parts = []
        for batch in batches:
            scores = readout.scores(run_batch(self.net, batch, self.options.forward))
            parts.append(scores[: batch.rows.stop - batch.rows.start].double())
        return torch.cat(parts)

    def _fit(self, captured: Captured, net_map: NetworkMap, readout: Readout) -> tuple[Fit, Split]:
        options, layer = self.options, net_map.readout
        if layer.bias is None and readout.constant != 0.0:
            raise UnsupportedModuleError(
                f"a readout {net_map.readout.name!r} without a bias, whose output neuron rests at {readout.constant:.3g}",
                "a bias to take up the offset",
                "build the readout with bias=True",
            )
        split = split_samples(len(captured.targets), options.holdout, options.seed)
        with self.stages.stage("solve", None, "strengths"):
            fit = fit_readout(
                captured.features,
                captured.targets,
                split,
                num_outputs=layer.out_features,
                bias_column=None if layer.bias is None else readout.bias_gain,
                loss=options.loss,
                penalty=options.penalty,
                strength=options.strength,
                solver=options.solver,
                tol=0.5 * options.tol,  # leaves room for rounding to the network's precision
                progress=lambda point: self.stages.note(f"strength {point.strength:.1e}, held-out loss {point.heldout_loss:.4f}"),
            )
        return fit, split

    def _write(
        self,
        transaction: Transaction,
        captured: Captured,
        net_map: NetworkMap,
        readout: Readout,
        fit: Fit,
        hidden: dict[tuple[nn.Module, str], Tensor],
    ) -> tuple[Certificate, Exactness, float]:
        """Writes all parameters, then certifies what the network now holds and compares its own scores with the program's."""
        layer = net_map.readout
        for (module, name), value in hidden.items():
            transaction.write(module, name, value)
        transaction.write(layer.module, layer.weight_name, fit.solution.weight)
        offset = readout.constant / readout.bias_gain if layer.bias is not None else 0.0
        if layer.bias_name is not None and layer.bias is not None:
            transaction.write(layer.module, layer.bias_name, fit.solution.bias - offset)
        weight = layer.weight.detach().double()
        bias = fit.solution.bias if layer.bias is None else layer.bias.detach().double() + offset
        certificate = fit.problem.certify(weight, bias, self.options.tol)
        exactness, accuracy = self._verify(captured, readout, fit.problem, weight, bias)
        return certificate, exactness, accuracy

    def _verify(
        self, captured: Captured, readout: Readout, problem: Problem, weight: Tensor, bias: Tensor
    ) -> tuple[Exactness, float]:
        """Largest difference between the written network's scores and the program's, and the network's own accuracy."""
        own = self._scores(captured.batches, readout)
        promised = problem.design.rows(torch.arange(len(own), device=own.device)).scores(weight, bias)
        scale = max(1.0, float(promised.abs().max()))
        difference = float((own - promised).abs().max())
        if not difference <= _EXACT * scale:
            raise WriteError(
                f"scores of the written network that differ from the program's by {difference:.3g}, the largest being {scale:.3g}",
                f"agreement to {_EXACT * scale:.1e}, as the readout {readout.kind} is {readout.exactness}",
                "make forward(net, inputs) deterministic and let it reset the membranes; pass readout= if it decodes differently",
            )
        accuracy = accuracy_of(self.loss, own, problem.targets[: len(own)]) if problem.classifies else math.nan
        return Exactness(readout.exactness, difference, float(promised.abs().max()), _EXACT * scale, len(own)), accuracy

    def _report(
        self,
        captured: Captured,
        net_map: NetworkMap,
        readout: Readout,
        gains: list[LayerGain],
        before: Tensor,
        fit: Fit,
        split: Split,
        transaction: Transaction,
        certificate: Certificate,
        exactness: Exactness,
        written: float,
    ) -> Report:
        problem, options = fit.problem, self.options
        held = split.heldout[split.heldout < len(before)].to(before.device)
        sizes = problem.penalty.neuron_sizes(net_map.readout.weight.detach())
        scores, targets = before[held].double(), problem.targets[held]
        layers = tuple(
            LayerReport(
                layer.name, type(layer.neuron).__name__, gain.gain, gain.rate_before, captured.layers[layer.name], gain.reason
            )
            for layer, gain in zip(net_map.hidden, gains, strict=True)
        )
        return Report(
            network=f"{type(self.net).__name__} ({net_map.library})",
            readout=net_map.readout.name,
            readout_kind=readout.kind,
            exactness=exactness,
            loss=options.loss,
            penalty=options.penalty,
            strength=problem.strength,
            solver=fit.solution.solver,
            outcome=fit.solution.outcome.value,
            certificate=certificate,
            accuracy_before=accuracy_of(self.loss, scores, targets) if problem.classifies else math.nan,
            accuracy_after=fit.trial.heldout_accuracy,
            accuracy_written=written,
            loss_before=float(self.loss.value(scores, targets).mean()),
            loss_after=fit.trial.heldout_loss,
            samples=problem.design.num_samples,
            heldout=len(split.heldout),
            heldout_before=len(held),
            num_steps=net_map.num_steps,
            active_neurons=int((sizes > 0).sum()),
            hidden_neurons=problem.design.num_features,
            layers=layers,
            path=fit.path,
            trace=fit.solution.trace,
            neuron_sizes=tuple(sizes.tolist()),
            seconds=self.stages.seconds,
            seed=options.seed,
            _transaction=transaction,
        )


def _storable(batch: StoredBatch) -> int:
    """How many samples to keep for the comparison after writing, within a fixed amount of memory."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(batch.inputs))
    each = max(1, size // max(1, batch.rows.stop - batch.rows.start))
    return int(max(1, min(_STORED_SAMPLES, _STORED_BYTES // each)))
