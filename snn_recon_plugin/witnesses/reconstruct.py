"""The hidden layers rebuilt from the input up: each gets the candidates that a temporary readout on its spikes wants most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from snn_recon_plugin.convex import Loss
from snn_recon_plugin.errors import DataError, UnsupportedModuleError
from snn_recon_plugin.networks import (
    Forward,
    HiddenLayer,
    NetworkMap,
    Readout,
    StoredBatch,
    trial_parameters,
)

from .checks import check_shared, own_weights_reason
from .generation import Plan, Pool, generate
from .judge import Judge
from .rescale import Chooser, LayerGain
from .response import measure_neuron
from .samplers import Sampler, mixed, sampler_of
from .selection import Selector
from .simulate import Emitted, emitted_in_net, simulator_of
from .site import Site, class_labels
from .trials import scaled_values

__all__ = ["LayerWitnesses", "Recipe", "reconstruct_layers"]

_FLIPPED = 0.01  # share of features that rounding may tip over a threshold

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
        violating: of fresh candidates drawn after the last solve, how many would improve the temporary readout on all
            candidates: what is known of the hidden layer goes as far as this, and no further.  0 of 0 where all were drawn at once.
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
    rows: Tensor,
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
        rows: (k,) ascending, which of the samples take part.
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
    check_shared(net_map.hidden)
    kept = [own_weights_reason(layer) for layer in net_map.hidden]
    task = _Task(net, batches, targets, net_map, readout, forward, loss, recipe, rows, weights)
    for number, (layer, reason) in enumerate(zip(net_map.hidden, kept, strict=True)):
        made: LayerWitnesses | LayerGain
        if reason:
            made, written = task.rescale(number, values, reason)
        else:
            with trial_parameters(values):
                made, written = task.rebuild(number)
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
    rows: Tensor
    weights: Tensor | None

    def rescale(self, number: int, below: Values, reason: str) -> tuple[LayerGain, Values]:
        """A layer that keeps its own weights, up to a gain."""
        layer = self.net_map.hidden[number]

        def judge_of(some: Tensor) -> Judge:
            return Judge(some, self.net_map.readout.out_features, self.readout, self.loss, self.recipe.seed, among=self.rows)

        chooser = Chooser(self.net, self.batches, self.targets, self.net_map, self.readout, self.forward, judge_of)
        decision = chooser.decide(number, below)
        values = {} if decision.gain == 1.0 else scaled_values(layer, decision.gain)
        return replace(decision, reason=reason), values

    def rebuild(self, number: int) -> tuple[LayerWitnesses, Values]:
        """A layer that gets new rows."""
        layer, net_map, readout = self.net_map.hidden[number], self.net_map, self.readout
        weight = layer.synapse.weight
        assert isinstance(weight, Tensor)
        width, count = len(weight), self.recipe.count(len(weight))
        simulator = simulator_of(self.net, self.batches, layer, self.forward, readout.filter, self.rows)
        rows, targets = self.rows.to(self.targets.device), self.targets
        self._check_rows(layer, simulator.samples)
        try:
            response = measure_neuron(layer.neuron, len(readout.filter), simulator.inputs)
        except UnsupportedModuleError as error:
            raise UnsupportedModuleError(f"hidden layer {layer.name!r}: {error.found}", error.needed, error.fix) from error
        # The net's own inputs are no spikes of a layer below, even where they are 0 and 1.
        spikes = simulator.fed_by_spikes and number > 0
        site = Site(layer.synapse, simulator.inputs, class_labels(targets)[rows], response, spikes)
        column = (readout.bias_gain or None) if net_map.readout.bias is not None else None
        sample_weights = None if self.weights is None else self.weights[rows]
        selector = Selector(targets[rows], self.loss, net_map.readout.out_features, column, sample_weights)
        generator = torch.Generator().manual_seed(self.recipe.seed + number)
        sampler = self.recipe.sampler(site)
        plan = Plan(count, width, self.recipe.rounds)
        pool = generate(site, simulator, selector, sampler, plan, generator)
        if len(pool.candidates) < width:
            raise _too_few(layer, pool, width, count)
        order = pool.selected.order[:width]
        chosen = pool.candidates.take(order)
        written: Values = {(layer.synapse, "weight"): chosen.weight.to(weight)}
        if chosen.bias is not None:
            written[layer.synapse, "bias"] = chosen.bias.to(weight)
        self._check_together(layer, written, pool.emitted.take(order))
        return self._described(layer, pool, width), written

    def _check_together(self, layer: HiddenLayer, written: Values, promised: Emitted) -> None:
        """Refuses rows that do something else together in the net than they did as candidates."""
        few = self.batches[:1]
        with trial_parameters(written):
            own = emitted_in_net(self.net, few, layer, self.forward, self.readout.filter, len(promised.rate))
        rows = self.rows[self.rows < len(own.features)].to(own.features.device)
        own_rows, expected = own.features[rows], promised.features[: len(rows)]
        limit = 1e-3 * float(expected.abs().max())
        wrong = float(((own_rows - expected).abs() > limit).float().mean()) if len(rows) else 0.0
        if wrong > _FLIPPED:
            raise UnsupportedModuleError(
                f"hidden layer {layer.name!r}, whose neurons do something else with the selected rows than with each as a "
                f"candidate, for {100 * wrong:.0f} % of samples and neurons",
                "neurons that depend on their own row alone: no spikes fed back by hand, no stage between that treats rows unlike",
                "pass hidden='rescale', which keeps the layers' own weights",
            )

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
