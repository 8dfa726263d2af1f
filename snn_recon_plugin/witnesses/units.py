"""Parameters that every unit of a neuron has for itself, such as a leak or a threshold each: candidates take them along.

A candidate is simulated with the parameters of one of the layer's units, and where it is written they are written too.  Whether
they are learned, and so parameters, or not, and so buffers, makes no difference.  Values of each unit that are all the same, as an
export to NIR wants them, are one value for all.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

__all__ = ["alike", "one_for_all", "unit_names", "unit_values"]


def unit_names(neuron: nn.Module, width: int) -> tuple[str, ...]:
    """Names of the neuron's own parameters and saved buffers that hold one value for each of ``width`` units, (N,) or (N, 1, 1)."""
    return tuple(name for name, value in _values(neuron) if _each(value, width))


def unit_values(neuron: nn.Module, names: tuple[str, ...], units: Tensor) -> dict[tuple[nn.Module, str], Tensor]:
    """These parameters as they are when unit k gets those of unit ``units[k]``, by module and name."""
    own = dict(_values(neuron))
    return {(neuron, name): own[name].detach()[units] for name in names}


@contextmanager
def alike(neuron: nn.Module, names: tuple[str, ...]) -> Iterator[None]:
    """Until the block ends all units have the mean of what they have, then what they had; the tensors stay the same objects."""
    with _replaced(neuron, {name: value.detach().mean() for name, value in _values(neuron) if name in names}):
        yield


@contextmanager
def one_for_all(neuron: nn.Module, width: int) -> Iterator[None]:
    """Until the block ends parameters and buffers that hold the same value for each of ``width`` units hold it once.

    So more candidates than units can be simulated; afterwards the same tensors are back.
    """
    with _replaced(neuron, {name: value.detach().flatten()[0].clone() for name, value in _values(neuron) if _same(value, width)}):
        yield


@contextmanager
def _replaced(neuron: nn.Module, values: dict[str, Tensor]) -> Iterator[None]:
    """Hang values, of any shape, in the place of parameters and buffers until the block ends."""
    kept = {name: value for name, value in _values(neuron) if name in values}
    try:
        for name, value in values.items():
            if isinstance(kept[name], nn.Parameter):
                neuron._parameters[name] = nn.Parameter(value, requires_grad=False)
            else:
                neuron._buffers[name] = value
        yield
    finally:
        for name, value in kept.items():
            (neuron._parameters if isinstance(value, nn.Parameter) else neuron._buffers)[name] = value  # type: ignore[assignment]


def _values(neuron: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, and buffers that are saved with them: no membranes."""
    yield from neuron.named_parameters(recurse=False)
    for name, value in neuron.named_buffers(recurse=False):
        if name not in neuron._non_persistent_buffers_set:
            yield name, value


def _each(value: Tensor, width: int) -> bool:
    return width > 1 and value.dim() > 0 and value.numel() == width == len(value)


def _same(value: Tensor, width: int) -> bool:
    return _each(value, width) and bool((value == value.flatten()[0]).all())
