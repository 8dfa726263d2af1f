"""The network inside a LightningModule."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..errors import NetworkError, OptionError, ReadoutNotFoundError
from ..networks import is_neuron
from .lightning import NAMESPACES

__all__ = ["check_alone", "network_of"]


def network_of(module: Any, name: str | None) -> nn.Module:
    """Return the network to refit.

    Args:
        module: a LightningModule.
        name: of a submodule; None for the module itself if it has a ``forward``, else its only part with neurons.

    Raises:
        OptionError: no submodule has this name.
        NetworkError: no part, or several, with spiking neurons.
    """
    if name is not None:
        found: nn.Module | None = dict(module.named_modules()).get(name)
        if not name or found is None:
            parts = [part for part, _ in module.named_children()]
            raise OptionError(f"net={name!r}", f"the name of a submodule, e.g. one of {parts}", "pass net='...' with such a name")
        return found
    parts = [part for part, child in module.named_children() if any(is_neuron(inner) for inner in child.modules())]
    if _has_forward(module) and parts:
        whole: nn.Module = module
        return whole
    if len(parts) == 1:
        return network_of(module, parts[0])
    if not parts:
        raise ReadoutNotFoundError(
            f"a {type(module).__name__} without spiking neurons of snnTorch or Norse",
            "a LightningModule that holds such a network",
            "pass the callback to the trainer of a spiking network",
        )
    raise NetworkError(
        f"a {type(module).__name__} without forward(), with several networks: {', '.join(parts)}",
        "one network to refit",
        f"pass ReconstructionCallback(net={parts[0]!r})",
    )


def _has_forward(module: nn.Module) -> bool:
    """Return whether a LightningModule defines ``forward``, which Lightning itself leaves abstract."""
    if "forward" in vars(module):
        return True
    owner = next(kind for kind in type(module).__mro__ if "forward" in vars(kind))
    return not (owner.__name__ == "LightningModule" and owner.__module__.startswith(NAMESPACES))


def check_alone(trainer: Any, module: Any, callback: Any) -> None:
    """Refuse two ReconstructionCallbacks for (parts of) one network.

    Raises:
        OptionError: there are two.
    """
    own = {id(parameter) for parameter in network_of(module, callback.net).parameters()}
    for other in trainer.callbacks:
        if other is callback or not isinstance(other, type(callback)):
            continue
        if any(id(parameter) in own for parameter in network_of(module, other.net).parameters()):
            fix = "keep one of them, or name their networks: net='...'"
            raise OptionError("two ReconstructionCallbacks for the same network", "one for each network", fix)
