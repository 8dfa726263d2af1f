"""Parameters that every unit of a neuron has for itself, such as a leak or a threshold each: candidates take them along.

A candidate is simulated with the parameters of one of the layer's units, and where it is written they are written too.  Values
of each unit that are all the same, as an export to NIR wants them, are one value for all.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

__all__ = ["alike", "one_for_all", "unit_names", "unit_values"]


def unit_names(neuron: nn.Module, width: int) -> tuple[str, ...]:
    """Names of the neuron's own parameters that hold one value for each of ``width`` units, (N,) or (N, 1, 1)."""
    return tuple(name for name, value in neuron.named_parameters(recurse=False) if _each(value, width))


def unit_values(neuron: nn.Module, names: tuple[str, ...], units: Tensor) -> dict[tuple[nn.Module, str], Tensor]:
    """These parameters as they are when unit k gets those of unit ``units[k]``, by module and name."""
    return {(neuron, name): neuron.get_parameter(name).detach()[units] for name in names}


@contextmanager
def alike(neuron: nn.Module, names: tuple[str, ...]) -> Iterator[None]:
    """Until the block ends all units have the mean of what they have, then what they had; the parameters stay the same objects."""
    kept = {name: neuron.get_parameter(name) for name in names}
    try:
        for name, parameter in kept.items():
            neuron._parameters[name] = nn.Parameter(parameter.detach().mean(), requires_grad=False)
        yield
    finally:
        neuron._parameters.update(kept)


@contextmanager
def one_for_all(neuron: nn.Module, width: int) -> Iterator[None]:
    """Until the block ends parameters and buffers that hold the same value for each of ``width`` units hold it once.

    So more candidates than units can be simulated; afterwards the same tensors are back.
    """
    parameters = {name: value for name, value in neuron.named_parameters(recurse=False) if _same(value, width)}
    buffers = {name: value for name, value in neuron.named_buffers(recurse=False) if _same(value, width)}
    try:
        for name, value in parameters.items():
            neuron._parameters[name] = nn.Parameter(value.detach().flatten()[0].clone(), requires_grad=False)
        for name, buffer in buffers.items():
            neuron._buffers[name] = buffer.flatten()[0].clone()
        yield
    finally:
        neuron._parameters.update(parameters)
        neuron._buffers.update(buffers)


def _each(value: Tensor, width: int) -> bool:
    return width > 1 and value.dim() > 0 and value.numel() == width == len(value)


def _same(value: Tensor, width: int) -> bool:
    return _each(value, width) and bool((value == value.flatten()[0]).all())
