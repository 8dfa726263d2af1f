"""Hidden layers: original weights, weights times a gain, or selected candidates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..networks import NetworkMap, StoredBatch, drop_autocast
from ..witnesses import (
    HiddenTask,
    LayerDecision,
    LayerGain,
    ParameterValues,
    WitnessOptions,
    choose_gains,
    make_temporary_readout,
    reconstruct_layers,
    scale_parameters,
)
from .data import Stream, split_samples
from .options import Options
from .padding import pad_batches
from .progress import Progress
from .task import Task

__all__ = ["HiddenResult", "choose_hidden"]

_GAIN_SAMPLES = 3000
_SELECT_SAMPLES = 3000
_MIN_SELECT_SAMPLES = 500  # of a selection, even if the inputs are long and wide
_SELECT_BYTES = 2**30  # input of a layer at all steps


@dataclass(frozen=True)
class HiddenResult:
    """Decisions on the hidden layers, not written yet.

    Args:
        decisions: one a layer, in order of execution.
        values: values to write, by module and parameter name.
        used: ``[k]`` ascending, the samples that chose rows; None if none did.
    """

    decisions: Sequence[LayerDecision]
    values: ParameterValues
    used: Tensor | None = None


def choose_hidden(net: nn.Module, stream: Stream, task: Task, options: Options, progress: Progress) -> HiddenResult:
    """Choose the values of all hidden layers.

    Args:
        net: the network, held by ``preserved``.
        stream: the data; only its first samples are used.
        task: the program's task.
        options: options of the run.
        progress: timer of the stage.
    """
    if options.hidden == "keep":
        return HiddenResult([LayerGain(layer.name, 1.0, math.nan, math.nan, {}) for layer in task.net_map.hidden], {})
    if options.hidden == "rescale":
        with progress.stage("rescale"):
            return _rescale(net, stream, task, options)
    if not task.net_map.hidden:
        return HiddenResult([], {})
    with progress.stage("reconstruct", len(task.net_map.hidden), "layers"):
        return _rebuild(net, stream, task, options, progress)


def _rescale(net: nn.Module, stream: Stream, task: Task, options: Options) -> HiddenResult:
    limit = options.max_samples
    batches, targets = stream.head(min(_GAIN_SAMPLES, limit or _GAIN_SAMPLES), limit)
    split_samples(len(targets), options.holdout, options.seed)  # refuses too few samples ahead of the work
    gains = choose_gains(_hidden_task(net, batches, targets, task, options))
    values: ParameterValues = {}
    for layer, gain in zip(task.net_map.hidden, gains, strict=True):
        if gain.gain != 1.0:
            values |= scale_parameters(layer, gain.gain)
    return HiddenResult(gains, values)


def _rebuild(net: nn.Module, stream: Stream, task: Task, options: Options, progress: Progress) -> HiddenResult:
    wanted = _selection_samples(task, options)
    batches, targets = stream.head(wanted, wanted)
    # Samples that choose rows give an optimistic accuracy afterwards: the others of these are held out.
    used = split_samples(len(targets), options.holdout, options.seed).fitted
    hidden_task = _hidden_task(net, batches, targets, task, options)
    hidden_task = replace(hidden_task, samples=used, weights=options.criterion.weights(targets))
    witness_options = WitnessOptions(options.witnesses, options.n_candidates, options.rounds, options.unit_parameters)
    decisions, values = reconstruct_layers(hidden_task, witness_options, progress.note)
    return HiddenResult(decisions, values, used)


def _hidden_task(net: nn.Module, batches: list[StoredBatch], targets: Tensor, task: Task, options: Options) -> HiddenTask:
    """Return what the choice of hidden weights needs, with batches of one length and a smooth loss."""
    batches, net_map, readout = pad_batches(batches, task.net_map, task.readout, options.call)
    return HiddenTask(
        net,
        batches,
        targets,
        net_map,
        readout,
        drop_autocast(options.call),
        make_temporary_readout(readout, task.rows.stepwise),
        loss=task.programs[0].smoothed(1.0),  # kinks take a hundred times as long and rank gains no better
        seed=options.seed,
    )


def _selection_samples(task: Task, options: Options) -> int:
    """Return the number of samples that choose rows, within fixed memory."""
    fitting = _SELECT_BYTES // _input_bytes(task.net_map)
    wanted = min(_SELECT_SAMPLES, max(_MIN_SELECT_SAMPLES, fitting))
    wanted = max(_MIN_SELECT_SAMPLES, wanted // make_temporary_readout(task.readout, task.rows.stepwise).rows_each)
    return min(wanted, options.max_samples or wanted)


def _input_bytes(net_map: NetworkMap) -> int:
    """Return the bytes that enter the widest hidden layer for one sample, at all steps."""
    weights = (getattr(layer.synapse, "weight", None) for layer in net_map.hidden)
    sizes = [weight[0].numel() for weight in weights if isinstance(weight, torch.Tensor)]
    return 4 * net_map.num_steps * max(sizes, default=1)
