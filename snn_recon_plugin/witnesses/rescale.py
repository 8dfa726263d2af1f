"""The sampler "own": each hidden layer keeps its weights and bias up to one factor, its gain.

A threshold unit's pattern does not change when its weights are scaled (arXiv 2605.08022, section 3), but a leaky neuron's
firing rate does, and a net whose layers are silent, or always on, carries nothing to its readout.  For each layer from the
input up, the gains tried are its own, 1, and those that give a few firing rates between sparse and dense.  They are judged by
the convex program itself: a temporary ridge readout, fitted on some samples and compared on others.  The last layer is judged
on its own filtered spikes.  One before it is judged on what reaches the readout through the layers above, which meanwhile fire
at a fixed rate: what a layer tells a readout of its own is another thing than what it hands on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from snn_recon_plugin.convex import Loss
from snn_recon_plugin.errors import DataError, SilentLayerError
from snn_recon_plugin.networks import Forward, HiddenLayer, NetworkMap, Readout, StoredBatch, replace_parameters, run_batch
from snn_recon_plugin.networks.hooks import temporary_hooks
from snn_recon_plugin.networks.recorder import Recorder

from .judge import Judge
from .looks import Looks
from .trials import LayerTrial, can_scale, first_samples, fixed_reason, scaled_values, trial_of

__all__ = ["Chooser", "LayerGain", "choose_gains"]

RATES = (0.01, 0.03, 0.06, 0.12, 0.25)  # spikes a neuron and step; the best of them differs from layer to layer
_ABOVE = 0.12  # rate of the layers above one that is judged through them: high enough to hand on what they get
_FIRST = 1000  # samples that all gains are compared on; those that tie there are compared on all samples
TIE = 1.03  # held-out losses closer than this are a tie: some hundred samples resolve no less; see docs/decisions.md

Values = dict[tuple[nn.Module, str], Tensor]


@dataclass(frozen=True)
class LayerGain:
    """What was decided for one hidden layer.

    Args:
        name: the synapse's name.
        gain: factor of its weight and bias.
        rate_before: firing rate with its own weights, spikes a neuron and step.
        rate_after: firing rate with the gain.
        heldout_loss: of the temporary readout at each gain tried.
        reason: why the layer's own weights were kept, where they were; or that a draw was better.
        draw: which whole-layer draw replaced them, from 1; 0 for none.
        draw_losses: held-out loss of each draw, infinite where it could not be made to spike.
    """

    name: str
    gain: float
    rate_before: float
    rate_after: float
    heldout_loss: dict[float, float]
    reason: str = ""
    draw: int = 0
    draw_losses: tuple[float, ...] = ()


def choose_gains(
    net: nn.Module,
    batches: Sequence[StoredBatch],
    targets: Tensor,
    net_map: NetworkMap,
    readout: Readout,
    forward: Forward,
    *,
    looks: Looks,
    loss: Loss,
    seed: int,
) -> list[LayerGain]:
    """Chooses a gain for every hidden layer, from the input up, each seeing the gains chosen below it.

    Args:
        net: the net; held by ``preserved``, its parameters are not touched.
        batches: a few thousand samples; the first thousand decide, unless gains tie there.
        targets: their targets.
        net_map: the net's map.
        readout: its readout.
        forward: how the net is called.
        looks: where temporary readouts look at a sample.
        loss: of the temporary readouts.
        seed: of the split into fitted and compared samples.

    Returns:
        One decision a layer, in order of execution.

    Raises:
        SilentLayerError: no gain makes a layer spike.
    """

    def judge_of(some: Tensor) -> Judge:
        return Judge(some, readout.classes(net_map.readout.out_features), looks, loss, seed)

    chooser = Chooser(net, batches, targets, net_map, readout, forward, judge_of)
    values: Values = {}
    decisions = []
    for number, layer in enumerate(net_map.hidden):
        decision = chooser.decide(number, values)
        if decision.gain != 1.0:
            values.update(scaled_values(layer, decision.gain))
        decisions.append(decision)
    return decisions


class Chooser:
    """Decides layer by layer, given what was decided below."""

    def __init__(
        self,
        net: nn.Module,
        batches: Sequence[StoredBatch],
        targets: Tensor,
        net_map: NetworkMap,
        readout: Readout,
        forward: Forward,
        judge_of: Callable[[Tensor], Judge],
    ) -> None:
        self._net, self._batches, self._map, self._readout, self._forward = net, batches, net_map, readout, forward
        self._few = first_samples(batches, _FIRST)
        self._judge, self._last_judge = judge_of(targets[: self._few[-1].rows.stop]), judge_of(targets)

    def decide(self, number: int, below: Values) -> LayerGain:
        """The decision for one layer."""
        layer = self._map.hidden[number]
        fixed = fixed_reason(layer, self._map.hidden)
        if fixed:
            return LayerGain(layer.name, 1.0, math.nan, math.nan, {}, fixed)
        with replace_parameters(below):
            trial = trial_of(self._net, self._few, layer, self._forward)
            own = trial.spikes(1.0)
            if len(own) != self._map.num_steps:
                reason = f"its neuron runs {len(own)} times in {self._map.num_steps} steps, as one that serves several layers"
                return LayerGain(layer.name, 1.0, math.nan, math.nan, {}, reason)
            _check_rows(own, self._judge.targets)
            gains = [gain for wanted in RATES if (gain := _gain_for(trial, wanted)) is not None]
            if not gains and not bool(own.any()):
                raise SilentLayerError(
                    f"hidden layer {layer.name!r} does not spike at any gain of its weights",
                    "spikes of at least some of its neurons",
                    "check the sign of its weights, the inputs' scale and the thresholds",
                )
            above = self._map.hidden[number + 1 :]
            losses: dict[float, float] = {}
            rates: dict[float, float] = {}
            for gain in (1.0, *gains):
                rates[gain] = trial.rate(gain)
                if above:
                    losses[gain] = self._through(above, scaled_values(layer, gain), self._few, self._judge)
                else:
                    losses[gain] = self._judge.of_spikes(own if gain == 1.0 else trial.spikes(gain))
            tied = _tied(losses)
            if 1.0 not in tied and len(tied) > 1 and len(self._few) < len(self._batches):
                losses |= {gain: self._through(above, scaled_values(layer, gain), self._batches, self._last_judge) for gain in tied}
                tied = [min(tied, key=lambda gain: losses[gain])]
            best = _settle(tied, rates)
            before = float(own.float().mean())
            if best == 1.0:
                return LayerGain(layer.name, 1.0, before, before, losses)
            if trial.scales(best):
                return LayerGain(layer.name, best, before, float(trial.spikes(best).float().mean()), losses)
        reason = "its currents do not scale with its weights, as with a normalisation after them, or quantised or binarised weights"
        return LayerGain(layer.name, 1.0, before, before, {}, reason)

    def at_rate(self, number: int, values: Values, rate: float) -> tuple[float, float]:
        """The gain at which a layer with some values, and others below it, fires at ``rate``, and the held-out loss there.

        The loss is infinite, and the gain one, where none does.
        """
        layer, above = self._map.hidden[number], self._map.hidden[number + 1 :]
        with replace_parameters(values):
            try:
                trial = trial_of(self._net, self._few, layer, self._forward)
            except SilentLayerError:
                return 1.0, math.inf
            gain = _gain_for(trial, rate)
            if gain is None:
                return 1.0, math.inf
            if above:
                return gain, self._through(above, scaled_values(layer, gain), self._few, self._judge)
            return gain, self._judge.of_spikes(trial.spikes(gain))

    def _through(self, above: Sequence[HiddenLayer], values: Values, batches: Sequence[StoredBatch], judge: Judge) -> float:
        """Held-out loss at the readout with some values, the layers above each at a gain that makes it fire at a fixed rate."""
        for layer in above:
            with replace_parameters(values):
                try:
                    trial = trial_of(self._net, first_samples(self._batches), layer, self._forward)
                except SilentLayerError:
                    return torch.inf
                gain = _gain_for(trial, _ABOVE) if can_scale(layer, self._map.hidden) else None
            if gain is not None:
                values = {**values, **scaled_values(layer, gain)}
        recorder, parts = Recorder(self._map, self._readout.averaged), []
        with torch.no_grad(), replace_parameters(values), temporary_hooks() as hooks:
            recorder.register(hooks)
            for number, batch in enumerate(batches, start=1):
                recorder.start()
                run_batch(self._net, batch, self._forward)
                parts.append(recorder.finish(number)[: batch.rows.stop - batch.rows.start].clone())
        return judge.of_features(torch.cat(parts))


def _check_rows(spikes: Tensor, targets: Tensor) -> None:
    if spikes.shape[1] != len(targets):
        raise DataError(
            f"{len(targets)} targets for {spikes.shape[1]} samples that reach a hidden layer",
            "one target for every sample",
            "check the loader's targets, and that the batch is the axis after time",
        )


def _tied(losses: dict[float, float]) -> list[float]:
    """The gains whose held-out loss is all but the least; none where all are infinite."""
    least = min(losses.values())
    return [gain for gain, value in losses.items() if value <= TIE * least and math.isfinite(value)]


def _settle(tied: list[float], rates: dict[float, float]) -> float:
    """Of the gains that tie for the least held-out loss: the layer's own, else that of the middle firing rate.

    The middle of the rates that do equally well is the farthest from those that don't; of two in the middle the denser is taken.
    """
    if not tied or 1.0 in tied:
        return 1.0
    return sorted(tied, key=lambda gain: rates[gain])[len(tied) // 2]


def _gain_for(trial: LayerTrial, wanted: float) -> float | None:
    """The gain that gives a firing rate, by bisection of its logarithm on some of the samples; None where none does."""
    low, high = -10.0, 12.0  # gains from 2^-10 to 2^12; silent conv nets need 3 to 6, Norse nets about 20
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (low, middle) if trial.rate(2.0**middle) > wanted else (middle, high)
    return 2.0**high if high < 12.0 else None  # at the end of the range too few currents are positive
