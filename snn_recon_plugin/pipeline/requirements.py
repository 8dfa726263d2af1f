"""Requirements on network and data, checked before the program is solved."""

from __future__ import annotations

from torch import Tensor

from ..errors import DataError, SilentLayerError, UnsupportedModuleError, warn_user
from ..networks import SPIKE_READOUTS, Captured, NetworkMap, Readout
from .criterion import Criterion

__all__ = ["check_layers", "check_lengths", "check_no_images", "check_outputs", "check_rest", "check_targets", "many_outputs"]


def check_no_images(targets: Tensor) -> None:
    """Refuse targets that are images, like an autoencoder's.

    Args:
        targets: targets of some samples, in the user's form.

    Raises:
        DataError: targets with more than one row of values a sample and step.
    """
    if targets.dim() > 3:
        raise DataError(
            f"targets that are images or volumes, of shape {tuple(targets.shape[1:])} each",
            "one class index, or a row of values, a sample or a step: readouts are solved, not decoders of an autoencoder",
            "pass labels and the part of the net that classifies; or targets.flatten(1), for a net that returns flat values",
        )


def check_layers(captured: Captured, *, keep: bool) -> None:
    """Refuse hidden layers whose neurons are all silent, or always on.

    Args:
        captured: has the firing statistics of the layers.
        keep: the hidden weights were left alone.

    Raises:
        SilentLayerError: the message names the layer.
    """
    fix = "pass hidden='rescale'" if keep else "check the inputs' scale, the thresholds and the weights of this layer"
    for name, stats in captured.layers.items():
        if stats.silent == 1.0:
            found = f"hidden layer {name!r} is silent: none of its {stats.neurons} neurons spikes for any sample that was counted"
            raise SilentLayerError(found, "spikes that differ between samples", fix)
        if stats.always_on == 1.0:
            found = f"hidden layer {name!r} always spikes: all {stats.neurons} neurons at every step of every sample"
            raise SilentLayerError(found, "spikes that differ between samples", fix)


def many_outputs(net_map: NetworkMap, targets: Tensor, classes: int | None) -> bool:
    """Return True if there are at least twice as many outputs as labels, and no option explains the others."""
    if classes is not None or targets.is_floating_point() or targets.numel() == 0:
        return False
    if targets.dim() > 1 and targets.shape[-1] == net_map.readout.out_features:
        return False  # a 0 or 1 for each output
    labels = int(targets.max()) + 1
    return labels > 1 and net_map.readout.out_features >= 2 * labels


def check_outputs(readout: Readout, net_map: NetworkMap, targets: Tensor, classes: int | None, *, warn: bool = False) -> None:
    """Refuse to fit spiking outputs as one class each if there are at most half as many labels.

    Several spiking outputs a class are a population code, which decides by sums over outputs.  Outputs that do not spike are fitted
    as classes that do not occur.

    Args:
        readout: the readout.
        net_map: the network's map.
        targets: of some samples, in the user's form.
        classes: number of classes that the outputs represent, if an option gives it.
        warn: warn if the outputs are fitted.

    Raises:
        DataError: the message gives the option for a population code, and the one for classes that do not occur.
    """
    if not many_outputs(net_map, targets, classes):
        return
    outputs, labels = net_map.readout.out_features, int(targets.max()) + 1
    found = f"outputs of {net_map.readout.name!r}, and labels from {int(targets.min())} to {labels - 1} alone"
    population = (
        f"classes={labels}, or a loss such as SF.mse_count_loss(population_code=True, num_classes={labels}), if several outputs "
        "are summed for a class"
    )
    single = f"classes={outputs} if each output is a class, and some do not occur"
    if readout.kind in SPIKE_READOUTS:
        needed = "one output a class, or the number of classes that the outputs represent"
        raise DataError(f"{outputs} spiking {found}", needed, f"pass {population}; pass {single}")
    if warn:
        warn_user(f"{outputs} {found}: fitted as {outputs} classes. Pass {population}, {single}.")


def check_lengths(captured: Captured, criterion: Criterion, readout: Readout) -> None:
    """Refuse batches that differ in time steps if the targets of an exact readout depend on their number.

    A surrogate follows decisions, not values: it takes the targets of the first batch's steps.

    Args:
        captured: has the steps of each sample.
        criterion: the training loss.
        readout: the readout.

    Raises:
        DataError: targets that grow with the steps.
    """
    if captured.lengths is None or readout.exactness == "surrogate":
        return
    shortest, longest = int(captured.lengths.min()), captured.num_steps
    if vars(criterion.make(shortest)) != vars(criterion.make(longest)):
        raise DataError(
            f"batches of {shortest} to {longest} time steps for {criterion.name}, whose targets grow with the steps",
            "batches of one number of steps, or a loss whose targets are the same at any number",
            "pad all batches to one length in the loader, or pass loss='cross_entropy' or SF.ce_count_loss()",
        )


def check_rest(readout: Readout, net_map: NetworkMap) -> None:
    """Refuse an output neuron that rests above zero if no bias can cancel the offset, at every step if steps have scores.

    Args:
        readout: the readout.
        net_map: the network's map.

    Raises:
        UnsupportedModuleError: an offset that no bias cancels.
    """
    where = f"a readout {net_map.readout.name!r}"
    offset = readout.constant if readout.filters is None else float(readout.filters.constants.abs().max())
    if net_map.readout.bias is None and offset != 0.0:
        raise UnsupportedModuleError(
            f"{where} without a bias, whose output neuron rests at {offset:.3g}",
            "a bias to cancel the offset",
            "build the readout with bias=True",
        )
    if readout.per_step:
        left, most = _moving_rest(readout)
        if left > 1e-6 * max(1.0, most):
            raise UnsupportedModuleError(
                f"{where} at every step, whose output neuron drifts to a resting value that no bias cancels",
                "a neuron that rests at zero, or one score a sample",
                "pass readout='membrane_mean', or build the neuron with v_leak=0",
            )


def _moving_rest(readout: Readout) -> tuple[float, float]:
    """Return the largest offset that a bias leaves at any step, and the largest offset without one."""
    units = None if readout.response is None else readout.response.units
    if readout.filters is None or units is None:
        rests = readout.constants
        gains = readout.bias_gains
        bias = readout.rest_bias
    else:
        rests = units.rests[units.index].T
        gains = readout.filters.step_gains
        bias = readout.rest_bias
    return float((rests - bias * gains).abs().max()), float(rests.abs().max())


def check_targets(readout: Readout, targets: Tensor) -> None:
    """Refuse targets without one class a sample for a readout that is calibrated on decisions.

    Args:
        readout: the readout.
        targets: of some samples, in the user's form.

    Raises:
        DataError: values or several labels a sample, for scores that are not linear.
    """
    if readout.exactness != "exact" and (targets.dim() != 1 or targets.is_floating_point()):
        shape = tuple(targets.shape)
        raise DataError(
            f"targets of {targets.dtype}, shape {shape}, for a readout {readout.kind}, which is {readout.exactness}",
            "one class index a sample: scale and shift of such a readout follow decisions, not values",
            "read an output neuron built with reset_mechanism='none' by its mean, or pass class indices",
        )
