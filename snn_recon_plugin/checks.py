"""What must hold of a network before its program is solved, beyond what reading it needs."""

from __future__ import annotations

from torch import Tensor

from .errors import DataError, SilentLayerError, UnsupportedModuleError
from .networks import Captured, NetworkMap, Readout

__all__ = ["check_layers", "check_no_images", "check_rest", "check_targets"]


def check_no_images(targets: Tensor) -> None:
    """Refuse targets that are images, as an autoencoder has them.

    Args:
        targets: of some samples, in the user's form.

    Raises:
        DataError: the message says what is solved instead.
    """
    if targets.dim() > 3:
        raise DataError(
            f"targets that are images or volumes, of shape {tuple(targets.shape[1:])} each",
            "one class index, or a row of values, a sample or a step: readouts are solved, not decoders of an autoencoder",
            "pass labels and the part of the net that classifies; or targets.flatten(1), for a net that returns flat values",
        )


def check_layers(captured: Captured, *, keep: bool) -> None:
    """Refuses hidden layers of which all neurons are silent, or always on.

    Args:
        captured: how the layers fire.
        keep: whether their weights were left alone.

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


def check_rest(readout: Readout, net_map: NetworkMap) -> None:
    """Refuses an output neuron that rests above zero where no bias can take up the offset, at each step where each is a score.

    Args:
        readout: the readout.
        net_map: the network's map.

    Raises:
        UnsupportedModuleError: the message says what else to pass.
    """
    where = f"a readout {net_map.readout.name!r}"
    if net_map.readout.bias is None and readout.constant != 0.0:
        raise UnsupportedModuleError(
            f"{where} without a bias, whose output neuron rests at {readout.constant:.3g}",
            "a bias to take up the offset",
            "build the readout with bias=True",
        )
    if readout.per_step:
        left = readout.constants - readout.constant / readout.bias_gain * readout.bias_gains
        if float(left.abs().max()) > 1e-6 * max(1.0, float(readout.constants.abs().max())):
            raise UnsupportedModuleError(
                f"{where} at every step, whose output neuron moves to a rest above zero as no bias does",
                "a neuron that rests at zero, or one score a sample",
                "pass readout='membrane_mean', or build the neuron with v_leak=0",
            )


def check_targets(readout: Readout, targets: Tensor) -> None:
    """Refuses targets that a readout which follows decisions can't be placed by.

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
