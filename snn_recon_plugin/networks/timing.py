"""Time steps of a forward pass, and the order of time and batch at the readout."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ..errors import NetworkError
from .forward import Forward, OverTime, bare, carries_state, plain_forward
from .graph import Graph
from .layers import LAYOUTS, ReadoutLayer, fits
from .libraries import library_of

__all__ = ["Timing", "read_timing"]


@dataclass(frozen=True)
class Timing:
    """The time steps of one forward pass."""

    num_steps: int
    calls: int  # of the readout
    layouts: tuple[str, ...]  # members of LAYOUTS that the shapes allow, usually one
    batch: int  # samples that the neurons ran on


def read_timing(graph: Graph, readout: ReadoutLayer, neuron: nn.Module | None, forward: Forward) -> Timing:
    """Derive calls and time steps from the shapes that entered the readout and its neuron, without one the last hidden neuron.

    Raises:
        NetworkError: if a time loop is missing, is there twice, or hides its steps.
    """
    shapes, forward = graph.plain.shapes[readout.module], bare(forward)
    calls, rank = len(shapes), len(shapes[0])
    steps, batch = _steps_and_batch(graph, neuron, shapes)
    layouts = tuple(layout for layout in LAYOUTS if fits(layout, shapes, steps, batch))
    if not layouts and rank == 2:
        # A layer on what the net has summed up over time itself, or a neuron that is called for other layers as well.
        steps, layouts = calls, ("steps",)
    if isinstance(forward, OverTime) and forward.num_steps and layouts and steps != forward.num_steps and steps > 1:
        raise NetworkError(
            f"{forward!r} around a net that itself runs the readout {steps // forward.num_steps} times",
            "one time loop",
            "leave forward out: this net has its time loop inside",
        )
    if rank == 2 and calls == 1 and steps == 1 and forward is plain_forward and _needs_loop(graph):
        raise NetworkError(
            "a forward pass of a single time step, by neurons that keep their state (init_hidden=True, or state handed on)",
            "a forward pass over all time steps",
            "pass forward=over_time(25) with your number of steps; over_time(1) if it really is one",
        )
    if rank == 1:
        raise NetworkError(
            f"the readout {readout.name!r} is called {calls} times with inputs of shape {list(shapes[0])}, without a batch axis",
            "inputs [time, batch, ...], as forward takes the first axis for time",
            "repeat static inputs over time, e.g. forward=lambda net, x: net(x.expand(25, *x.shape)) with your number of steps",
        )
    if not layouts:
        raise NetworkError(
            f"the readout {readout.name!r} is called {calls} times with inputs of shape {list(shapes[0])}",
            "one call per time step with [batch, features], or one call with [time, batch, features]",
            "put the time axis first and flatten all others but the batch, e.g. x.flatten(2); for a time loop outside the net "
            "pass over_time() for inputs [time, batch, ...], over_time(time_dim=1) for [batch, time, ...], or your own forward",
        )
    return Timing(steps, calls, layouts, batch)


def _steps_and_batch(graph: Graph, neuron: nn.Module | None, shapes: list[torch.Size]) -> tuple[int, int]:
    """Return T and B, by a neuron's calls, or by the readout's if no neuron ran before it."""
    seen = graph.plain.shapes.get(neuron, []) if neuron is not None else []
    if neuron is None or not seen:
        return (len(shapes), shapes[0][0]) if len(shapes[0]) == 2 else (shapes[0][0], shapes[0][1])
    if library_of(neuron).takes_sequences(neuron):
        return (seen[0][0], seen[0][1]) if len(seen) == 1 and len(seen[0]) > 1 else (0, 0)
    return len(seen), seen[0][0]


def _needs_loop(graph: Graph) -> bool:
    """Return whether a net that ran its neurons once keeps state between calls, in neurons or handed in from outside."""
    if any(len(graph.plain.shapes.get(neuron, [])) > 1 for neuron in graph.neurons):
        return False
    return any(library_of(neuron).keeps_state(neuron) for neuron in graph.neurons) or carries_state(graph.net)
