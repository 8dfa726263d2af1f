"""Choice of a start ahead of training: where training alone learns slowly, or not at all.

On still images training from a start ends no higher than from fresh weights, so none is made there.  Recurrent networks and
sequences gain, and a network without spikes or gradients can't be trained without one.
"""

from __future__ import annotations

import torch
from torch import nn

from ..networks.calls.batches import device_of, first_samples
from ..networks.calls.calls import CallRecorder, Calls
from ..networks.calls.record import StoredBatch, run_forward
from ..networks.capture import ActivityRecorder
from ..networks.private.quiet import quiet, unwrap
from ..networks.private.workbench import private_copy
from ..networks.structure.layers import HiddenLayer
from ..stages.run import MEASURE
from ..stages.task import Task, inspect_task
from .measure import WeightJudge

_SAMPLES = 32  # that show whether layers spike, and whether their inputs change


def explain_start(judge: WeightJudge) -> str:
    """Return why a network gets a start ahead of training; empty if it gets none."""
    options, net = judge.options, private_copy(unwrap(judge.net), judge.shared)
    batches = judge.samples(_SAMPLES)
    with quiet(net, seed=options.seed, loader=batches):
        stream = options.open(batches, device_of(net))
        head, targets = stream.head(1)
        task = inspect_task(net, head[0], targets, options, MEASURE, judge.inspections)
        inputs, count = first_samples(head[0].inputs, len(targets), _SAMPLES)
        batch = StoredBatch(inputs, slice(0, count), targets=targets[:count])
        return _explain(net, task, batch, judge) if task.net_map.hidden else ""


def _explain(net: nn.Module, task: Task, batch: StoredBatch, judge: WeightJudge) -> str:
    layers, call = task.net_map.hidden, judge.options.call
    activity = ActivityRecorder(task.net_map, task.readout)
    activity.run(net, batch, call)
    silent = [name for name, counter in activity.firing.items() if counter.stats().silent == 1.0]
    if silent:
        return f"hidden layer {silent[0]!r} does not spike"
    unreached = _find_unreached(net, task, batch, judge)
    if unreached:
        return f"no gradient reaches hidden layer {unreached!r}"
    if any(layer.is_convolution for layer in layers):
        return ""
    recurrent = next((layer.name for layer in layers if layer.library.recurrence(layer.neuron) is not None), None)
    if recurrent is not None:
        return f"hidden layer {recurrent!r} is recurrent"
    calls = CallRecorder(net, [batch], call).record_inputs(layers[0], batch)
    return "the input changes over time" if _changes(calls, task.net_map.num_steps, batch.size) else ""


def _find_unreached(net: nn.Module, task: Task, batch: StoredBatch, judge: WeightJudge) -> str:
    """Return the name of the first trained hidden layer that no gradient of the scores reaches; empty if there is none."""
    weights = {layer.name: weight for layer in task.net_map.hidden if (weight := _trained_weight(layer)) is not None}
    with torch.enable_grad():
        scores = task.readout.scores(run_forward(net, batch.inputs, judge.options.call), None)
        if not scores.requires_grad:
            return next(iter(weights), "")
        found = torch.autograd.grad(scores.square().sum(), list(weights.values()), allow_unused=True)
    return next((name for name, each in zip(weights, found, strict=True) if each is None or not bool(each.any())), "")


def _trained_weight(layer: HiddenLayer) -> torch.Tensor | None:
    weight = getattr(layer.synapse, "weight", None)
    return weight if isinstance(weight, nn.Parameter) and weight.requires_grad else None


def _changes(calls: Calls, steps: int, samples: int) -> bool:
    """Return True if the input of a layer differs from step to step."""
    if len(calls) > 1:
        return any(call is not calls[0] for call in calls)
    whole, sizes = calls[0], [steps, samples]
    if steps == 1 or whole.numel() % (steps * samples) or (whole.dim() < 3 and len(whole) != steps * samples):
        return False  # one input for all steps
    both = whole.reshape(*sizes, -1), whole.reshape(*sizes[::-1], -1).transpose(0, 1)  # time or samples on the first axis
    forms = both if len(whole) == steps * samples or steps == samples else both[len(whole) != steps :][:1]
    return all(not bool((form == form[:1]).all()) for form in forms)
