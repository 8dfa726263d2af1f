"""Rows of a hidden layer replaced by selected candidates, and the check that these do together what each did alone."""

from __future__ import annotations

from torch import Tensor

from ..errors import UnsupportedModuleError
from ..networks import HiddenLayer, replace_parameters
from .hidden_task import HiddenTask, ParameterValues, take_first_batches
from .neuron import place_unit_values, shape_unit_values
from .simulate import Emitted, run_layer
from .site import Candidates, weight_of

__all__ = ["check_together", "replace_rows"]

_FLIPPED = 0.01  # share of features that rounding may change by a spike
_FLIPPED_MIXED = 0.05  # the same if the net's autocast rounds to 16 bits; measured up to 0.015


def replace_rows(layer: HiddenLayer, chosen: Candidates, rows: Tensor) -> ParameterValues:
    """Return the layer's parameters with some rows replaced; with too few distinct candidates the last rows stay."""
    weight, bias = weight_of(layer.synapse), layer.synapse.bias
    values: ParameterValues = {(layer.synapse, "weight"): weight.detach().index_copy(0, rows, chosen.weight.to(weight))}
    if chosen.bias is not None:
        assert isinstance(bias, Tensor)
        values[layer.synapse, "bias"] = bias.detach().index_copy(0, rows, chosen.bias.to(weight))
    if chosen.unit_values is not None:
        units = place_unit_values(layer.neuron, chosen.unit_values, rows, len(weight))
        values.update(shape_unit_values(layer.neuron, units, weight.dim() - 2))
    return values


def check_together(task: HiddenTask, layer: HiddenLayer, values: ParameterValues, expected: Emitted, rows: Tensor) -> None:
    """Refuse selected rows whose spikes differ together in the net from those of each candidate alone."""
    few = take_first_batches(task.batches)
    roundings: list[float] = []
    with replace_parameters(values):
        found = run_layer(task, layer, few, roundings.append).take(rows).features
    samples = task.used_samples
    samples = samples[samples < len(found) // task.temporary.rows_each]
    compared = task.temporary.find_rows(samples.to(found.device))
    if len(compared) == 0:  # none of these samples took part in the selection
        return
    alone = expected.features[: len(compared)]
    wrong = float(((found[compared] - alone).abs() > 1e-3 * float(alone.abs().max())).float().mean())
    if wrong > (_FLIPPED_MIXED if any(roundings) else _FLIPPED):
        raise UnsupportedModuleError(
            f"hidden layer {layer.name!r}: its neurons do something else with the selected rows than with each as a "
            f"candidate, for {100 * wrong:.0f} % of samples and neurons, so that they depend on more than their own row, as "
            "with a normalisation, quantised weights or spikes fed back by hand",
            "neurons that depend on their own row alone: no spikes fed back by hand, no stage between that treats rows unlike",
            "pass hidden='rescale', which keeps the layers' own weights",
        )
