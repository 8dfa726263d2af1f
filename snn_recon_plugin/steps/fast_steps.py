"""Faster training steps of a user's net, with the same values and gradients."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Any

from torch import nn

from ..errors import NetworkError, OptionError
from ..networks.calls.batches import device_of, to_device
from ..networks.calls.forward import Forward
from ..networks.private.quiet import unwrap
from ..options import Options
from ..read.loss_calls import Step
from ..read.step import read_first
from ..stages.stream import Unpack
from .install import install, uninstall
from .installed import Installed
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

    Its code and its parameters stay as they are.  A layer that gets the same input at all time steps is computed once.  A neuron
    takes its next steps in one operation if their inputs can be known.  A layer behind it is then computed for all of them at
    once.  A step that gets something else, or that starts from another state, is computed as usual.  So the loop may do whatever
    it likes.

    A copy of the network is run on the first batch, with and without.  Layers whose outputs or gradients differ by more than
    rounding, and those that gain nothing, are left alone; a table shows all.

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

    Second derivatives (``create_graph=True``) raise an UnsupportedModuleError, and writes into a step's output that the gradient
    needs a NetworkError.  Writes that torch does not count, through ``.data`` or NumPy, are not seen within a pass.  Not for
    ``nn.DataParallel``, whose replicas would run the network's own weights, nor for ``torch.utils.checkpoint``.

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
    return install_fast_steps(net, loader, options.call, options.unpack)


def install_fast_steps(
    net: nn.Module, loader: Iterable[Any], forward: Forward, unpack: Unpack | None, shared: Iterable[object] = ()
) -> FastSteps:
    """Do what :func:`fast_steps` does; copies of the network refer to the ``shared`` objects, such as a trainer."""
    if isinstance(net, nn.DataParallel):
        raise OptionError("an nn.DataParallel", "a network on one device", "use DistributedDataParallel, or leave out fast_steps")
    if hasattr(net, "_orig_mod") or any(module._compiled_call_impl is not None for module in net.modules()):
        raise OptionError("a compiled network", "a network that runs as it is written", "leave out torch.compile, or fast_steps")
    net = unwrap(net)
    if any(isinstance(vars(module).get("forward"), Installed) for module in net.modules()):
        raise OptionError("a network that has faster steps already", "a network without", "call remove() of the handle before")
    inputs, size = first_batch(loader, unpack)
    return FastSteps(net, compare(net, to_device(inputs, device_of(net)), size, forward, shared))


class FastSteps:
    """Faster steps in a network, until they are removed.

    Attributes:
        layers: what is done, by the name of each layer and neuron.
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

    def __init__(self, net: nn.Module, trial: Trial) -> None:
        self.layers, self.exact, self.difference, self.seconds = trial.layers, trial.exact, trial.difference, trial.seconds
        self._installed = install(net, trial.left_out)

    def remove(self) -> None:
        """Take everything out of the network; a second call does nothing."""
        uninstall(self._installed.values())
        self._installed = {}

    def __enter__(self) -> FastSteps:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.remove()

    def __str__(self) -> str:
        width = max(map(len, self.layers), default=0)
        before, after = (1e3 * value for value in self.seconds)
        same = "to the bit" if self.exact else "to rounding"
        lines = [f"{name:<{width}}  {done}" for name, done in self.layers.items()]
        gain = f"{before / max(after, 1e-9):.1f}"
        faster = f"{gain} times faster" if float(gain) > 1 else "no faster"
        lines.append(f"a training step takes {after:.0f} ms in place of {before:.0f}, {faster}")
        lines.append(f"outputs are the same {same}, gradients within {self.difference:.0e}")
        rule = "-" * max(map(len, lines))
        return "\n".join([rule, *lines, rule])

    def __repr__(self) -> str:
        return f"<FastSteps of {len(self._installed)} modules>"
