"""Measure, before any work, why a net's readout could not be solved, and name the module that is the cause."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from torch import Tensor, nn
from torch.nn import functional

from ..errors import NetworkError, UnsupportedModuleError
from .forward import Forward
from .guard import preserved
from .hooks import temporary_hooks
from .layers import ReadoutLayer, spell
from .libraries import library_of, reset_states
from .probes import Fingerprints, same
from .structures import tensors_in

__all__ = ["check_linear", "check_output_neuron", "refuse_unrepeatable"]


def check_output_neuron(readout: ReadoutLayer) -> None:
    """Refuse an output neuron whose membrane does not follow from the readout's current alone.

    Args:
        readout: the readout layer.

    Raises:
        UnsupportedModuleError: if the neuron is recurrent, or quantises its state.
    """
    neuron, name = readout.neuron, readout.neuron_name
    if neuron is None or name is None:
        return
    kind = f"the output neuron {name!r} ({type(neuron).__name__})"
    library = library_of(neuron)
    if library.recurrence(neuron) is not None:
        raise UnsupportedModuleError(
            f"{kind}, which feeds its spikes back into itself",
            "an output neuron that gets the readout's current alone; hidden layers may be recurrent",
            f"replace it, e.g. {spell(name)} = snn.Leaky(beta=0.9, reset_mechanism='none')",
        )
    if library.quantises_state(neuron):
        raise UnsupportedModuleError(
            f"{kind}, which quantises its membrane (state_quant)",
            "an output membrane that is not quantised; hidden neurons may quantise theirs",
            "build the output neuron without state_quant",
        )


def check_linear(net: nn.Module, readout: ReadoutLayer, inputs: Any, forward: Forward) -> None:
    """Refuse a readout that does not compute its weight times its input plus its bias.

    Args:
        net: the net; left as found.
        readout: the readout layer.
        inputs: one batch of inputs; a few samples will do.
        forward: how the net is called.

    Raises:
        UnsupportedModuleError: if it does something else, as quantised or binarised layers do.
    """
    module = readout.module
    plain = type(module) is nn.Linear and "forward" not in vars(module) and not module._forward_hooks
    if plain or not isinstance(module, nn.Linear):
        return
    errors = [0.0]

    def compare(arguments: Any, output: Any) -> None:
        value, returned = next(tensors_in(arguments)), next(tensors_in(output), None)
        expected = functional.linear(value, readout.weight, readout.bias)
        if returned is None or returned.shape != expected.shape:
            errors.append(float("inf"))
            return
        size = max(float(expected.abs().max()), 1e-12)
        errors.append(float((returned - expected).abs().max()) / size)

    with preserved(net, seed=0), temporary_hooks() as hooks:
        hooks.after_call(module, compare)
        reset_states(net)
        forward(net, inputs)
        # In here: to read a weight of spectral_norm in training mode changes it.
        tolerance = readout.tolerance
    if max(errors) <= tolerance:
        return
    raise UnsupportedModuleError(
        f"the readout {readout.name!r} ({_full_name(module)}), whose output is not input @ weight.T + bias (off by "
        f"{100 * max(errors):.3g} % of the largest value): weights or inputs are quantised or binarised, or its output is changed",
        "a readout that computes input @ weight.T + bias; hidden layers may be quantised",
        f"make {spell(readout.name)} an nn.Linear, or solve first and quantise afterwards",
    )


def refuse_unrepeatable(net: nn.Module, inputs: Any, forward: Forward) -> NoReturn:
    """Refuse a net that gives other values on the same inputs, from rest and with the same seed.

    Args:
        net: the net; left as found.
        inputs: one batch of inputs; a few samples will do.
        forward: how the net is called.

    Raises:
        NetworkError: always; the message names the first module whose output differs between two passes.
    """
    first, second = _record(net, inputs, forward), _record(net, inputs, forward)
    before = where = ""
    for one, other in zip(first, second, strict=False):
        if same(one.output, other.output):
            before = one.name or before
            continue
        if same(one.entered, other.entered):
            where = f", first what comes out of {one.name or 'its own forward'!r} ({one.kind})"
        else:
            where = f", first what enters {one.name!r} ({one.kind})" + (f", after {before!r}" if before else "")
        break
    raise NetworkError(
        f"a forward pass that gives other values each time on the same inputs, from rest and with the same seed{where}",
        "a deterministic forward(net, inputs)",
        "draw noise from torch's global generator, which is seeded for each batch, and let forward reset all states",
    )


@dataclass(frozen=True)
class _Call:
    """Fingerprints of what entered one call of a module, and of what came out."""

    name: str
    kind: str
    entered: list[Tensor]
    output: list[Tensor]


def _record(net: nn.Module, inputs: Any, forward: Forward) -> list[_Call]:
    """Record all calls of all modules, in the order in which they return."""
    calls: list[_Call] = []
    fingerprints = Fingerprints()

    def taken(values: Any) -> list[Tensor]:
        return [fingerprints(value).nan_to_num() for value in tensors_in(values)]

    def recorder(name: str, kind: str) -> Callable[[Any, Any], None]:
        def record(arguments: Any, output: Any) -> None:
            calls.append(_Call(name, kind, taken(arguments), taken(output)))

        return record

    with preserved(net, seed=0), temporary_hooks() as hooks:
        for name, module in net.named_modules():
            hooks.after_call(module, recorder(name, type(module).__name__))
        reset_states(net)
        returned = forward(net, inputs)
    calls.append(_Call("", type(net).__name__, [], taken(returned)))
    return calls


def _full_name(module: nn.Module) -> str:
    """Name a class with the package that it comes from."""
    kind = type(module)
    return f"{kind.__module__.partition('.')[0]}.{kind.__name__}"
