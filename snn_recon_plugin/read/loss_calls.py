"""A run of a user's training step that only shows what its losses get: it ends where the net's loss goes backward.

Nothing but the private net runs or changes: optimizers, schedulers, gradient scalers and metrics that the step reaches stay as they
are, and so do the net's modes.
"""

from __future__ import annotations

import dis
import inspect
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.overrides import TorchFunctionMode

from ..convex.losses import TORCH_LOSSES
from ..networks.calls.batches import map_tensors, tensors_in
from ..networks.libraries import library_of
from ..networks.private.workbench import same_values

Step: TypeAlias = Callable[[nn.Module, Any], Any]
Outputs: TypeAlias = Mapping[nn.Module, list[Any]]  # of each neuron in a pass, call by call

# Losses of torch by their functions.  Those that no program has are named in its refusal.
_FUNCTIONS: dict[Callable[..., Any], type[nn.Module]] = {
    **TORCH_LOSSES,
    functional.l1_loss: nn.L1Loss,
    functional.binary_cross_entropy: nn.BCELoss,
    functional.multilabel_margin_loss: nn.MultiLabelMarginLoss,
}
_JUMPS = {*dis.hasjrel, *dis.hasjabs}
_NOT_OF_USERS = str(Path(torch.__file__).parent), str(Path(__file__).parents[1])  # folders of code
# Functions by which a test decides: the largest of a row of scores.
_DECISIONS = {getattr(owner, name) for owner in (torch, Tensor) for name in ("argmax", "max", "topk")}
_SNNTORCH = "snntorch.functional.loss"  # its loss objects are seen as themselves, not as the losses of torch that they call


def _below_outputs(func: Callable[..., Any], input: Tensor, target: Tensor, ignore_index: int = -100, **_: Any) -> Tensor:
    """Return a loss's targets, with 0 in place of classes for which the net has no output yet, as before they are added."""
    if func not in (functional.cross_entropy, functional.nll_loss) or target.is_floating_point():
        return target
    beyond = (target >= input.shape[min(1, input.dim() - 1)]) & (target != ignore_index)
    return target.masked_fill(beyond, 0)


@dataclass(frozen=True)
class LossCall:
    """A call of a loss."""

    loss: object  # module of torch, or object of snnTorch; None for what a net returns in a step without a known loss
    scores: Any  # of a loss a tensor
    targets: Tensor
    value: Tensor

    def is_like(self, other: LossCall) -> bool:
        """Return whether this may be a call of the same loss at another time step."""
        return type(self.loss) is type(other.loss) and self.scores.shape == other.scores.shape

    @torch.enable_grad()
    def time_layout(self, spikes: list[Tensor], outputs: Outputs) -> int | None:
        """Return the layout of a loss that gets all steps of the samples at once, for ``at_steps``; None for another loss.

        ``spikes`` (B, C) are the output neuron's, a tensor a step, and ``outputs`` those of all neurons.
        """
        steps, (samples, *single), shape = len(spikes), spikes[0].shape, tuple(self.scores.shape)
        if len(shape) == 3 and isinstance(self.loss, nn.CrossEntropyLoss | nn.NLLLoss):
            return 2
        values = self.scores.shape == self.targets.shape and shape[:2] in [(steps, samples), (samples, steps)]
        values = values and (len(shape) == 3 or single == [1])
        if steps == 1 or not (values or (len(shape) == 2 and shape[0] == steps * samples)):
            return None
        if samples == 1 or (values and steps != samples):
            return 3 * values + (values and shape[0] == samples)
        # Where steps stand first, the first T rows are of the first steps, and do not change with later ones.
        rows, first = self.scores.reshape(steps * samples, -1), (steps - 1) // samples
        known = last_step(rows, outputs) > first
        return 3 * values + (last_step(rows[:steps], outputs) > first) if known else None

    def at_steps(self, layout: int, samples: int) -> list[LossCall]:
        """Return a call for each time step.

        Layouts of scores: 0 is [T * B, C], 1 [B * T, C], 2 [B, C, T]; of values, the C of a single output left out or not, 3 is
        [T, B, C], and 4 [B, T, C].
        """
        scores, targets, axis = self.scores, self.targets, layout
        if layout > 2:
            scores, targets, axis = (*(values.reshape(*values.shape[:2], -1) for values in (scores, targets)), layout - 3)
        elif scores.dim() == 2:
            shape = (-1, samples) if axis == 0 else (samples, -1)
            scores, targets = (values.reshape(*shape, *values.shape[1:]) for values in (scores, targets))
        pairs = zip(scores.unbind(axis), targets.unbind(min(axis, targets.dim() - 1)), strict=True)
        return [LossCall(self.loss, each, target, self.value) for each, target in pairs]


class _Ended(BaseException):  # a step may catch every Exception
    """Raised where the net's loss goes backward: all that there is to see was seen."""


class StepWatch(TorchFunctionMode):
    """A run of a step on a private net, and what its losses get in it.

    A tensor that goes backward and ``ends`` is the net's loss, and so does a value whose largest one is taken and that ``decides``.
    A run that ``goes_on`` behind a net's loss in a loop ends at the next one.
    """

    def __init__(
        self, ends: Callable[[Tensor], bool], decides: Callable[[Tensor], bool] = lambda _: False, *, goes_on: bool = False
    ) -> None:
        super().__init__()
        self._ends, self._decides, self._goes_on = ends, decides, goes_on
        self.total: Tensor | None = None  # loss of the net that the step returned, or took backward
        self.calls: list[LossCall] = []  # of losses, in order, until the net's goes backward
        self.several = False  # whether another loss of the net went backward behind it

    def run(self, step: Step, net: nn.Module, batch: Any) -> StepWatch:
        """Run a step, to the net's loss or its own end, and return this record."""
        returned: Any = None
        try:
            with _idle(net, self), _kept_metrics(), _snntorch_losses(self), self:
                returned = step(net, batch)
        except _Ended:
            pass
        except Exception:  # behind the loss gradients are missing
            if self.total is None:
                raise
        if isinstance(returned, dict | tuple):
            returned = returned.get("loss") if isinstance(returned, dict) else next(iter(returned), None)
        if self.total is None and isinstance(returned, Tensor):
            self.total = returned
        return self

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is Tensor.backward:
            return self.backward(args[0])
        if func in _DECISIONS and self._decides(args[0] if args else (kwargs or {})["input"]):
            raise _Ended
        if func not in _FUNCTIONS or self.total is not None:
            return func(*args, **(kwargs or {}))
        call = inspect.signature(func).bind(*args, **(kwargs or {}))
        given = dict(call.arguments)
        call.arguments["target"] = _below_outputs(func, **given)
        self.calls.append(LossCall(_module(func, given), given["input"], given["target"], func(*call.args, **call.kwargs)))
        return self.calls[-1].value

    def backward(self, tensors: Any, *args: Any, **kwargs: Any) -> None:
        """Take the place of torch.autograd.backward."""
        for tensor in [tensors] if isinstance(tensors, Tensor) else tensors:
            if not self._ends(tensor):
                continue
            if self.total is not None:
                self.several = not torch.equal(tensor, self.total)
                raise _Ended
            self.total = tensor
            if not self._goes_on or not _in_loop(sys._getframe()):
                raise _Ended

    def gradients(self, outputs: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Take the place of torch.autograd.grad; gradients of other nets' losses are zero."""
        self.backward(outputs)
        return tuple(torch.zeros_like(each) for each in ([inputs] if isinstance(inputs, Tensor) else inputs))


def _in_loop(frame: FrameType | None) -> bool:
    """Return whether a call in a step stands in a loop of the user's code."""
    while frame is not None and frame.f_code is not StepWatch.run.__code__:
        code, at = frame.f_code, frame.f_lasti
        jumps = () if code.co_filename.startswith(_NOT_OF_USERS) else dis.get_instructions(code)
        if any(each.opcode in _JUMPS and each.argval <= at <= each.offset for each in jumps):
            return True
        frame = frame.f_back
    return False


def _module(function: Callable[..., Any], given: dict[str, Any]) -> nn.Module:
    """Return the loss module that stands for a call of a function."""
    kind = _FUNCTIONS[function]
    takes = inspect.signature(kind).parameters.keys() - {"size_average", "reduce", "input", "target"}
    return kind(**{name: value for name, value in given.items() if name in takes})


# -- what a step may reach -----------------------------------------------------------------------------------------------------


@contextmanager
def replaced(owner: Any, values: Mapping[str, Any]) -> Iterator[None]:
    """Give an object or a class other attributes, until the block ends."""
    before = {name: vars(owner)[name] for name in values if name in vars(owner)}
    try:
        for name, value in values.items():
            setattr(owner, name, value)
        yield
    finally:
        for name in values:
            if name in before:
                setattr(owner, name, before[name])
            elif name in vars(owner):
                delattr(owner, name)


@contextmanager
def _kept_metrics() -> Iterator[None]:
    """Put back the states of metrics of torchmetrics that a step updates, wherever it holds them."""
    module = sys.modules.get("torchmetrics")
    if module is None:
        yield
        return
    write = module.Metric.__setattr__
    before: dict[int, tuple[Any, dict[str, Any]]] = {}  # metrics, and their states before an attribute was set

    def note(metric: Any, name: str, value: Any) -> None:  # an update first drops the last result, an attribute
        if id(metric) not in before:
            state = {each: held for each, held in vars(metric).items() if isinstance(held, bool | int | list | Tensor | None)}
            before[id(metric)] = metric, map_tensors(Tensor.clone, state)
        write(metric, name, value)

    try:
        with replaced(module.Metric, {"__setattr__": note}):
            yield
    finally:
        for metric, state in before.values():
            vars(metric).update(state)


@contextmanager
def _snntorch_losses(watch: StepWatch) -> Iterator[None]:
    """Note the loss objects of snnTorch in place of the losses of torch that they call."""
    module = sys.modules.get(_SNNTORCH)

    def noting(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def noted(loss: Any, scores: Tensor, targets: Tensor) -> Tensor:
            before = len(watch.calls)
            value = call(loss, scores, targets)
            if watch.total is None:
                watch.calls[before:] = [LossCall(loss, scores, targets, value)]
            return value

        return noted

    with ExitStack() as stack:
        for kind in [] if module is None else list(vars(module).values()):
            if isinstance(kind, type) and "__call__" in vars(kind) and kind.__module__ == _SNNTORCH:
                stack.enter_context(replaced(kind, {"__call__": noting(vars(kind)["__call__"])}))
        yield


@contextmanager
def _idle(net: nn.Module, watch: StepWatch) -> Iterator[None]:
    """Let optimizers, schedulers and scalers do nothing, and keep the modes of a private net, until the block ends."""

    def nothing(self: Any, *args: Any, **kwargs: Any) -> None:
        return None

    held: list[tuple[dict[str, Any], list[Any]]] = []  # groups of an optimizer that steps, and their parameters

    def empty(optimizer: Any, args: Any, kwargs: Any) -> None:
        held.extend((group, group["params"]) for group in optimizer.param_groups)
        for group in optimizer.param_groups:
            group["params"] = []

    def fill(*args: Any) -> None:
        while held:
            group, parameters = held.pop()
            group["params"] = parameters

    scaler = {**dict.fromkeys(("step", "update", "unscale_"), nothing), "scale": lambda self, value: value}
    modes = dict.fromkeys(("train", "eval"), partial(_itself, net))  # a step may call net.train()
    with ExitStack() as stack:
        # A step runs its closure, without parameters to change; schedulers give optimizers steps of their own.
        stack.callback(fill)
        stack.callback(register_optimizer_step_pre_hook(empty).remove)
        stack.callback(register_optimizer_step_post_hook(fill).remove)
        for kind, name in ((torch.optim.Optimizer, "zero_grad"), (torch.optim.lr_scheduler.LRScheduler, "step")):
            for each in (kind, *_subclasses(kind)):
                if name in vars(each):
                    stack.enter_context(replaced(each, {name: nothing}))
        stack.enter_context(replaced(torch.amp.GradScaler, scaler))
        stack.enter_context(replaced(torch.autograd, {"backward": watch.backward, "grad": watch.gradients}))
        stack.enter_context(replaced(net, modes))
        yield


def _itself(net: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    """Return a net: one function for all passes, since plans compare the attributes of nets."""
    return net


def _subclasses(kind: type) -> list[type]:
    found: list[type] = kind.__subclasses__()
    return list(dict.fromkeys([*found, *(inner for each in found for inner in _subclasses(each))]))


# -- where targets and scores come from --------------------------------------------------------------------------------------------


class FoundTargets(NamedTuple):
    """Source of the targets of a loss."""

    place: int | None  # among the tensors of a batch; None if the step makes them
    dtype: torch.dtype  # as which they are taken from it
    levels: tuple[float, float] | None = None  # of the wrong and the right class, in rows that mark classes
    rest: tuple[int, ...] | None = None  # axes behind the samples, if the step takes some away or adds some

    def take(self, leaf: Tensor) -> Tensor:
        """Return the targets that a tensor of a batch holds, samples first."""
        return (leaf if self.rest is None else leaf.reshape(len(leaf), *self.rest)).to(self.dtype)


def find_targets(targets: Tensor, leaves: list[Tensor], *, squared: bool) -> FoundTargets:
    """Find the tensor of a batch that targets are, whose values they have in another type or shape, or whose classes they mark.

    A squared loss can fit any two levels, others 0 and 1.
    """
    for number, leaf in enumerate(leaves):
        if leaf.dim() > 0 and leaf.numel() == targets.numel() and same_values(leaf.flatten(), targets.flatten()):
            changed = leaf.shape != targets.shape and len(leaf) == len(targets)
            rest = (-1, *targets.shape[2:])[: targets.dim() - 1] if changed else None
            return FoundTargets(number, targets.dtype, None, rest)
    for number, leaf in enumerate(leaves):
        levels = _levels(targets, leaf) if leaf.dim() == 1 and not leaf.is_floating_point() else None
        if levels is not None and (squared or levels == (0.0, 1.0)):
            return FoundTargets(number, leaf.dtype, levels)
    return FoundTargets(None, targets.dtype)


def _levels(rows: Tensor, classes: Tensor) -> tuple[float, float] | None:
    """Return the low and the high value of rows that mark class indices, one in each; None for others."""
    if rows.dim() != 2 or len(rows) != len(classes) or len(levels := torch.unique(rows)) != 2:
        return None
    high = rows == levels[1]
    marked = bool((high.sum(1) == 1).all()) and torch.equal(high.long().argmax(1), classes.long())
    return (float(levels[0]), float(levels[1])) if marked else None


def graph_of(tensor: Tensor) -> Iterator[Any]:
    """Yield the nodes of the graph that a tensor was computed by, the nearest first."""
    left, known = deque([_node_of(tensor)]), set[Any]()
    while left:
        node: Any = left.popleft()
        if node is not None and node not in known:
            known.add(node)
            yield node
            left += [function for function, _ in node.next_functions]


def follows_from(tensor: Tensor, outputs: Any) -> bool:
    """Return whether a tensor was computed from outputs of neurons, nested at will."""
    found = {_node_of(value) for value in tensors_in(outputs)} - {None}
    return any(node in found for node in graph_of(tensor))


def last_step(tensor: Tensor, outputs: Outputs) -> int:
    """Return the last time step whose outputs of neurons change a tensor, by its gradient; -1 if none does."""
    last, weights = -1, torch.linspace(1, 2, tensor.numel()).to(tensor).view_as(tensor)  # unequal: rows may cancel out
    for neuron, calls in outputs.items():
        sequence = library_of(neuron).takes_sequences(neuron)
        values = [(step, value) for step, call in enumerate(calls) for value in tensors_in(call) if value.requires_grad]
        if values and (sequence or len(calls) > 1):
            parts = torch.autograd.grad(tensor, [value for _, value in values], weights, True, allow_unused=True)
            for (step, _), part in zip(values, parts, strict=True):
                if part is not None and bool(part.any()):
                    last = max(last, int(part.flatten(1).any(1).nonzero().max()) if sequence else step)
    return last


def _node_of(tensor: Tensor) -> Any:
    """Return the node of the graph that a tensor was computed by; the look is no part of a pass that is recorded."""
    with torch._C.DisableTorchFunction():
        return tensor.grad_fn
