"""Task of the hidden layers: the net, its samples, the temporary readout that compares weights of a layer, and decisions on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from ..convex import Features, Loss, Problem
from ..convex.features import gram_of
from ..convex.solvers.newton_step import cholesky
from ..errors import DataError
from ..networks.calls.calls import CallRecorder
from ..networks.private.parameters import Values, write_values
from ..networks.readout.readout import Readout
from ..networks.structure.layers import HiddenLayer, NetworkMap
from .site import Sampler

FEW_SAMPLES = 64  # samples on which firing rates are measured during a search, and rebuilt layers are checked
MAX_FEATURES = 2000  # a convolution has more; a random choice of them orders gains equally well
# In units of the features' mean variance; finer steps change no decision.  With fewer samples than features a weak ridge lets
# silent neurons win.
RIDGES = (1e1, 1.0, 1e-1, 1e-2, 1e-3)
_STEPS = 4  # steps of a sample that are fitted; neighbouring steps add little
_LEAST_ROWS = 5000  # of all samples, if they have as many steps: few sequences are fitted at more (docs/temporal.md)
_FOLDS = 4
_MAX_FITTED = 1000  # samples at most on which the readouts that compare layers are fitted
_BINS = 8  # quantiles that replace the classes of a regression target


@dataclass(frozen=True)
class LayerGain:
    """Outcome for a hidden layer that keeps its weights up to a gain."""

    name: str  # of the synapse
    gain: float = 1.0  # factor of its weight and bias, or of those of the norm before its neuron
    offset: float = 0.0  # what its bias adds to the currents beside that, on average over units
    heldout_loss: dict[float, float] = field(default_factory=dict)  # of the temporary readout at each gain tried
    reason: str = ""  # why the layer's weights were kept, if they were
    offers_leaks: bool = False  # inputs change over time, and heterogeneous=True would let the leaks differ


@dataclass(frozen=True)
class LayerWitnesses:
    """Outcome for a hidden layer that was rebuilt."""

    name: str  # the synapse's name
    width: int  # rows of the layer
    selected: int  # number of replaced rows: all, or the number of distinct candidates if that is smaller
    simulated: int  # number of candidates simulated
    used: int  # number of candidates that the group lasso gave a weight
    dropped: dict[str, int] = field(default_factory=dict)  # numbers of dead, always-on and double candidates
    # leaks of the selected rows and how many have each; empty if they share the layer's own
    leaks: dict[float, int] = field(default_factory=dict)
    note: str = ""  # remark on the leaks, for the report
    kinds: dict[str, int] = field(default_factory=dict)  # number of rows of each kind; those of a recurrent layer lie in this order
    reason: str = ""  # comparison with the layer's own weights and other constructions; empty if there was none
    offers_leaks: bool = False  # True if inputs change over time, and heterogeneous=True would let the leaks differ


LayerDecision: TypeAlias = LayerWitnesses | LayerGain
D = TypeVar("D", bound=LayerDecision)


# -- temporary readouts -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TemporaryReadout:
    """Rows of a sample in the program of a temporary readout: one, or one for each of a few steps with their own targets."""

    filters: Tensor  # (K, T), temporal filter of each row
    gains: Tensor  # (K,), contribution of a unit of bias
    steps: Tensor | None = None  # (K,), the step of each row; None for one target a sample, where K is 1

    @property
    def rows_each(self) -> int:
        """Rows of a sample, K."""
        return len(self.filters)

    @property
    def num_steps(self) -> int:
        """Steps of the net, T."""
        return self.filters.shape[1]

    def find_rows(self, samples: Tensor) -> Tensor:
        """Return the indices of the rows of samples (k,), (k * K,)."""
        each = torch.arange(self.rows_each, device=samples.device)
        return (samples[:, None] * self.rows_each + each).flatten()

    def take_rows(self, values: Tensor) -> Tensor:
        """Return targets or weights of all rows, from one value a sample or, with targets at every step, from (n, T, *)."""
        return values if self.steps is None else values[:, self.steps.to(values.device)].flatten(0, 1)

    def take_features(self, features: Tensor) -> Tensor:
        """Return features (n * K, P) of the net's own readout features, (n, P) or (n, T, P)."""
        if features.dim() == 2:
            return features
        return features.mean(1) if self.steps is None else self.take_rows(features)

    def bias_column(self, samples: int) -> float | Tensor:
        """Return the contribution of a unit of bias to the scores of some samples."""
        return float(self.gains[0]) if self.steps is None else self.gains.repeat(samples)


def make_temporary_readout(
    readout: Readout, stepwise: bool = False, samples: int | None = None, labelled: Tensor | None = None
) -> TemporaryReadout:
    """Return the temporary readout that filters spikes as the net's readout does.

    ``stepwise`` means that each step has its own target.  A few steps are then fitted, evenly spread and with the last one, of
    those that are ``labelled`` in any sample, (T,); more of them if there are few ``samples``.
    """
    if not stepwise:
        return TemporaryReadout(readout.filter[None], torch.tensor([readout.bias_gain], dtype=torch.float64))
    matrix = readout.matrix
    wanted = _STEPS if samples is None else max(_STEPS, _LEAST_ROWS // samples)
    found = torch.arange(len(matrix)) if labelled is None else labelled.cpu().nonzero()[:, 0]
    steps = found[torch.linspace(0, len(found), min(wanted, len(found)) + 1)[1:].round().long() - 1]
    return TemporaryReadout(matrix[steps], readout.bias_gains[steps], steps)


def make_averaging_readout(num_steps: int) -> TemporaryReadout:
    """Return the temporary readout of spikes averaged over time, for a net that averages them before its last layer."""
    return TemporaryReadout(torch.full((1, num_steps), 1 / num_steps, dtype=torch.float64), torch.ones(1, dtype=torch.float64))


class Squares:
    """Readouts that are fitted to a program's targets by squares, with a ridge: in closed form, from one Gram matrix."""

    def __init__(self, problem: Problem) -> None:
        self.features, dtype = problem.features, problem.working_dtype
        columns, targets = self.features.columns(None, dtype), problem.targets.to(dtype)
        column, roots = columns.bias_column, columns.row_weights.sqrt()[:, None]
        weight = columns.row_mean(column.square()).clamp_min(torch.finfo(dtype).tiny)
        self.bias = columns.row_mean(column * targets) / weight  # (C,), of centred features
        self.values = torch.where(columns.variance > 0, columns.matrix.to(dtype) - column * columns.mean, 0) * roots  # (n, M)
        self.left = (targets - column * self.bias) * roots  # (n, C), without the bias
        self._gram = gram_of(self.values) if self.values.shape[1] <= len(self.values) else None

    def fit(self, strength: float, sizes: Tensor) -> Tensor:
        """Return weights (M, C) of centred features, with the ridge ``strength / sizes`` (M,); none where a size is zero."""
        kept = sizes.nonzero()[:, 0]
        scale, whole = sizes[kept].sqrt(), len(kept) == len(sizes)
        values = self.values if whole else self.values[:, kept]
        scaled = values * scale
        wide = len(kept) > len(values)  # a matrix of rows is smaller
        if wide or self._gram is None:
            matrix = scaled @ scaled.T if wide else gram_of(scaled)
        else:
            matrix = (self._gram if whole else self._gram[kept][:, kept]) * scale * scale[:, None]
        matrix.diagonal().add_(strength)
        found = torch.cholesky_solve(self.left if wide else scaled.T @ self.left, cholesky(matrix))
        found = scaled.T @ found if wide else found
        return self.left.new_zeros(len(sizes), self.left.shape[1]).index_copy_(0, kept, scale[:, None] * found)

    def readout(self, strength: float) -> tuple[Tensor, Tensor]:
        """Return weight (C, M) and bias (C,) for features as given, with the ridge ``strength``."""
        weight = self.fit(strength, torch.ones_like(self.values[0])).T.double()
        return weight, self.bias.double() - self.features.centring(weight)


@dataclass(frozen=True)
class CrossValidation:
    """Held-out loss of a temporary readout, fitted by squares."""

    readout: TemporaryReadout
    targets: Tensor  # of all samples, (n,) or (n, T)
    num_outputs: int
    loss: Loss
    splits: Sequence[tuple[Tensor, Tensor]]  # samples to fit and samples held out, by turns
    weights: Tensor | None = None  # of all samples, as the targets

    def evaluate_features(self, features: Tensor) -> float:
        """Return the least held-out loss over a few ridge strengths, for features ``[n, P]`` or ``[n, T, P]``."""
        return self.evaluate_rows(self.readout.take_features(take_some(features)))[0]

    def evaluate_rows(self, features: Tensor, shares: tuple[float, ...] = RIDGES) -> tuple[float, float]:
        """Return the same loss for filtered spikes of a layer, ``[n * K, *]``, over some ridges, and the best ridge."""
        features = take_some(features.flatten(1))
        variance = float(features.double().var(0, correction=0).mean())
        if variance <= 1e-12 * float(features.double().square().mean()):  # constant over samples, up to rounding
            return torch.inf, shares[0]
        total = 0.0
        for fitted, heldout in self.splits:
            squares, validation = Squares(self._problem(features, fitted)), self._problem(features, heldout)
            losses: dict[float, float] = {}
            for share in shares:
                losses[share] = validation.mean_loss(validation.features.scores(*squares.readout(share * variance)))
                if losses[share] > min(losses.values()):
                    break
            best = min(losses, key=lambda share: losses[share])
            shares = (best,)  # the first split chooses the ridge for all
            total += len(heldout) * losses[best]
        return total / sum(len(heldout) for _, heldout in self.splits), shares[0]

    def evaluate_nothing(self) -> float:
        """Return the held-out loss of a bias alone."""
        nothing, total = torch.zeros(len(self.targets) * self.readout.rows_each, 1, device=self.targets.device), 0.0
        for fitted, heldout in self.splits:
            program, validation = self._problem(nothing, fitted), self._problem(nothing, heldout)
            total += len(heldout) * validation.mean_loss(validation.features.scores(*program.zero_point()))
        return total / sum(len(heldout) for _, heldout in self.splits)

    def _problem(self, features: Tensor, samples: Tensor) -> Problem:
        samples = samples.to(features.device)
        weights = None if self.weights is None else self.readout.take_rows(self.weights[samples])
        part = Features(features[self.readout.find_rows(samples)], self.readout.bias_column(len(samples)), weights)
        targets = self.readout.take_rows(self.targets[samples])
        return Problem(part, targets, loss=self.loss, penalty="ridge", num_outputs=self.num_outputs)


def split_in_folds(count: int, seed: int, samples: Tensor | None = None) -> list[tuple[Tensor, Tensor]]:
    """Return splits of ``count`` samples that hold out each once; ``samples`` (k,) are those to use, by default all."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    if samples is not None:
        order = order[torch.isin(order, samples.cpu())]
    folds = order.tensor_split(min(_FOLDS, len(order)))
    return [(torch.cat([*folds[:number], *folds[number + 1 :]]), fold) for number, fold in enumerate(folds)]


def take_some(values: Tensor) -> Tensor:
    """Return at most ``MAX_FEATURES`` features, the last axis, chosen at random."""
    if values.shape[-1] <= MAX_FEATURES:
        return values
    chosen = torch.randperm(values.shape[-1], generator=torch.Generator().manual_seed(0))[:MAX_FEATURES]
    return values[..., chosen.to(values.device)]


@dataclass(frozen=True)
class HiddenTask:
    """Network, samples and temporary readout with which hidden layers are chosen."""

    recorder: CallRecorder  # of the private net, on a few thousand samples
    targets: Tensor
    net_map: NetworkMap
    readout: Readout
    temporary: TemporaryReadout  # of every layer
    loss: Loss  # has the targets of the temporary readout: the squared hinge, or a loss of values, which judges it too
    seed: int = 0  # of the cross-validation and the candidates
    samples: Tensor | None = None  # (k,) ascending, those that take part; None for all
    weights: Tensor | None = None  # of the samples, or of their steps
    # Options of a reconstruction, as in ``ConvexInitializer``.
    witnesses: str | Sampler = "auto"
    n_candidates: float | int = 3.0  # of a layer; a float is a multiple of its width
    heterogeneous: bool | None = None  # whether candidates differ in their leak; None: where the layer's own units do
    compares: bool = False  # whether a layer is rebuilt only where that does better on held-out samples than a gain

    def count_candidates(self, width: int) -> int:
        """Return the number of candidates for a layer of ``width``."""
        wanted = round(self.n_candidates * width) if isinstance(self.n_candidates, float) else self.n_candidates
        return max(wanted, width)

    @property
    def num_outputs(self) -> int:
        """Outputs of the temporary readout."""
        return self.readout.classes(self.net_map.readout.out_features)

    @property
    def used_samples(self) -> Tensor:
        """Indices of the samples that take part, (k,)."""
        return torch.arange(len(self.targets)) if self.samples is None else self.samples

    @property
    def rows(self) -> Tensor:
        """Rows of the temporary readout's program, of the samples that take part."""
        return self.temporary.find_rows(self.used_samples.to(self.targets.device))

    @property
    def labels(self) -> Tensor:
        """Class indices of these rows."""
        return to_class_labels(self.temporary.take_rows(self.targets))[self.rows]

    def make_generator(self, number: int) -> torch.Generator:
        """Return the random generator of a layer."""
        return torch.Generator().manual_seed(self.seed + number)

    def cross_validate(self, count: int) -> CrossValidation:
        """Return the held-out loss on the first ``count`` samples."""
        splits = split_in_folds(count, self.seed, self.samples)
        weights = None if self.weights is None else self.weights[:count]
        return CrossValidation(self.temporary, self.targets[:count], self.num_outputs, self.loss, splits, weights)

    @property
    def compared_samples(self) -> tuple[Tensor, int]:
        """Samples (m,) on which layers are compared, and how many of the first ones readouts are fitted on."""
        used = self.used_samples.cpu()
        others = torch.ones(len(self.targets), dtype=torch.bool).index_fill(0, used, False).nonzero()[:, 0]
        return torch.cat([used[:_MAX_FITTED], others]), min(_MAX_FITTED, len(used))

    @property
    def comparison(self) -> CrossValidation:
        """Held-out loss by which weights of a layer are compared, on ``compared_samples``."""
        samples, fitted = self.compared_samples
        split = torch.arange(fitted), torch.arange(fitted, len(samples))
        samples = samples.to(self.targets.device)
        weights = None if self.weights is None else self.weights[samples]
        return CrossValidation(self.temporary, self.targets[samples], self.num_outputs, self.loss, [split], weights)


def change_layers(
    layers: Sequence[HiddenLayer],
    decide: Callable[[int], tuple[D, Values]],
    progress: Callable[[str], None] | None = None,
    prepare: Callable[[int], Values] = lambda number: {},
) -> tuple[list[D], Values]:
    """Decide on every hidden layer, from the input up, and write its values into the net before the next one is decided.

    ``prepare`` returns values to write before the decision on the layer of a number, or after the last one.  Return the decisions,
    and the tensors of the net that were changed, as they were; one that several modules share comes once.
    """
    decisions: list[D] = []
    before: dict[tuple[nn.Module, str], Tensor] = {}

    def write(values: Values) -> None:
        for place, value in write_values(values).items():
            if all(getattr(*place) is not getattr(*other) for other in before):
                before[place] = value

    for number, layer in enumerate(layers):
        write(prepare(number))
        decision, values = decide(number)
        decisions.append(decision)
        write(values)
        if progress is not None:
            progress(layer.name)
    write(prepare(len(layers)))
    return decisions, before


def to_class_labels(targets: Tensor) -> Tensor:
    """Return class indices (n,): the targets, the index of the largest of several values, or the quantile of one value."""
    if targets.dim() == 1 and not targets.is_floating_point():
        return targets.long()
    flat = targets.reshape(len(targets), -1).double()
    if flat.shape[1] > 1:
        return flat.argmax(1)
    edges = torch.quantile(flat[:, 0], torch.linspace(0, 1, _BINS + 1, dtype=torch.float64, device=flat.device)[1:-1])
    return torch.bucketize(flat[:, 0], edges)


def check_samples(layer: HiddenLayer, samples: int, targets: int) -> None:
    """Refuse a layer that another number of samples reaches than there are targets."""
    if samples != targets:
        found = f"{targets} targets for {samples} samples that reach hidden layer {layer.name!r}"
        fix = "check the loader's targets, and that the batch is the axis after time"
        raise DataError(found, "one target for every sample", fix)
