"""Forward passes that note what entered every synapse and neuron, and passes with foreign currents injected.

Which module feeds which can't be read off a module tree: forward functions are free Python.  So it is measured: strong
random currents replace what one synapse gives, and every module whose input differs from the undisturbed pass is fed
by that synapse.  Passes start from the same state and the same seed, so that nothing else makes a difference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .forward import Forward
from .guard import preserved
from .record import StoredBatch, Taps, record
from .structures import tensors_in

__all__ = ["Fingerprints", "Pass", "injector", "observe", "same"]

_SEED = 20240229
# Of the summed magnitude: far above the rounding of one sum, far below what strong currents do.
_TOLERANCE = 1e-6


@dataclass
class Pass:
    """What one forward pass did.

    Args:
        entered: for each watched module that ran, in order of its first call, a fingerprint of every input.
        shapes: the shapes of those inputs.
        returned: a fingerprint of every tensor that the forward returned.
    """

    entered: dict[nn.Module, list[Tensor]] = field(default_factory=dict)
    shapes: dict[nn.Module, list[torch.Size]] = field(default_factory=dict)
    returned: list[Tensor] = field(default_factory=list)

    def changed(self, other: Pass, module: nn.Module, *, first_call: bool = False) -> bool:
        """Say whether what entered a module differs between two passes.

        Args:
            other: the pass to compare with.
            module: the module.
            first_call: whether to look at the first call alone.

        Returns:
            True if an input differs, or the number of calls does.
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
    """Run the net once from rest and note what entered the watched modules.

    Args:
        net: the net; left as found.
        inputs: one batch.
        forward: how the net is called.
        watched: the modules to watch.
        inject: a module and what makes its output, given the one it gave; see :func:`injector`.

    Returns:
        The record of the pass.
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
    """Build a hook that replaces an output by random currents, the same ones each time it is built.

    Args:
        scale: their standard deviation.
        shift: their mean.
        draw: which currents; those of another number are others.

    Returns:
        A function from a tensor to random currents of its shape, dtype and device; of a tuple it replaces the first item.
    """
    generator = torch.Generator().manual_seed(_SEED + draw)

    def replace(output: Any) -> Any:
        if isinstance(output, tuple):
            return (replace(output[0]), *output[1:])
        noise = torch.randn(output.shape, generator=generator, dtype=torch.float32)
        return (noise * scale + shift).to(output)

    return replace


def same(left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    """Compare two lists of fingerprints.

    Args:
        left: fingerprints.
        right: fingerprints.

    Returns:
        True if there are equally many and each agrees up to rounding.
    """
    if len(left) != len(right):
        return False
    if not left:
        return True
    a, b = torch.stack(list(left)), torch.stack(list(right))
    tolerance = _TOLERANCE * torch.maximum(a[:, 1], b[:, 1])
    return bool(((a[:, 0] - b[:, 0]).abs() <= tolerance).all())


class Fingerprints:
    """Boils a tensor down to a weighted sum and the size of its terms, so that no pass needs to keep activations."""

    def __init__(self) -> None:
        self._weights: dict[tuple[int, torch.device], Tensor] = {}

    def __call__(self, value: Tensor) -> Tensor:
        """Return the weighted sum of a tensor, and that of its magnitudes, ``[2]`` float64."""
        flat = value.detach().reshape(-1)
        flat = flat if flat.is_floating_point() else flat.to(torch.float32)
        key = (flat.numel(), flat.device)
        if key not in self._weights:
            # Random, so that spikes that trade places show; equal, so that every pass weighs alike.
            generator = torch.Generator().manual_seed(_SEED)
            self._weights[key] = torch.rand(flat.numel(), generator=generator).add_(0.5).to(flat.device)
        terms = flat * self._weights[key]
        return torch.stack([terms.sum(), terms.abs().sum()]).double().cpu()
