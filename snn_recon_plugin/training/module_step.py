"""The steps of a LightningModule: read on a private copy, with a stand-in for its trainer; and run by plans, to train faster."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from operator import length_hint
from types import MethodType
from typing import Any

import torch
from torch import nn

from ..networks.libraries import isolated
from ..networks.private.workbench import copy_around
from ..read.loss_calls import replaced
from ..scan.installed import FastPass
from ..scan.surroundings import names_in, package_of

_OF_TRAINER = {"current_epoch", "global_step", "trainer", "logger", "loggers"}  # a plan would hold what they were, or log once
# Methods of a module that only act on its trainer.
_IDLE = ("clip_gradients", "log", "log_dict", "print", "toggle_optimizer", "untoggle_optimizer")
_COMPILED = ("forward", "training_step", "validation_step", "test_step")


class ModuleStep:
    """A step of the module's as ``step(net, batch)``: a copy of the module holds the private net.

    Args:
        trainer: of the module.
        network: the module, or a part of it.
        name: of the step.
    """

    def __init__(self, trainer: Any, network: nn.Module, name: str = "training_step") -> None:
        self._trainer, self._network, self.__name__ = trainer, network, name
        self._holder: tuple[nn.Module, nn.Module] | None = None  # the last private net, and the copy of the module that holds it

    def __call__(self, net: nn.Module, batch: Any) -> Any:
        """Return the loss of a batch, or what else the step returns."""
        module = self._holding(net)
        with _standing_in(module, self._trainer, training=self.__name__ == "training_step"):
            step: Callable[..., Any] = getattr(module, self.__name__)
            return step(*_arguments(step, batch))

    def _holding(self, net: nn.Module) -> nn.Module:
        """Return a copy of the module that holds a private net; the net itself if it is a copy of the module."""
        module = self._trainer.lightning_module
        if self._network is module:
            return net
        if self._holder is None or self._holder[0] is not net:
            with torch._C.DisableTorchFunction():  # the copying is no part of a pass that is recorded
                self._holder = net, copy_around(module, self._network, net, [self._trainer])
        return self._holder[1]


class FastModuleStep:
    """Training step in place of a module's own, whose time loop is outside of its network: its passes run by plans.

    Args:
        module: for which :func:`explain_slow_step` has no reason.
    """

    def __init__(self, module: Any) -> None:
        self._module, self._step = module, module.training_step
        names = names_read(type(module))
        self._pass = FastPass(module, self._run, None if "getattr" in names else names)
        self.__wrapped__ = self._step  # Lightning looks at its arguments

    def __call__(self, batch: Any, *rest: Any) -> Any:
        """Return what the step makes of a batch, and log what it logs."""
        returned, logged = self._pass(batch)
        for name, args, kwargs in logged:
            getattr(self._module, name)(*args, **kwargs)
        return returned

    def _run(self, batch: Any) -> tuple[Any, list[Any]]:
        logged: list[Any] = []
        notes = {
            name: partial(lambda name, *args, **kwargs: logged.append((name, args, kwargs)), name) for name in ("log", "log_dict")
        }
        with replaced(self._module, notes), isolated(self._module):
            return self._step(*_arguments(self._step, batch)), logged

    def __reduce__(self) -> Any:
        """Let copies of the module run its own step."""
        return getattr, (self._module, "training_step")


def explain_slow_step(module: Any) -> str:
    """Return why a module's training step can't run by plans: it depends on more than batch and module; empty if it can."""
    if not module.automatic_optimization:
        return "its optimization is manual"
    code = getattr(inspect.unwrap(type(module).training_step), "__code__", None)
    if code is None or code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS):
        return "its training_step is no function of batch and batch_idx"
    loaded = {name for each in dis.get_instructions(code) if "LOAD" in each.opname for name in each.argrepr.split(", ")}
    counters = {*code.co_varnames[2 : code.co_argcount]} & {*loaded, *code.co_cellvars}
    reads = sorted(counters | (names_read(type(module)) & _OF_TRAINER))
    return f"its training_step reads {', '.join(reads)}" if reads else ""


def names_read(kind: type) -> set[str]:
    """Return the names that a module's training step reads, and the methods and functions that it calls."""
    names, left = set[str](), [kind.training_step]  # type: ignore[attr-defined]
    while left:
        found = left.pop()
        function = inspect.unwrap(getattr(found, "fget", None) or found)
        code = getattr(function, "__code__", None)
        if code is not None and package_of(function) not in {"lightning", "pytorch_lightning", "torch"}:
            new = set(names_in(code)) - names
            names |= new
            left += [
                held for name in new for held in (getattr(kind, name, None), function.__globals__.get(name)) if held is not None
            ]
    return names


def _arguments(step: Callable[..., Any], batch: Any) -> list[Any]:
    """Return a batch, batch_idx 0 and dataloader_idx 0, as far as a step takes them."""
    return [batch, 0, 0][: len(inspect.signature(step).parameters)]


def _standing_in(module: Any, trainer: Any, *, training: bool) -> AbstractContextManager[None]:
    """Give a private copy of a module a stand-in for its trainer, until the block ends."""
    optimizers = [_Anything(param_groups=[{**group, "params": []} for group in each.param_groups]) for each in trainer.optimizers]
    schedulers = _one_or_all([_Anything() for _ in trainer.lr_scheduler_configs])
    values: dict[str, Any] = dict.fromkeys(_IDLE, _Anything())
    values |= {
        "all_gather": lambda data, *args, **kwargs: data,
        "manual_backward": lambda loss, *args, **kwargs: loss.backward(),
        "optimizers": lambda *args, **kwargs: _one_or_all(optimizers),
        "lr_schedulers": lambda: schedulers,
        "_trainer": _StandIn(inner=trainer, optimizers=optimizers, training=training, validating=not training),
    }
    if getattr(module, "_compiler_ctx", None):  # Lightning's compiled methods are bound to the user's module
        values |= {name: MethodType(getattr(type(module), name), module) for name in _COMPILED if name in vars(module)}
    return replaced(module, values)


class _Anything:
    """Object with some attributes that takes every call and does nothing, but for the closure of an optimizer's step."""

    length = 1  # it has no items all the same

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self

    def step(self, closure: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Run the closure; a scheduler's metric is none."""
        return closure() if callable(closure) else None

    def __getitem__(self, key: Any) -> Any:
        return self

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __len__(self) -> int:
        return self.length

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *args: object) -> None:
        return None


def _one_or_all(items: list[Any]) -> Any:
    """Return idle objects as Lightning returns its own: None for none, one alone, or a list."""
    return items if len(items) > 1 else items[0] if items else None


class _StandIn(_Anything):
    """Trainer that answers as in training, with plain values alone, and idle optimizers."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(vars(self)["inner"], name)
        plain = value is None or isinstance(value, bool | int | float | str)
        return value if plain else _Anything(length=length_hint(value, 1))
