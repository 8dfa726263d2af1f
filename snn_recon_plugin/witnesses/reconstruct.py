"""The hidden layers rebuilt from the input up: each gets the candidates that a temporary readout on its spikes wants most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from snn_recon_plugin.convex import Loss
from snn_recon_plugin.errors import DataError
from snn_recon_plugin.networks import (
    Forward,
    HiddenLayer,
    NetworkMap,
    Readout,
    StoredBatch,
    trial_parameters,
)

from .checks import own_weights_reason
from .generation import Pool, generate
from .judge import Judge
from .rescale import Chooser, LayerGain
from .response import measure_neuron
from .samplers import Sampler, mixed, sampler_of
from .selection import Selector
from .simulate import simulator_of
from .site import Site, class_labels
from .trials import scaled_values

__all__ = ["LayerWitnesses", "Recipe", "reconstruct_layers"]

Values = dict[tuple[nn.Module, str], Tensor]


@dataclass(frozen=True)
class Recipe:
    """How hidden layers are rebuilt.

    Args:
        witnesses: a sampler's name or the sampler itself.  "pairs" means pairs for the first layer; above it, where spikes come
            in, a mixture of relays and pairs, see ``mixed``.
        n_candidates: how many are simulated for a layer: a float is a multiple of its width, an int their number.
        rounds: of column generation; 1 draws all candidates at once.
        seed: of the draws.
    """

    witnesses: str | Sampler = "pairs"
    n_candidates: float | int = 3.0
    rounds: int = 1
    seed: int = 0

    def count(self, width: int) -> int:
        """How many candidates a layer of ``width`` gets."""
        wanted = round(self.n_candidates * width) if isinstance(self.n_candidates, float) else self.n_candidates
        return max(wanted, width)

    def sampler(self, site: Site) -> Sampler:
        """The sampler of a layer."""
        return mixed if self.witnesses == "pairs" and site.fed_by_spikes else sampler_of(self.witnesses)


@dataclass(frozen=True)
class LayerWitnesses:
    """What was done to one hidden layer.

    Args:
        name: the synapse's name.
        width: rows of the layer.
        simulated: candidates that were simulated.
        used: how many of them the group lasso gave a weight.
        violating: of the last fresh candidates, how many would still have improved the program: the certificate of the hidden
            layer goes as far as this, and no further.  0 of 0 where all were drawn at once.
        priced: how many those were.
        dropped: how many were dead, always on, or doubles of others.
        objective: of the group lasso that selected, at ``strength``.
        strength: of it.
    """

    name: str
    width: int
    simulated: int
    used: int
    violating: int
    priced: int
    objective: float
    strength: float
    dropped: dict[str, int] = field(default_factory=dict)


def reconstruct_layers(
    net: nn.Module,
    batches: Sequence[StoredBatch],
    targets: Tensor,
    net_map: NetworkMap,
    readout: Readout,
    forward: Forward,
    *,
    loss: Loss,
    recipe: Recipe,
    rows: range,
    weights: Tensor | None = None,
    progress: Callable[[str], None] | None = None,
) -> tuple[list[LayerWitnesses | LayerGain], Values]:
    """Rebuilds every hidden layer, each seeing what was decided below it.

    Args:
        net: the net, held by ``preserved``; its parameters are not touched.
        batches: a few thousand samples.
        targets: theirs.
        net_map: the net's map.
        readout: its readout, whose filter the temporary readouts use.
        forward: how the net is called.
        loss: of the temporary readouts; smooth.
        recipe: how.
        rows: which of the samples take part.
        weights: of the samples, or None.
        progress: called with a text for every layer.

    Returns:
        What was done, from the input up, and the values to write.

    Raises:
        UnsupportedModuleError: a layer that can't be rebuilt; the message names it.
        DataError: a single class, or fewer different candidates than a layer is wide.
    """
    values: Values = {}
    done: list[LayerWitnesses | LayerGain] = []
    kept = [own_weights_reason(layer) for layer in net_map.hidden]
    task = _Task(net, batches, targets, net_map, readout, forward, loss, recipe, rows, weights)
    for number, (layer, reason) in enumerate(zip(net_map.hidden, kept, strict=True)):
        made: LayerWitnesses | LayerGain
        if reason:
            made, written = task.rescale(number, values, reason)
        else:
            with trial_parameters(values):
                made, written = task.rebuild(layer, torch.Generator().manual_seed(recipe.seed + number))
        values.update(written)
        done.append(made)
        if progress is not None:
            progress(layer.name)
    return done, values


@dataclass(frozen=True)
class _Task:
    """What is the same for all layers, as for ``reconstruct_layers``."""

    net: nn.Module
    batches: Sequence[StoredBatch]
    targets: Tensor
    net_map: NetworkMap
    readout: Readout
    forward: Forward
    loss: Loss
    recipe: Recipe
    rows: range
    weights: Tensor | None

    def rescale(self, number: int, below: Values, reason: str) -> tuple[LayerGain, Values]:
        """A layer that keeps its own weights, up to a gain."""
        layer, readout = self.net_map.hidden[number], self.readout

        def judge_of(some: Tensor) -> Judge:
            return Judge(some, self.net_map.readout.out_features, readout, self.loss, self.recipe.seed)

        stop = self.rows.stop
        chooser = Chooser(self.net, self.batches, self.targets[:stop], self.net_map, readout, self.forward, judge_of)
        decision = chooser.decide(number, below)
        values = {} if decision.gain == 1.0 else scaled_values(layer, decision.gain)
        return replace(decision, reason=reason), values

    def rebuild(self, layer: HiddenLayer, generator: torch.Generator) -> tuple[LayerWitnesses, Values]:
        """One layer."""
        weight = layer.synapse.weight
        assert isinstance(weight, Tensor)
        width, count = len(weight), self.recipe.count(len(weight))
        simulator = simulator_of(self.net, self.batches, layer, self.forward, self.readout.filter, self.rows)
        targets = self.targets[self.rows.start : self.rows.stop]
        self._check_rows(layer, simulator.samples)
        response = measure_neuron(layer.neuron, len(self.readout.filter), simulator.inputs)
        site = Site(layer.synapse, simulator.inputs, class_labels(targets), response, simulator.fed_by_spikes)
        sample_weights = None if self.weights is None else self.weights[self.rows.start : self.rows.stop]
        selector = Selector(targets, self.loss, self.net_map.readout.out_features, self.readout.bias_gain or None, sample_weights)
        pool = generate(
            site,
            simulator,
            selector,
            self.recipe.sampler(site),
            count=count,
            width=width,
            rounds=self.recipe.rounds,
            generator=generator,
        )
        if len(pool.candidates) < width:
            raise _too_few(layer, pool, width, count)
        chosen = pool.candidates.take(pool.selected.order[:width])
        written: Values = {(layer.synapse, "weight"): chosen.weight.to(weight)}
        if chosen.bias is not None:
            written[layer.synapse, "bias"] = chosen.bias.to(weight)
        return self._described(layer, pool, width), written

    def _check_rows(self, layer: HiddenLayer, samples: int) -> None:
        if samples != len(self.targets):
            raise DataError(
                f"{len(self.targets)} targets for {samples} samples that reach hidden layer {layer.name!r}",
                "one target for every sample",
                "check the loader's targets, and that the batch is the axis after time",
            )

    def _described(self, layer: HiddenLayer, pool: Pool, width: int) -> LayerWitnesses:
        selected = pool.selected
        return LayerWitnesses(
            name=layer.name,
            width=width,
            simulated=pool.simulated,
            used=selected.used,
            violating=pool.violating,
            priced=pool.priced,
            objective=selected.objective,
            strength=selected.strength,
            dropped=pool.dropped,
        )


def _too_few(layer: HiddenLayer, pool: Pool, width: int, count: int) -> DataError:
    dropped = ", ".join(f"{number} {name}" for name, number in pool.dropped.items() if number) or "none dropped"
    return DataError(
        f"{len(pool.candidates)} different candidates for the {width} neurons of hidden layer {layer.name!r} ({dropped})",
        "at least as many as the layer is wide",
        f"pass n_candidates={2 * count}, more data, or hidden='rescale'",
    )
