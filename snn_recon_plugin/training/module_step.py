"""The ``training_step`` of a LightningModule, to be read: it runs on a private copy, with a stand-in for its trainer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from ..networks.private.workbench import copy_around

# Methods of a module that only act on its trainer.
_IDLE = ("clip_gradients", "log", "log_dict", "lr_schedulers", "print", "toggle_optimizer", "untoggle_optimizer")


class ModuleStep:
    """The module's training step as ``step(net, batch)``: a copy of the module holds the private net.

    Args:
        trainer: of the module.
        network: the module, or a part of it.
    """

    __name__ = "training_step"

    def __init__(self, trainer: Any, network: nn.Module) -> None:
        self._trainer, self._network = trainer, network
        self._holder: tuple[nn.Module, nn.Module] | None = None  # the last private net, and the copy of the module that holds it

    def __call__(self, net: nn.Module, batch: Any) -> Any:
        """Return the loss of a batch, or what else the training step returns."""
        module = self._holding(net)
        step: Callable[..., Any] = module.training_step  # type: ignore[assignment]
        given = [batch, 0, 0][: len(inspect.signature(step).parameters)]  # batch, batch_idx, dataloader_idx
        with _standing_in(module, self._trainer):
            return step(*given)

    def _holding(self, net: nn.Module) -> nn.Module:
        """Return a copy of the module that holds a private net; the net itself if it is a copy of the module."""
        module = self._trainer.lightning_module
        if self._network is module:
            return net
        if self._holder is None or self._holder[0] is not net:
            self._holder = net, copy_around(module, self._network, net, [self._trainer])
        return self._holder[1]


@contextmanager
def _standing_in(module: Any, trainer: Any) -> Iterator[None]:
    """Give a private copy of a module a stand-in for its trainer, until the block ends."""
    optimizers = [_Anything() for _ in trainer.optimizers] or [_Anything()]
    values: dict[str, Any] = dict.fromkeys(_IDLE, _Anything())
    values |= {
        "all_gather": lambda data, *args, **kwargs: data,
        "manual_backward": lambda loss, *args, **kwargs: loss.backward(),
        "optimizers": lambda *args, **kwargs: optimizers[0] if len(optimizers) == 1 else optimizers,
        "_trainer": _StandIn(trainer),
    }
    own = vars(module)
    before = {name: own[name] for name in values if name in own}
    own.update(values)
    try:
        yield
    finally:
        for name in values:
            del own[name]
        own.update(before)


class _Anything:
    """Object that takes every call and does nothing, but for the closures of an optimizer's step."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args: Any, closure: Callable[[], Any] | None = None, **kwargs: Any) -> Any:
        return self if closure is None else closure()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *args: object) -> None:
        return None


class _StandIn(_Anything):
    """Trainer that answers as in training, with plain values alone."""

    training, validating, testing, sanity_checking = True, False, False, False

    def __init__(self, trainer: Any) -> None:
        self._inner = trainer

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, name)
        plain = value is None or isinstance(value, bool | int | float | str)
        return value if plain else _Anything()
