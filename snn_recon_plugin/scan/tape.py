"""Record of one pass: each operation on tensors, in order, with where its arguments come from.

What a record does not show stays unseen in later passes, so whatever may depend on it refuses the record: a value that Python
reads, a write into a tensor that others may hold, an attribute that changes, random numbers of Python, a tensor of unknown origin.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ..networks.calls.batches import map_tensors, tensors_in
from ..networks.libraries import LIBRARIES, is_neuron, isolated, reset_states
from ..networks.libraries.library import Stepper
from .surroundings import modules_around, surroundings_of

# Functions and attributes of tensors that tell nothing of their values.
_SHAPES = {"size", "dim", "ndimension", "numel", "nelement", "stride", "is_contiguous", "is_floating_point", "is_complex"}
_SHAPES |= {"__len__", "shape", "ndim", "dtype", "device", "layout", "is_cuda", "is_sparse", "requires_grad", "is_leaf", "itemsize"}
_SHAPES |= {"nbytes", "get_device", "element_size", "is_tensor", "storage_offset", "is_same_size", "is_nested", "__hash__"}
_SHAPES |= {"is_quantized"}
# Functions whose outputs have shapes that depend on values.
_COUNTS = {"nonzero", "argwhere", "masked_select", "bincount", "repeat_interleave", "to_sparse", "combinations"}
_METHODS = (type(Tensor.add), FunctionType)  # kinds of methods of tensors
# Kinds of arguments of which a function makes the same tensor in each pass.
_FIXED = (int, float, str, type, torch.dtype, torch.device, torch.layout, torch.memory_format)


class Value(NamedTuple):
    """A tensor of a pass, by its number."""

    number: int


class Origin(NamedTuple):
    """Place of a tensor that a pass finds: among its inputs if ``module`` is None, or an attribute of a module."""

    module: nn.Module | None
    name: str | int

    def find(self, inputs: list[Tensor]) -> Tensor:
        """Return the tensor that is there now."""
        if self.module is None:
            assert isinstance(self.name, int)
            return inputs[self.name]
        found: Tensor = getattr(self.module, str(self.name))
        return found

    @property
    def is_state(self) -> bool:
        """Return whether it is a state that a neuron holds."""
        module, name = self.module, str(self.name)
        if module is None or not is_neuron(module) or name in module._parameters:
            return False
        return name not in module._buffers or name in module._non_persistent_buffers_set


@dataclass(frozen=True)
class NeuronCall:
    """A call of a neuron that a stepper can answer."""

    stepper: Stepper
    states: tuple[Value | None, ...]  # before the call; None for those that the neuron held before the pass; none if it makes them
    follows: bool  # it starts from the states that the neuron's last call left
    can_repeat: bool  # the neuron's own code can answer it again: nothing but calls, or a reset, changed the states that it holds
    steps: int
    from_rest: bool  # the pass has reset it, so that it holds no state


@dataclass(frozen=True)
class Op:
    """An operation; values stand in place of tensors."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    effects: frozenset[object] = frozenset()  # what it draws from or writes into: operations that share one keep their order
    module: nn.Module | None = None  # neuron that is called; in a plan also a layer whose parameters it takes
    call: NeuronCall | None = None

    @property
    def name(self) -> str:
        """Name of the function."""
        return str(getattr(self.function, "__name__", ""))


class Tape(TorchFunctionMode):
    """Operations of a pass: functions of torch that are called while it is the mode, and calls of neurons."""

    def __init__(self, net: nn.Module, around: Iterable[nn.Module]) -> None:
        super().__init__()
        self.net, self._holders = net, [*net.modules(), *around]  # which hold parameters and buffers
        self.ops: list[Op] = []
        self.sources: dict[int, Origin] = {}  # by number of the value
        self.shapes: dict[int, tuple[int, ...]] = {}
        self.returned: Any = None
        self.refused: str | None = None  # why the record may not be used
        self.paused = False  # while a neuron's own code runs
        self._has_gradients = torch.is_grad_enabled()  # not within a torch.autograd.Function
        self._known: dict[int, tuple[Tensor, Value]] = {}  # by id; the tensor stays alive, and so its id its own
        self._fixed = set[Value]()  # values that are the same in each pass, such as torch.ones(3)

    def refuse(self, reason: str) -> None:
        """Say why the record may not be used, unless there is a reason already."""
        self.refused = self.refused or reason

    def add(self, tensor: Tensor) -> Value:
        """Give a tensor a number, also one that has an earlier one."""
        value = Value(len(self.shapes))
        self._known[id(tensor)], self.shapes[value.number] = (tensor, value), tuple(tensor.shape)
        return value

    def find(self, tensor: Tensor) -> Value | None:
        """Return the number of a tensor; None for one that was not seen."""
        known = self._known.get(id(tensor))
        return None if known is None else known[1]

    def value_of(self, tensor: Tensor) -> Value:
        """Return the number of a tensor that was seen, or that a module holds."""
        found = self.find(tensor)
        if found is not None:
            return found
        value = self.add(tensor)
        for module in self._holders:
            for held in (module._parameters, module._buffers, vars(module), vars(module).get("_memories", {})):
                for name, other in held.items():
                    if other is tensor:
                        self.sources[value.number] = origin = Origin(module, name)
                        if origin.is_state and any(op.module is module for op in self.ops):
                            self.refuse(f"it reads what {title(self.net, module)} holds, whose own code must run")
                        return value
        self.refuse("it takes a tensor that is neither made in the pass nor an attribute of a module")
        return value

    def has_views(self, tensor: Tensor) -> bool:
        """Return whether a tensor shares its memory with another one of the pass, as ``tensor.data`` does."""
        usual = [other for other, _ in self._known.values() if other is not tensor and other.layout is torch.strided]
        place = tensor.untyped_storage()._cdata
        return tensor._is_view() or any(other.untyped_storage()._cdata == place for other in usual)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs, name = kwargs or {}, _name_of(func)
        if self.paused or self.refused:
            return func(*args, **kwargs)
        if reason := self._refuses(func, name, args, kwargs):
            self.refuse(reason)
        given, taken = list(tensors_in([args, kwargs])), map_tensors(self.value_of, (args, kwargs))
        versions, drawn = [tensor._version for tensor in given], _generators()
        is_fixed = self._fixed.issuperset(map(self.value_of, given))
        output = func(*args, **kwargs)
        if not any(True for _ in tensors_in(output)):
            if name not in _SHAPES and not (given and is_fixed):
                self.refuse(f"it reads values of tensors ({name})")
            return output
        written = [tensor for tensor, version in zip(given, versions, strict=True) if tensor._version != version]
        if name.endswith("_") and given and output is given[0] and not written:  # such as detach_
            written = given[:1]
        is_first = bool(written) and len(args) > 0 and written[0] is args[0] and written[0] is output
        pure = self._without_writing(name, written) if is_first else None
        effects = self._effects_of_writes(name, written) if pure is None else set[object]()
        if drawn != _generators() or "generator" in kwargs:
            effects.add("generator")
        if name == "batch_norm" and kwargs.get("training"):  # it writes into its statistics without a trace
            held = {self.sources[value.number] for value in taken[0][1:3] if value is not None}
            effects |= held or {("statistics", len(self.ops))}
        if pure is None and not effects and isinstance(output, Tensor) and self.find(output) is not None:
            return output  # its argument, such as a flat tensor flattened
        made = map_tensors(lambda tensor: None if effects and self.find(tensor) else self.add(tensor), output)
        if is_fixed and pure is None and not effects and "empty" not in name and is_plain((args, kwargs), _FIXED):
            self._fixed.update(tensors_in(made, kind=Value))
        self.ops.append(Op(pure or func, taken[0], taken[1], made, frozenset(effects)))
        return output

    def _refuses(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        """Return why a pass that calls a function has no record; None if it may have one."""
        if autocast_is_on():
            return "it turns autocast on"
        if torch.is_grad_enabled() != self._has_gradients:
            return "it calls a torch.autograd.Function, or turns gradients off"
        if _counts_values(name, args, kwargs):
            return f"it makes a tensor whose shape depends on values ({name})"
        return f"it calls torch.{name}" if name.endswith("batch_norm") and func is not functional.batch_norm else None

    def _without_writing(self, name: str, written: list[Tensor]) -> Callable[..., Any] | None:
        """Return the function that makes a tensor in place of a write into one of the pass, as in ``total += spikes``."""
        pure, tensor = getattr(Tensor, name[:-1], None), written[0]
        is_known = self.value_of(tensor).number in self.sources or self.has_views(tensor)
        is_pure = name.endswith("_") and isinstance(pure, _METHODS) and all(other is tensor for other in written)
        return pure if is_pure and not is_known else None

    def _effects_of_writes(self, name: str, written: list[Tensor]) -> set[object]:
        """Return the places of buffers that a function writes into; refuse writes that other tensors may see."""
        effects = set[object]()
        for tensor in written:
            source = self.sources.get(self.value_of(tensor).number)
            if self.has_views(tensor):
                self.refuse(f"it writes into memory that tensors share ({name})")
            elif source is None or source.module is None:
                self.refuse(f"it writes into a tensor ({name})")
            else:
                effects.add(source)
        return effects


def record_pass(
    net: nn.Module,
    steppers: Mapping[nn.Module, Stepper | None],
    run: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[Any, Tape]:
    """Run a net's pass, given the steppers of its neurons; return what it returns, and its record."""
    tape = Tape(net, modules_around(net, run))
    for place, tensor in enumerate(tensors_in([args, kwargs])):
        if tape.find(tensor) is None:
            tape.sources[tape.add(tensor).number] = Origin(None, place)
    # Of SpikingJelly's modules that are no neurons, such as a dropout that keeps its mask from step to step.
    memories = {module: {**vars(module).get("_memories", {})} for module in net.modules() if module not in steppers}
    held, drawn = surroundings_of(net, run, exact=True), (random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[index]
    with _noted_neurons(steppers, tape), isolated(net), tape:
        output = run(*args, **kwargs)
    for module, before in memories.items():
        for name in before:
            if (value := getattr(module, name)) is not before[name]:
                store, args = partial(_store, module, name), map_tensors(tape.value_of, (value,))
                tape.ops.append(Op(store, args, {}, None, frozenset([Origin(module, name)])))
    if (random.getstate(), np.random.get_state()[1].tolist()) != drawn:  # type: ignore[index]
        tape.refuse("it draws random numbers outside of torch")
    changed = next((name for name, value in surroundings_of(net, run, exact=True).items() if held.get(name, held) != value), None)
    if changed is not None:
        tape.refuse(f"it changes the attribute {'.'.join(filter(None, changed))}")
    if any(tape.find(tensor) is None for tensor in tensors_in(output)):
        tape.refuse("it returns a tensor that is not made by functions of torch")
    if not is_plain(output):
        tape.refuse(f"it returns a {type(output).__name__}")
    tape.returned = None if tape.refused else map_tensors(tape.value_of, output)
    tape._known.clear()
    return output, tape


def run_from_rest(neuron: nn.Module, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return what a function returns that runs a neuron, which a pass has reset."""
    reset_states(neuron)
    return function(*args, **kwargs)


def _store(module: nn.Module, name: str, value: Any) -> None:
    setattr(module, name, map_tensors(Tensor.clone, value))


def is_plain(values: Any, kinds: tuple[type, ...] = (int, float, str)) -> bool:
    """Return whether nested values are tensors, of some kinds, tuples, lists and mappings: then all of their tensors are found."""
    if isinstance(values, tuple | list | Mapping):
        return all(is_plain(value, kinds) for value in (values.values() if isinstance(values, Mapping) else values))
    return values is None or isinstance(values, (Tensor, *kinds))


def title(net: nn.Module, module: nn.Module) -> str:
    """Return a module's name and class, for messages."""
    name = next(name for name, each in net.named_modules() if each is module)
    return f"{name!r} ({type(module).__name__})"


def _name_of(func: Any) -> str:
    getter = getattr(func, "__name__", "") == "__get__"  # of an attribute
    return str(getattr(func.__self__ if getter else func, "__name__", ""))


def autocast_is_on() -> bool:
    """Return whether a pass would round some functions; no record is made then."""
    return torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")


def _counts_values(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether the shape of a function's output depends on values."""
    given = len(args) + len(kwargs)
    if name == "__getitem__":
        return any(tensor.dtype in (torch.bool, torch.uint8) for tensor in tensors_in(args[1:]))
    return name in _COUNTS or "unique" in name or (name == "where" and given == 1) or (name == "one_hot" and given == 1)


def _generators() -> list[bytes]:
    """Return the states of torch's generators."""
    states = [torch.get_rng_state()]
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states += torch.cuda.get_rng_state_all()
    return [state.numpy().tobytes() for state in states]


# -- neurons -------------------------------------------------------------------------------------------------------------------


def steppers_of(net: nn.Module) -> dict[nn.Module, Stepper | None]:
    """Return what takes several steps of each neuron at once; None for a neuron or an encoder whose own code must run."""
    pairs = [(module, library) for module in net.modules() for library in LIBRARIES]
    neurons = {module: library.stepper(module) for module, library in pairs if library.is_neuron(module)}
    return dict.fromkeys(module for module, library in pairs if library.is_encoder(module)) | neurons


@contextmanager
def _noted_neurons(steppers: Mapping[nn.Module, Stepper | None], tape: Tape) -> Iterator[None]:
    """Note each call of neurons as one operation, until the block ends."""
    before = {neuron: vars(neuron).get("forward") for neuron in steppers}
    try:
        for neuron, stepper in steppers.items():
            vars(neuron)["forward"] = _NotedNeuron(neuron, stepper, tape)
        yield
        for neuron in steppers:
            vars(neuron)["forward"].finish()
    finally:
        for neuron, forward in before.items():
            vars(neuron).pop("forward", None)
            if forward is not None:
                vars(neuron)["forward"] = forward


class _NotedNeuron:
    """Forward of a neuron whose calls are noted."""

    def __init__(self, neuron: nn.Module, stepper: Stepper | None, tape: Tape) -> None:
        self.neuron, self.stepper, self.tape, self.own = neuron, stepper, tape, neuron.forward
        self._left: tuple[Value | None, ...] = ()  # states after the last call
        self._held = self._tensors()  # after it, or at the start
        self._is_called = False
        self._numbers: list[object] | None = None  # of these, after a call that wasn't given its states

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the neuron returns."""
        if self.tape.paused or self.tape.refused:
            return self.own(*args, **kwargs)
        self.tape.paused = True
        try:
            return self._note(args, kwargs)
        finally:
            self.tape.paused = False

    def _note(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tape, drawn = self.tape, _generators()
        taken = map_tensors(tape.value_of, (args, kwargs))
        call = None if self.stepper is None or kwargs else self.stepper.read(args)
        held = () if self.stepper is None or call is None else self.stepper.held(args)
        states = tuple(map(tape.find, held))
        follows = call is not None and len(self._left) > 0 and states == self._left
        before, now, given = self._held, self._tensors(), set(map(id, tensors_in(args)))
        # Its own code starts from what it holds, unless it is given that.
        is_given = given.issuperset(map(id, held)) if held else bool(now - before) and now - before <= given
        is_kept = is_given or (before == now and (follows or not self._left))
        output = self.own(*args, **kwargs)
        left = () if self.stepper is None or call is None else self.stepper.left(output)
        numbers = {key: tape.add(tensor) for key, tensor in {id(each): each for each in tensors_in([output, left])}.items()}
        made = map_tensors(lambda tensor: numbers[id(tensor)], {"output": output, "states": left})
        self._left, self._held = made["states"], self._tensors()
        self._numbers, self._is_called = None if is_given else self._find_held(), True
        found, from_rest = None, not before <= now and not (held if call is not None else now)
        can_repeat = is_kept or from_rest
        if self.stepper is not None and call is not None:
            steps = len(call[0]) if self.stepper.takes_sequences else 1
            found = NeuronCall(self.stepper, states, follows, can_repeat, steps, from_rest)
        elif not can_repeat:
            tape.refuse(f"it gives {title(tape.net, self.neuron)}, whose own code must run, other states or named arguments")
        effects: set[object] = {self.neuron, "generator"} if drawn != _generators() else {self.neuron}
        function = partial(run_from_rest, self.neuron, self.own) if from_rest else self.own
        tape.ops.append(Op(function, taken[0], taken[1], made, frozenset(effects), self.neuron, found))
        return output

    def finish(self) -> None:
        """Refuse a pass that changes the states after the last call: they would be those of the last step."""
        is_other = self._numbers != self._find_held() if self._numbers is not None else self._held != self._tensors()
        if is_other and self._is_called:
            self.tape.refuse(f"it resets {title(self.tape.net, self.neuron)} after its last call")

    def _holds(self) -> list[Tensor]:
        """Return the tensors that the neuron holds."""
        held = (self.neuron._buffers, vars(self.neuron), getattr(self.neuron, "_memories", {}))
        return [value for part in held for value in part.values() if isinstance(value, Tensor)]

    def _tensors(self) -> set[int]:
        return set(map(id, self._holds()))

    def _find_held(self) -> list[object]:
        """Return what the neuron holds: numbers of tensors of the pass, and others by their ids."""
        return [self.tape.find(tensor) or id(tensor) for tensor in self._holds()]
