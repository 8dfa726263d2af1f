"""Weights from spike patterns: one convex program a neuron finds weights with which a layer emits prescribed spikes.

If a layer's spikes are given at every step, each neuron's membrane is affine in its weights (see ``Dynamics``).  To be above the
threshold at spikes and below it elsewhere is a linear classification of (sample, step) pairs.  This is the joint support vector
machine of the reconstruction algorithm (arXiv 2605.08022), here with squared hinge loss and a vanishing ridge.  Threshold and
offset enter with a common coefficient, and the solution is divided by it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm

from .convex import Features, Problem, solve
from .errors import DataError, OptionError
from .networks.calls.batches import describe
from .networks.libraries import library_of
from .networks.libraries.library import Dynamics

_STRENGTH = 1e-8  # of the ridge, in units of the features' mean square; small enough to separate separable patterns
_TOL = 1e-9
_POSITIVE_WEIGHT = 1e-3  # weight of the row that makes the coefficient of the threshold positive


@dataclass(frozen=True)
class PatternWeights:
    """Weights of a layer found from its spikes."""

    weight: Tensor  # (N, D), from the inputs
    bias: Tensor | None  # (N,), of the layer before the neuron, or None; the bias of the recurrence itself stays
    recurrent: Tensor | None  # (N, N), from the layer's spikes one step earlier; None for a neuron without recurrence
    separable: Tensor  # (N,) bool: all (sample, step) pairs are classified correctly; if for all neurons, the pattern is reproduced
    mismatch: Tensor  # (N,), share of (sample, step) pairs at which the layer, run freely with these weights, differs


def weights_from_patterns(
    neuron: nn.Module,
    inputs: Tensor,
    patterns: Tensor,
    *,
    bias: bool = True,
    strength: float = _STRENGTH,
    progress: bool | None = None,
) -> PatternWeights:
    """Find weights that make a layer of ``neuron`` emit ``patterns`` on ``inputs``; nothing is written.

    Args:
        neuron: a Leaky or RLeaky of snnTorch, or a LIF, LIFCell, LIFRecurrent or LIFRecurrentCell of Norse, or an IFNode,
            LIFNode or ParametricLIFNode of SpikingJelly, with the same parameters for all units.
        inputs: (T, n, D), the layer's input at each step.
        patterns: (T, n, N), 0 or 1, the spikes of its N neurons.
        bias: whether the layer has a bias (Norse's recurrent neurons have none).
        strength: of the ridge, in units of the features' mean square; default 1e-8.
        progress: whether to show a bar; default only in a terminal.

    Returns:
        The weights, and how well they reproduce the pattern.

    Raises:
        DataError: mismatched shapes, values that are not finite, or patterns other than 0 and 1.
        OptionError: ``bias=False`` for a recurrence with a bias.
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
    recurrent_bias = None if recurrence is None else recurrence.bias
    if recurrent_bias is not None and not bias and bool((recurrent_bias != 0).any()):
        fix = "pass bias=True, or set neuron.recurrent.bias to zero"
        raise OptionError("bias=False for a recurrent layer with a bias of its own", "a bias to take that up", fix)
    inputs = inputs if inputs.is_floating_point() else inputs.float()
    width, spikes, sources = inputs.shape[2], patterns.detach().double(), inputs.detach().double()
    if bias:
        sources = torch.cat([sources, torch.ones_like(sources[..., :1])], -1)
    if recurrence is not None:  # the layer's spikes return one step later
        sources = torch.cat([sources, functional.pad(spikes[:-1], [0, 0, 0, 0, 1, 0])], -1)
    hidden = None if progress is None else not progress
    neurons = tqdm(range(spikes.shape[2]), "patterns", unit="neurons", leave=False, disable=hidden)
    alone = recurrence is not None and not recurrence.autapses  # a unit's own spikes do not return to it
    solved = (_solve_neuron(dynamics, sources, spikes, number, strength, alone=alone) for number in neurons)
    rows, separable = zip(*solved, strict=True)
    found = torch.stack(rows)
    weight = found[:, :width]
    offset = found[:, width] if bias else None
    recurrent = found[:, width + int(bias) :] if recurrence is not None else None
    currents = functional.linear(inputs, weight.to(inputs), None if offset is None else offset.to(inputs))
    emitted = library.run(neuron, currents, None if recurrent is None else recurrent.to(inputs)).spikes
    mismatch = (emitted.double() != spikes).double().mean((0, 1))
    if offset is not None and recurrent_bias is not None:  # that one stays, so its share is taken off
        offset = offset - recurrent_bias.detach().double()
    return PatternWeights(weight, offset, recurrent, torch.tensor(separable, device=inputs.device), mismatch)


def _solve_neuron(
    dynamics: Dynamics, sources: Tensor, spikes: Tensor, number: int, strength: float, *, alone: bool
) -> tuple[Tensor, bool]:
    """Return the weights of one neuron, (D,), and whether they separate."""
    pattern = spikes[..., number]
    filtered, offset = dynamics.filter(sources, pattern)
    features, margins = filtered.flatten(0, 1), (offset - dynamics.threshold).flatten()
    scale = features.square().mean(0).sqrt().clamp_min(1e-12)
    if alone:
        features[:, features.shape[1] - spikes.shape[2] + number] = 0.0
    size = margins.abs().max().clamp_min(1e-12)
    rows = torch.cat([features / scale, (margins / size)[:, None]], 1)
    positive = rows.new_zeros(1, rows.shape[1])
    positive[0, -1] = 1.0
    labels = torch.cat([pattern.flatten(), pattern.new_ones(1)]).long()
    weights = rows.new_ones(len(labels))
    weights[-1] = _POSITIVE_WEIGHT * len(labels)
    whole = Features(torch.cat([rows, positive]), None, weights)
    problem = Problem(whole, labels, loss="squared_hinge", penalty="ridge", strength=strength, num_outputs=1)
    row = solve(problem, tol=_TOL).weight[0]
    factor = row[-1] / size
    if not float(factor) > 0:
        return torch.zeros_like(scale), False
    row = row[:-1] / scale / factor
    signed = (features @ row + margins) * (2 * pattern.flatten() - 1)
    return row, bool((signed > 0).all())


def _check(inputs: Tensor, patterns: Tensor, units: int | None) -> None:
    cubes = all(isinstance(each, Tensor) and each.dim() == 3 and each.numel() > 0 for each in (inputs, patterns))
    if not cubes or inputs.shape[:2] != patterns.shape[:2]:
        found = f"inputs that are {describe(inputs)}, and patterns that are {describe(patterns)}"
        raise DataError(found, "tensors (steps, samples, inputs or neurons), none empty", "put time first, then the samples")
    if not bool(torch.isfinite(inputs).all()):
        raise DataError("inputs that are NaN or infinite", "finite inputs", "clean the inputs")
    if not bool(((patterns == 0) | (patterns == 1)).all()):
        raise DataError("patterns with values other than 0 and 1", "spikes", "pass the spikes themselves, e.g. spk_rec")
    if units is not None and units != patterns.shape[2]:
        found = f"patterns of {patterns.shape[2]} neurons for a recurrent layer of {units}"
        raise DataError(found, "one pattern for each neuron, as all spikes feed back", "pass the patterns of the whole layer")
