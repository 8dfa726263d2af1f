"""The hidden layers rebuilt from the input up: each gets the candidates that a temporary readout on its spikes wants most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from snn_recon_plugin.convex import Loss
from snn_recon_plugin.errors import DataError, SilentLayerError, UnsupportedModuleError
from snn_recon_plugin.networks import (
    Forward,
    HiddenLayer,
    NetworkMap,
    Readout,
    StoredBatch,
    replace_parameters,
)
from snn_recon_plugin.networks.hooks import temporary_hooks

from .checks import own_weights_reasons
from .draws import best_of_draws, places_of, site_of
from .generation import Plan, Pool, generate
from .judge import Judge
from .looks import Looks
from .recipe import LayerWitnesses, Recipe
from .rescale import Chooser, LayerGain
from .response import measure_neuron
from .samplers import sampler_of
from .selection import Selector
from .simulate import Emitted, emitted_in_net, simulator_of
from .site import Site, class_labels, groups_of
from .trials import first_samples, scaled_values
from .units import alike, one_for_all, unit_names, unit_values

__all__ = ["reconstruct_layers"]

_FLIPPED = 0.01  # share of features that rounding may tip over a threshold
_FLIPPED_MIXED = 0.05  # the same where the net's own autocast rounds to 16 bits; measured up to 0.015

Values = dict[tuple[nn.Module, str], Tensor]


def reconstruct_layers(
    net: nn.Module,
    batches: Sequence[StoredBatch],
    targets: Tensor,
    net_map: NetworkMap,
    readout: Readout,
    forward: Forward,
    *,
    loss: Loss,
    looks: Looks,
    recipe: Recipe,
    rows: Tensor,
    weights: Tensor | None = None,
    progress: Callable[[str], None] | None = None,
) -> tuple[list[LayerWitnesses | LayerGain], Values]:
    """Rebuilds every hidden layer that can be, each seeing what was decided below it; the others are rescaled or kept.

    Args:
        net: the net, held by ``preserved``; its parameters are not touched.
        batches: a few thousand samples.
        targets: theirs.
        net_map: the net's map.
        readout: its readout.
        forward: how the net is called.
        loss: of the temporary readouts; smooth.
        looks: where these look at a sample.
        recipe: how.
        rows: (k,) ascending, which of the samples take part.
        weights: of the samples, or of their steps, or None.
        progress: called with a text for every layer.

    Returns:
        What was done, from the input up, and the values to write.

    Raises:
        DataError: a single class, no candidate that tells samples apart, or, with witnesses="own", dead or double rows.
        SilentLayerError: a layer that can't be rebuilt, and does not spike at any gain of its weights.
    """
    values: Values = {}
    done: list[LayerWitnesses | LayerGain] = []
    kept = own_weights_reasons(net_map.hidden, recipe.unit_parameters)
    task = _Task(net, batches, targets, net_map, readout, forward, loss, looks, recipe, rows, weights)
    for number, (layer, reason) in enumerate(zip(net_map.hidden, kept, strict=True)):
        made, written = task.made(number, values, reason)
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
    looks: Looks
    recipe: Recipe
    rows: Tensor
    weights: Tensor | None

    def made(self, number: int, below: Values, reason: str) -> tuple[LayerWitnesses | LayerGain, Values]:
        """A layer rebuilt; where it can't be, for a given reason or one found on the way, with its own weights."""
        layer = self.net_map.hidden[number]
        if not reason:
            weight = layer.synapse.weight
            assert isinstance(weight, Tensor)
            try:
                with replace_parameters(below), one_for_all(layer.neuron, len(weight)):
                    return self.rebuild(number)
            except UnsupportedModuleError as error:
                reason = error.found.removeprefix(f"hidden layer {layer.name!r}: ")
        return self.redraw(number, below, reason)

    def redraw(self, number: int, below: Values, reason: str) -> tuple[LayerGain, Values]:
        """A layer that keeps its own weights up to a gain; a recurrent one may get a draw of the whole layer that is better."""
        layer, recipe = self.net_map.hidden[number], self.recipe

        def judge_of(some: Tensor) -> Judge:
            classes = self.readout.classes(self.net_map.readout.out_features)
            return Judge(some, classes, self.looks, self.loss, recipe.seed, among=self.rows)

        chooser = Chooser(self.net, self.batches, self.targets, self.net_map, self.readout, self.forward, judge_of)
        places = places_of(layer)
        try:
            own = chooser.decide(number, below)
        except SilentLayerError:
            if places is None:
                raise
            own = LayerGain(layer.name, 1.0, 0.0, 0.0, {})  # a draw may spike where its own weights don't
        kept = {} if own.gain == 1.0 else scaled_values(layer, own.gain)
        if own.reason and own.reason != reason:
            reason = f"{reason}; {own.reason}"
        if places is None or recipe.witnesses == "own":
            return replace(own, reason=reason), kept
        rows = self.rows.to(self.targets.device)
        with replace_parameters(below):
            site = site_of(self.net, self.batches, layer, places, self.forward, self._labels(), rows, self.looks.num_steps)
        if site is None:
            return replace(own, reason=reason), kept
        site = self._in_looks(site)
        width = len(getattr(*places.rows))
        sampler = sampler_of("traces" if recipe.witnesses == "pairs" else recipe.witnesses)
        draws = best_of_draws(
            layer,
            places,
            site,
            own,
            sampler,
            recipe.count(width) // width,
            torch.Generator().manual_seed(recipe.seed + number),
            lambda values, rate: chooser.at_rate(number, {**below, **values}, rate),
        )
        if draws is None and not own.heldout_loss:
            raise SilentLayerError(
                f"hidden layer {layer.name!r}, which spikes neither at any gain of its weights nor in any of its draws",
                "spikes of at least some of its neurons",
                "check the inputs' scale and the thresholds, or pass a larger n_candidates for more draws",
            )
        return draws or (replace(own, reason=f"{reason}, better than draws of the whole layer"), kept)

    def rebuild(self, number: int) -> tuple[LayerWitnesses, Values]:
        """A layer that gets new rows."""
        layer, net_map, looks = self.net_map.hidden[number], self.net_map, self.looks
        weight = layer.synapse.weight
        assert isinstance(weight, Tensor)
        width, count = len(weight), self.recipe.count(len(weight))
        simulator = simulator_of(self.net, self.batches, layer, self.forward, looks.filters, self.rows)
        rows = looks.rows(self.rows.to(self.targets.device))
        self._check_rows(layer, simulator.samples)
        try:
            own = unit_names(layer.neuron, width)
            with alike(layer.neuron, own):
                response = measure_neuron(layer.neuron, looks.num_steps, simulator.inputs)
        except UnsupportedModuleError as error:
            raise UnsupportedModuleError(f"hidden layer {layer.name!r}: {error.found}", error.needed, error.fix) from error
        # The net's own inputs are no spikes of a layer below, even where they are 0 and 1.
        spikes = simulator.fed_by_spikes and number > 0
        site = self._in_looks(
            Site(
                layer.synapse,
                simulator.inputs,
                self._labels(),
                response,
                spikes,
                units=width if own else 0,
                over_time=simulator.over_time,
            )
        )
        column = looks.column(len(self.rows)) if net_map.readout.bias is not None else None
        targets, weights = looks.targets(self.targets)[rows], looks.weights(self.weights)
        weights = None if weights is None else weights[rows]
        selector = Selector(targets, self.loss, self.readout.classes(net_map.readout.out_features), column, weights)
        generator = torch.Generator().manual_seed(self.recipe.seed + number)
        sampler = self.recipe.sampler(site)
        plan = Plan(count, width, self.recipe.rounds)
        pool = generate(site, simulator, selector, sampler, plan, generator)
        if len(pool.candidates) < width and self.recipe.witnesses == "own":
            raise _too_few(layer, pool, width)
        order, rows_of = _placed(pool, width, groups_of(layer.synapse))
        chosen = pool.candidates.take(order)
        # Data of few different samples have fewer different candidates than neurons: the last neurons then keep their own rows.
        written: Values = {(layer.synapse, "weight"): weight.detach().index_copy(0, rows_of, chosen.weight.to(weight))}
        if chosen.bias is not None:
            bias = layer.synapse.bias
            assert isinstance(bias, Tensor)
            written[layer.synapse, "bias"] = bias.detach().index_copy(0, rows_of, chosen.bias.to(weight))
        if chosen.units is not None:
            units = torch.arange(width, device=chosen.units.device)
            written.update(unit_values(layer.neuron, own, units.index_copy(0, rows_of, chosen.units)))
        self._check_together(layer, written, pool.emitted.take(order), rows_of)
        return self._described(layer, pool, width, len(order)), written

    def _labels(self) -> Tensor:
        """Class indices of the samples that take part, at every look."""
        rows = self.looks.rows(self.rows.to(self.targets.device))
        return class_labels(self.looks.targets(self.targets))[rows]

    def _in_looks(self, site: Site) -> Site:
        """A site of samples as one of what has a target."""
        return site if self.looks.steps is None else site.at_steps(self.looks.steps, site.labels)

    def _check_together(self, layer: HiddenLayer, written: Values, promised: Emitted, rows_of: Tensor) -> None:
        """Refuses rows that do something else together in the net than they did as candidates."""
        few = first_samples(self.batches)
        with replace_parameters(written), temporary_hooks() as hooks:
            hooks.on_input(layer.synapse, lambda value: None)  # which notes its autocast
            own = emitted_in_net(self.net, few, layer, self.forward, self.looks.filters, len(written[layer.synapse, "weight"]))
        own = own.take(rows_of)
        rows = self.looks.rows(self.rows[self.rows < len(own.features) // self.looks.count].to(own.features.device))
        if len(rows) == 0:  # none of these samples took part in the selection
            return
        own_rows, expected = own.features[rows], promised.features[: len(rows)]
        limit = 1e-3 * float(expected.abs().max())
        wrong = float(((own_rows - expected).abs() > limit).float().mean())
        if wrong > (_FLIPPED_MIXED if hooks.rounding else _FLIPPED):
            raise UnsupportedModuleError(
                f"hidden layer {layer.name!r}: its neurons do something else with the selected rows than with each as a "
                f"candidate, for {100 * wrong:.0f} % of samples and neurons, so that they depend on more than their own row, as "
                "with a normalisation, quantised weights or spikes fed back by hand",
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

    def _described(self, layer: HiddenLayer, pool: Pool, width: int, rows: int) -> LayerWitnesses:
        selected = pool.selected
        return LayerWitnesses(
            name=layer.name,
            width=width,
            selected=rows,
            simulated=pool.simulated,
            used=selected.used,
            violating=pool.violating,
            priced=pool.priced,
            objective=selected.objective,
            strength=selected.strength,
            dropped=pool.dropped,
        )


def _placed(pool: Pool, width: int, groups: int) -> tuple[Tensor, Tensor]:
    """Candidates from the most wanted down, (k,), and the rows that they get, (k,): as many of each group as it has rows."""
    order, each = pool.selected.order, width // groups
    if pool.candidates.groups is None:
        order = order[:width]
        return order, torch.arange(len(order), device=order.device)
    belongs = pool.candidates.groups[order]
    chosen = [order[belongs == group][:each] for group in range(groups)]
    rows = [torch.arange(len(some), device=order.device) + group * each for group, some in enumerate(chosen)]
    return torch.cat(chosen), torch.cat(rows)


def _too_few(layer: HiddenLayer, pool: Pool, width: int) -> DataError:
    dropped = ", ".join(f"{number} {name}" for name, number in pool.dropped.items() if number)
    return DataError(
        f"{len(pool.candidates)} of the {width} own rows of hidden layer {layer.name!r} that tell samples apart ({dropped})",
        "all of them, for witnesses='own'",
        "pass other witnesses, such as 'pairs', or hidden='rescale'",
    )
