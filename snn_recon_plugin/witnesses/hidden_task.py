"""Inputs and outcomes of the choice of hidden weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor, nn

from ..convex import Loss
from ..networks import Forward, NetworkMap, Readout, StoredBatch
from .samplers import Sampler, get_sampler, mixed
from .site import LayerSite, to_class_labels
from .temporary_readout import CrossValidation, TemporaryReadout, make_cross_validation

__all__ = ["HiddenTask", "LayerDecision", "LayerGain", "LayerWitnesses", "ParameterValues", "WitnessOptions"]

ParameterValues: TypeAlias = dict[tuple[nn.Module, str], Tensor]  # new values by module and parameter name


@dataclass(frozen=True)
class HiddenTask:
    """Network, samples and temporary readout with which hidden layers are chosen.

    Args:
        net: the net, held by ``preserved``; its parameters stay.
        batches: a few thousand samples.
        targets: their targets.
        net_map: the net's map.
        readout: its readout.
        forward: how the net is called.
        temporary: the temporary readout of every layer.
        loss: of the temporary readouts; smooth.
        seed: of the cross-validation and the draws.
        samples: (k,) ascending, the samples that take part; None for all.
        weights: of the samples, or of their steps, or None.
    """

    net: nn.Module
    batches: Sequence[StoredBatch]
    targets: Tensor
    net_map: NetworkMap
    readout: Readout
    forward: Forward
    temporary: TemporaryReadout
    loss: Loss
    seed: int = 0
    samples: Tensor | None = None
    weights: Tensor | None = None

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
        return to_class_labels(self.temporary.take_targets(self.targets))[self.rows]

    def cross_validate(self, count: int) -> CrossValidation:
        """Return the held-out loss on the first ``count`` samples."""
        targets = self.targets[:count]
        return make_cross_validation(self.temporary, targets, self.num_outputs, self.loss, self.seed, self.samples)

    def make_generator(self, number: int) -> torch.Generator:
        """Return the random generator of a layer."""
        return torch.Generator().manual_seed(self.seed + number)

    def split_steps(self, site: LayerSite) -> LayerSite:
        """Return a site with one sample for each row of the temporary readout's program."""
        return site if self.temporary.steps is None else site.split_steps(self.temporary.steps, site.labels)


@dataclass(frozen=True)
class WitnessOptions:
    """Options of a reconstruction, as in ``ConvexInitializer``.

    Args:
        witnesses: name of a sampler, or a sampler.  "pairs" means "mixed" for layers fed by spikes, and "traces" for draws.
        n_candidates: number of candidates of a layer; a float is a multiple of its width.
        rounds: of column generation; 1 draws all candidates at once.
        unit_parameters: whether candidates take unit parameters along.
    """

    witnesses: str | Sampler = "pairs"
    n_candidates: float | int = 3.0
    rounds: int = 1
    unit_parameters: bool = False

    def count_candidates(self, width: int) -> int:
        """Return the number of candidates for a layer of ``width``."""
        wanted = round(self.n_candidates * width) if isinstance(self.n_candidates, float) else self.n_candidates
        return max(wanted, width)

    def choose_sampler(self, site: LayerSite) -> Sampler:
        """Return the sampler for a layer that is rebuilt."""
        return mixed if self.witnesses == "pairs" and site.fed_by_spikes else get_sampler(self.witnesses)


@dataclass(frozen=True)
class LayerGain:
    """Outcome for a hidden layer that keeps its weights up to a gain, or gets a whole-layer draw.

    Args:
        name: the synapse's name.
        gain: factor of its weight and bias.
        rate_before: firing rate with its own weights, spikes a neuron and step.
        rate_after: firing rate with the gain.
        heldout_loss: of the temporary readout at each gain tried.
        reason: why the layer's weights were kept, if they were, or the comparison with a draw.
        draw: number of the whole-layer draw that replaced them, from 1; 0 for none.
        draw_losses: held-out loss of each draw, infinite if no gain made it spike.
    """

    name: str
    gain: float
    rate_before: float
    rate_after: float
    heldout_loss: dict[float, float]
    reason: str = ""
    draw: int = 0
    draw_losses: tuple[float, ...] = ()


@dataclass(frozen=True)
class LayerWitnesses:
    """Outcome for a hidden layer that was rebuilt.

    Args:
        name: the synapse's name.
        width: rows of the layer.
        selected: number of replaced rows: all, or the number of distinct candidates if that is smaller.
        simulated: number of candidates simulated.
        used: number of candidates that the group lasso gave a weight.
        violating: number of fresh candidates, drawn after the last solve, that would improve the temporary readout.  It measures
            how far the selection is from optimal; 0 of 0 if all candidates were drawn at once.
        priced: number of these fresh candidates.
        objective: of the group lasso, at ``strength``.
        strength: factor of its penalty.
        dropped: numbers of dead, always-on and double candidates.
    """

    name: str
    width: int
    selected: int
    simulated: int
    used: int
    violating: int
    priced: int
    objective: float
    strength: float
    dropped: dict[str, int] = field(default_factory=dict)


LayerDecision: TypeAlias = LayerWitnesses | LayerGain
