"""The sampler "own": each hidden layer keeps its weights and bias up to one factor, its gain.

A threshold unit's pattern does not change when its weights are scaled (arXiv 2605.08022, section 3), but a leaky neuron's
firing rate does, and a net whose layers are silent, or always on, carries nothing to its readout.  For each layer from the
input up, the gains tried are its own, 1, and those that give a few firing rates between sparse and dense.  They are judged by
the convex program itself: a temporary ridge readout on the layer's own filtered spikes, fitted on some samples and compared on
others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from snn_recon_plugin.convex import Design, Loss, Problem, solve
from snn_recon_plugin.errors import DataError, SilentLayerError, UnsupportedModuleError
from snn_recon_plugin.networks import (
    Forward,
    HiddenLayer,
    NetworkMap,
    Readout,
    StoredBatch,
    adapter_of,
    neuron_currents,
    trial_parameters,
)

__all__ = ["LayerGain", "choose_gains", "scaled_values"]

RATES = (0.01, 0.03, 0.06, 0.12, 0.25)  # spikes a neuron and step; the best of them differs from layer to layer
_HEALTHY = 0.06  # settles ties, which some hundred samples leave between rates that do differ on all: see docs/decisions.md
_RIDGES = (1e-1, 1e-2, 1e-3)  # of the features' mean variance: enough to see what a layer is worth
_MAX_FEATURES = 2000  # a convolution has more; a seeded choice of them judges the gain as well
_TIE = 1.03  # held-out losses closer than this are a tie: a few hundred samples resolve no less


@dataclass(frozen=True)
class LayerGain:
    """What was decided for one hidden layer.

    Args:
        name: the synapse's name.
        gain: factor of its weight and bias.
        rate_before: firing rate with its own weights, spikes a neuron and step.
        rate_after: firing rate with the gain.
        heldout_loss: of the temporary readout at each gain tried.
        reason: why the layer's own weights were kept, where they were.
    """

    name: str
    gain: float
    rate_before: float
    rate_after: float
    heldout_loss: dict[float, float]
    reason: str = ""


def scaled_values(layer: HiddenLayer, gain: float) -> dict[tuple[nn.Module, str], Tensor]:
    """Weight and bias of a layer's synapse times ``gain``, by module and parameter name."""
    names = [name for name in ("weight", "bias") if layer.synapse._parameters.get(name) is not None]
    return {(layer.synapse, name): layer.synapse._parameters[name].detach() * gain for name in names}  # type: ignore[union-attr]


def choose_gains(
    net: nn.Module,
    batches: Sequence[StoredBatch],
    targets: Tensor,
    net_map: NetworkMap,
    readout: Readout,
    forward: Forward,
    *,
    loss: Loss,
    seed: int,
) -> list[LayerGain]:
    """Chooses a gain for every hidden layer, from the input up, each seeing the gains chosen below it.

    Args:
        net: the net; held by ``preserved``, its parameters are not touched.
        batches: a few hundred samples.
        targets: their targets.
        net_map: the net's map.
        readout: its readout, whose filter the temporary readouts use.
        forward: how the net is called.
        loss: of the temporary readouts.
        seed: of the split into fitted and compared samples.

    Returns:
        One decision a layer, in order of execution.

    Raises:
        SilentLayerError: no gain makes a layer spike.
    """
    judge = _Judge(targets, net_map.readout.out_features, readout, loss, seed)
    values: dict[tuple[nn.Module, str], Tensor] = {}
    decisions = []
    for layer in net_map.hidden:
        with trial_parameters(values):
            currents = neuron_currents(net, batches, layer, forward)
            _check_rows(currents, targets)
            decision = _choose(layer, currents, judge)
            if decision.gain != 1.0 and not _scales(net, batches[:1], layer, forward, decision.gain, currents):
                reason = "its currents do not scale with its weights, as with a normalisation after them"
                decision = LayerGain(layer.name, 1.0, decision.rate_before, decision.rate_before, {}, reason)
        if decision.gain != 1.0:
            values.update(scaled_values(layer, decision.gain))
        decisions.append(decision)
    return decisions


def _check_rows(currents: Tensor, targets: Tensor) -> None:
    if currents.shape[1] != len(targets):
        raise DataError(
            f"{len(targets)} targets for {currents.shape[1]} samples that reach a hidden layer",
            "one target for every sample",
            "check the loader's targets, and that the batch is the axis after time",
        )


class _Judge:
    """Held-out loss of a temporary ridge readout on a layer's spikes."""

    def __init__(self, targets: Tensor, num_outputs: int, readout: Readout, loss: Loss, seed: int) -> None:
        self.targets, self.num_outputs, self.loss = targets, num_outputs, loss
        self.filter, self.bias_gain = readout.filter, readout.bias_gain
        self.generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(targets), generator=self.generator)
        held = max(1, len(targets) // 4)
        self.compared, self.fitted = order[:held], order[held:]

    def heldout_loss(self, spikes: Tensor) -> float:
        """Least held-out loss over a few ridge strengths for spikes [T, n, *]."""
        features = self._features(spikes)
        design = Design(features[self.fitted], self.bias_gain or None)
        if float(design.variance.max()) == 0.0:
            return torch.inf
        base = Problem(
            design, self.targets[self.fitted], loss=self.loss, penalty="ridge", strength=1.0, num_outputs=self.num_outputs
        )
        compared = Problem(
            Design(features[self.compared], self.bias_gain or None),
            self.targets[self.compared],
            loss=self.loss,
            penalty="ridge",
            num_outputs=self.num_outputs,
        )
        best, start = torch.inf, None
        for share in _RIDGES:
            strength = share * float(design.variance.mean())
            solution = solve(base.with_strength(strength), tol=1e-3, start=start)
            start = (solution.weight, solution.bias)
            value = compared.mean_loss(compared.design.scores(*start))
            if value >= best:
                break
            best = value
        return best

    def _features(self, spikes: Tensor) -> Tensor:
        flat = spikes.flatten(2)
        if flat.shape[2] > _MAX_FEATURES:
            chosen = torch.randperm(flat.shape[2], generator=torch.Generator().manual_seed(0))[:_MAX_FEATURES]
            flat = flat[:, :, chosen.to(flat.device)]
        return torch.einsum("t,tnp->np", self.filter.to(flat), flat)


def _choose(layer: HiddenLayer, currents: Tensor, judge: _Judge) -> LayerGain:
    """The gain with the least held-out loss, the layer's own unless another is clearly better."""
    adapter = adapter_of(layer.neuron)
    try:
        own = adapter.run(layer.neuron, currents).spikes
    except UnsupportedModuleError as error:
        return LayerGain(layer.name, 1.0, float("nan"), float("nan"), {}, f"its neuron can't be simulated alone: {error.found}")
    if not bool((currents > 0).any()) and not bool(own.any()):
        raise SilentLayerError(
            f"hidden layer {layer.name!r} receives no positive current, so that no gain makes it spike",
            "a current above zero for some sample and step",
            "check the inputs' sign and scale, or the layer's bias",
        )
    losses: dict[float, float] = {}
    rates: dict[float, float] = {}
    for gain in (1.0, *_gains(layer, currents)):
        spikes = own if gain == 1.0 else adapter.run(layer.neuron, currents * gain).spikes
        losses[gain], rates[gain] = judge.heldout_loss(spikes), float(spikes.float().mean())
    best = _settle(losses, rates)
    return LayerGain(layer.name, best, rates[1.0], rates[best], losses)


def _settle(losses: dict[float, float], rates: dict[float, float]) -> float:
    """Of the gains that tie for the least held-out loss: the layer's own, else the one nearest to the healthy rate."""
    tied = [gain for gain, value in losses.items() if value <= _TIE * min(losses.values())]
    if not tied or 1.0 in tied:
        return 1.0
    return min(tied, key=lambda gain: abs(math.log(max(rates[gain], 1e-12) / _HEALTHY)))


def _gains(layer: HiddenLayer, currents: Tensor) -> list[float]:
    """For each rate in RATES the gain that gives it, by bisection of its logarithm on some of the samples."""
    adapter = adapter_of(layer.neuron)
    some = currents[:, :64]

    def rate(gain: float) -> float:
        return float(adapter.run(layer.neuron, some * gain).spikes.float().mean())

    result = []
    for wanted in RATES:
        low, high = -10.0, 12.0  # gains from 2^-10 to 2^12; silent conv nets need 3 to 6, Norse nets about 20
        for _ in range(12):
            middle = (low + high) / 2
            low, high = (low, middle) if rate(2.0**middle) > wanted else (middle, high)
        if high < 12.0:  # otherwise no gain fires that densely: too few currents are positive
            result.append(2.0**high)
    return result


def _scales(
    net: nn.Module, batches: Sequence[StoredBatch], layer: HiddenLayer, forward: Forward, gain: float, currents: Tensor
) -> bool:
    """Whether the neuron's current is multiplied by ``gain`` when the synapse's parameters are."""
    with trial_parameters(scaled_values(layer, gain)):
        scaled = neuron_currents(net, batches, layer, forward)
    expected = currents[:, : scaled.shape[1]] * gain
    # Recurrent or stateful paths may let later steps differ; the first step sees the scaled weights alone.
    return bool(torch.allclose(scaled[0], expected[0], rtol=1e-3, atol=1e-4 * float(expected[0].abs().max()) + 1e-12))
