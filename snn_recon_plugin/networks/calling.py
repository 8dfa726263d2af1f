"""Calls of the user's forward.  Its errors are raised again with the shapes involved and with what to type."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..errors import DataError, NetworkError, ReconstructionError
from .forward import Forward, OverTime, bare, plain_forward
from .guard import seeded
from .libraries import reset_states
from .structures import describe, tensors_in
from .suggestions import describe_input, find_failing_layer, find_first_layer, suggest_forward

__all__ = ["call_forward", "carries_over", "check_forward"]

_LONGEST = 400  # characters of a user's error in a message


def call_forward(net: nn.Module, inputs: Any, forward: Forward, number: int | None = None) -> Any:
    """Call the user's forward, and return its output.

    Args:
        net: the net.
        inputs: one batch of inputs.
        forward: how the net is called.
        number: number of the batch from 1; None for a pass with other currents than the net's own.

    Raises:
        DataError: the batch does not fit into memory.
        NetworkError: the forward raised; the message repeats the error, which is the ``__cause__``.
    """
    try:
        return forward(net, inputs)
    except ReconstructionError:
        raise
    except Exception as error:
        raise _too_large(error, inputs) or _failed(error, inputs, forward, number) from error


def carries_over(net: nn.Module, inputs: Any, forward: Forward) -> bool:
    """Return whether a call starts from the membranes that the last call left; the net must be under ``preserved``."""
    reset_states(net)
    calls = []
    for _ in range(2):
        with torch.no_grad(), seeded(0, net):
            calls.append([value.clone() for value in tensors_in(forward(net, inputs))])
    first, second = calls
    return len(first) != len(second) or any(not torch.equal(one, two) for one, two in zip(first, second, strict=True))


def check_forward(net: nn.Module, inputs: Any, forward: Forward, batch: int) -> None:
    """Run the net once on the first batch; if that fails, try usual alternatives.

    Args:
        net: the net, under ``preserved``.
        inputs: the first batch of inputs.
        forward: how the net is called.
        batch: number of samples in the batch.

    Raises:
        DataError: the batch does not fit into memory.
        NetworkError: the forward raised.  The message has the shape of the inputs, the one that the first layer takes, and the
            first alternative ``forward=`` that runs.
    """
    reset_states(net)
    try:
        with torch.no_grad(), seeded(0):
            forward(net, inputs)
    except ReconstructionError:
        raise
    except Exception as error:
        raise _too_large(error, inputs) or _explained(error, net, inputs, forward, batch) from error


def _explained(error: Exception, net: nn.Module, inputs: Any, forward: Forward, batch: int) -> NetworkError:
    """Build the error of a forward that fails on the first batch."""
    found = f"{_raised(forward, error)}, for inputs of the first batch: {describe(inputs)}"
    failed = find_failing_layer(net, inputs, forward)
    if failed is not None:
        name, module, shape = failed
        found += f"; it failed in {name!r} ({type(module).__name__}), which takes {describe_input(module)} and got {shape}"
    first = find_first_layer(net)
    needed = "a forward that runs on the loader's batches"
    if first is not None:
        needed += f"; the first layer {first[0]!r} ({type(first[1]).__name__}) takes {describe_input(first[1])}"
    suggestion = suggest_forward(net, inputs, forward, batch)
    if suggestion is None:
        fix = "let the loader give inputs as forward takes them, or pass your own forward=lambda net, x: net(...); "
        return NetworkError(found, needed, fix + "if the inputs are right, mend forward: the error above shows the line")
    steps = " with your number of steps" if "over_time(25" in suggestion and "over_time(25" not in repr(bare(forward)) else ""
    return NetworkError(found, needed, f"pass forward={suggestion}{steps}, which runs on this batch")


def _failed(error: Exception, inputs: Any, forward: Forward, number: int | None) -> NetworkError:
    """Build the error of a forward that ran on the first batch, and fails on another one or under other currents."""
    found = f"{_raised(forward, error)}, for inputs of batch {number}: {describe(inputs)}"
    if number is None:
        return NetworkError(
            f"{found.replace(' of batch None', '')}, with random currents in the place of what a layer gives",
            "a forward that runs whatever values its layers give",
            "let forward neither check nor index by values of its layers: the error above shows the line",
        )
    return NetworkError(
        found,
        "a forward that runs on every batch",
        "let all batches have the shapes of the first, e.g. DataLoader(..., drop_last=True) where the last one is smaller; "
        "or mend forward: the error above shows the line",
    )


def _raised(forward: Forward, error: Exception) -> str:
    """Describe the user's error and the call that raised it."""
    forward, text = bare(forward), str(error).strip()
    call = "net(inputs)" if forward is plain_forward else "forward(net, inputs)"
    call = repr(forward) if isinstance(forward, OverTime) else call
    short = text if len(text) <= _LONGEST else text[:_LONGEST] + " ..."
    return f"{call} raised {type(error).__name__}: {short}" if short else f"{call} raised {type(error).__name__}"


def _too_large(error: Exception, inputs: Any) -> DataError | None:
    """Build the error of a batch that does not fit into memory; None for any other error."""
    if not isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) and "not enough memory" not in str(error):
        return None
    found = f"a batch that does not fit into memory, {describe(inputs)}: {str(error).strip()[:_LONGEST]}"
    return DataError(found, "batches that the net can be run on", "pass a loader with smaller batches")
