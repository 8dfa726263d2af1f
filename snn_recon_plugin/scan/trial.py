"""One training step of a copy of a net, with plans and without, on a user's first batch."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PASS_STEP, DataError, NetworkError
from ..networks.calls.batches import describe, first_samples, split_batch, tensors_in
from ..networks.calls.forward import Forward
from ..networks.calls.record import Taps, call_forward, tapped
from ..networks.libraries import is_neuron, library_of, list_for_message, reset_states
from ..networks.private.quiet import quiet, seeded
from ..networks.private.workbench import has_custom_forward, private_copy
from ..stages.stream import Unpack, unpacked
from .installed import FastPass, install
from .plan import Done, difference

_TOLERANCE = 1e-5  # of gradients, relative
_NOISE = 0.1  # gradients below this share of the largest one may be rounding alone, as of a bias in front of a batch norm
_TIMED = 3  # steps of each kind, of which the fastest counts


@dataclass(frozen=True)
class Trial:
    """Result of a comparison.

    Args:
        layers: what is done, by the name of the layer or neuron.
        places: names of the modules whose forward loops, "" for the net; none if the time loop is outside of them.
        reason: why there is none, or "".
        exact: outputs of the batch were the same to the bit.
        difference: largest relative difference of an output or a parameter's gradient, on few samples.
        seconds: of a training step, without and with.
    """

    layers: dict[str, str]
    places: tuple[str, ...]
    reason: str
    exact: bool
    difference: float
    seconds: tuple[float, float]


@dataclass(frozen=True)
class _Step:
    """One training step: outputs, gradients by parameter, and seconds."""

    outputs: list[Tensor]
    gradients: list[Tensor | None]
    seconds: float


def first_batch(loader: Iterable[Any], unpack: Unpack | None) -> tuple[Any, int]:
    """Return the inputs and the number of samples of a loader's first batch; random generators go on from where they were."""
    with quiet(nn.Module(), seed=0, loader=loader):
        batch = next(iter(loader), None)
    if batch is None:
        raise DataError("an empty loader", "at least one batch", "pass a loader over your data")
    inputs, targets = split_batch(unpacked(batch, unpack, 1), 1)
    return inputs, len(targets)


def compare(net: nn.Module, inputs: Any, size: int, forward: Forward, shared: Iterable[object] = ()) -> Trial:
    """Compare training steps of a net's copies, with plans and without, on a batch of ``size`` samples.

    Gradients are compared on few samples: among many some membrane may lie so close to its threshold that rounding decides.
    """
    if not any(map(is_neuron, net.modules())):
        titles = list_for_message(lambda library: library.title)
        raise NetworkError(f"a {type(net).__name__} without neurons of {titles}", "a spiking network", "pass a net with neurons")
    run = partial(_run, net, list(shared), forward)
    places, calls = _find_loops(net, list(shared), forward, inputs)
    few, _ = first_samples(inputs, size, run=lambda few: run(few, None, 1)[0].outputs)
    plain, _ = run(few, None, 1)
    fast, (reason, layers) = run(few, places, 2)
    pairs = (plain.outputs, fast.outputs), (plain.gradients, fast.gradients)
    found = max(difference(one, other, least=_NOISE) for one, other in pairs)
    if found > _TOLERANCE:
        reason = reason or "with all steps at once its values differ"
    whole, _ = run(inputs, None, _TIMED)
    usual = {name: str(Done(count, count, is_neuron=True)) for name, count in calls.items()}
    if reason:
        return Trial(usual, places, reason, exact=True, difference=0.0, seconds=(whole.seconds, whole.seconds))
    after, _ = run(inputs, places, _TIMED + 1)
    exact = all(map(torch.equal, whole.outputs, after.outputs))
    layers = {name: (usual | layers)[name] for name, _ in net.named_modules() if name in usual | layers}
    return Trial(layers, places, reason, exact, found, (whole.seconds, after.seconds))


def _find_loops(net: nn.Module, shared: list[object], forward: Forward, inputs: Any) -> tuple[tuple[str, ...], dict[str, int]]:
    """Return the outermost modules within whose one call a neuron runs several times, and the calls of each neuron.

    Modules whose neurons take all steps in one call count as well.
    """
    copied, calls = private_copy(net, shared), Counter[str]()
    neurons = {name: module for name, module in copied.named_modules() if is_neuron(module)}
    holders = {name: module for name, module in copied.named_modules() if any(_is_inside(neuron, name) for neuron in neurons)}

    def note(name: str, arguments: Any, output: Any) -> None:
        calls[name] += 1

    taps = Taps(calls={module: partial(note, name) for name, module in (holders | neurons).items()})
    with quiet(copied, seed=0):
        reset_states(copied)
        with torch.no_grad(), seeded(0, copied), tapped(taps):
            call_forward(copied, inputs, forward, partial(_failure, inputs))
    found: list[str] = []
    for name, module in holders.items():
        inner = {neuron: each for neuron, each in neurons.items() if _is_inside(neuron, name)}
        loops = any(calls[neuron] > 1 or library_of(each).takes_sequences(each) for neuron, each in inner.items())
        once = calls[name] == 1 and loops and not has_custom_forward(module)
        if once and not any(_is_inside(name, other) for other in found):
            found.append(name)
    return tuple(found), {name: calls[name] for name in neurons if name in calls}


def _is_inside(name: str, holder: str) -> bool:
    return name != holder and (not holder or name.startswith(f"{holder}."))


def _run(
    net: nn.Module, shared: Iterable[object], forward: Forward, inputs: Any, places: Iterable[str] | None, times: int
) -> tuple[_Step, tuple[str, dict[str, str]]]:
    """Take some training steps of a copy, with plans in some modules, or of the whole step without modules; None for none.

    Returns the last one, with the least seconds; why there is no plan, if there is none; and what is done with each layer.
    """
    copied = private_copy(net, shared)
    with quiet(copied, seed=0):
        for own, module in zip(net.modules(), copied.modules(), strict=True):
            module.training = own.training
        passes: list[FastPass] = [*install(copied.get_submodule(place) for place in places or ())]
        if places is not None and not passes:
            passes.append(FastPass(copied, partial(forward, copied)))
        run = (lambda net, inputs: passes[0](inputs)) if places is not None and not places else forward
        steps = [_take_step(copied, inputs, run) for _ in range(times)]
    done = {module: str(done) for each in passes for plan in each.plans.values() if plan for module, done in plan.done.items()}
    layers = {name: done[module] for name, module in copied.named_modules() if name and module in done}
    reason = "" if layers else next((each.reason for each in passes if each.reason), "")
    return replace(steps[-1], seconds=min(step.seconds for step in steps)), (reason, layers)


def _take_step(net: nn.Module, inputs: Any, forward: Forward) -> _Step:
    """Run a net from rest, and differentiate a random sum of its outputs."""
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    reset_states(net)
    with torch.enable_grad(), seeded(0, net):
        began = time.perf_counter()
        outputs = list(tensors_in(call_forward(net, inputs, forward, partial(_failure, inputs))))
        trained = [output for output in outputs if output.requires_grad]
        gradients: list[Tensor | None] = [None] * len(parameters)
        if trained and parameters:
            weights = [torch.randn_like(output) for output in trained]
            try:
                gradients = list(torch.autograd.grad(trained, parameters, weights, allow_unused=True))
            except RuntimeError as error:  # the net's own, or one of a graph that faster steps share
                raise _failure(inputs, f"the backward pass raised {type(error).__name__}: {error}") from error
        return _Step([output.detach() for output in outputs], gradients, time.perf_counter() - began)


def _failure(inputs: Any, raised: str) -> NetworkError:
    return NetworkError(
        f"{raised}, for inputs of the first batch: {describe(inputs)}",
        "a forward that runs on the loader's batches",
        PASS_STEP,
    )
