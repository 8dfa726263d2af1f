"""Forward passes compared by fingerprints of what enters each module, with random currents in place of one module's output.

A module tree does not show which module feeds which, since forward functions are free Python.  So it is measured: strong random
currents replace the output of one synapse.  Every module whose input then differs from the undisturbed pass is fed by it.
Passes start from the same state and seed, so that nothing else makes a difference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .batches import tensors_in
from .forward import Forward
from .guard import preserved
from .record import StoredBatch, Taps, record

__all__ = ["Fingerprints", "Pass", "injector", "observe", "same"]

_SEED = 20240229
# Of the summed magnitude: far above the rounding of one sum, far below the effect of strong currents.
_TOLERANCE = 1e-6


@dataclass
class Pass:
    """Record of one forward pass.

    Args:
        entered: fingerprints of all inputs of each watched module that ran, in order of first calls.
        shapes: shapes of those inputs.
        returned: fingerprints of all tensors that the forward returned.
    """

    entered: dict[nn.Module, list[Tensor]] = field(default_factory=dict)
    shapes: dict[nn.Module, list[torch.Size]] = field(default_factory=dict)
    returned: list[Tensor] = field(default_factory=list)

    def changed(self, other: Pass, module: nn.Module, *, first_call: bool = False) -> bool:
        """Return whether an input of a module, or the number of its calls, differs between two passes.

        Args:
            other: the pass to compare with.
            module: the module.
            first_call: whether to compare the first calls alone.
        """
        mine, others = self.entered.get(module, []), other.entered.get(module, [])
        if first_call:
            mine, others = mine[:1], others[:1]
        return not same(mine, others)


def observe(
    net: nn.Module,
    inputs: Any,
    forward: Forward,
    watched: Sequence[nn.Module],
    *,
    inject: tuple[nn.Module, Callable[[Any], Any]] | None = None,
) -> Pass:
    """Run the net once from rest and take fingerprints of what enters the watched modules.

    Args:
        net: the net; left as found.
        inputs: one batch.
        forward: how the net is called.
        watched: the modules to watch.
        inject: a module and the function that replaces its output; see :func:`injector`.
    """
    seen = Pass()
    fingerprints = Fingerprints()

    def watcher(module: nn.Module) -> Callable[[Tensor], None]:
        def note(value: Tensor) -> None:
            seen.entered.setdefault(module, []).append(fingerprints(value))
            seen.shapes.setdefault(module, []).append(value.shape)

        return note

    taps = Taps(
        inputs={module: watcher(module) for module in watched}, new_outputs={} if inject is None else {inject[0]: inject[1]}
    )
    batch = StoredBatch(inputs, slice(0, 0), number=1 if inject is None else None)
    with preserved(net, seed=_SEED):
        seen.returned = [fingerprints(tensor) for tensor in tensors_in(record(net, batch, forward, taps))]
    return seen


def injector(scale: float, shift: float = 0.0, draw: int = 0) -> Callable[[Any], Any]:
    """Build a function from an output to random currents of its shape, dtype and device, the same ones each time it is built.

    The function replaces the first item of a tuple.

    Args:
        scale: standard deviation of the currents.
        shift: mean of the currents.
        draw: number of the draw; another number draws other currents.
    """
    generator = torch.Generator().manual_seed(_SEED + draw)

    def replace(output: Any) -> Any:
        if isinstance(output, tuple):
            return (replace(output[0]), *output[1:])
        noise = torch.randn(output.shape, generator=generator, dtype=torch.float32)
        return (noise * scale + shift).to(output)

    return replace


def same(left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    """Return whether two lists hold equally many fingerprints that agree up to rounding."""
    if len(left) != len(right):
        return False
    if not left:
        return True
    a, b = torch.stack(list(left)), torch.stack(list(right))
    tolerance = _TOLERANCE * torch.maximum(a[:, 1], b[:, 1])
    return bool(((a[:, 0] - b[:, 0]).abs() <= tolerance).all())


class Fingerprints:
    """Fingerprint of a tensor, which replaces it in memory: a weighted sum, and the size of its terms."""

    def __init__(self) -> None:
        self._weights: dict[tuple[int, torch.device], Tensor] = {}

    def __call__(self, value: Tensor) -> Tensor:
        """Return the weighted sum of a tensor and of its magnitudes, ``[2]`` float64."""
        flat = value.detach().reshape(-1)
        flat = flat if flat.is_floating_point() else flat.to(torch.float32)
        key = (flat.numel(), flat.device)
        if key not in self._weights:
            # Random, so that spikes that trade places show; the same in every pass.
            generator = torch.Generator().manual_seed(_SEED)
            self._weights[key] = torch.rand(flat.numel(), generator=generator).add_(0.5).to(flat.device)
        terms = flat * self._weights[key]
        return torch.stack([terms.sum(), terms.abs().sum()]).double().cpu()
