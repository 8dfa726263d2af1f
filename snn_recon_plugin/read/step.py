"""Options read from the user's own training step: the loss, the scores that it gets, and where its targets come from.

What a step passes to a loss is the score, and where the loss's second argument comes from is the target.  A step is read on one
batch, and run on all of them for features; always on a private net, and to its loss only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PASS_STEP, NetworkError, ReconstructionError, warn_user
from ..networks.calls.batches import describe, device_of, map_tensors, tensors_in, to_device
from ..networks.calls.forward import Forward, Within, without_contexts
from ..networks.calls.record import StoredBatch, Taps, record, refuse_calls, spike_taps, tapped
from ..networks.libraries import is_neuron, isolated, library_of, reset_states
from ..networks.private.quiet import SEED, run_quietly, seeded
from ..networks.private.workbench import Workbench, same_values
from ..networks.readout.filters import fit_scale, fit_weights
from ..networks.readout.readout import block_sum
from ..options import Options
from ..stages.criterion import OwnLoss
from ..stages.stream import Stream, start_loader
from .loss_calls import FoundTargets, LossCall, Step, StepWatch, find_targets, follows_from, graph_of, last_step

_LEFT_OUT = 1e-3  # of the loss: a smaller difference from the losses that were seen is rounding
_INSTEAD = (
    "let step(net, batch) call a loss of torch or snnTorch on what net returns; or leave step= out, and pass "
    "forward=lambda net, x: ..., which returns the scores, with loss= and unpack="
)
_IN_STEP = "do in {} all that your script does around the net, and give its loss spikes or membranes over time"


@dataclass(frozen=True, kw_only=True)
class ReadStep:
    """A training step, and which of its losses is the net's."""

    step: Step
    kind: type | None  # of the loss; None if the step calls none, and what the net returns is taken
    calls: slice  # of all losses that the step calls, the net's
    per_step: bool  # it is called once a time step, or gets all of them at once
    layout: int | None  # of the steps that it gets at once, see ``LossCall.at_steps``
    axes: tuple[int | None, ...]  # of the samples in each tensor of a batch
    targets: FoundTargets
    output: str | None  # neuron whose membranes the loss gets, while its spikes decide in a test
    net: nn.Module | None  # private, on which the step makes the targets; None if they are in the batch

    batch_dim, title = 0, "the training step"  # as a forward: the axis of the samples, and its name in messages

    def __call__(self, net: nn.Module, inputs: Any) -> Any:
        """Return what the loss gets for the inputs that ``unpack`` made of a batch, [T, B, C] if it is called at each step.

        Beside membranes that reset stand the spikes of all steps: "spikes", and what the loss gets, "loss".
        """
        spikes: list[Tensor] = []
        taps = {} if self.output is None else {net.get_submodule(self.output): spikes.append}
        with tapped(Taps(outputs=spike_taps(taps))):
            calls = self._calls(net, self._moved(inputs, back=True))
        scores = torch.stack([call.scores for call in calls]) if self.per_step else calls[0].scores
        return scores if self.output is None else {"spikes": torch.stack(spikes), "loss": scores}

    def unpack(self, batch: Any) -> tuple[Any, Tensor]:
        """Return a batch with its samples on the first axis of all tensors, and its targets."""
        inputs = self._moved(batch)
        if self.net is None:
            return inputs, self.targets.take(list(tensors_in(inputs))[self.targets.place or 0])
        rows = slice(torch.initial_seed() - SEED, None)  # the draws of this block are those of a recorded pass
        return inputs, record(self.net, StoredBatch(to_device(batch, device_of(self.net)), rows), self._make_targets)

    def _make_targets(self, net: nn.Module, batch: Any) -> Tensor:
        """Return the targets of a batch: as a separate forward, whose plan runs nothing that they do not depend on."""
        calls = self._calls(net, batch)
        return torch.stack([call.targets for call in calls], 1) if self.per_step else calls[0].targets

    def _calls(self, net: nn.Module, batch: Any) -> list[LossCall]:
        """Return the net's calls of its loss."""
        returned, batch = list[Any](), map_tensors(Tensor.clone, batch)  # a step may change it
        # What goes backward before is of other nets.
        watch = StepWatch(lambda _: bool(returned) if self.kind is None else len(watch.calls) > self.calls.start)
        with isolated(net), tapped(Taps(calls={net: lambda given, output: returned.append(output)})):
            calls = watch.run(self.step, net, batch).calls[self.calls]
        if self.kind is None:
            return [LossCall(None, returned[0], batch[1], returned[0])]
        found = [call for call in calls if call.is_like(calls[0])]
        if not found or type(found[0].loss) is not self.kind:
            raise NetworkError(
                f"a step that does not call its {self.kind.__name__} on this batch", "the same loss for all", _INSTEAD
            )
        if self.layout is None:
            return found
        sizes = (leaf.shape[axis] for leaf, axis in zip(tensors_in(batch), self.axes, strict=True) if axis is not None)
        return found[0].at_steps(self.layout, next(sizes))

    def _moved(self, batch: Any, *, back: bool = False) -> Any:
        """Move the axis of the samples to the front of each tensor of a batch, or back."""
        axes = iter(self.axes)

        def move(value: Tensor) -> Tensor:
            axis = next(axes, None) or 0
            return value.movedim(0, axis) if back else value.movedim(axis, 0)

        return map_tensors(move, batch)


def open_loader(net: nn.Module, loader: Iterable[Any], options: Options) -> tuple[Options, Stream]:
    """Open a loader for a private net, within ``quiet``; return options with what their step shows on the first batch."""
    device = device_of(net)
    if options.step is None:
        return options, options.open(loader, device)
    batches = start_loader(loader)
    first = list(islice(batches, 1))
    if first:
        options = read_options(options, net, first[0])
    return options, options.open(loader, device, chain(first, batches))


@contextmanager
def advice_for_step(options: Options) -> Iterator[None]:
    """Replace advice to pass a step by advice for the step, if the options have one."""
    try:
        yield
    except ReconstructionError as error:
        if options.step is not None:
            ends = "; it takes the place of step=" if "unpack=" in error.fix and "step=" not in error.fix else ""
            error.fix = error.fix.replace(PASS_STEP, _IN_STEP.format(_name_of(options.step))) + ends
            error.args = error.found, error.needed, error.fix
        raise


def read_first(net: nn.Module, loader: Iterable[Any], options: Options) -> Options:
    """Return options with what their step shows, on a private copy of a user's net and the first batch of a loader."""
    if options.step is None:
        return options
    bench = Workbench.of(net)
    with refuse_calls(bench.origin):
        found, _ = run_quietly(bench.net, partial(open_loader, bench.net, loader, options), seed=options.seed, loader=loader)
    return found


def read_options(options: Options, net: nn.Module, batch: Any) -> Options:
    """Return options with the forward, the targets and the loss of their step, read on a first batch by a private net.

    A loss or readout that the options give stays.  Raises a NetworkError if the step fails, or calls no loss of the net's.
    """
    assert options.step is not None
    batch = to_device(batch, device_of(net))
    run = _Run(options.step, net, batch)
    place, main = run.main_calls(batch)
    loss, formula = main[0].loss, main[0].loss is None
    _warn_of_changes(run.seen.total, main)
    spikes = run.spikes(next(reversed(run.outputs)))
    samples = len(spikes[-1])
    axes = tuple(next((axis for axis in (0, 1) if leaf.shape[axis : axis + 1] == (samples,)), None) for leaf in run.leaves)
    layout = main[0].time_layout(spikes, run.outputs) if len(main) == 1 and not formula and {*axes} != {None} else None
    main = main if layout is None else main[0].at_steps(layout, samples)
    scores, targets = main[0].scores, main[0].targets
    per_step = len(main) > 1 and all(call.scores is not scores for call in main[1:])
    if len(main) > 1 and not per_step:
        warn_user(
            f"The step calls its {type(loss).__name__} {len(main)} times for the same scores, as with mixed targets: those of the "
            "first call are taken, and the report's accuracies are of the inputs that the step makes."
        )
    if per_step and any(not torch.equal(call.targets, targets) for call in main[1:]):
        targets = torch.stack([call.targets for call in main], 1)
    found = find_targets(targets, run.leaves, squared=isinstance(loss, nn.MSELoss))
    layer = options.readout_layer or _find_readout(net, main[0].value if formula else scores)
    given: dict[str, Any] = {"step": None, "test": None, "readout_layer": layer}
    if formula and options.loss is None:
        given["loss"] = "squared" if targets.is_floating_point() else "cross_entropy"
        given |= (decoded := run.decoding(samples) if options.readout == "auto" else {})
        warn_user(
            f"{_name_of(options.step)} calls no loss of torch or snnTorch. What the net returns is taken as its scores"
            f"{''.join(f', by its {kind}' for kind in decoded.values())}, what is second in the batch as its targets, and "
            f"{given['loss']} is solved. Pass loss= for another one."
        )
    elif options.loss is None:
        at_steps = per_step or (scores.dim() > 2 and scores.shape == targets.shape)  # in calls of their own, or in one
        given["loss"] = OwnLoss(loss, _name_of(options.step), per_step=at_steps, levels=found.levels)
    if axes[-1:] == (1,) or not run.is_plain(batch, main):  # the plain line takes no targets with time first
        output = None if formula else run.find_output(scores)
        if output is not None:
            trained = torch.stack([call.scores for call in main]) if per_step else scores
            tested = _by_spikes(options, net, batch, output, trained.detach())
            given |= {"readout": "spike_count"} if tested else {}
            output = output if tested or (tested is None and run.shows_spikes(output)) else None
        read = ReadStep(
            step=options.step,
            kind=None if formula else type(loss),
            calls=place,
            per_step=per_step,
            layout=layout,
            axes=axes,
            targets=found,
            output=None if output is None else run.names[output],
            net=None if found.place is not None else net,
        )
        given |= {"forward": read, "unpack": read.unpack}
    return replace(options, **given)


def without_spikes(forward: Forward) -> Forward:
    """Return a forward that returns what the loss gets and nothing beside it, as a step in training does."""
    if isinstance(forward, Within):
        return replace(forward, inner=without_spikes(forward.inner))
    return replace(forward, output=None) if isinstance(forward, ReadStep) else forward


def loss_of(step: Step, net: nn.Module, batch: Any) -> Tensor | None:
    """Return the loss of a step that reaches a net's parameters, and that the step returns or takes backward; it ends there."""
    parameters = set(map(id, net.parameters()))

    def ends(tensor: Tensor) -> bool:
        return any(id(getattr(node, "variable", None)) in parameters for node in graph_of(tensor))

    return StepWatch(ends).run(step, net, batch).total


def _name_of(step: Step) -> str:
    return str(getattr(without_contexts(step), "__name__", "step")).replace("<lambda>", "step")


class _Run:
    """Record of one pass in which a step or a test is read: with gradients, up to a loss of the net, or a value that decides."""

    def __init__(
        self, step: Step, net: nn.Module, batch: Any, decides: Callable[[_Run, Tensor], bool] = lambda run, value: False
    ) -> None:
        self.names = {module: name for name, module in net.named_modules() if is_neuron(module)}
        self.outputs: dict[nn.Module, list[Any]] = {}  # of each neuron; the one that ran last stands last
        self.behind: list[Any] = []  # outputs of neurons behind the net's first loss that goes backward
        self.calls: dict[str, list[tuple[Any, Any]]] = {}  # arguments and outputs of the modules that hold neurons
        self.seen = StepWatch(self._ends, partial(decides, self), goes_on=True)
        given = map_tensors(Tensor.clone, batch)
        pairs = zip(list(tensors_in(given)), tensors_in(batch), strict=True)
        holders = {holder for name in self.names.values() for holder in _holders(name)}
        taps = Taps(
            outputs={neuron: partial(self._note, neuron) for neuron in self.names},
            calls={net.get_submodule(name): partial(self._note_call, name) for name in holders},
        )
        reset_states(net)
        with ExitStack() as stack:
            for parameter in net.parameters():  # what depends on frozen ones is known too
                stack.callback(parameter.requires_grad_, parameter.requires_grad)
                parameter.requires_grad_(parameter.is_floating_point())
            for neuron in self.names:  # before version 2 SpikingJelly's have no gradient in evaluation
                stack.callback(setattr, neuron, "training", neuron.training)
                neuron.training = True
            for context in (torch.enable_grad(), seeded(0, net), tapped(taps), isolated(net)):
                stack.enter_context(context)
            try:
                self.seen.run(step, net, given)
            except ReconstructionError:
                raise
            except Exception as error:
                raise NetworkError(
                    f"the training step raised {type(error).__name__}: {error}, for a batch {describe(batch)}",
                    "a step that runs on a copy of the net and a batch of the loader, up to its loss",
                    "correct it: the error above shows the line; it gets a net and a batch, as in "
                    "step=lambda net, batch: loss_fn(net(batch[0]), batch[1])",
                ) from error
        # Tensors of the batch that the step got, which its calls have; of those that it changed, the batch's own.
        self.leaves = [taken if torch.equal(taken, own) else own for taken, own in pairs]

    def _ends(self, tensor: Tensor) -> bool:
        return follows_from(tensor, [self.outputs, self.behind])

    def _note(self, neuron: nn.Module, output: Any) -> None:
        if self.seen.total is None:
            self.outputs[neuron] = [*self.outputs.pop(neuron, []), output]
        else:
            self.behind.append(output)

    def _note_call(self, name: str, arguments: Any, output: Any) -> None:
        if self.seen.total is None:
            self.calls.setdefault(name, []).append((arguments, output))

    def main_calls(self, batch: Any) -> tuple[slice, list[LossCall]]:
        """Return the first call whose scores follow from the net's neurons, with all that are alike, and their place in the calls.

        A loss whose targets are in the batch goes before others, such as a penalty on firing rates, and one of class labels first.
        Of a step that calls no known loss but the net once, it is what the net returns, and what stands second in the batch.
        """
        calls = self.seen.calls
        of_net = [number for number, call in enumerate(calls) if follows_from(call.scores, self.outputs) and call.scores.dim() > 0]
        returned = [next(tensors_in(output), None) for _, output in self.calls.get("", [])]
        if not calls and is_pair(batch) and len(returned) == 1 and returned[0] is not None:
            return slice(0, None), [LossCall(None, self.calls[""][0][1], self.leaves[-1], returned[0])]
        if not of_net:
            given = ", ".join(dict.fromkeys(type(call.loss).__name__ for call in calls))
            found = f"a step whose losses ({given}) get no scores of the net's" if given else "a step that calls no known loss"
            raise NetworkError(found, "a loss of torch or snnTorch, called on what the net returns", _INSTEAD)
        made = {number: find_targets(calls[number].targets, self.leaves, squared=True).place is None for number in of_net}
        chosen = min(of_net, key=lambda number: (made[number], calls[number].targets.is_floating_point()))
        first = calls[chosen]
        if not bool(torch.isfinite(first.scores).all()):
            found = f"a step whose {type(first.loss).__name__} gets NaN or infinite values"
            raise NetworkError(found, "finite scores", "correct what step does between the net and its loss")
        runs, neuron = len(self.calls.get("", [])), next(reversed(self.outputs))
        if runs > 1 and (len(self.outputs[neuron]) > runs or library_of(neuron).takes_sequences(neuron)):
            raise NetworkError(
                f"a step that runs the net {runs} times on a batch, as for a contrast of two views or a metric",
                "one run of the net, or one call of it a time step",
                "let step(net, batch) run net once, and use what it returns for all",
            )
        if self.seen.several:
            raise NetworkError(
                f"a step in which several losses ({type(first.loss).__name__}) of the net go backward one after the other, as in "
                "truncated backpropagation through time",
                "one loss of all samples and time steps of a batch",
                "pass step=lambda net, batch: loss_fn(forward_pass(net, batch[0]), batch[1]), with a forward_pass over all steps",
            )
        alike = [number for number in of_net if calls[number].is_like(first)]
        others = any(calls[number].scores is not first.scores for number in alike)
        ends = [last_step(calls[number].scores, self.outputs) for number in (alike[0], alike[-1])] if others else [-1]
        if ends[0] == ends[-1] >= 0:
            alike = [chosen]  # of scores of all steps, as of spikes and of membranes, not of one step after the other
        behind = len(calls) - 1 - alike[-1]  # such as those of another head; batches may differ in their steps
        return slice(alike[0], -behind or None), [calls[number] for number in alike]

    def is_plain(self, batch: Any, calls: list[LossCall]) -> bool:
        """Return whether the one loss gets what ``net(batch[0])`` returns, and ``batch[1]``."""
        whole = self.calls.get("", [])
        if len(whole) != 1 or len(calls) != 1 or not is_pair(batch) or len(self.leaves) != 2:
            return False
        ((args, kwargs), output), (call,), (inputs, targets) = whole[0], calls, self.leaves
        return not kwargs and len(args) == 1 and args[0] is inputs and output is call.scores and call.targets is targets

    def decoding(self, samples: int) -> dict[str, str]:
        """Return the readout of a step that calls no known loss, if the gradient shows it."""
        values, total = [value for value in tensors_in(self.calls[""]) if value.requires_grad], self.seen.total
        if total is None or total.grad_fn is None:
            return {}
        found = torch.autograd.grad(total, values, retain_graph=True, allow_unused=True)
        used = [pair for pair in zip(values, found, strict=True) if pair[1] is not None and bool(pair[1].any())]
        if len(used) != 1 or used[0][0].dim() != 3:
            return {}
        time = 0 if used[0][0].shape[1] == samples else 1
        over_time, gradient = (value.detach().movedim(time, 0) for value in used[0])  # [T, B, C]
        if bool(((over_time == 0) | (over_time == 1)).all()):
            return {"readout": "spike_count"} if same_values(gradient, gradient[:1].expand_as(gradient)) else {}
        if not bool(gradient[:-1].any()):
            return {"readout": "membrane_last"}
        return {"readout": "membrane_max"} if bool((over_time == over_time.amax(0))[gradient != 0].all()) else {}

    def find_output(self, scores: Tensor) -> nn.Module | None:
        """Return the output neuron if it spikes, and scores are its membranes."""
        neuron, scores = next(reversed(self.outputs), None), scores.detach()
        if neuron is None or library_of(neuron).threshold(neuron) is None:
            return None
        spikes = self.spikes(neuron)
        if bool(((scores == 0) | (scores == 1)).all()) or any(step.shape != scores.shape[-2:] for step in spikes):
            return None
        over_time = torch.stack(spikes)
        of_spikes = _decide_alike(over_time.sum(0), scores) or fit_weights(over_time, scores) is not None
        return None if of_spikes else neuron

    def spikes(self, neuron: nn.Module) -> list[Tensor]:
        """Return the spikes of a neuron at each step."""
        spikes = list[Tensor]()
        tap = spike_taps({neuron: lambda step: spikes.append(step.detach())})[neuron]
        for output in self.outputs[neuron]:
            tap(output)
        return spikes

    def shows_spikes(self, neuron: nn.Module) -> bool:
        """Return whether a neuron resets, and its spikes are in what the outermost module that the step calls returns."""
        if library_of(neuron).integrates(neuron):
            return False
        name, over_time = self.names[neuron], torch.stack(self.spikes(neuron))
        forms = [*over_time, over_time, over_time.movedim(0, 1), over_time.sum(0), over_time.mean(0)]
        called = next((self.calls[holder] for holder in _holders(name) if holder in self.calls), None)
        returned = [value.detach() for _, output in called or () for value in tensors_in(output)]
        return called is None or any(same_values(form, value) for form in forms for value in returned)


def _by_spikes(options: Options, net: nn.Module, batch: Any, neuron: nn.Module, trained: Tensor) -> bool | None:
    """Return whether the user's test decides by the spikes of the output neuron, and not by what the loss gets; None if unknown."""
    found: bool | None = None
    decoded = [trained] if trained.dim() == 2 else [trained.sum(0), trained.amax(0)]

    def decides(run: _Run, value: Tensor) -> bool:
        nonlocal found
        by_spikes = neuron in run.outputs and _decide_alike(torch.stack(run.spikes(neuron)).sum(0), value)
        found = True if by_spikes else False if any(_decide_alike(scores, value) for scores in decoded) else None
        return found is not None

    if options.test is not None and options.readout == "auto":
        try:
            _Run(options.test, net, batch, decides)
        except ReconstructionError as error:
            cause = error.__cause__ or error
            warn_user(f"The test was not read, and spikes that are returned decide: it raised {type(cause).__name__}: {cause}")
    return found


def _decide_alike(scores: Tensor, others: Tensor) -> bool:
    """Return whether others (B, K) are scores (B, C), summed over the outputs of a class: times a factor, or their softmax."""
    if others.dim() != 2 or others.shape[1] < 2 or len(scores) != len(others) or scores.shape[1] % others.shape[1]:
        return False
    scores, others = block_sum(scores, scores.shape[1] // others.shape[1]).float(), others.detach().float()
    before, *after = ((each - each.mean(1, keepdim=True)).flatten()[:, None] for each in (scores, others, others.log()))
    scales = [fit_scale(before, each) for each in after]
    return same_values(before, after[0]) or any(scale is not None and bool(scale.factor > 0) for scale in scales)


def is_pair(batch: Any) -> bool:
    """Return whether a batch is inputs and a tensor of targets."""
    return isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[1], Tensor)


def _holders(name: str) -> list[str]:
    """Return the names of the modules that hold one, the whole net, "", first."""
    return [".".join(name.split(".")[:count]) for count in range(name.count(".") + 1)]


def _find_readout(net: nn.Module, scores: Tensor) -> str | None:
    """Return the name of the nn.Linear nearest to the scores, if the net has others that they do not depend on; else None."""
    linear = {id(layer.weight): name for name, layer in net.named_modules() if isinstance(layer, nn.Linear)}
    used = dict.fromkeys(id(node.variable) for node in graph_of(scores) if hasattr(node, "variable"))
    names = [linear[each] for each in used if each in linear]
    return names[0] if names and len(names) < len(linear) else None


def _warn_of_changes(total: Tensor | None, calls: list[LossCall]) -> None:
    """Warn if a step weighs the samples of its loss, or adds terms to it, such as a penalty on firing rates."""
    values = [call.value for call in calls if call.value.grad_fn is not None]
    if total is None or total.grad_fn is None or not values or calls[0].loss is None:
        return
    found = torch.autograd.grad(total, values, retain_graph=True, allow_unused=True)
    parts = [(factor, value.detach()) for factor, value in zip(found, values, strict=True) if factor is not None]
    known, whole = sum(float((factor * value).sum()) for factor, value in parts), float(total)
    name = type(calls[0].loss).__name__
    if any(not same_values(factor, factor.mean().expand(factor.shape)) for factor, _ in parts):
        warn_user(f"The step weighs its {name} by samples, as a mask or a focal loss does: in the program all count alike.")
    elif parts and abs(whole - known) > _LEFT_OUT * max(abs(whole), abs(known)):
        warn_user(
            f"The step's loss is {whole:.4g}, of which {known:.4g} are its {name}: the rest, such as a penalty on firing rates "
            "or another loss, is left out of the program."
        )
