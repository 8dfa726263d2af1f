"""Padding of batches with different numbers of time steps, for the choice of hidden layers alone."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor
from torch.nn import functional

from ..errors import DataError
from ..networks import Forward, NetworkMap, OverTime, Readout, StoredBatch
from ..networks.batches import batch_axis
from ..networks.forward import bare

__all__ = ["pad_batches"]


def pad_batches(
    batches: list[StoredBatch], net_map: NetworkMap, readout: Readout, forward: Forward
) -> tuple[list[StoredBatch], NetworkMap, Readout]:
    """Pad batches with zeros after their last step to the steps of the longest.

    Hidden rows and gains are chosen by simulations that run all samples over the same steps.  The readout is solved on the
    batches as they are.

    Args:
        batches: the first batches.
        net_map: the network's map, made from the first of them.
        readout: its readout.
        forward: calls the network.

    Returns:
        The same objects if all batches have the same steps; else padded batches, with map and readout for their length.

    Raises:
        CaptureError: the readout needs one number of steps.
        DataError: batches differ in another axis than the time axis of the network.
    """
    first = batches[0].inputs
    if not isinstance(first, Tensor) or first.ndim < 2:
        return batches, net_map, readout
    given = bare(forward)
    samples = batch_axis(first, batches[0].rows.stop)
    axis = given.time_dim if isinstance(given, OverTime) else None if samples is None else 1 - samples
    if axis is None:
        return batches, net_map, readout
    lengths = [batch.inputs.shape[axis] for batch in batches]
    longest = max(lengths)
    if min(lengths) == longest:
        return batches, net_map, readout
    if first.shape[axis] != net_map.num_steps:
        raise DataError(
            f"batches of {min(lengths)} to {longest} values on axis {axis}, of which the network makes {net_map.num_steps} steps "
            f"from {first.shape[axis]}",
            "as many time steps as the inputs have, to choose hidden layers",
            "pass hidden='keep', or pad all batches to one length in the loader",
        )
    padded = [replace(batch, inputs=_padded(batch.inputs, axis, longest)) for batch in batches]
    return padded, replace(net_map, num_steps=longest), readout.at(longest)


def _padded(inputs: Tensor, axis: int, length: int) -> Tensor:
    """Add zeros at the end of an axis."""
    missing = length - inputs.shape[axis]
    return functional.pad(inputs, [0, 0] * (inputs.ndim - 1 - axis) + [0, missing])
