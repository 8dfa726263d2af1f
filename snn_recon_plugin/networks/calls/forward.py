"""Ways to call a net: once, once per time step, and in another precision."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ...convex.checks import plain_number
from ...errors import DataError, NetworkError, OptionError
from ..libraries import is_neuron, library_of, reset_states, takes_sequences
from ..private.quiet import autocast_dtypes, full_precision
from .batches import Padded, describe, map_tensors, tensors_in

Forward: TypeAlias = Callable[[nn.Module, Any], Any]

_ENCODINGS = ("direct", "rate", "latency")
# Usual names of the second argument of a forward that takes its state from outside.
_STATE_NAMES = frozenset({"state", "states", "s", "hidden", "hidden_state", "hidden_states", "h"})


def plain_forward(net: nn.Module, inputs: Any) -> Any:
    """Return ``net(inputs)``, for nets whose time loop is inside; with known lengths ``net(inputs, lengths)`` if it takes them."""
    if isinstance(inputs, Padded):
        return net(*inputs) if takes_lengths(net) else net(inputs.inputs)
    return net(inputs)


@dataclass(frozen=True)
class Within:
    """A forward inside a context, such as a trainer's precision, made anew for each call."""

    inner: Forward
    context: Callable[[], AbstractContextManager[Any]]

    def __call__(self, net: nn.Module, inputs: Any) -> Any:
        """Run the net inside the context."""
        with self.context():
            return self.inner(net, inputs)


def without_contexts(forward: Forward) -> Forward:
    """Return a forward without the contexts around it."""
    while isinstance(forward, Within):
        forward = forward.inner
    return forward


def keep_autocast(forward: Forward) -> Forward:
    """Return a forward that runs in the autocast of this moment, wherever it is called."""
    dtypes = autocast_dtypes()

    @contextmanager
    def autocast() -> Iterator[None]:
        with ExitStack() as stack:
            for device, dtype in dtypes.items():
                stack.enter_context(torch.autocast(device, dtype, cache_enabled=False))  # parameters change between calls
            yield

    return Within(forward, autocast) if dtypes else forward


def drop_autocast(forward: Forward) -> Forward:
    """Return a forward that runs in the precision of the net's parameters, also inside contexts that set autocast."""
    if isinstance(forward, Within):
        inner = forward.inner
        return Within(drop_autocast(inner) if isinstance(inner, Within) else Within(inner, full_precision), forward.context)
    return forward


@dataclass(frozen=True)
class OverTime:
    """A forward that resets a net's neurons, calls it at every step and stacks the outputs; see :func:`over_time`."""

    num_steps: int | None
    encoding: str = "direct"
    time_dim: int | None = None
    flatten: bool = False

    def __call__(self, net: nn.Module, inputs: Any) -> Any:
        """Return the structure that one call returns, without the state, each tensor with a leading time axis.

        A net of multi-step layers, which take all steps in one call, is called once; its output is returned as it is.
        """
        if isinstance(inputs, Padded):
            inputs = inputs.inputs
        if self.flatten:
            kept = 1 if self.time_dim is None else 2
            inputs = map_tensors(lambda value: value.flatten(kept) if value.ndim > kept else value, inputs)
        over_time = map_tensors(self._over_time, inputs)
        reset_states(net)
        if takes_sequences(net):
            return net(over_time)
        static = self.encoding == "direct" and self.time_dim is None
        steps: list[Any] = []
        carries, state = carries_state(net), None
        for step in range(self._steps(over_time)):
            current = inputs if static else map_tensors(itemgetter(step), over_time)
            if carries:
                output, state = _output_and_state(net(current, state))
            else:
                output = net(current)
            steps.append(output)
        return _stack(steps)

    @property
    def batch_dim(self) -> int:
        """Axis of the samples in the inputs."""
        return 1 if self.time_dim == 0 else 0

    def _over_time(self, value: Tensor) -> Tensor:
        """Return an input with its time axis first, ``[T, B, *]``."""
        if self.time_dim is None:
            assert self.num_steps is not None
            return _encode(value, self.num_steps, self.encoding)
        if self.num_steps is None:
            fits = value.ndim >= 3 and 0 not in value.shape[:2]
        else:
            fits = value.ndim > self.time_dim and value.shape[self.time_dim] == self.num_steps
        if not fits:
            raise DataError(
                f"an input of shape {list(value.shape)} for {self!r}",
                f"{self.num_steps or ''} time steps on axis {self.time_dim}, and at least one axis behind time and batch".lstrip(),
                "pass the number of steps for inputs without a time axis, e.g. over_time(25), none to take it from each batch, and "
                "time_dim=1 for [batch, time, ...]",
            )
        return value.movedim(self.time_dim, 0)

    def _steps(self, over_time: Any) -> int:
        if self.num_steps is not None:
            return self.num_steps
        lengths = {len(value) for value in tensors_in(over_time)}
        if len(lengths) != 1:
            found = f"inputs of {sorted(lengths)} time steps in one batch for {self!r}" if lengths else f"no tensor for {self!r}"
            fix = "pass the number of steps, e.g. over_time(25), or your own forward(net, inputs)"
            raise DataError(found, "tensors with the same number of time steps", fix)
        return lengths.pop()

    def __repr__(self) -> str:
        parts = [] if self.num_steps is None else [str(self.num_steps)]
        parts += [] if self.encoding == "direct" else [f"encoding={self.encoding!r}"]
        parts += [] if self.time_dim is None else [f"time_dim={self.time_dim}"]
        parts += ["flatten=True"] if self.flatten else []
        return f"over_time({', '.join(parts)})"

    title = property(__repr__)  # in messages


def over_time(
    num_steps: int | None = None, encoding: str = "direct", *, time_dim: int | None = None, flatten: bool = False
) -> Forward:
    """Build a forward for nets whose time loop is outside, such as an nn.Sequential with ``init_hidden=True``.

    Args:
        num_steps: number of steps; default None takes it from the time axis of each batch.
        encoding: of a static input over time: ``"direct"`` (default) shows it unchanged at every step, ``"rate"`` draws spikes with
            the input as their probability, ``"latency"`` gives one spike, the earlier the stronger the input.
        time_dim: time axis of the inputs, 0 for ``[T, B, *]`` or 1 for ``[B, T, *]``; each step then gets its own slice, without
            encoding.  Without ``num_steps`` the default is 0.
        flatten: whether to flatten each step's input to ``[B, F]``, as ``inputs.view(batch_size, -1)`` does in a training
            loop; default False.

    Returns:
        A picklable callable ``forward(net, inputs)``.  It resets every neuron, calls the net at each step, and passes the state on
        if the net takes and returns one.  It stacks the outputs over time, tuples element by element.  Nets of multi-step layers
        (Norse's LIF, snnTorch's StateLeaky, SpikingJelly's step mode "m") are called once on ``[T, B, *]``.

    Raises:
        OptionError: ``num_steps`` isn't a whole number of at least 1, or another option isn't one of those above.
        DataError: when the forward is called, inputs without the time axis, or with another number of steps than ``num_steps``, or
            tensors of one batch that differ in it.
        NetworkError: when the forward is called, outputs that can't be stacked over time, or a state that is not returned.

    Example:
        >>> import snntorch, torch
        >>> from snn_recon_plugin import over_time
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), snntorch.Leaky(beta=0.9, init_hidden=True))
        >>> over_time(5)(net, torch.ones(2, 4)).shape  # (T, B, N)
        torch.Size([5, 2, 3])
        >>> over_time(flatten=True)(net, torch.ones(7, 2, 2, 2)).shape  # T from the batch
        torch.Size([7, 2, 3])
    """
    num_steps, time_dim = plain_number(num_steps), plain_number(time_dim)
    if num_steps is not None and (isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 1):
        raise OptionError(f"num_steps={num_steps!r}", "a whole number of time steps, at least 1", "pass e.g. over_time(25)")
    if encoding not in _ENCODINGS:
        raise OptionError(f"encoding={encoding!r}", f"one of {', '.join(_ENCODINGS)}", f"pass encoding={_ENCODINGS[0]!r}")
    if time_dim not in (None, 0, 1) or isinstance(time_dim, bool):
        raise OptionError(f"time_dim={time_dim!r}", "0, 1 or None", "pass time_dim=1 for inputs [batch, time, ...]")
    if time_dim is not None and encoding != "direct":
        raise OptionError(f"encoding={encoding!r} for inputs over time", "static inputs", "leave time_dim or encoding out")
    if num_steps is None and encoding != "direct":
        found = f"encoding={encoding!r} without a number of steps"
        fix = f"pass it, e.g. over_time(25, encoding={encoding!r})"
        raise OptionError(found, "the number of steps to encode static inputs over", fix)
    if not isinstance(flatten, bool):
        raise OptionError(f"flatten={flatten!r}", "True or False", "pass flatten=True for inputs that are flattened")
    return OverTime(num_steps, encoding, 0 if num_steps is None and time_dim is None else time_dim, flatten)


def forward_arguments(net: nn.Module) -> list[inspect.Parameter]:
    """List the arguments of a net's forward behind the inputs; none if its signature can't be read."""
    try:
        return list(inspect.signature(net.forward).parameters.values())[1:]
    except (TypeError, ValueError):
        return []


def takes_lengths(net: nn.Module) -> bool:
    """Return whether the second argument of the net's forward is required, or is named as lengths are."""
    positional, empty = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD), inspect.Parameter.empty
    second = [each for each in forward_arguments(net)[:1] if each.kind in positional]
    return any("len" in each.name.lower() or each.default is empty for each in second)


def carries_state(net: nn.Module) -> bool:
    """Return whether the net's forward is like ``forward(x, state=None)``, with the state under any of a few usual names."""
    return any(each.name in _STATE_NAMES and each.default is None for each in forward_arguments(net)[:1])


def keeps_state(net: nn.Module) -> bool:
    """Return whether a net keeps state between calls, in neurons or handed in from outside, so that a time loop can step it."""
    return carries_state(net) or any(library_of(module).keeps_state(module) for module in net.modules() if is_neuron(module))


def _output_and_state(returned: Any) -> tuple[Any, Any]:
    if isinstance(returned, tuple) and len(returned) == 2:
        return returned
    found = f"a net whose forward takes a state, but returns {describe(returned)}"
    fix = "return (output, state) from forward, or pass your own forward(net, inputs)"
    raise NetworkError(found, "a tuple of the output and the next state", fix)


def _stack(steps: list[Any]) -> Any:
    """Return what the steps returned, with tensors stacked over time."""
    tensors = [list(tensors_in(step)) for step in steps]
    if not tensors[0] or len({len(each) for each in tensors}) > 1:
        found = f"a net that returns {describe(steps[0])} at each step"
        fix = "return tensors from the net, or pass your own forward(net, inputs)"
        raise NetworkError(found, "a tensor, or tuples, lists or dicts of tensors, which can be stacked over time", fix)
    stacked = map(torch.stack, zip(*tensors, strict=True))
    return map_tensors(lambda _: next(stacked), steps[0])


def _encode(values: Tensor, num_steps: int, encoding: str) -> Tensor:
    """Encode a static input ``[B, *]`` over time, ``[T, B, *]`` of the same dtype, float32 if that is not floating.

    "rate" and "latency" clip values to 0 and 1; a latency is the step ``round((T - 1) * (1 - value))``, for values above 0.
    """
    if encoding == "direct":
        return values.expand(num_steps, *values.shape)
    clipped = (values if values.is_floating_point() else values.float()).clamp(0.0, 1.0)
    if encoding == "rate":
        return torch.bernoulli(clipped.expand(num_steps, *clipped.shape))
    times = ((num_steps - 1) * (1.0 - clipped)).round()
    steps = torch.arange(num_steps, device=values.device).reshape(-1, *([1] * values.ndim))
    return ((times == steps) & (clipped > 0)).to(clipped.dtype)
