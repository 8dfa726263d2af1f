"""The temporal filter of an output neuron, measured on the neuron itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import UnsupportedModuleError
from .adapters import adapter_of

__all__ = ["Response", "measure_response"]

_SEED = 20240229
# Currents far beyond usual thresholds: a membrane that resets within any sensible range does so under these.
_LARGE = 100.0


@dataclass(frozen=True)
class Response:
    """How an affine neuron's membrane answers its input current.

    Args:
        matrix: ``[T, T]`` float64, membrane at step ``s`` (row) for a unit current at step ``t`` (column).
        rest: ``[T]`` float64, membrane without any input.
    """

    matrix: Tensor
    rest: Tensor


def measure_response(name: str, neuron: nn.Module, num_steps: int, outputs: int, device: torch.device) -> Response:
    """Measure impulse responses, and check that they explain the membrane under random currents too.

    The neuron runs in double precision where it can, so that the filter has the digits that a certificate needs; it
    must agree with the neuron in single precision, which is what the network runs.

    Args:
        name: the neuron's name in the net, for messages.
        neuron: the output neuron; left as found.
        num_steps: how many steps to measure, T.
        outputs: how many units the neuron has, C.
        device: where the neuron lives.

    Returns:
        The response, the same for all units.

    Raises:
        UnsupportedModuleError: if the membrane isn't affine in the current, or differs from unit to unit.
    """
    single = _respond(neuron, num_steps, outputs, device, torch.float32)
    _check_affine(name, neuron, single)
    try:
        double = _respond(neuron, num_steps, outputs, device, torch.float64)
    except (RuntimeError, TypeError):
        # A device without double precision, or a neuron that insists on single.
        double = single
    best = double if _close(double.impulses, single.impulses) and _close(double.rest, single.rest) else single
    spread = (best.impulses - best.impulses[..., :1]).abs().max(), (best.rest - best.rest[..., :1]).abs().max()
    if max(float(part) for part in spread) > 1e-6 * max(1.0, float(best.impulses.abs().max())):
        raise UnsupportedModuleError(
            f"the output neuron {name!r} has parameters that differ from unit to unit, e.g. a vector beta",
            "one temporal filter for all outputs",
            "build the output neuron with scalar parameters, e.g. beta=0.9",
        )
    return Response(best.impulses[..., 0].cpu(), best.rest[..., 0].cpu())


@dataclass(frozen=True)
class _Measured:
    """Responses of every unit, in double precision whatever they were measured in.

    Args:
        impulses: ``[T, T, C]``, membrane at a step for a unit current at a step.
        rest: ``[T, C]``.
        currents: ``[T, B, C]``, random currents, small and large.
        membranes: ``[T, B, C]``, what they do to the membrane.
    """

    impulses: Tensor
    rest: Tensor
    currents: Tensor
    membranes: Tensor


def _respond(neuron: nn.Module, steps: int, outputs: int, device: torch.device, dtype: torch.dtype) -> _Measured:
    """Run the neuron on an impulse at each step, on nothing, and on random currents, all in one batch."""
    generator = torch.Generator().manual_seed(_SEED)
    noise = torch.randn(steps, 3, outputs, generator=generator, dtype=torch.float64)
    random = noise * torch.tensor(_scales(neuron), dtype=torch.float64)[None, :, None]
    impulses = torch.eye(steps, dtype=torch.float64)[:, :, None].expand(steps, steps, outputs)
    silence = torch.zeros(steps, 1, outputs, dtype=torch.float64)
    currents = torch.cat([impulses, silence, random], dim=1).to(device=device, dtype=dtype)
    membranes = adapter_of(neuron).run(neuron, currents).membranes.cpu().double()
    rest = membranes[:, steps]
    return _Measured(membranes[:, :steps] - rest[:, None], rest, random, membranes[:, steps + 1 :])


def _scales(neuron: nn.Module) -> list[float]:
    """Give sizes of currents at which a reset shows: large, of order one, and some times the neuron's threshold."""
    thresholds = adapter_of(neuron).threshold(neuron)
    lowest = 0.0 if thresholds is None else min(abs(value) for value in thresholds)
    return [_LARGE, 1.0, min(10.0 * lowest, _LARGE) or 1.0]


def _check_affine(name: str, neuron: nn.Module, measured: _Measured) -> None:
    expected = torch.einsum("stc,tbc->sbc", measured.impulses, measured.currents) + measured.rest[:, None]
    # One size at a time: what a reset takes from a small membrane would drown in the rounding of a large one.
    if all(_close(expected[:, size], measured.membranes[:, size]) for size in range(expected.shape[1])):
        return
    reset = getattr(neuron, "reset_mechanism", None)
    raise UnsupportedModuleError(
        f"the output neuron {name!r} ({type(neuron).__name__}, reset_mechanism={reset!r}) has a membrane that is not "
        "affine in its input current",
        "an output neuron that integrates without a reset (resetting and spiking outputs are not handled yet)",
        f"construct it with reset_mechanism='none', e.g. snn.{type(neuron).__name__}(..., reset_mechanism='none'); "
        "setting the attribute later has no effect",
    )


def _close(left: Tensor, right: Tensor) -> bool:
    scale = max(float(right.abs().max()), 1e-12)
    return float((left - right).abs().max()) <= 1e-4 * scale
