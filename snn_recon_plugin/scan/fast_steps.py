"""Faster training steps of a user's net, with the same values and gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from types import TracebackType
from typing import Any

from torch import nn

from ..errors import NetworkError, OptionError
from ..networks.calls.batches import device_of, to_device
from ..networks.calls.forward import Forward
from ..networks.private.quiet import unwrap
from ..options import Options
from ..read.loss_calls import Step
from ..read.step import loss_of, read_first, without_spikes
from ..stages.stream import Unpack
from .installed import FastPass, Installed, install, uninstall
from .trial import Trial, compare, first_batch

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
    as none waits for another.  What a record can't show, such as a value that Python reads, lets the module run as it is written.

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
        raise OptionError("a compiled network", "a network that runs as it is written", "leave out torch.compile, or fast_steps")
    net = unwrap(net)
    if any(isinstance(vars(module).get("forward"), Installed) for module in net.modules()):
        raise OptionError("a network that has faster steps already", "a network without", "call remove() of the handle before")
    inputs, size = first_batch(loader, unpack)
    return compare(net, to_device(inputs, device_of(net)), size, without_spikes(forward), shared)


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
        self.layers, self.reason, self.exact, self.difference = trial.layers, trial.reason, trial.exact, trial.difference
        self.seconds = trial.seconds
        net = unwrap(net)
        self._installed = install(net.get_submodule(place) for place in trial.places if not trial.reason)
        self.is_outside = not trial.places
        self._run = run
        self._pass = FastPass(net, partial(run, net)) if self.is_outside and not trial.reason else None

    def __call__(self, net: nn.Module, batch: Any) -> Any:
        """Return what the step makes of a batch: its loss, or what ``forward`` returns for inputs without a ``step``.

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
