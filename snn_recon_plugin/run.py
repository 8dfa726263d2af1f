"""One initialisation, stage by stage: inspect, rescale, capture, solve, write, verify."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .alternatives import other_decisions, warn_of_others
from .checks import check_layers, check_lengths, check_no_images, check_outputs, check_rest, check_targets, many_outputs
from .convex import Loss
from .cost import epoch_products
from .errors import NetworkError, warn_user
from .fit import Chosen, choose_strength, split_samples
from .hidden import hidden_values
from .memory import check_memory
from .networks import (
    INSPECTED,
    Captured,
    LayerStats,
    ReadoutLayer,
    StoredBatch,
    Transaction,
    all_or_nothing,
    capture,
    carries_over,
    check_forward,
    check_writable,
    device_of,
    fast_passes,
    few_samples,
    inspect_network,
    keep_autocast,
    replace_parameters,
    run_batch,
    unwrap,
)
from .networks.hooks import temporary_hooks
from .networks.population import block_mean
from .networks.recorder import Recorder
from .networks.structures import tensors_in
from .options import Options
from .outcome import Found, make_report
from .placement import Placement, place, place_scaled
from .reading import resolve_reading
from .report import Report
from .rows import rows_of
from .stages import Stages
from .stand_in import best_fit, programs_of
from .stream import Stream
from .verify import own_accuracy, verify

__all__ = ["Checked", "Run"]

_STORED_BYTES = 256 * 2**20
_SPIKE_BYTES = 512 * 2**20  # at four bytes a value, which only spikes of other sizes than one take
_LABELS = 1000  # that are looked at where the first batch has far fewer classes than there are outputs
_DRAWS = 5  # passes over the stored samples whose mean accuracy is reported, where forward draws random numbers
_ROUNDING = 5e-6  # of the relative gap, what is left for rounding to the network's precision: the most seen is 5.5e-6
_KEPT_SAMPLES = 4000  # whose spikes are kept at every step; a fifth of them, held out, tell decisions to a few tenths of a percent


class Checked(NamedTuple):
    """What is known of a network that won't be refused.

    Args:
        parameters: the readout's.
        spread: whether the program's rows can be spread over processes.
        widest: neurons of the widest hidden layer.
        num_steps: time steps of one forward.
    """

    parameters: list[nn.Parameter]
    spread: bool
    widest: int
    num_steps: int


class Run:
    """One initialisation: the options, the network, and the stages in order."""

    def __init__(self, options: Options, net: nn.Module) -> None:
        if not isinstance(net, nn.Module):
            raise NetworkError(f"a net of type {type(net).__name__}", "a torch.nn.Module", "pass the network, then the loader")
        self.options, self.net = copy.copy(options), unwrap(net)
        self.options.forward = keep_autocast(options.forward)
        self.stages = Stages(options.progress)

    def run(self, loader: Iterable[Any]) -> Report:
        """All stages, inside the guard that gives the network back as it was."""
        options = self.options
        transaction = Transaction(self.net, allow_tied=options.allow_tied)
        return all_or_nothing(
            self.net,
            lambda: self._stages(transaction, loader),
            seed=options.seed,
            loader=loader,
            undo=transaction.roll_back,
            written=lambda: transaction.buffers,
        )

    def _stages(self, transaction: Transaction, loader: Iterable[Any]) -> Report:
        """The stages in order; the transaction is left open for an error to roll back."""
        options = self.options
        with transaction:
            with options.shards.together():
                found, hidden = self._features(loader)
            readout = found.readout
            options.shards.alike("readouts", (readout.kind, readout.exactness, found.rows, readout.filter.tolist()))
            self._solve(found)
            with self.stages.stage("write and verify"):
                report = self._write(transaction, found, hidden)
            warn_of_others(report, options)
        return report

    def _features(self, loader: Iterable[Any]) -> tuple[Found, dict[tuple[nn.Module, str], Tensor]]:
        """What is found before the solve, and what the hidden layers get."""
        options, net = self.options, self.net
        with self.stages.stage("inspect"):
            stream = self._stream(loader)
            head, targets = stream.head(net, 1)
            found = self.inspect(head[0], targets)
            self._check_outputs(stream, found)
            samples = self._samples(stream, found)
        with fast_passes(net):
            hidden = hidden_values(options, net, self.stages, stream, found)
            with self.stages.stage("capture", samples, "samples"), replace_parameters(hidden):
                found.captured = self._capture(stream, found, _storable(head[0], options.compared))
            check_lengths(found.captured, options.criterion, found.readout)
            check_layers(found.captured, keep=options.hidden == "keep")
            found.before, found.layers_before = self._before(found) if hidden else (found.captured.scores, found.captured.layers)
        found.weights = options.criterion.weights(found.captured.targets)
        found.split = split_samples(len(found.captured.targets), options.holdout, options.seed, found.seen)
        check_outputs(found.readout, found.net_map, found.captured.targets, options.classes, warn=not options.warm_start)
        return found, hidden

    def check(self, loader: Iterable[Any]) -> Checked:
        """Refuses what ``run`` would refuse at the first batch, and changes nothing."""
        return all_or_nothing(self.net, lambda: self._checked(loader), seed=self.options.seed, loader=loader)

    def _checked(self, loader: Iterable[Any]) -> Checked:
        """Looks at the first batch."""
        stream = self._stream(loader)
        head, targets = stream.head(self.net, 1)
        found = self.inspect(head[0], targets)
        self._check_outputs(stream, found)
        recorder = Recorder(found.net_map, found.readout)
        with temporary_hooks() as hooks:
            recorder.register(hooks)
            recorder.start()
            run_batch(self.net, head[0], self.options.forward)
        smooth = all(loss.smooth for loss in found.programs)
        spread = found.readout.exactness == "exact" and smooth and self.options.solver in ("auto", "native")
        widest = max((layer.neurons for layer in recorder.stats().values()), default=found.net_map.readout.in_features)
        return Checked(list(found.net_map.readout.module.parameters()), spread, widest, found.net_map.num_steps)

    def takes(self, loader: Iterable[Any]) -> bool:
        """Whether the net can be run on batches as large as the loader's first; changes nothing."""

        def sizes() -> tuple[int, list[torch.Size]]:
            head, targets = self._stream(loader).head(self.net, 1)
            returned = tensors_in(run_batch(self.net, head[0], self.options.forward))
            return len(targets), [value.shape for value in returned]

        try:
            samples, shapes = all_or_nothing(self.net, sizes, seed=self.options.seed, loader=loader)
        except Exception:  # whatever a forward made for one batch size may raise
            return False
        return bool(shapes) and all(samples in shape for shape in shapes if shape)

    def _stream(self, loader: Iterable[Any]) -> Stream:
        """The loader's (input, target) pairs, as the options have them."""
        return Stream(loader, self.options.unpack, self.options.criterion.ignored)

    def inspect(self, batch: StoredBatch, targets: Tensor) -> Found:
        """The network's map and readout, and labels and layers that won't do refused before minutes of work."""
        net, options = self.net, self.options
        check_no_images(targets)
        few = few_samples(batch.inputs, len(targets), lambda inputs: options.forward(net, inputs))
        count = INSPECTED
        if few is batch.inputs:
            count = len(targets)
            check_forward(net, few, options.forward, count)
        net_map = inspect_network(net, few, options.forward, readout_layer=options.readout_layer, batch=count)
        check_writable(net, net_map, allow_tied=options.allow_tied)
        readout = resolve_reading(
            net, net_map, few, options.forward, options.readout, options.criterion, options.scores, options.classes
        )
        check_rest(readout, net_map)
        if not options.warm_start and carries_over(net, few, options.forward):
            warn_user(
                "The net keeps its membranes from one call to the next. It is reset before each batch here, and the report's "
                "accuracies are of a net that is: reset it at the start of forward, or before each batch of your own test."
            )
        # The targets of a squared loss of counts are of all outputs of a class together.
        loss = options.criterion.make(net_map.num_steps * readout.per_class)
        classes = readout.classes(net_map.readout.out_features)
        rows = rows_of(loss, targets, classes, net_map.num_steps, readout.per_step)
        options.criterion.weights(targets)
        check_targets(readout, targets)
        return Found(net_map, readout, loss, programs_of(options, loss, readout, rows.each), rows)

    def _check_outputs(self, stream: Stream, found: Found) -> None:
        """Refuses outputs that are far more than the classes, by as many labels as tell, before minutes of work."""
        options, (_, targets) = self.options, stream.head(self.net, 1)
        if many_outputs(found.net_map, targets, options.classes):
            _, targets = stream.head(self.net, _LABELS)
            if not bool((targets[1:] >= targets[:-1]).all()):  # sorted by class, the first labels tell nothing of the others
                check_outputs(found.readout, found.net_map, targets, options.classes)

    def _samples(self, stream: Stream, found: Found) -> int | None:
        """How many samples will be captured, where the loader tells; an error where they would not fit into memory."""
        total, limit = stream.total_samples, self.options.max_samples
        samples = total if limit is None else min(total or limit, limit)
        filters = 1 if found.readout.filters is None else len(found.readout.filters.filters)
        check_memory(samples, found.rows.each * filters * found.net_map.readout.in_features, device_of(self.net))
        return samples

    def _capture(self, stream: Stream, found: Found, store: int) -> Captured:
        net_map, exact = found.net_map, found.readout.exactness == "exact"
        # Placing holds a few values of each output at every step, spikes and membranes among them.
        each = net_map.num_steps * max(net_map.readout.in_features, 8 * net_map.readout.out_features)
        return capture(
            self.net,
            stream,
            net_map,
            found.readout,
            self.options.forward,
            max_samples=self.options.max_samples,
            store_samples=store,
            keep_spikes=0 if exact else max(1, min(_KEPT_SAMPLES, _SPIKE_BYTES // (4 * each))),
            progress=self.stages.advance_to,
        )

    def _before(self, found: Found) -> tuple[Tensor, dict[str, LayerStats]]:
        """The network's own scores on stored batches as it was, and how its layers fired meanwhile."""
        recorder = Recorder(found.net_map, found.readout)
        with temporary_hooks() as hooks:
            recorder.register(hooks)
            (scores,) = self._scores(found, [found.readout.scores], recorder.start)
        return scores, recorder.stats()

    def _scores(
        self,
        found: Found,
        decoders: Sequence[Callable[[Any], Tensor]],
        begin: Callable[[], None] | None = None,
        *,
        batches: Sequence[StoredBatch] | None = None,
        draw: int = 0,
    ) -> list[Tensor]:
        """What each decoder makes of the network's output on stored batches, float64; ``begin`` is called before each batch."""
        parts = []
        for batch in found.captured.batches if batches is None else batches:
            if begin is not None:
                begin()
            returned, count = run_batch(self.net, batch, self.options.forward, draw), batch.rows.stop - batch.rows.start
            parts.append([decoder(returned)[:count].double() for decoder in decoders])
        return [torch.cat(columns) for columns in zip(*parts, strict=True)]

    def _redrawn(self, found: Found, own: Tensor) -> list[Tensor]:
        """The written network's scores under random numbers that it was not fitted on; ``own`` where its forward draws none."""
        decoders, batches = [found.readout.scores], found.captured.batches
        (first,) = self._scores(found, decoders, batches=batches[:1], draw=1)
        if torch.equal(first, own[: len(first)]):
            return [own]
        return [self._scores(found, decoders, draw=number)[0] for number in range(1, _DRAWS + 1)]

    def _solve(self, found: Found) -> None:
        """The program's solution, and the readout to write for it."""
        captured, layer, readout = found.captured, found.net_map.readout, found.readout
        with self.stages.stage("solve", None, "strengths"):
            scaled = best_fit(found, lambda program: self._choose(found, program))
            found.fit = scaled.fit
        if captured.spikes is None:
            found.placed = place_scaled(readout, layer, *scaled)
            return
        with self.stages.stage("place"):
            found.placed = place(
                readout if captured.lengths is None else readout.at(captured.num_steps),
                layer,
                found.fit,
                found.split,
                captured.spikes,
                captured.targets,
                found.loss,
                found.weights,
                captured.lengths,
            )

    def _choose(self, found: Found, program: Loss) -> Chosen:
        """One program, its strength chosen."""
        options, layer = self.options, found.net_map.readout
        # A trained readout is near the solution of the loss that it was trained with, and of no other.
        warm = options.warm_start and type(program) is type(found.loss)
        near = options.near[1] if options.near is not None and options.near[0] == program.name else None
        return choose_strength(
            found.captured.features,
            found.captured.targets,
            found.split,
            num_outputs=found.classes,
            bias_column=found.bias_column,
            loss=program,
            penalty=options.penalty,
            strength=options.strength,
            solver=options.solver,
            tol=max(0.5 * options.tol, options.tol - _ROUNDING),
            rows=found.rows,
            filters=None if found.readout.filters is None else found.readout.filters.index,
            weights=found.weights,
            shards=options.shards,
            start=_own_readout(layer, found.readout.per_class) if warm else None,
            near=near,
            max_products=options.max_cost * epoch_products(found, options.shards),
            progress=lambda point: self.stages.note(f"strength {point.strength:.1e}, held-out loss {point.heldout_loss:.4f}"),
        )

    def _write(self, transaction: Transaction, found: Found, hidden: dict[tuple[nn.Module, str], Tensor]) -> Report:
        """Writes all parameters, certifies what the network now holds, and compares its own scores with those promised."""
        layer, placed, problem = found.net_map.readout, found.placed, found.fit.problem
        with self.options.shards.together():
            for (module, name), value in hidden.items():
                transaction.write(module, name, value)
            transaction.write(layer.module, layer.weight_name, placed.weight)
            if layer.bias_name is not None and placed.bias is not None:
                transaction.write(layer.module, layer.bias_name, placed.bias)
        weight = layer.weight.detach()
        bias = None if layer.bias is None else layer.bias.detach()
        # What the solver proved of the optimum holds whatever was written; the written point's own dual value may be lower.
        known = found.fit.solution.certificate.dual
        certificate = problem.certify(*self._certified(placed, found, weight, bias), self.options.tol, known)
        sources = found.readout.others if problem.classifies and not found.rows.stepwise else ()
        with self.options.shards.together(), temporary_hooks() as hooks:
            hooks.on_input(layer.module, lambda value: None)  # which notes the readout's autocast
            own, *others = self._scores(found, [found.readout.scores, *(source.scores for source in sources)])
            redrawn = self._redrawn(found, own)
            exactness = verify(
                own,
                found.readout,
                placed,
                problem,
                weight,
                bias,
                loss=found.loss,
                rows=found.rows,
                tolerance=max(layer.tolerance, 8 * hooks.rounding),
            )
        return make_report(
            found,
            network=f"{type(self.net).__name__} ({found.net_map.library})",
            loss=self.options.criterion.name,
            penalty=self.options.penalty,
            seconds=self.stages.seconds,
            seed=self.options.seed,
            transaction=transaction,
            certificate=certificate,
            exactness=exactness,
            accuracy_written=fmean(own_accuracy(each, problem, found.loss, found.rows) for each in redrawn),
            others=other_decisions(found, own, dict(zip(sources, others, strict=True))),
        )

    def _certified(self, placed: Placement, found: Found, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """The program's point that is written; the solution itself where a refinement has left the program."""
        if placed.refined:
            return found.fit.solution.weight, found.fit.solution.bias
        return placed.in_program(weight, bias)


def _own_readout(layer: ReadoutLayer, per_class: int) -> tuple[Tensor, Tensor]:
    """The readout as it is, to start a solve from."""
    weight = block_mean(layer.weight.detach().double(), per_class)
    return weight, weight.new_zeros(len(weight)) if layer.bias is None else block_mean(layer.bias.detach().double(), per_class)


def _storable(batch: StoredBatch, most: int) -> int:
    """How many samples to keep for the comparison after writing, within a fixed amount of memory."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(batch.inputs))
    each = max(1, size // max(1, batch.rows.stop - batch.rows.start))
    return int(max(1, min(most, _STORED_BYTES // each)))
