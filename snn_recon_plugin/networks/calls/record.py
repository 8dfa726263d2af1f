"""Run a net on a batch, and watch or replace what enters and leaves chosen modules.  Passes go through :func:`record`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from ...errors import PASS_STEP, CaptureError, DataError, NetworkError, ReconstructionError
from ..libraries import isolated, library_of, reset_states
from ..private.quiet import full_precision, seeded
from ..structure.layers import SYNAPSES
from .batches import describe, stored_values, tensors_in, to_device
from .forward import Forward, plain_forward, without_contexts

_DRAW = 982_451_653  # a prime: seeds that differ in one bit alone draw alike
_LONGEST = 400  # characters of a user's error in a message
_NO_MEMORY = ("out of memory", "DefaultCPUAllocator")  # in the messages of accelerators, and of torch's CPU allocator


@dataclass(frozen=True)
class StoredBatch:
    """A batch to run the net on, on the net's device."""

    inputs: Any
    rows: slice  # its samples among those of the data, the first ones if a limit cut it; their start seeds its random numbers
    number: int | str | None = 1  # in the loader, from 1, for messages; None if layers give random currents
    targets: Tensor = field(default_factory=lambda: torch.empty(0))  # of all its samples, in the user's form

    @property
    def size(self) -> int:
        """Number of samples that count."""
        return int(self.rows.stop - self.rows.start)

    def cut(self, limit: int | None) -> StoredBatch:
        """Return the batch with its samples among the first ``limit`` of the data alone; None for all."""
        return self if limit is None or self.rows.stop <= limit else replace(self, rows=slice(self.rows.start, limit))


def prepare_batch(inputs: Any, targets: Tensor, number: int | str, device: torch.device, start: int = 0) -> StoredBatch:
    """Move a batch, behind ``start`` samples, to a device; refuse one without a sample, or with inputs that are not finite."""
    for tensor in map(stored_values, tensors_in(inputs)):
        if (tensor.is_floating_point() or tensor.is_complex()) and not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            found = f"batch {number} holds {bad} NaN or infinite input values"
            raise DataError(found, "finite inputs", "clean the data first, e.g. with torch.nan_to_num(inputs)")
    if len(targets) == 0:
        raise DataError(f"batch {number} is empty", "at least one sample in every batch", "drop empty batches")
    return StoredBatch(to_device(inputs, device), slice(start, start + len(targets)), number, targets.to(device))


def first_batches(batches: Sequence[StoredBatch], samples: int) -> Sequence[StoredBatch]:
    """Return the first batches that hold at least so many samples together."""
    return batches[: 1 + sum(batch.rows.stop < samples for batch in batches)]


# -- taps ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Taps:
    """Functions to call at every call of a module, in full precision but for ``calls``, and what to replace."""

    inputs: Mapping[nn.Module, Callable[[Tensor], object]] = field(default_factory=dict)  # get the first argument, a tensor
    outputs: Mapping[nn.Module, Callable[[Any], object]] = field(default_factory=dict)  # get what the module returns
    new_inputs: Mapping[nn.Module, Callable[[Tensor], Tensor]] = field(default_factory=dict)  # replace it before ``inputs``
    new_outputs: Mapping[nn.Module, Callable[[Any], Any]] = field(default_factory=dict)  # replace it before ``outputs``
    calls: Mapping[nn.Module, Callable[[Any, Any], object]] = field(default_factory=dict)  # get (args, kwargs) and the output

    @property
    def before(self) -> list[nn.Module]:
        """The modules at which something happens before they run."""
        return list({**self.inputs, **self.new_inputs})

    @property
    def after(self) -> list[nn.Module]:
        """The modules at which something happens after they ran."""
        return list({**self.outputs, **self.new_outputs, **self.calls})


_NOTHING = Taps()


def spike_taps(visitors: Mapping[nn.Module, Callable[[Tensor], object]]) -> dict[nn.Module, Callable[[Any], None]]:
    """Return the taps of neurons' outputs that call a visitor with the spikes ``[B, *]`` of each step."""

    def tap(neuron: nn.Module, visit: Callable[[Tensor], object]) -> Callable[[Any], None]:
        library = library_of(neuron)
        takes_sequence = library.takes_sequences(neuron)

        def add(output: Any) -> None:
            spikes = library.spikes(output)
            for step in spikes if takes_sequence else [spikes]:
                visit(step)

        return add

    return {neuron: tap(neuron, visit) for neuron, visit in visitors.items()}


@contextmanager
def tapped(taps: Taps) -> Iterator[set[nn.Module]]:
    """Register hooks until the block ends, however it ends; yield the tapped modules called so far."""
    called: set[nn.Module] = set()
    before, after = partial(_before, taps, called), partial(_after, taps, called)
    with ExitStack() as stack:
        for module in taps.before:
            stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
        for module in taps.after:
            stack.callback(module.register_forward_hook(after, with_kwargs=True).remove)
        yield called


def _before(taps: Taps, called: set[nn.Module], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call what is to see a module's arguments; return new arguments, or None to leave them."""
    called.add(module)
    value, name = _first_argument(module, args, kwargs)
    with full_precision():
        if module in taps.new_inputs:
            value = taps.new_inputs[module](value)
        if module in taps.inputs:
            taps.inputs[module](value)
    if module not in taps.new_inputs:
        return None
    return ((value, *args[1:]), kwargs) if name is None else (args, {**kwargs, name: value})


def _after(
    taps: Taps, called: set[nn.Module], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> Any:
    """Call what is to see a module's output; return a new output, or None to leave it."""
    called.add(module)
    if module in taps.calls:
        taps.calls[module]((args, kwargs), output)
    with full_precision():
        new = taps.new_outputs[module](output) if module in taps.new_outputs else None
        if module in taps.outputs:
            taps.outputs[module](output if new is None else new)
    return new


def _first_argument(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, str | None]:
    """Find the tensor that enters a module, and its name if it was passed by name."""
    name = None if args else ("input_" if "input_" in kwargs else next(iter(kwargs), None))
    value = args[0] if args else kwargs.get(name or "")
    if not isinstance(value, Tensor):
        found = f"{type(module).__name__} was called with {describe(value)} as its first argument"
        raise CaptureError(found, "a tensor as the first argument of every synapse and neuron", PASS_STEP)
    return value, name


# -- passes --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AskedPass:
    """A pass of a private net to run."""

    net: nn.Module
    batch: StoredBatch
    forward: Forward
    taps: Taps = _NOTHING
    draw: int = 0  # number of its random numbers
    whole: bool = True  # the output is asked for; else only what taps get

    @contextmanager
    def from_rest(self) -> Iterator[None]:
        """Put the net's neurons at rest, and draw the numbers of this pass without gradients until the block ends."""
        reset_states(self.net)
        with torch.no_grad(), seeded(self.batch.rows.start + _DRAW * self.draw, self.net):
            yield

    def call(self, forward: Forward) -> Any:
        """Run a forward; an error of the net's becomes one of the package's."""
        return call_forward(self.net, self.batch.inputs, forward, partial(_failure, self.batch))

    def run(self) -> tuple[Any, set[nn.Module]]:
        """Run the net's own code; return its output, and the tapped modules that were called."""
        with self.from_rest(), tapped(self.taps) as called:
            return self.call(self.forward), called


# Runs passes in another way; returns what :meth:`AskedPass.run` does, or None for a pass that has to run as it is written.
Runner: TypeAlias = Callable[[AskedPass], tuple[Any, set[nn.Module]] | None]
_RUNNER: ContextVar[Runner | None] = ContextVar("runner", default=None)


@contextmanager
def run_by(runner: Runner | None) -> Iterator[None]:
    """Let a runner run the passes of :func:`record` and :func:`watch` until the block ends; None runs the net's own code."""
    token = _RUNNER.set(runner)
    try:
        yield
    finally:
        _RUNNER.reset(token)


def record(net: nn.Module, batch: StoredBatch, forward: Forward, taps: Taps = _NOTHING, *, draw: int = 0) -> Any:
    """Run a private net, within :func:`quiet`, once from rest without gradients; return its output for all inputs.

    Taps are removed when the pass ends, however it ends.  A batch has its own random numbers, others for another ``draw``.  The
    message for a forward that raises repeats the error.
    """
    return _run(AskedPass(net, batch, forward, taps, draw))


def watch(net: nn.Module, batch: StoredBatch, forward: Forward, taps: Taps) -> None:
    """Run a private net as :func:`record` does, as far as taps need it."""
    _run(AskedPass(net, batch, forward, taps, whole=False))


def _run(asked: AskedPass) -> Any:
    runner = _RUNNER.get()
    returned, called = (None if runner is None else runner(asked)) or asked.run()
    watched, batch = {*asked.taps.before, *asked.taps.after}, asked.batch
    if watched and not called:
        names = [f"{name!r} ({type(module).__name__})" for name, module in asked.net.named_modules() if module in watched]
        which = "" if batch.number is None else f" on batch {batch.number}"
        found = f"a forward pass{which} that calls none of {', '.join(names)}"
        raise CaptureError(found, "a forward pass through the net's layers on every batch", PASS_STEP)
    return returned


def run_forward(net: nn.Module, inputs: Any, forward: Forward) -> Any:
    """Call a forward with a private net; a reset of all neurons in it leaves those of the user's net."""
    with isolated(net):
        return forward(net, inputs)


def call_forward(net: nn.Module, inputs: Any, forward: Forward, explain: Callable[[str], NetworkError]) -> Any:
    """Call the user's forward; raise its error as a DataError if memory runs out, else as ``explain`` builds it from a text."""
    try:
        return run_forward(net, inputs, forward)
    except ReconstructionError:
        raise
    except Exception as error:
        raised = str(error).strip()
        if isinstance(error, MemoryError) or any(text in raised for text in _NO_MEMORY):
            found = f"a batch that does not fit into memory, {describe(inputs)}: {raised[:_LONGEST]}"
            raise DataError(found, "batches that the net can be run on", "pass a loader with smaller batches") from error
        given = without_contexts(forward)
        call = "net(inputs)" if given is plain_forward else getattr(given, "title", "forward(net, inputs)")
        short = raised if len(raised) <= _LONGEST else raised[:_LONGEST] + " ..."
        raise explain(f"{call} raised {type(error).__name__}" + (f": {short}" if short else "")) from error


def _failure(batch: StoredBatch, raised: str) -> NetworkError:
    """Build the error of a forward that ran on the first batch, and fails on another one or under other currents."""
    if batch.number is None:
        found = f"{raised}, for inputs: {describe(batch.inputs)}, with random currents in the place of what a layer gives"
        fix = "let forward neither check nor index by values of its layers: the error above shows the line"
        return NetworkError(found, "a forward that runs whatever values its layers give", fix)
    return NetworkError(
        f"{raised}, for inputs of batch {batch.number}: {describe(batch.inputs)}",
        "a forward that runs on every batch",
        "let all batches have the shapes of the first, e.g. DataLoader(..., drop_last=True) where the last one is smaller; "
        "or correct forward: the error above shows the line",
    )


# -- the first call of a forward, with the layer in which it fails, and later ones -----------------------------------------------


def carries_over(net: nn.Module, inputs: Any, forward: Forward, calls: int = 2) -> bool:
    """Return whether a call starts from the membranes that the last call left; the net is private, within ``quiet``.

    ``calls`` is their number: a few, if the membranes need some time until spikes show them.
    """
    reset_states(net)

    def explain(raised: str) -> NetworkError:
        found = f"{raised}, for inputs that it ran on before: {describe(inputs)}"
        fix = "let forward keep nothing that stops its next call: the error above shows the line"
        return NetworkError(found, "a forward that runs each time it is called", fix)

    def call() -> list[Tensor]:
        with torch.no_grad(), seeded(0, net):
            return [value.clone() for value in tensors_in(call_forward(net, inputs, forward, explain))]

    first = call()
    later = (call() for _ in range(calls - 1))
    return any(len(first) != len(other) or not all(map(torch.equal, first, other)) for other in later)


@contextmanager
def refuse_calls(origin: nn.Module) -> Iterator[None]:
    """Refuse, until the block ends, a forward that runs the user's network in place of the private copy that it is given.

    What such a forward has reset before its first call is put back.
    """
    before = {}
    for module in origin.modules():
        before[module] = dict(vars(module)), {name: dict(held) for name, held in vars(module).items() if isinstance(held, dict)}
    fix = "call the first argument, e.g. forward=lambda net, x: net(x); a method of an object that holds the net is no step"
    if "forward" in vars(origin):
        fix = "call type(net).forward(net, x) in forward= or step=, since net.forward is a function that holds the net"

    def refuse(module: nn.Module, args: Any) -> None:
        if module in before:
            for owner, (attributes, dictionaries) in before.items():
                vars(owner).update(attributes)
                for name, held in dictionaries.items():
                    vars(owner)[name].update(held)
            found = f"a forward or step that runs another net than the one passed, a {type(origin).__name__}"
            raise NetworkError(found, "one that runs its argument, since work is done on a private copy", fix)

    handle = register_module_forward_pre_hook(refuse)
    try:
        yield
    finally:
        handle.remove()


def check_forward(net: nn.Module, inputs: Any, forward: Forward) -> None:
    """Run a private net, within ``quiet``, once on the first batch.

    Raises:
        DataError: the batch does not fit into memory.
        NetworkError: the forward raised.  The message has the shape of the inputs, and the layer that failed.
    """
    layers: dict[nn.Module, str] = {module: name for name, module in net.named_modules() if isinstance(module, SYNAPSES)}
    running: list[str] = []  # layers that were entered and not left

    def enter(layer: nn.Module) -> Callable[[Tensor], None]:
        takes = f"{layers[layer]!r} ({type(layer).__name__}), which takes {_describe_input(layer)}"
        return lambda value: running.append(f"{takes} and got {describe(value)}")

    def explain(raised: str) -> NetworkError:
        found = f"{raised}, for inputs of the first batch: {describe(inputs)}"
        found += f"; it failed in {running[-1]}" if running else ""
        fix = f"{PASS_STEP}; if the inputs are right, correct forward: the error above shows the line"
        return NetworkError(found, "a forward that runs on the loader's batches", fix)

    taps = Taps({layer: enter(layer) for layer in layers}, {layer: lambda output: running.pop() for layer in layers})
    reset_states(net)
    with torch.no_grad(), seeded(0), tapped(taps):
        call_forward(net, inputs, forward, explain)


def _describe_input(layer: nn.Module) -> str:
    """Describe the shape that a linear or convolutional layer takes."""
    if isinstance(layer, nn.Linear):
        return f"[batch, {layer.in_features}]"
    assert isinstance(layer, SYNAPSES)
    places = ("length", "height, width", "depth, height, width")[layer.weight.dim() - 3]
    return f"[batch, {layer.in_channels}, {places}]"
