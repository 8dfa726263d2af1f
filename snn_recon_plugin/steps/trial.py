"""One training step of a copy of a net, with faster forwards and without, on a user's first batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PASS_STEP, DataError, NetworkError
from ..networks.calls.batches import describe, first_samples, split_batch, tensors_in
from ..networks.calls.forward import Forward
from ..networks.calls.record import call_forward
from ..networks.libraries import is_neuron, list_for_message, reset_states
from ..networks.private.quiet import quiet, seeded
from ..networks.private.workbench import private_copy
from ..stages.stream import Unpack, unpacked
from .fast_layer import FastLayer, FastNet
from .fast_neuron import FastNeuron
from .install import install
from .installed import Installed

_TOLERANCE = 1e-5  # of gradients, relative
_NOISE = 0.1  # gradients below this share of the largest one may be rounding alone, as of a bias in front of a batch norm
_LARGE = 2**22  # multiplications of a layer that take longer than looking for an earlier output
_PASSES = 5  # until all steps that can be predicted are


@dataclass(frozen=True)
class Trial:
    """Result of a comparison.

    Args:
        layers: what is done, by the name of the layer or neuron.
        left_out: names of modules whose own forwards must run.
        exact: outputs of the batch were the same to the bit.
        difference: largest relative difference of an output or a parameter's gradient, on few samples.
        seconds: of a training step, without and with.
    """

    layers: dict[str, str]
    left_out: frozenset[str]
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
    """Compare a net with its faster copy on a batch of ``size`` samples; leave out what differs.

    Gradients are compared on few samples: among many some membrane may lie so close to its threshold that rounding decides.
    """
    if not any(map(is_neuron, net.modules())):
        titles = list_for_message(lambda library: library.title)
        raise NetworkError(f"a {type(net).__name__} without neurons of {titles}", "a spiking network", "pass a net with neurons")
    run = partial(_run, net, list(shared), forward)
    plain, _ = run(inputs, None)
    few, _ = first_samples(inputs, size, run=lambda few: run(few, None)[0].outputs)
    few_plain = plain if few is inputs else run(few, None)[0]
    left_out = frozenset[str]()
    try:
        fast, installed = run(few, left_out)
    except NetworkError:  # such as a write into a view
        fast = None
    if fast is None or not _agree(few_plain, fast):
        left_out = _differing(few_plain, partial(run, few), frozenset(install(private_copy(net, shared))))
        fast, installed = run(few, left_out)
    layers = {name: _done(faster) for name, faster in installed.items() if not isinstance(faster, FastNet)}
    layers |= {name: "as usual: with faster steps its values differ" for name in left_out if name}
    left_out |= _idle(installed)
    whole, _ = run(inputs, left_out)
    exact = all(map(torch.equal, plain.outputs, whole.outputs))
    return Trial(layers, left_out, exact, _difference(few_plain, fast), (plain.seconds, whole.seconds))


def _idle(installed: Mapping[str, Installed]) -> frozenset[str]:
    """Return the names of the modules whose own forwards do as well.

    If no step of a neuron can be predicted, one neuron stays, which counts the steps of a pass for the layers that are computed
    once; but only if one of these is large.
    """
    idle = {name for name, faster in installed.items() if faster.is_idle}
    neurons = [name for name, faster in installed.items() if isinstance(faster, FastNeuron)]
    if not idle.issuperset(neurons):
        return frozenset(idle)
    busy = [faster for name, faster in installed.items() if isinstance(faster, FastLayer) and name not in idle]
    return frozenset(idle.difference(neurons[:1]) if any(faster.work >= _LARGE for faster in busy) else installed)


def _differing(plain: _Step, run: Callable[[frozenset[str]], tuple[_Step, object]], names: frozenset[str]) -> frozenset[str]:
    """Return the names of the modules that have to be left out: those that differ alone if that does, else all."""

    def agrees(left_out: frozenset[str]) -> bool:
        try:
            return _agree(plain, run(left_out)[0])
        except NetworkError:
            return False

    alone = frozenset(name for name in names if not agrees(names - {name}))
    return alone if alone and agrees(alone) else names


def _run(
    net: nn.Module, shared: Iterable[object], forward: Forward, inputs: Any, left_out: Collection[str] | None
) -> tuple[_Step, dict[str, Installed]]:
    """Take one training step of a copy, with faster forwards unless ``left_out`` is None."""
    copied = private_copy(net, shared)
    installed = {} if left_out is None else install(copied, left_out)
    with quiet(copied, seed=0):
        for own, module in zip(net.modules(), copied.modules(), strict=True):
            module.training = own.training
        seconds = []
        for _ in range(_PASSES):
            for faster in installed.values():
                faster.calls = faster.computed = 0
            step = _take_step(copied, inputs, forward)
            seconds.append(step.seconds)
    return replace(step, seconds=min(seconds)), installed


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


def _agree(plain: _Step, fast: _Step) -> bool:
    """Return whether outputs and gradients are the same but for rounding."""
    shapes = [output.shape for output in plain.outputs] == [output.shape for output in fast.outputs]
    return shapes and _difference(plain, fast) <= _TOLERANCE


def _difference(plain: _Step, fast: _Step) -> float:
    """Return the largest relative difference of an output or a gradient."""
    return max(_relative(plain.outputs, fast.outputs), _relative(plain.gradients, fast.gradients))


def _relative(plain: Sequence[Tensor | None], fast: Sequence[Tensor | None]) -> float:
    """Return the largest difference, relative to each tensor's size; a tenth of the largest counts as the least size."""
    none = torch.zeros(())
    pairs = [
        (none if one is None else one.float(), none if other is None else other.float())
        for one, other in zip(plain, fast, strict=True)
    ]
    least = _NOISE * max((float(one.norm()) for one, _ in pairs), default=0.0)
    found = [(float((one - other).norm()), max(float(one.norm()), least)) for one, other in pairs]
    return max((distance / size if size else float(distance > 0) for distance, size in found), default=0.0)


def _done(faster: Installed) -> str:
    """Return what is done with a module, in a few words."""
    steps = "1 step" if faster.calls == 1 else f"{faster.calls} steps"
    if faster.computed == faster.calls:
        return f"as usual, {steps}"
    if isinstance(faster, FastNeuron):
        return f"{steps} in {faster.computed} operation{'s' if faster.computed > 1 else ''}"
    return f"computed {'once' if faster.computed == 1 else f'{faster.computed} times'} for {steps}"
