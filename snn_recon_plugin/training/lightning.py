"""Lightning under its two import names, ``lightning.pytorch`` and ``pytorch_lightning``, whose classes differ."""

from __future__ import annotations

import contextlib
import importlib
from typing import TYPE_CHECKING, Any

from torch import nn

from ..errors import OptionError

__all__ = ["NAMESPACES", "Callback", "check_namespaces", "has_forward"]

NAMESPACES = ("lightning.pytorch", "pytorch_lightning")


def _callback_classes() -> tuple[type, ...]:
    """Return the ``Callback`` class of every namespace that can be imported.

    Raises:
        ImportError: none can.
    """
    classes = []
    for name in NAMESPACES:
        with contextlib.suppress(ImportError):
            classes.append(importlib.import_module(name).Callback)
    if not classes:
        raise ImportError("ReconstructionCallback needs Lightning: pip install lightning")
    return tuple(classes)


if TYPE_CHECKING:
    from lightning.pytorch import Callback
else:
    # A base of each namespace, so that either trainer takes the callback for one of its own.
    Callback = type("Callback", _callback_classes(), {"__doc__": "A callback of any Lightning.", "__module__": __name__})


def check_namespaces(trainer: Any, module: Any) -> None:
    """Refuse a trainer whose module, data module or callbacks come from the other namespace.

    Raises:
        OptionError: a part that shares no namespace with the trainer; the message has both names.
    """
    wanted = _namespaces_of(trainer)
    for part in (module, trainer.datamodule, *trainer.callbacks):
        found = _namespaces_of(part)
        if wanted and found and not wanted & found:
            (here,), (there,) = wanted, found
            raise OptionError(
                f"{type(part).__name__} of {there} in a Trainer of {here}",
                "a Trainer, a LightningModule and callbacks of one namespace",
                f"import all of them from {here}, or all from {there}",
            )


def has_forward(module: nn.Module) -> bool:
    """Return whether a LightningModule has a ``forward`` of its own."""
    if "forward" in vars(module):
        return True
    owner = next(kind for kind in type(module).__mro__ if "forward" in vars(kind))
    return not (owner.__name__ == "LightningModule" and owner.__module__.startswith(NAMESPACES))


def _namespaces_of(part: object) -> set[str]:
    """Return the namespaces whose classes an object is an instance of."""
    modules = [kind.__module__ for kind in type(part).__mro__]
    return {name for name in NAMESPACES if any(module == name or module.startswith(f"{name}.") for module in modules)}
