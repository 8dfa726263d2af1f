"""Weights from spike patterns: the weights that make a layer spike as prescribed, one convex program a neuron.

With a layer's spikes given at every step, each neuron's membrane is affine in its weights, and to be above the
threshold where it should spike and below where it should not is a linear classification of (sample, step) pairs (arXiv
2605.08022, the joint support vector machine of the reconstruction algorithm; here squared hinge loss with a vanishing ridge).
The threshold and the offset enter with a coefficient of their own, by which the solution is divided in the end: a pattern has
no scale, only the neuron has.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from snn_recon_plugin.convex import Design, Problem, solve
from snn_recon_plugin.errors import DataError, OptionError
from snn_recon_plugin.networks import library_of, replace_parameters
from snn_recon_plugin.networks.libraries import Dynamics

__all__ = ["PatternWeights", "weights_from_patterns"]

_STRENGTH = 1e-8  # of the ridge, over the mean square of the features: separable patterns are then met with room to spare
_TOL = 1e-9
_PULL = 1e-3  # weight of the row that asks for a positive scale


@dataclass(frozen=True)
class PatternWeights:
    """Weights of a layer found from its spikes.

    Args:
        weight: (N, D), from the inputs.
        bias: (N,), of the layer before the neuron, or None; a bias that the recurrence has itself stays as it is.
        recurrent: (N, N), from the layer's own spikes of the step before; None for a neuron without recurrence.
        separable: (N,) bool, whether every (sample, step) lies on its right side with the spikes as prescribed.  Where this holds
            for all neurons, the layer reproduces the pattern.
        mismatch: (N,), share of (sample, step) pairs where the layer, run freely with these weights, does otherwise.
    """

    weight: Tensor
    bias: Tensor | None
    recurrent: Tensor | None
    separable: Tensor
    mismatch: Tensor


def weights_from_patterns(
    neuron: nn.Module,
    inputs: Tensor,
    patterns: Tensor,
    *,
    bias: bool = True,
    strength: float = _STRENGTH,
    progress: bool | None = None,
) -> PatternWeights:
    """Finds weights that make a layer of ``neuron`` emit ``patterns`` on ``inputs``; nothing is written.

    Args:
        neuron: a Leaky or RLeaky of snnTorch, or a LIF, LIFCell, LIFRecurrent or LIFRecurrentCell of Norse, its units alike.
        inputs: (T, n, D), what enters the layer at each step.
        patterns: (T, n, N), 0 or 1, what its N neurons should emit.
        bias: whether the layer has a bias (Norse's recurrent neurons have none).
        strength: of the ridge, in units of the features' mean square; default 1e-8.
        progress: whether to show a bar; default only in a terminal.

    Returns:
        The weights, whether they separate, and how far the layer run with them misses the pattern.

    Raises:
        DataError: shapes that don't fit, values that are not finite, or patterns other than 0 and 1.
        OptionError: no bias asked for where the recurrence has one.
        UnsupportedModuleError: a neuron of another class.

    Example:
        >>> import snntorch, torch
        >>> inputs = torch.tensor([[[1.0]], [[-1.0]], [[1.0]]])  # three steps, one sample, one input
        >>> found = weights_from_patterns(snntorch.Leaky(beta=0.9), inputs, (inputs > 0).float(), progress=False)
        >>> found.weight.shape
        torch.Size([1, 1])
    """
    library = library_of(neuron)
    dynamics, recurrence = library.dynamics(neuron), library.recurrence(neuron)
    _check(inputs, patterns, None if recurrence is None else recurrence.units)
    inputs = inputs if inputs.is_floating_point() else inputs.float()
    own = None if recurrence is None else recurrence.bias
    if own is not None and not bias and bool((own != 0).any()):
        fix = "pass bias=True, or set neuron.recurrent.bias to zero"
        raise OptionError("bias=False for a recurrent layer with a bias of its own", "a bias to take that up", fix)
    sources, spikes = inputs.detach().double(), patterns.detach().double()
    parts = [sources]
    if bias:
        parts.append(torch.ones_like(sources[..., :1]))
    if dynamics.recurrent:
        parts.append(torch.cat([torch.zeros_like(spikes[:1]), spikes[:-1]]))
    joined = torch.cat(parts, -1)
    hidden = None if progress is None else not progress
    width, neurons = inputs.shape[2], spikes.shape[2]
    first = joined.shape[2] - neurons if dynamics.recurrent and not dynamics.autapses else None
    rows = [
        _one(dynamics, joined, spikes[..., k], None if first is None else first + k, strength)
        for k in tqdm(range(neurons), desc="patterns", unit="neurons", leave=False, disable=hidden)
    ]
    found = torch.stack([row for row, _ in rows])
    weight = found[:, :width]
    # The recurrence's own bias stays as it is: what it adds is left out of the layer's.
    offset = None if not bias else found[:, width] - (0.0 if own is None else own.detach().double())
    recurrent = found[:, width + int(bias) :] if dynamics.recurrent else None
    emitted = _run(neuron, inputs, weight, offset, recurrent)
    mismatch = (emitted.double() != spikes).double().mean((0, 1))
    separable = torch.tensor([met for _, met in rows], device=inputs.device)
    return PatternWeights(weight, offset, recurrent, separable, mismatch)


def _one(dynamics: Dynamics, sources: Tensor, pattern: Tensor, left_out: int | None, strength: float) -> tuple[Tensor, bool]:
    """The weights of one neuron, (D,), and whether they separate."""
    filtered, offset = dynamics.filter(sources, pattern)
    features, room = filtered.flatten(0, 1), (offset - dynamics.threshold).flatten()
    scale = features.square().mean(0).sqrt().clamp_min(1e-12)
    if left_out is not None:
        features = features.clone()
        features[:, left_out] = 0.0
    size = room.abs().max().clamp_min(1e-12)
    rows = torch.cat([features / scale, (room / size)[:, None]], 1)
    pull = rows.new_zeros(1, rows.shape[1])
    pull[0, -1] = 1.0
    labels = torch.cat([pattern.flatten(), pattern.new_ones(1)]).long()
    weights = torch.ones(len(labels), dtype=torch.float64, device=rows.device)
    weights[-1] = _PULL * len(labels)
    design = Design(torch.cat([rows, pull]), None, weights)
    problem = Problem(design, labels, loss="squared_hinge", penalty="ridge", strength=strength, num_outputs=1)
    solution = solve(problem, tol=_TOL)
    row = solution.weight[0]
    factor = row[-1] / size
    if not float(factor) > 0:
        return torch.zeros_like(scale), False
    row = row[:-1] / scale / factor
    margin = (features @ row + room) * (2 * pattern.flatten() - 1)
    return row, bool((margin > 0).all())


def _run(neuron: nn.Module, inputs: Tensor, weight: Tensor, bias: Tensor | None, recurrent: Tensor | None) -> Tensor:
    """The layer run freely with these weights, (T, n, N); its parameters and states stay as found."""
    library = library_of(neuron)
    currents, recurrence = inputs @ weight.to(inputs).T + (0.0 if bias is None else bias.to(inputs)), library.recurrence(neuron)
    if recurrent is None:
        return library.run(neuron, currents).spikes
    assert recurrence is not None
    assert recurrence.weight is not None
    values = {recurrence.weight: recurrent}
    if recurrence.inputs is not None:
        values[recurrence.inputs] = weight
    with replace_parameters(values):
        return library.run_recurrent(neuron, currents if recurrence.inputs is None else inputs)


def _check(inputs: Tensor, patterns: Tensor, units: int | None) -> None:
    if inputs.dim() != 3 or patterns.dim() != 3 or inputs.shape[:2] != patterns.shape[:2] or 0 in (*inputs.shape, *patterns.shape):
        raise DataError(
            f"inputs of shape {tuple(inputs.shape)} and patterns of shape {tuple(patterns.shape)}",
            "(steps, samples, inputs) and (steps, samples, neurons), none empty",
            "put time first, then the samples",
        )
    if not bool(torch.isfinite(inputs).all()):
        raise DataError("inputs that are NaN or infinite", "finite inputs", "clean the inputs")
    if not bool(((patterns == 0) | (patterns == 1)).all()):
        raise DataError("patterns with values other than 0 and 1", "spikes", "pass the spikes themselves, e.g. spk_rec")
    if units is not None and units != patterns.shape[2]:
        raise DataError(
            f"patterns of {patterns.shape[2]} neurons for a recurrent layer of {units}",
            "one pattern a neuron: what the others do comes back to each",
            "pass the patterns of the whole layer",
        )
