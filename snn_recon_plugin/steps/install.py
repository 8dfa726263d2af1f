"""Put faster forwards into the layers and neurons of a net."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from ..networks.libraries import LIBRARIES, is_neuron
from ..networks.private.workbench import has_custom_forward
from .fast_layer import LAYERS, NORMS, FastLayer, FastNet
from .fast_neuron import FastNeuron
from .fast_norm import FastNorm
from .installed import Installed
from .sequence import Tape


def install(net: nn.Module, left_out: Collection[str] = ()) -> dict[str, Installed]:
    """Set the faster forwards of a net's modules but for those left out; return them by the modules' names, "" for the net.

    Modules with a custom forward, and parts of neurons, keep theirs.
    """
    tape, found = Tape(), dict[str, Installed]()
    inside = {part for module in net.modules() if is_neuron(module) for part in module.modules() if part is not module}
    for name, module in net.named_modules():
        if name not in left_out and module not in inside and not has_custom_forward(module):
            faster = _faster(module, tape)
            if faster is not None:
                vars(module)["forward"] = found[name] = faster
    if found and "" not in found and not has_custom_forward(net):
        vars(net)["forward"] = found[""] = FastNet(net, tape, has_functions="" not in left_out)
    return found


def _faster(module: nn.Module, tape: Tape) -> Installed | None:
    """Return the faster forward of a module, or None if its own must run."""
    if type(module) in NORMS:
        return FastNorm(module, tape)
    if type(module) in LAYERS:
        return FastLayer(module, tape)
    library = next((library for library in LIBRARIES if library.is_neuron(module)), None)
    stepper = None if library is None else library.stepper(module)
    return None if stepper is None else FastNeuron(module, stepper, tape)


def uninstall(installed: Collection[Installed]) -> None:
    """Give modules back their own forwards."""
    for faster in installed:
        if vars(faster.module).get("forward") is faster:
            del vars(faster.module)["forward"]
