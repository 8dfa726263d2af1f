"""A readout that is solved again after each batch of a stream, in memory that does not grow: recursive least squares."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import NetworkError
from ..networks.calls.batches import device_of
from ..networks.private.quiet import run_quietly
from ..networks.private.workbench import Workbench
from ..networks.write import Transaction, commit
from ..stages.initialize import prepare_network
from .outputs import centred_basis, checked_strength, groups_of
from .statistics import RowSource, Statistics, check_below, open_source, reading_options, statistics_of

_GRID = tuple(10.0 ** (-half / 2) for half in range(2, 14))  # falling strengths, of the mean square of a row's centred features
_ROUNDING = 1e-9  # share of the features' squares below which their variance is rounding
_LEAST_LEFT = 0.02  # of the degrees of freedom that a fit must leave: fewer make the criterion rounding


@dataclass(frozen=True)
class _RidgeProgram:
    """Squared loss with ridge of some outputs that see the rows through one filter, and a free bias, in float64."""

    gram: Tensor  # (P + 1, P + 1), sum of the products of the samples' rows; a row's last value is what one unit of bias adds
    cross: Tensor  # (P + 1, C), sum of the products of rows and targets 1 and -1
    count: float  # of samples

    @staticmethod
    def of(statistics: Statistics, number: int, outputs: Tensor) -> _RidgeProgram:
        """Return the program of outputs that see the rows through the filter of this number; every sample weighs alike."""
        sums = statistics.sums[number]
        cross = 2 * sums[:, outputs] - sums.sum(1, keepdim=True)
        return _RidgeProgram(statistics.gram[number].sum(0), cross, float(sum(statistics.counts)))

    @cached_property
    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Eigenvalues of the centred features, products of eigenvectors with targets, and what the bias alone explains."""
        (share, values, vectors), own = centred_basis(self.gram / self.count), self.gram[-1, -1]
        level = self.cross[-1] / own if float(own) > 0 else torch.zeros_like(self.cross[-1])
        products = vectors.T @ (self.cross[:-1] - own * torch.outer(share, level)) / self.count
        return values, products, level

    def strengths(self) -> list[float]:
        """Return the falling strengths that are worth a try."""
        total, size = float(self._parts[0].sum()), float(self.gram[:-1, :-1].trace()) / self.count
        total = total if total > _ROUNDING * size else size or 1.0  # samples may be the same one
        return [factor * total for factor in _GRID]

    def cross_validation(self, strength: float) -> float:
        """Return the generalised cross-validation score (Golub, Heath and Wahba 1979) of a mean squared error."""
        values, products, level = self._parts
        fitted = products / (values + strength)[:, None]
        explained = (products * fitted).sum(0) * 2 - (values[:, None] * fitted.square()).sum(0)
        residual = 1 - level.square() * self.gram[-1, -1] / self.count - explained
        left = 1 - (float((values / (values + strength)).sum()) + 1) / self.count
        return float(residual.sum()) / left**2 if left > _LEAST_LEFT else float("inf")


@dataclass(frozen=True)
class _NormalEquations:
    """Solution of the outputs that see the rows through one filter, and the inverse of its matrix, both float64."""

    inverse: Tensor  # [P + 1, P + 1]
    solution: Tensor  # [P + 1, C]
    outputs: Tensor  # [C], among those of the readout
    number: int  # of the filter

    def updated(self, rows: Tensor, targets: Tensor) -> _NormalEquations:
        """Return the system with more rows, (n, P + 1), by the Woodbury identity."""
        product = rows @ self.inverse
        gain = torch.linalg.solve(torch.eye(len(rows)).double() + product @ rows.T, product).T
        inverse = self.inverse - gain @ product
        solution = self.solution + gain @ (targets[:, self.outputs] - rows @ self.solution)
        return replace(self, inverse=(inverse + inverse.T) / 2, solution=solution)  # rounding would make it unsymmetric in time


class StreamingReadout:
    """A readout of squared loss with ridge that follows a stream of labelled batches; hidden layers stay.

    After each batch the network holds the solution of all samples so far, up to rounding, as if they were solved together.
    Memory does not grow with the stream: it holds a (P + 1, P + 1) float64 matrix for P features, a copy of the network, and a
    batch.  The penalty is ``strength`` times the number of samples at the start, and stays while samples are added.  Every sample
    weighs alike, so that rare classes weigh little.

    Args:
        net: a trained network whose readout is an nn.Linear and linear in its scores, as for ``statistics_of``.
        start: first samples: a loader, or their statistics.
        strength: factor of the ridge, a positive number; "auto" (default) takes the best for the first samples, by generalised
            cross-validation.
        **reading: ``step``, ``forward``, ``unpack``, ``loss``, ``readout``, ``readout_layer`` and ``seed``: see ``convex_init_``.

    Raises:
        NetworkError: the network can't be read, or its readout has no solution from sums.
        DataError: bad input in ``start``.
        OptionError: an invalid option.

    Example:
        >>> from snn_recon_plugin import StreamingReadout
        >>> from snn_recon_plugin.demo import build_network, load_digits_data
        >>> data, net = load_digits_data(), build_network(inputs=64, hidden=32, outputs=10, steps=8)
        >>> x, y = data.train_inputs, data.train_labels
        >>> stream = StreamingReadout(net, [(x[:200], y[:200])])
        >>> stream.update_((x[200:232], y[200:232]))
        >>> stream.samples
        232
    """

    def __init__(
        self, net: nn.Module, start: Statistics | Iterable[Any], *, strength: float | str = "auto", **reading: Any
    ) -> None:
        given = checked_strength(strength)
        self._start = start if isinstance(start, Statistics) else statistics_of(net, start, **reading)
        self._net, self._options = prepare_network(net, reading_options(reading))
        self._bench, self._given = Workbench.of(self._net), given
        self._source: RowSource | None = None  # found on the first batch
        self._systems: list[_NormalEquations] = []
        # Held, so that no other tensor takes their place in memory.
        self._hidden = {name: (value, value._version) for name, value in self._net.state_dict(keep_vars=True).items()}
        self.samples = sum(self._start.counts) // self._start.steps

    def update_(self, batch: Any) -> None:
        """Add a batch, and write the solution of all samples so far into the network in place.

        Args:
            batch: an (input, target) pair, as the loader gives it; targets are class indices (B,).

        Raises:
            DataError: bad input, or labels beyond the outputs.
            NetworkError: the hidden layers were changed since the stream was made, or are not those of the statistics.
            ReconstructionError: any of them; network and stream are then as before.
        """

        def work() -> tuple[RowSource, list[_NormalEquations], int]:
            source = self._source or self._open(batch)
            systems = self._systems or self._begin(source)
            (read,) = source.options.open([batch], device_of(self._bench.net)).first(1)
            rows = check_below(source.read(read), source.outputs)
            targets = 2.0 * nn.functional.one_hot(rows.labels, source.outputs).double() - 1
            return source, [each.updated(rows.values[:, each.number], targets) for each in systems], len(rows.scores)

        source, systems, count = run_quietly(self._bench.net, work, seed=self._options.seed)
        self._check_hidden(source)
        commit(Transaction(self._net), lambda transaction: self._write(transaction, source, systems))
        self._source, self._systems, self.samples = source, systems, self.samples + count

    def _open(self, batch: Any) -> RowSource:
        source, _ = open_source(self._bench, [batch], self._options)
        self._start.require(source)
        return source

    def _begin(self, source: RowSource) -> list[_NormalEquations]:
        groups, systems = groups_of(source.index), []
        programs = [_RidgeProgram.of(self._start, number, outputs) for outputs, number in groups]
        # Without a strength the one with the least cross-validation score; the largest if no score is finite.
        candidates, score = programs[0].strengths(), lambda strength: sum(each.cross_validation(strength) for each in programs)
        strength = self._given or min(candidates, key=score)
        for (outputs, number), program in zip(groups, programs, strict=True):
            penalty = torch.full((len(program.gram),), strength * program.count, dtype=torch.float64)
            penalty[-1] = 0.0 if float(program.gram[-1, -1]) > 0 else 1.0  # the bias is free; without one its row is zero
            inverse = torch.cholesky_inverse(torch.linalg.cholesky(program.gram + penalty.diag()))
            systems.append(_NormalEquations(inverse, inverse @ program.cross, outputs, number))
        return systems

    def _check_hidden(self, source: RowSource) -> None:
        """Refuse hidden layers that were written since the stream was made."""
        layer = source.net_map.readout
        own = tuple(f"{name}." for name in (layer.name, layer.neuron_name) if name)
        for name, value in self._net.state_dict(keep_vars=True).items():
            kept, version = self._hidden.get(name, (None, 0))
            if not name.startswith(own) and (value is not kept or value._version != version):
                found = f"{name!r}, which was written since the stream was made"
                fix = "make a new StreamingReadout of the network as it is now"
                raise NetworkError(found, "hidden layers that stay while the readout follows the stream", fix)

    def _write(self, transaction: Transaction, source: RowSource, systems: list[_NormalEquations]) -> None:
        layer = source.net_map.readout
        solution = torch.zeros(layer.in_features + 1, source.outputs).double()
        for each in systems:
            solution[:, each.outputs] = each.solution
        module = self._bench.origin_of(layer.module)
        for name, value in layer.parameters(solution[:-1].T, solution[-1] - source.rest).items():
            transaction.write(module, name, value)
