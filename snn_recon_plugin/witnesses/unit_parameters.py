"""Unit parameters: values that each unit of a neuron has for itself, such as leaks or thresholds.

A candidate is simulated with the parameters of one of the layer's units, and both are written together.  Saved buffers count as
parameters too.  Values that are equal for all units, as an export to NIR has them, count as one shared value.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

__all__ = ["average_units", "find_unit_parameters", "merge_units", "take_unit_parameters"]


def find_unit_parameters(neuron: nn.Module, width: int) -> tuple[str, ...]:
    """Return the names of parameters and saved buffers with one value for each of ``width`` units, (N,) or (N, 1, 1)."""
    return tuple(name for name, value in _list_values(neuron) if _is_per_unit(value, width))


def take_unit_parameters(neuron: nn.Module, names: tuple[str, ...], units: Tensor) -> dict[tuple[nn.Module, str], Tensor]:
    """Return parameters by module and name, rearranged so that unit k gets the values of unit ``units[k]``."""
    values = dict(_list_values(neuron))
    return {(neuron, name): values[name].detach()[units] for name in names}


@contextmanager
def average_units(neuron: nn.Module, names: tuple[str, ...]) -> Iterator[None]:
    """Replace unit parameters by their mean until the block ends; the same tensors are then put back."""
    with _replace_values(neuron, {name: value.detach().mean() for name, value in _list_values(neuron) if name in names}):
        yield


@contextmanager
def merge_units(neuron: nn.Module, width: int) -> Iterator[None]:
    """Replace values that are equal for all units by one value until the block ends; the same tensors are then put back.

    The neuron can then simulate more candidates than it has units.
    """
    merged = {name: value.detach().flatten()[0].clone() for name, value in _list_values(neuron) if _is_constant(value, width)}
    with _replace_values(neuron, merged):
        yield


@contextmanager
def _replace_values(neuron: nn.Module, values: dict[str, Tensor]) -> Iterator[None]:
    """Replace parameters and buffers by values of any shape until the block ends."""
    originals = {name: value for name, value in _list_values(neuron) if name in values}
    try:
        for name, value in values.items():
            if isinstance(originals[name], nn.Parameter):
                neuron._parameters[name] = nn.Parameter(value, requires_grad=False)
            else:
                neuron._buffers[name] = value
        yield
    finally:
        for name, value in originals.items():
            (neuron._parameters if isinstance(value, nn.Parameter) else neuron._buffers)[name] = value  # type: ignore[assignment]


def _list_values(neuron: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Return parameters and saved buffers; membranes are not saved."""
    yield from neuron.named_parameters(recurse=False)
    for name, value in neuron.named_buffers(recurse=False):
        if name not in neuron._non_persistent_buffers_set:
            yield name, value


def _is_per_unit(value: Tensor, width: int) -> bool:
    return width > 1 and value.dim() > 0 and value.numel() == width == len(value)


def _is_constant(value: Tensor, width: int) -> bool:
    return _is_per_unit(value, width) and bool((value == value.flatten()[0]).all())
