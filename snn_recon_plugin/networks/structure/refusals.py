"""Refusals of nets that the package can't read; each names the module that is the reason."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...errors import NetworkError, UnsupportedModuleError
from ..calls.batches import stored_values, tensors_in
from ..calls.forward import Forward
from ..calls.record import StoredBatch, Taps, record
from ..libraries import is_neuron, libraries_in, library_of, list_for_message
from ..private.quiet import quiet, user_attributes
from ..private.workbench import has_custom_forward, probe_copy
from .layers import ReadoutLayer, as_typed

_QUANTIZED = ("torch.ao.nn.quantized", "torch.nn.quantized", "torch.ao.nn.intrinsic.quantized")


# -- before the first pass -----------------------------------------------------------------------------------------------------


def require_one_library(net: nn.Module) -> str:
    """Return the name of the one library whose neurons a net is built from; refuse several, none, and neurons in plain lists."""
    _refuse_hidden_neurons(net)
    found = libraries_in(net)
    if len(found) > 1:
        raise UnsupportedModuleError(
            f"modules of {' and '.join(found)} in one net",
            "a net built from one library's neurons",
            f"build all layers from the neurons of one library, {list_for_message(lambda library: library.title)}",
        )
    if not any(is_neuron(module) for module in net.modules()):
        kinds = sorted({type(module).__name__ for module in net.modules() if module is not net})
        raise UnsupportedModuleError(
            f"no spiking neuron of {list_for_message(lambda library: library.title)}; the net ({type(net).__name__}) holds "
            f"{', '.join(kinds) or 'no modules'}",
            "a net with neurons of one of these libraries",
            f"put neurons between its layers, e.g. {list_for_message(lambda library: library.example)}; a readout of any other "
            "features is solved by snn_recon_plugin.convex.solve",
        )
    return found[0]


def _refuse_hidden_neurons(net: nn.Module) -> None:
    """Refuse neurons in plain containers, which a net neither lists nor moves nor saves."""
    known = set(net.modules())
    for module, name, value in user_attributes(net):
        parts = [] if isinstance(value, nn.Module) else tensors_in(value, nn.Module)
        hidden = [part for part in parts if part not in known and is_neuron(part)]
        if hidden:
            kinds = ", ".join(sorted({type(part).__name__ for part in hidden}))
            wrapped = "ModuleDict" if isinstance(value, dict) else "ModuleList"
            raise UnsupportedModuleError(
                f"{len(hidden)} neurons ({kinds}) in self.{name} of {type(module).__name__}, a plain "
                f"{type(value).__name__}, which hides them from the net",
                "neurons that are modules of the net",
                f"write self.{name} = nn.{wrapped}(...) in its __init__",
            )


def check_readable(net: nn.Module) -> None:
    """Refuse a net that is scripted or quantized, whose hooks never fire; that observes; or with NaN or infinite values."""
    for name, module in net.named_modules():
        observes = getattr(module, "observer_enabled", None)
        if isinstance(observes, Tensor) and bool(observes.any()):
            raise UnsupportedModuleError(
                f"an observer at {name!r} ({type(module).__name__}) that changes the grid of a fake quantisation in every pass",
                "grids that stay",
                "switch observers off first: net.apply(torch.ao.quantization.disable_observer)",
            )
        if isinstance(module, torch.jit.ScriptModule):
            kind, fix = "a TorchScript module", "pass the net from before torch.jit.script or torch.jit.trace"
        elif type(module).__module__.startswith(_QUANTIZED):
            kind, fix = "a quantized module", "reconstruct first and quantize afterwards"
        else:
            continue
        raise UnsupportedModuleError(f"{kind} at {name!r} ({type(module).__name__})", "modules with plain parameters", fix)
    for name, parameter in net.named_parameters():
        if not bool(torch.isfinite(stored_values(parameter.detach())).all()):
            raise NetworkError(f"the parameter {name!r} holds NaN or infinity", "finite parameters", "build or load the net again")
    for name, buffer in net.named_buffers():
        owner, _, key = name.rpartition(".")
        if key.startswith("running_") and not bool(torch.isfinite(buffer).all()):
            raise NetworkError(
                f"the buffer {name!r} ({type(net.get_submodule(owner)).__name__}) holds NaN or infinity",
                "finite running statistics",
                f"{as_typed(owner)}.reset_running_stats(), or load the net again",
            )


# -- readout and output neuron -------------------------------------------------------------------------------------------------


def check_output_neuron(readout: ReadoutLayer) -> None:
    """Refuse an output neuron whose membrane does not follow from the readout's current alone."""
    neuron, name = readout.neuron, readout.neuron_name
    if neuron is None or name is None:
        return
    kind, library = f"the output neuron {name!r} ({type(neuron).__name__})", library_of(neuron)
    if library.recurrence(neuron) is not None:
        raise UnsupportedModuleError(
            f"{kind}, which feeds its spikes back into itself",
            "an output neuron that gets the readout's current alone; hidden layers may be recurrent",
            f"replace it, e.g. {as_typed(name)} = {library.integrator}",
        )
    if library.quantises_state(neuron):
        raise UnsupportedModuleError(
            f"{kind}, which quantises its membrane",
            "an output membrane that is not quantised; hidden neurons may quantise theirs",
            f"build the output neuron without it, e.g. {as_typed(name)} = {library.integrator}",
        )


def check_linear(net: nn.Module, readout: ReadoutLayer, inputs: Any, forward: Forward) -> None:
    """Refuse a readout that does not compute its weight times its input plus its bias, as quantised or binarised layers do."""
    module = readout.module
    plain = type(module) is nn.Linear and not has_custom_forward(module) and not module._forward_hooks
    if plain or not isinstance(module, nn.Linear):
        return
    errors = [0.0]
    copied, own = probe_copy(net)
    readout = replace(readout, module=own[module])

    def compare(arguments: Any, output: Any) -> None:
        value, returned = next(tensors_in(arguments)), next(tensors_in(output), None)
        expected = functional.linear(value, readout.weight, readout.bias)
        if returned is None or returned.shape != expected.shape:
            errors.append(float("inf"))
            return
        size = max(float(expected.abs().max()), 1e-12)
        errors.append(float((returned - expected).abs().max()) / size)

    with quiet(copied, seed=0):
        record(copied, StoredBatch(inputs, slice(0, 0)), forward, Taps(calls={readout.module: compare}))
        # Read in here: in training mode reading a weight of spectral_norm changes it.
        tolerance = readout.tolerance
    if max(errors) <= tolerance:
        return
    package = type(module).__module__.partition(".")[0]
    raise UnsupportedModuleError(
        f"the readout {readout.name!r} ({package}.{type(module).__name__}), whose output is not input @ weight.T + bias (off by "
        f"{100 * max(errors):.3g} % of the largest value): weights or inputs are quantised or binarised, or its output is changed",
        "a readout that computes input @ weight.T + bias; hidden layers may be quantised",
        f"make {as_typed(readout.name)} an nn.Linear, whose weights quantize_readout_(net, loader, bits=4) puts on a grid",
    )
