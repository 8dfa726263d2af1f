"""Libraries of spiking neurons, and the one that a neuron belongs to; see ``library`` for how to add one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from torch import nn

from ...errors import UnsupportedModuleError
from .library import Library
from .norse import Norse
from .snntorch import SnnTorch
from .spikingjelly import SpikingJelly

LIBRARIES: list[Library] = [SnnTorch(), Norse(), SpikingJelly()]  # another package appends its own


def is_neuron(module: nn.Module) -> bool:
    """Return whether a module is a spiking neuron of one of the libraries."""
    return any(library.is_neuron(module) for library in LIBRARIES)


def parts_of_neurons(net: nn.Module) -> set[nn.Module]:
    """Return the modules inside a net's neurons, such as the weights of a recurrent one."""
    return {part for neuron in net.modules() if is_neuron(neuron) for part in neuron.modules() if part is not neuron}


def library_of(neuron: nn.Module) -> Library:
    """Return the library that a neuron belongs to; refuse a module that is no neuron of any library."""
    for library in LIBRARIES:
        if library.is_neuron(neuron):
            return library
    found = f"a {type(neuron).__name__} where a neuron was expected"
    fix = f"build the layer from that library's neurons, e.g. {list_for_message(lambda library: library.example)}"
    raise UnsupportedModuleError(found, f"a neuron of {list_for_message(lambda library: library.title)}", fix)


def libraries_in(net: nn.Module) -> list[str]:
    """Return the names of the libraries that a net's modules come from, neurons and helpers alike, in alphabetical order."""
    return sorted(library.name for library in LIBRARIES if any(map(library.owns, net.modules())))


def list_for_message(text: Callable[[Library], str]) -> str:
    """List a text of each library that has one, such as its title: ``"snnTorch, Norse or SpikingJelly"``."""
    *first, last = [found for library in LIBRARIES if (found := text(library))]
    return f"{', '.join(first)} or {last}" if first else last


def takes_sequences(net: nn.Module) -> bool:
    """Return whether one call of a net takes all steps, since a neuron or helper in it does."""
    return any(library.owns(module) and library.takes_sequences(module) for module in net.modules() for library in LIBRARIES)


@contextmanager
def isolated(net: nn.Module) -> Iterator[None]:
    """Keep functions of the libraries that act on all neurons of the process from those of other nets."""
    with ExitStack() as stack:
        for library in LIBRARIES:
            stack.enter_context(library.isolated(net))
        yield


def reset_states(net: nn.Module) -> None:
    """Put all neurons and stateful helpers of a net, however deeply nested, into their resting state; other nets stay."""
    for module in net.modules():
        for library in LIBRARIES:
            if library.owns(module):
                library.reset(module)
