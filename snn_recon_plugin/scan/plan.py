"""Plan of a pass: its operations, those of all time steps as one, in an order in which they can run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from ..networks.calls.batches import map_tensors, tensors_in
from ..networks.libraries.library import Stepper
from .tape import Op, Origin, Value

leaves = partial(tensors_in, kind=Value)
mapped = partial(map_tensors, kind=Value)


def describe_calls(calls: int, operations: int, *, is_neuron: bool) -> str:
    """Return how a plan takes the calls of a layer or neuron, by so many operations."""
    steps = "1 step" if calls == 1 else f"{calls} steps"
    if operations >= calls:
        return f"as usual, {steps}"
    if is_neuron:
        return f"{steps} in {operations} operation{'s' if operations > 1 else ''}"
    return f"computed {'once' if operations == 1 else f'{operations} times'} for {steps}"


@dataclass(frozen=True)
class PassPlan:
    """Operations of a pass, in order."""

    ops: list[Op]
    returned: Any
    same: Mapping[Value, Value]  # values that an earlier operation has made
    sources: Mapping[int, Origin]  # tensors that it finds, by number
    done: Mapping[nn.Module, str]  # what it does with the calls of each layer and neuron

    def part(self, returned: Any, *, with_states: bool) -> PassPlan:
        """Return the plan of a part of what the pass returns; of states that neurons hold, all or those that it needs."""
        needed, effects, kept = {self.same.get(leaf, leaf) for leaf in leaves(returned)}, set[object](), list[Op]()
        for op in reversed(self.ops):
            stays = with_states or not all(isinstance(effect, nn.Module) for effect in op.effects)
            if (stays and op.effects) or not needed.isdisjoint(leaves(op.output)) or not effects.isdisjoint(op.effects):
                kept.append(op)
                needed.update(leaves((op.args, op.kwargs)))
                effects |= op.effects
        return replace(self, ops=kept[::-1], returned=returned)

    def run(self, inputs: list[Tensor], *, own: bool = True) -> Any:
        """Return what the pass returns for inputs; for a user's own, tensors that may be written into."""
        made = dict[Value, Tensor]()

        def find(leaf: Value) -> Tensor:
            return made[leaf] if leaf in made else self.sources[leaf.number].find(inputs)

        def give(leaf: Value) -> Tensor:
            tensor = find(self.same.get(leaf, leaf))
            if own:
                return tensor.clone(memory_format=torch.contiguous_format)
            return tensor.contiguous() if tensor.dim() > 3 else tensor  # its channels may be last in memory

        for op in self.ops:
            args, kwargs = mapped(find, op.args), op.kwargs and mapped(find, op.kwargs)
            _keep(op.output, op.function(*args, **kwargs), made)
        return mapped(give, self.returned)


def _keep(output: Any, found: Any, made: dict[Value, Tensor]) -> None:
    """Keep the tensors that an operation made."""
    if isinstance(output, Value):
        made[output] = found
    elif isinstance(output, Mapping):
        for key, item in output.items():
            _keep(item, found[key], made)
    elif isinstance(output, tuple | list):
        for item, value in zip(output, found, strict=True):
            _keep(item, value, made)


def difference(plain: Iterable[Tensor | None], planned: Iterable[Tensor | None], *, least: float = 0.0) -> float:
    """Return the largest difference of tensors, relative to each size or ``least`` of the largest one; infinite if one is NaN.

    None stands for zeros.
    """
    pairs = [(one, other) for one, other in zip(plain, planned, strict=True) if one is not None or other is not None]
    if any(one is not None and other is not None and one.shape != other.shape for one, other in pairs):
        return math.inf
    none = torch.zeros(())
    both = [[none if each is None else each if each.dtype is torch.double else each.float() for each in pair] for pair in pairs]
    smallest = least * max((float(one.norm()) for one, _ in both), default=0.0)
    found = [(float((one - other).norm()), max(float(one.norm()), smallest)) for one, other in both]
    if any(map(math.isnan, (value for pair in found for value in pair))):
        return math.inf
    return max((distance / size if size else float(distance > 0) for distance, size in found), default=0.0)


# -- functions of all steps -------------------------------------------------------------------------------------------------------

Shape = tuple[int, ...]

# Functions of samples, by their axes: one batch holds the samples of all steps.
_AXES = {"1d": 3, "2d": 4, "3d": 5}
_KINDS = ("conv", "max_pool", "avg_pool", "adaptive_max_pool", "adaptive_avg_pool")
_OF_SAMPLES: dict[str, int | None] = {f"{kind}{axes}": rank for kind in _KINDS for axes, rank in _AXES.items()}
_OF_SAMPLES |= {"linear": None, "matmul": None, "mm": None, "__matmul__": None, "layer_norm": None, "group_norm": None}
_OF_SAMPLES |= {"batch_norm": None, "instance_norm": None}
# Functions of single numbers.
_POINTWISE = {"relu", "relu_", "leaky_relu", "sigmoid", "tanh", "abs", "neg", "exp", "clamp", "dropout", "clone", "detach", "float"}
_POINTWISE |= {"add", "sub", "mul", "div", "true_divide", "rsub", "gt", "ge", "lt", "le", "maximum", "minimum", "where", "square"}
_POINTWISE |= {f"__{name}__" for name in ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "neg", "gt", "ge", "lt", "le")}
# Functions that give the same numbers another shape.
_RESHAPES = {"flatten", "reshape", "view", "squeeze", "unsqueeze", "unflatten", "contiguous"}
_LIMIT = 2**22  # bytes of a convolution's input: larger ones leave a processor's cache (benchmarks/studies/steps.py)


def over_steps(
    function: Callable[..., Any], stepped: list[Shape], fixed: list[Shape], made: Shape, leads: bool
) -> Callable[..., Tensor] | None:
    """Return a function of torch with tensors ``[T, *shape]`` in place of those of one step; None if it has to run step by step.

    The tensors among its arguments have the shapes ``stepped`` if they are of one step, as the first one if it ``leads``, and
    ``fixed`` if all steps share them; its output is ``made``.
    """
    name, shape = str(getattr(function, "__name__", "")), stepped[0] if stepped else ()
    if not stepped or len(shape) < 1:
        return None
    if name in _RESHAPES and leads:
        return lambda x, *args, **kwargs: x.reshape(len(x), *made)
    if name in _POINTWISE and all(len(other) == len(shape) for other in stepped) and all(len(f) <= len(shape) for f in fixed):
        return function
    rank = _OF_SAMPLES.get(name, 0)
    if name.strip("_") == "matmul" and any(len(other) > 2 for other in fixed):  # a matrix for each sample
        return None
    if not leads or len(stepped) > 1 or made[:1] != shape[:1] or rank == 0 or (rank or len(shape)) != len(shape) or len(shape) < 2:
        return None

    own = partial(_conv2d, function) if name == "conv2d" and shape[1] > 1 else function

    def of_samples(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        samples, size = x.flatten(0, 1), _fitting(x)
        if rank is None or size >= len(x) or x.device.type != "cpu":
            result = own(samples, *args, **kwargs)
        else:  # as many steps at once as a processor's cache holds
            result = torch.cat([own(part, *args, **kwargs) for part in torch.split(samples, size * x.shape[1])])
        return result.view(*x.shape[:2], *result.shape[1:])

    return of_samples


def _fitting(values: Tensor) -> int:
    """Return how many items of an array a processor's cache holds; at least one."""
    return max(1, _LIMIT // max(1, values[0].numel() * values.element_size()))


def _conv2d(function: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Return a convolution with the channels last in memory, which takes a CPU less time, if its bits stay the same."""
    if x.device.type == "cpu" and x.dtype is torch.float32 and not kwargs and len(args) > 1:
        keeps = _keeps_bits(x[: _fitting(x)].shape, args[0].shape, args[1] is not None, *args[2:])
        x = x.contiguous(memory_format=torch.channels_last if keeps else torch.contiguous_format)  # whatever the one below left
    return function(x, *args, **kwargs)


@lru_cache(maxsize=1024)
def _keeps_bits(shape: Shape, weight: Shape, has_bias: bool, *options: Any) -> bool:
    """Return whether a convolution of such arrays gives the same bits with the channels last in memory."""
    generator = torch.Generator().manual_seed(0)
    x, kernel, bias = (torch.randn(*size, generator=generator) for size in (shape, weight, weight[:1]))
    with torch.no_grad(), torch._C.DisableTorchFunction():
        both = (x, x.contiguous(memory_format=torch.channels_last))
        usual, last = (torch.conv2d(each, kernel, bias if has_bias else None, *options) for each in both)
    return torch.equal(usual, last)


# -- steps taken apart, and neurons -----------------------------------------------------------------------------------------------


def walk(values: Tensor, index: Any, axis: int) -> Tensor:
    """Return what a loop takes step by step, as in ``values[:, step]``, ``[T, *]``."""
    return values[index].movedim(axis, 0)


def all_steps(values: Tensor, dim: int = 0) -> Tensor:
    """Return the items that ``unbind`` gives, ``[T, *]``."""
    return values.movedim(dim, 0)


def once(linear: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Return the output of a linear layer, computed once for a step that was expanded over time."""
    if x.dim() < 3 or x.stride(0) != 0:
        return linear(x, *args, **kwargs)
    found = linear(x[0], *args, **kwargs)
    return found.expand(len(x), *found.shape)


def scan(stepper: Stepper, steps: int, first: tuple[Any, ...], states: tuple[Tensor | None, ...], x: Tensor) -> list[Tensor]:
    """Return the spikes and the states of a neuron after each step, ``[T, *]`` each, and let it hold the last ones.

    ``first`` are the arguments of its first call, and ``states`` those before it: None for one that the neuron finds itself, none
    if it makes them, or from rest.  Inputs are ``[T, *]``, or one that all steps share.
    """
    call = stepper.read(first)
    assert call is not None
    before = tuple(map(_start, states, call[1])) if states else call[1]
    spikes, after = stepper.scan(x, before, steps, shared=x.dim() == first[0].dim())
    last = tuple(state[-1].clone(memory_format=torch.contiguous_format) for state in after)  # which the user may write into
    stepper.answer(spikes[-1], last)
    return [spikes, *after]


def _start(own: Tensor | None, found: Tensor) -> Tensor:
    """Return a state that was made in the pass, zeros if it has another shape; else the one that the neuron found."""
    if own is None:
        return found
    return own if own.shape == found.shape else torch.zeros_like(found)


def answer_all(stepper: Stepper, *args: Any) -> Any:
    """Return what a neuron returns that takes all steps in one call."""
    call = stepper.read(args)
    assert call is not None
    x, states = call
    shared = len(x) > 1 and x.stride(0) == 0
    return stepper.answer(*stepper.scan(x[0] if shared else x, states, len(x), shared))
