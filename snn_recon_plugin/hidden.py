"""What the hidden layers get: their own weights, a gain of them, or selected candidates."""

from __future__ import annotations

import math

from torch import Tensor, nn

from .fit import split_samples
from .lengths import of_one_length
from .networks import NetworkMap, drop_autocast
from .options import Options
from .outcome import Found, LayerDecision
from .stages import Stages
from .stream import Stream
from .witnesses import LayerGain, Recipe, choose_gains, looks_of, reconstruct_layers, scaled_values

__all__ = ["hidden_values"]

_GAIN_SAMPLES = 3000
_SELECT_SAMPLES = 3000
_LEAST_SAMPLES = 500  # of a selection, however long and wide the inputs are
_SELECT_BYTES = 2**30  # of what enters a layer at all steps

Values = dict[tuple[nn.Module, str], Tensor]


def hidden_values(options: Options, net: nn.Module, stages: Stages, stream: Stream, found: Found) -> Values:
    """What to write into the hidden layers, by module and parameter name.

    Args:
        options: of the run.
        net: the net, held by ``preserved``.
        stages: which time it.
        stream: the data.
        found: gets what was decided for each layer, and which samples decided it.
    """
    if options.hidden == "reconstruct":
        found.hidden, values = _reconstructed(options, net, stages, stream, found)
        return values
    gains = _gains(options, net, stages, stream, found)
    found.hidden = list(gains)
    return {
        key: value
        for layer, gain in zip(found.net_map.hidden, gains, strict=True)
        if gain.gain != 1.0
        for key, value in scaled_values(layer, gain.gain).items()
    }


def _reconstructed(
    options: Options, net: nn.Module, stages: Stages, stream: Stream, found: Found
) -> tuple[list[LayerDecision], Values]:
    """Candidates selected for every hidden layer."""
    net_map = found.net_map
    if not net_map.hidden:
        return [], {}
    with stages.stage("reconstruct", len(net_map.hidden), "layers"):
        limit, wanted = options.max_samples, min(_SELECT_SAMPLES, max(_LEAST_SAMPLES, _SELECT_BYTES // _row_bytes(net_map)))
        looks = looks_of(found.readout, found.rows)
        wanted = min(max(_LEAST_SAMPLES, wanted // looks.count), limit or wanted)
        batches, targets = stream.head(net, wanted, wanted)
        batches, net_map, readout = of_one_length(batches, net_map, found.readout, options.forward)
        looks = looks_of(readout, found.rows)
        # Samples that choose hidden rows tell nothing honest of them afterwards: some are left out, to be held out later.
        found.seen = split_samples(len(targets), options.holdout, options.seed).fitted
        done, values = reconstruct_layers(
            net,
            batches,
            targets,
            net_map,
            readout,
            drop_autocast(options.forward),
            loss=found.programs[0].smoothed(1.0),
            looks=looks,
            recipe=Recipe(options.witnesses, options.n_candidates, options.rounds, options.seed, options.unit_parameters),
            rows=found.seen,
            weights=options.criterion.weights(targets),
            progress=stages.note,
        )
    return list(done), values


def _gains(options: Options, net: nn.Module, stages: Stages, stream: Stream, found: Found) -> list[LayerGain]:
    """The hidden layers' gains: chosen where asked for, one otherwise."""
    if options.hidden == "keep":
        return [LayerGain(layer.name, 1.0, math.nan, math.nan, {}) for layer in found.net_map.hidden]
    with stages.stage("rescale"):
        limit = options.max_samples
        batches, targets = stream.head(net, min(_GAIN_SAMPLES, limit or _GAIN_SAMPLES), limit)
        split_samples(len(targets), options.holdout, options.seed)
        loss = found.programs[0].smoothed(1.0)  # kinks would take a hundred times as long and tell gains apart no better
        forward = drop_autocast(options.forward)
        batches, net_map, readout = of_one_length(batches, found.net_map, found.readout, forward)
        looks = looks_of(readout, found.rows)
        return choose_gains(net, batches, targets, net_map, readout, forward, looks=looks, loss=loss, seed=options.seed)


def _row_bytes(net_map: NetworkMap) -> int:
    """Bytes of what enters the widest hidden layer for one sample, at all steps."""
    sizes = [weight[0].numel() for layer in net_map.hidden if isinstance(weight := getattr(layer.synapse, "weight", None), Tensor)]
    return 4 * net_map.num_steps * max(sizes, default=1)
