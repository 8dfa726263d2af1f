"""Which network is meant inside a LightningModule, and what of a run is refused before it begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..errors import NetworkError, OptionError, ReadoutNotFoundError
from ..networks import is_neuron
from .lightning import has_forward

__all__ = ["check_alone", "check_optimizers", "check_trainer", "network_of"]

_SHARDED = ("FSDP", "DeepSpeed", "ModelParallel")


def network_of(module: Any, name: str | None) -> nn.Module:
    """The network to refit.

    Args:
        module: a LightningModule.
        name: of a submodule; None takes the module itself where it has a ``forward``, else its only part with neurons.

    Raises:
        OptionError: no submodule of that name.
        NetworkError: no part, or several, with spiking neurons.
    """
    if name is not None:
        found: nn.Module | None = dict(module.named_modules()).get(name)
        if not name or found is None:
            parts = [part for part, _ in module.named_children()]
            raise OptionError(f"net={name!r}", f"the name of a submodule, e.g. one of {parts}", "pass net='...' with such a name")
        return found
    parts = [part for part, child in module.named_children() if any(is_neuron(inner) for inner in child.modules())]
    if has_forward(module) and parts:
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


def check_trainer(trainer: Any) -> None:
    """Refuses a strategy under which no process holds the whole network, and callbacks that put other values into it as well.

    Raises:
        OptionError: parameters that are sharded, or weight averaging.
    """
    strategy = type(trainer.strategy).__name__
    if any(word in strategy for word in _SHARDED):
        fix = "train with strategy='ddp', or initialise once by convex_init_(net, loader) before training"
        raise OptionError(f"the strategy {strategy}, which shards parameters", "whole parameters in every process", fix)
    for other in trainer.callbacks:
        if any("WeightAveraging" in kind.__name__ for kind in type(other).__mro__):
            fix = "leave one of the two out"
            raise OptionError(f"{type(other).__name__} beside refits", "one callback that swaps parameters for evaluation", fix)


def check_alone(trainer: Any, module: Any, callback: Any) -> None:
    """Refuses a second callback for (a part of) the same network, which would put its own values in and out.

    Raises:
        OptionError: there is one.
    """
    own = {id(parameter) for parameter in network_of(module, callback.net).parameters()}
    for other in trainer.callbacks:
        if other is callback or not isinstance(other, type(callback)):
            continue
        if any(id(parameter) in own for parameter in network_of(module, other.net).parameters()):
            fix = "keep one of them, or name their networks: net='...'"
            raise OptionError("two ReconstructionCallbacks for the same network", "one for each network", fix)


def check_optimizers(optimizers: Sequence[torch.optim.Optimizer], written: Sequence[nn.Parameter]) -> None:
    """Refuses optimizers that hold other parameters than the network's.

    Args:
        optimizers: of the run.
        written: the parameters that refits write; frozen ones may be in none of them.

    Raises:
        OptionError: none of the optimizers holds a parameter that is trained and refitted.
    """
    held = {id(parameter) for optimizer in optimizers for group in optimizer.param_groups for parameter in group["params"]}
    missing = [parameter for parameter in written if id(parameter) not in held and parameter.requires_grad]
    if optimizers and missing:
        shapes = ", ".join(str(list(parameter.shape)) for parameter in missing)
        raise OptionError(
            f"optimizers that do not hold the readout's parameters of shape {shapes}",
            "optimizers over the parameters of the network that is refitted",
            "make them in configure_optimizers from self.parameters(), after the network is built",
        )
