"""Faster training steps of a user's net, with the same values and gradients."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import PASS_STEP, DataError, NetworkError, OptionError
from ..networks.calls.batches import describe, device_of, first_samples, split_batch, tensors_in, to_device
from ..networks.calls.forward import Forward
from ..networks.calls.record import Taps, call_forward, tapped
from ..networks.libraries import is_neuron, library_of, list_for_message, reset_states
from ..networks.private.quiet import quiet, seeded, unwrap
from ..networks.private.workbench import has_custom_forward, private_copy
from ..options import Options
from ..read.loss_calls import Step
from ..read.step import loss_of, read_first, without_spikes
from ..stages.stream import Unpack, unpacked
from .installed import FastPass, Installed, install, uninstall
from .plan import describe_calls, difference

__all__ = ["FastSteps", "fast_steps"]


def fast_steps(
    net: nn.Module,
    loader: Iterable[Any],
    *,
    step: Step | None = None,
    forward: Forward | None = None,
    unpack: Unpack | None = None,
) -> FastSteps:
    """Let a network train faster, with the same values and gradients but for rounding.

    A module whose forward loops over time steps gets another forward.  For each kind of input it records one pass: each layer's
    calls, and what the loop does between them.  From then on it computes each layer and each neuron for all steps at once, as far
    as none waits for another.  If a pass does what no record shows, such as reading a value in Python, the module's own code runs.

    A copy of the network is run on the first batch, with and without.  If outputs or gradients differ by more than rounding,
    nothing is done; the table lists what is done with each layer, or why nothing is.

    Args:
        net: a network of snnTorch, Norse or SpikingJelly.
        loader: (input, target) batches; only the first one is read.
        step: your training step, ``step(net, batch)``, in place of ``forward`` and ``unpack``; as for ``convex_init_``.
        forward: ``forward(net, inputs)`` that runs all time steps; default ``net(inputs)``.
        unpack: ``unpack(batch)`` gives (input, target), for batches that are no such pairs.

    Returns:
        The handle.  ``handle.remove()``, or the end of a ``with`` block, takes everything out again.  ``print(handle)`` shows the
        table.  Copies and pickles of the network run the libraries' own code.

    Raises:
        DataError: an empty loader, or a batch that can't be read.
        NetworkError: ``net`` is no module, has no neuron, or its forward fails.
        OptionError: the network has faster steps already, is compiled, or is an nn.DataParallel.

    Second derivatives (``create_graph=True``) raise an UnsupportedModuleError.  What a loop does beside tensors, such as printing,
    happens in the recorded pass alone.  Not for ``nn.DataParallel``, whose replicas would run the network's own weights, nor for
    ``torch.utils.checkpoint``.

    Example:
        >>> from snn_recon_plugin.demo import build_network, load_digits_data
        >>> data, net = load_digits_data(), build_network(inputs=64, hidden=64, outputs=10, steps=8)
        >>> with fast_steps(net, [(data.train_inputs[:64], data.train_labels[:64])]) as handle:
        ...     print(handle.layers["fc1"])
        computed once for 8 steps
    """
    if not isinstance(net, nn.Module):
        found = f"a {type(net).__name__} in place of a network"
        raise NetworkError(found, "a torch.nn.Module", "pass the network first, then the loader")
    options = read_first(net, loader, Options(step=step, forward=forward, unpack=unpack))
    run = options.call if step is None else partial(loss_of, step)
    return FastSteps(net, _compare(net, loader, options.call, options.unpack), run)


def install_fast_steps(net: nn.Module, loader: Iterable[Any], forward: Forward, shared: Iterable[object] = ()) -> FastSteps:
    """Do what :func:`fast_steps` does; copies of the network refer to the ``shared`` objects, such as a trainer."""
    return FastSteps(net, _compare(net, loader, forward, None, shared), forward)


def _compare(
    net: nn.Module, loader: Iterable[Any], forward: Forward, unpack: Unpack | None, shared: Iterable[object] = ()
) -> Trial:
    if isinstance(net, nn.DataParallel):
        raise OptionError("an nn.DataParallel", "a network on one device", "use DistributedDataParallel, or leave out fast_steps")
    if hasattr(net, "_orig_mod") or any(module._compiled_call_impl is not None for module in net.modules()):
        raise OptionError(
            "a compiled network", "a network that runs as it is written", "leave out torch.compile, or the faster steps"
        )
    net = unwrap(net)
    if any(isinstance(vars(module).get("forward"), Installed) for module in net.modules()):
        raise OptionError("a network that has faster steps already", "a network without", "call remove() of the handle before")
    if not any(map(is_neuron, net.modules())):
        titles = list_for_message(lambda library: library.title)
        raise NetworkError(f"a {type(net).__name__} without neurons of {titles}", "a spiking network", "pass a net with neurons")
    with quiet(nn.Module(), seed=0, loader=loader):  # random generators go on from where they were
        batch = next(iter(loader), None)
    if batch is None:
        raise DataError("an empty loader", "at least one batch", "pass a loader over your data")
    inputs, targets = split_batch(unpacked(batch, unpack, 1), 1)
    return _try_plans(net, to_device(inputs, device_of(net)), len(targets), without_spikes(forward), list(shared))


class FastSteps:
    """Faster steps in a network, until they are removed.

    Attributes:
        layers: what is done, by the name of each layer and neuron.
        reason: why nothing is done, or "".
        is_outside: the time loop is outside of the modules, so that only calls of the handle are faster.
        exact: outputs of the first batch were the same to the bit.
        difference: largest relative difference of an output or a parameter's gradient, on 8 of its samples.
        seconds: of a training step on it, without and with; the only figures that depend on the machine.

    Example:
        >>> from snn_recon_plugin.demo import build_network, load_digits_data
        >>> data, net = load_digits_data(), build_network(inputs=64, hidden=64, outputs=10, steps=8)
        >>> handle = fast_steps(net, [(data.train_inputs[:64], data.train_labels[:64])])
        >>> handle.layers["lif1"], handle.exact, handle.difference < 1e-5
        ('8 steps in 1 operation', True, True)
        >>> handle.remove()
    """

    def __init__(self, net: nn.Module, trial: Trial, run: Callable[[nn.Module, Any], Any]) -> None:
        self.layers, places, self.reason, self.exact, self.difference, self.seconds = trial
        net, self._run, self.is_outside = unwrap(net), run, not places
        self._installed = install(net.get_submodule(place) for place in places if not trial.reason)
        self._pass = FastPass(net, partial(run, net)) if self.is_outside and not trial.reason else None

    def __call__(self, net: nn.Module, batch: Any) -> Any:
        """Return the loss of the step, without its backward pass; what ``forward`` returns for inputs without a ``step``.

        For networks whose time loop is outside of their modules, which don't get faster otherwise.

        Args:
            net: the network.
            batch: of the loader; without a ``step``, inputs.
        """
        return self._run(net, batch) if self._pass is None else self._pass(batch)

    def remove(self) -> None:
        """Take everything out of the network; a second call does nothing."""
        uninstall(self._installed)
        self._installed, self._pass = [], None

    def __enter__(self) -> FastSteps:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.remove()

    def __str__(self) -> str:
        width = max(map(len, self.layers), default=0)
        before, after = (1e3 * value for value in self.seconds)
        same = "to the bit" if self.exact else "to rounding"
        lines = [f"{name:<{width}}  {done}" for name, done in self.layers.items()]
        if self.reason:
            lines.append(f"runs as it is written: {self.reason}")
        passes = [*self._installed, *([self._pass] if self._pass is not None else [])]
        lines += [f"a later pass ran as it is written: {each.reason}" for each in passes if each.reason]
        if self._pass is not None:
            lines.append("the time loop is outside of its modules: with step=train_batch, call handle(net, batch) in its place")
        gain = f"{before / max(after, 1e-9):.1f}"
        faster = f"{gain} times faster" if float(gain) > 1 else "no faster"
        lines.append(f"a training step takes {after:.0f} ms in place of {before:.0f}, {faster}")
        lines.append(f"outputs are the same {same}, gradients within {self.difference:.0e}")
        rule = "-" * max(map(len, lines))
        return "\n".join([rule, *lines, rule])

    def __repr__(self) -> str:
        return f"<FastSteps of {len(self._installed)} modules>"


# -- a training step of a copy, with plans and without ----------------------------------------------------------------------------

_TOLERANCE = 1e-5  # of gradients, relative
_NOISE = 0.1  # gradients below this share of the largest one may be rounding alone, as of a bias in front of a batch norm
_TIMED = 3  # steps of each kind, of which the fastest counts


class Trial(NamedTuple):
    """Result of a comparison; see :class:`FastSteps`."""

    layers: dict[str, str]
    places: tuple[str, ...]  # names of the modules whose forward loops, "" for the net; none if the time loop is outside of them
    reason: str
    exact: bool
    difference: float
    seconds: tuple[float, float]


class _Step(NamedTuple):
    """One training step: outputs, gradients by parameter, and seconds."""

    outputs: list[Tensor]
    gradients: list[Tensor | None]
    seconds: float


def _try_plans(net: nn.Module, inputs: Any, size: int, forward: Forward, shared: list[object]) -> Trial:
    """Compare training steps of a net's copies, with plans and without, on a batch of ``size`` samples.

    Gradients are compared on few samples: among many some membrane may lie so close to its threshold that rounding decides.
    """
    run = partial(_run, net, shared, forward)
    places, calls = _find_loops(net, shared, forward, inputs)
    few, _ = first_samples(inputs, size, run=lambda few: run(few, None, 1)[0].outputs)
    plain, _ = run(few, None, 1)
    try:
        fast, (reason, layers) = run(few, places, 2)
    except Exception as error:  # of a neuron that is not as its library builds it: the net's own code has just run
        fast, reason, layers = plain, f"with all steps at once it raises {type(error.__cause__ or error).__name__}", {}
    pairs = (plain.outputs, fast.outputs), (plain.gradients, fast.gradients)
    found = max(difference(one, other, least=_NOISE) for one, other in pairs)
    if found > _TOLERANCE:
        reason = reason or "with all steps at once its values differ"
    whole, _ = run(inputs, None, _TIMED)
    usual = {name: describe_calls(count, count, is_neuron=True) for name, count in calls.items()}
    if reason:
        return Trial(usual, places, reason, exact=True, difference=0.0, seconds=(whole.seconds, whole.seconds))
    after, _ = run(inputs, places, _TIMED + 1)
    exact = all(map(torch.equal, whole.outputs, after.outputs))
    layers = {name: (usual | layers)[name] for name, _ in net.named_modules() if name in usual | layers}
    return Trial(layers, places, reason, exact, found, (whole.seconds, after.seconds))


def _find_loops(net: nn.Module, shared: list[object], forward: Forward, inputs: Any) -> tuple[tuple[str, ...], dict[str, int]]:
    """Return the outermost modules within whose one call a neuron runs several times, and the calls of each neuron.

    Modules whose neurons take all steps in one call count as well.
    """
    copied, calls = private_copy(net, shared), Counter[nn.Module]()

    def note(module: nn.Module, arguments: Any, output: Any) -> None:
        calls[module] += 1

    taps = Taps(calls={module: partial(note, module) for module in copied.modules() if any(map(is_neuron, module.modules()))})
    with quiet(copied, seed=0):
        reset_states(copied)
        with torch.no_grad(), seeded(0, copied), tapped(taps):
            call_forward(copied, inputs, forward, partial(_failure, inputs))
    found: list[str] = []
    for name, module in copied.named_modules():
        inner = [each for each in module.modules() if each is not module and is_neuron(each)]
        loops = any(calls[each] > 1 or library_of(each).takes_sequences(each) for each in inner)
        is_inside = any(not other or name.startswith(f"{other}.") for other in found)
        if calls[module] == 1 and loops and not is_inside and not has_custom_forward(module):
            found.append(name)
    return tuple(found), {name: calls[each] for name, each in copied.named_modules() if each in calls and is_neuron(each)}


def _run(
    net: nn.Module, shared: list[object], forward: Forward, inputs: Any, places: Iterable[str] | None, times: int
) -> tuple[_Step, tuple[str, dict[str, str]]]:
    """Take some training steps of a copy, with plans in some modules, or of the whole step without modules; None for none.

    Returns the last one, with the least seconds; why there is no plan, if there is none; and what is done with each layer.
    """
    copied = private_copy(net, shared)
    with quiet(copied, seed=0):
        for own, module in zip(net.modules(), copied.modules(), strict=True):
            module.training = own.training
        passes: list[FastPass] = [*install(copied.get_submodule(place) for place in places or ())]
        if places is not None and not passes:
            passes.append(FastPass(copied, partial(forward, copied)))
        run = (lambda net, inputs: passes[0](inputs)) if places is not None and not places else forward
        steps = [_take_step(copied, inputs, run) for _ in range(times)]
    done = {module: text for each in passes for plan in each.plans.values() if plan for module, text in plan.done.items()}
    layers = {name: done[module] for name, module in copied.named_modules() if name and module in done}
    reason = "" if layers else next((each.reason for each in passes if each.reason), "")
    return steps[-1]._replace(seconds=min(step.seconds for step in steps)), (reason, layers)


def _take_step(net: nn.Module, inputs: Any, forward: Forward) -> _Step:
    """Run a net from rest, and differentiate a random sum of its outputs."""
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    reset_states(net)
    with torch.enable_grad(), seeded(0, net):
        began = time.perf_counter()
        outputs = list(tensors_in(call_forward(net, inputs, forward, partial(_failure, inputs))))
        trained = [output for output in outputs if output.requires_grad]
        gradients: list[Tensor | None] = [None] * len(parameters)
        if trained and parameters:
            weights = [torch.randn_like(output) for output in trained]
            try:
                gradients = list(torch.autograd.grad(trained, parameters, weights, allow_unused=True))
            except RuntimeError as error:  # the net's own, or one of a graph that faster steps share
                raise _failure(inputs, f"the backward pass raised {type(error).__name__}: {error}") from error
        return _Step([output.detach() for output in outputs], gradients, time.perf_counter() - began)


def _failure(inputs: Any, raised: str) -> NetworkError:
    return NetworkError(
        f"{raised}, for inputs of the first batch: {describe(inputs)}",
        "a forward that runs on the loader's batches",
        PASS_STEP,
    )
